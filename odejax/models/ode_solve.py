"""How a neural ODE is solved and differentiated."""

import dataclasses
from collections.abc import Callable
from typing import cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._checks import check_count, check_instance, check_positive
from ..solvers import AcceptedSteps, GridSteps, RungeKutta


class ODESolve(eqx.Module):
    """How an ODE is solved and differentiated: `solve(field, y0, args)` is a `diffrax.Solution`.

        y(t1) of y' = field(t, y, args),  y(0) = y0

    - `t1`: the time of integration (1.0).
    - `solver`, `stepsize_controller`, `dt0`: Diffrax's own. The default is Dopri5 with steps
      adapted to rtol = atol = 1e-3, as *nmode* has it; for constant steps pass
      `diffrax.ConstantStepSize()` and `dt0`. Under `vmap` every example has its own steps (and all
      wait for the slowest).
    - `adjoint`: Diffrax's own, `AcceptedSteps()` or `GridSteps(n)` (see `on_grid`). None is
      `AcceptedSteps()` where it can be, for an explicit Runge-Kutta method, and else
      `diffrax.RecursiveCheckpointAdjoint()`: both give the gradient of the solver's own steps. Both
      are for first derivatives in reverse mode; for `jax.jvp` and second derivatives pass
      `diffrax.DirectAdjoint()`.
    - `max_steps`: a solve that needs more (256) does not raise: look at `solution.result`.

    The solve runs at the highest matrix precision: rounding of TF32 size makes an adaptive
    controller take many times more steps. Raises `ValueError` for a `t1` or `dt0` that is
    not finite and positive, fewer than one step, and for constant steps without `dt0`.

        >>> import jax, jax.numpy as jnp, odejax
        >>> solve = odejax.models.ODESolve(t1=1.0)
        >>> solution = solve(lambda t, y, args: -args * y, jnp.ones(1), jnp.ones(1))
        >>> round(float(solution.ys[0, 0]), 2)
        0.37

    Kidger (2021), *On Neural Differential Equations*, arXiv:2202.02435.
    """

    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint | AcceptedSteps | GridSteps
    t1: float = eqx.field(static=True)
    dt0: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        t1: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        dt0: float | None = None,
        adjoint: diffrax.AbstractAdjoint | AcceptedSteps | GridSteps | None = None,
        max_steps: int = 256,
    ):
        check_positive(t1=t1, dt0=dt0)
        check_count(max_steps=max_steps)
        if isinstance(stepsize_controller, diffrax.ConstantStepSize) and dt0 is None:
            raise ValueError("constant steps need dt0")
        self.solver = diffrax.Dopri5() if solver is None else solver
        check_instance(diffrax.AbstractSolver, "a Diffrax solver", solver=self.solver)
        if stepsize_controller is None:
            stepsize_controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        self.stepsize_controller = stepsize_controller
        if adjoint is None:
            supported = AcceptedSteps.supports(self.solver, stepsize_controller)
            adjoint = AcceptedSteps() if supported else diffrax.RecursiveCheckpointAdjoint()
        self.adjoint = adjoint
        self.t1, self.dt0, self.max_steps = t1, dt0, max_steps

    def __call__(
        self, field: Callable[..., PyTree[Array]], y0: PyTree[Array], args: PyTree
    ) -> diffrax.Solution:
        """`field` must take what it is differentiated by from `args`: the continuous adjoint has no
        derivative by what is closed over."""
        with jax.default_matmul_precision("highest"):
            if isinstance(self.adjoint, GridSteps):
                return self.adjoint(field, y0, args, solver=self.solver, t1=self.t1)
            if isinstance(self.adjoint, AcceptedSteps):
                return self.adjoint(
                    field,
                    y0,
                    args,
                    solver=self.solver,
                    stepsize_controller=self.stepsize_controller,
                    t1=self.t1,
                    dt0=self.dt0,
                    max_steps=self.max_steps,
                )
            # Times of the state's dtype: under x64 a Python number would make float64 of it.
            dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(y0))
            t0, t1 = jnp.zeros((), dtype), jnp.asarray(self.t1, dtype)
            return diffrax.diffeqsolve(
                diffrax.ODETerm(field),  # pyright: ignore[reportArgumentType]
                self.solver,
                t0,
                t1,
                None if self.dt0 is None else jnp.asarray(self.dt0, dtype),
                y0,
                args,
                stepsize_controller=self.stepsize_controller,
                adjoint=self.adjoint,
                max_steps=self.max_steps,
                throw=False,  # raising needs a host callback, which defeats the compilation cache
            )

    def statistics(self, solution: diffrax.Solution) -> dict[str, Array]:
        """What a solve took, and whether it came to its end.

        "steps", of them "rejected"; "evaluations" of the field in them (of explicit Runge-Kutta
        methods alone); "unsolved": 1 where `max_steps` were not enough, else 0.
        """
        steps = solution.stats["num_steps"]
        statistics = {"steps": steps, "rejected": solution.stats["num_rejected_steps"]}
        if isinstance(self.solver, diffrax.Euler | diffrax.AbstractERK):
            fsal, stages = False, 1
            if isinstance(self.solver, diffrax.AbstractERK):
                tableau = cast(diffrax.ButcherTableau, self.solver.tableau)
                # First same as last: a step begins with the last slope of the step before.
                fsal, stages = tableau.fsal, tableau.num_stages
            statistics["evaluations"] = steps * (stages - fsal) + fsal
        statistics["unsolved"] = (solution.result != diffrax.RESULTS.successful).astype(jnp.int32)
        return statistics

    def on_grid(self, steps: int) -> "ODESolve":
        """The same in so many equal steps, whatever the state: a network that can be certified.

        An adaptive controller's steps depend on the image, and jump where one is rejected; a proof
        about a grid says nothing of them. So the network on the grid is one of its own: evaluate,
        attack and certify it.

            >>> import equinox as eqx, odejax
            >>> solve = odejax.models.ODESolve(t1=1.0).on_grid(4)
            >>> solve.dt0
            0.25

        Raises `ValueError` for no steps, and for a solver that is not an explicit Runge-Kutta
        method.
        """
        check_count(steps=steps)
        RungeKutta(self.solver)  # which refuses others
        return self.replace(
            stepsize_controller=diffrax.ConstantStepSize(),
            dt0=self.t1 / steps,
            adjoint=GridSteps(steps),
            max_steps=steps,
        )

    def replace(self, **changes) -> "ODESolve":
        """The same with other settings; `TypeError` for a name that is none."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if unknown := set(changes) - set(settings):
            raise TypeError(f"{sorted(unknown)} are no settings; there are {sorted(settings)}")
        return ODESolve(**settings | changes)
