"""Solves on a fixed grid: the same steps for every state, in one `lax.scan`."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._checks import check_count
from .layer_steps import RungeKutta


class GridSteps(eqx.Module):
    """How to solve in `steps` equal steps of an explicit Runge-Kutta method, and differentiate it.

        y_{i+1} = y_i + h sum_j b_j k_j,  h = t1 / steps

    What is computed is that of `diffrax.ConstantStepSize`, as a loop of known length: it is
    differentiable in both modes, any number of times, and bounds can be propagated through it.

    - `steps`: how many.

    Raises `ValueError` for no steps, and for a solver that is not explicit.

        >>> import diffrax, jax.numpy as jnp, odejax
        >>> grid = odejax.solvers.GridSteps(2)
        >>> decay = lambda t, y, args: -y
        >>> solution = grid(decay, jnp.ones(1), None, solver=diffrax.Euler(), t1=1.0)
        >>> solution.ys[0].tolist()
        [0.25]

    Hairer, Nørsett and Wanner (1993), *Solving Ordinary Differential Equations I*.
    """

    steps: int = eqx.field(static=True)

    def __check_init__(self):
        check_count(steps=self.steps)

    def __call__(
        self,
        field: Callable[..., PyTree[Array]],
        y0: PyTree[Array],
        args: PyTree,
        *,
        solver: diffrax.AbstractSolver,
        t1: float,
    ) -> diffrax.Solution:
        """The solution of y' = field(t, y, args) from 0 to `t1`, saved at `t1`."""
        step = RungeKutta(solver)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(y0))
        times = jnp.arange(self.steps, dtype=dtype) * (t1 / self.steps)

        @jax.checkpoint
        def take(y, t):
            return step.at_times(lambda t, y: field(t, y, args), t, y, t1 / self.steps), None

        y, _ = jax.lax.scan(take, y0, times)
        return diffrax.Solution(
            t0=jnp.zeros((), dtype),
            t1=jnp.asarray(t1, dtype),
            ts=jnp.asarray([t1], dtype),
            ys=jax.tree.map(lambda a: a[None], y),
            interpolation=None,
            stats={
                "max_steps": self.steps,
                "num_steps": jnp.asarray(self.steps),
                "num_accepted_steps": jnp.asarray(self.steps),
                "num_rejected_steps": jnp.asarray(0),
            },
            result=diffrax.RESULTS.successful,
            solver_state=None,
            controller_state=None,
            made_jump=None,
            event_mask=None,
        )
