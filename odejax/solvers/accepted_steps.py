"""The gradient of an adaptive solve through its accepted steps alone.

The solve runs without a tape; what stays of it are the times of the accepted steps and states to
start from again. The backward pass then takes each accepted step once more, from the last to the
first, and differentiates through that one step. This is the gradient of the numbers that were
computed (as with `diffrax.RecursiveCheckpointAdjoint`), step sizes held fixed, at the cost of the
solve and 3 evaluations of the field for each of its stages: 4/3 of what a tape would take that had
the accepted steps alone on it, and memory for as many states as `max_steps` lets it keep, few steps
or many.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._batch import batch_is_whole
from .._types import BATCH_AXIS
from .layer_steps import RungeKutta

_STATES = 256  # kept by default


class AcceptedSteps(eqx.Module):
    """Differentiate a solve through its accepted steps; reverse mode, once.

    - `every`: keep the state of every so many steps, and recompute those between, which costs a
      further evaluation for each of their stages; by default as few as make at most 256 states.

    In training (within `vmap_batch`) the gradient by the weights is that of the whole batch at
    once, not one for each example, summed.
    """

    every: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(f"every must be at least 1; got {self.every}")

    def __call__(
        self,
        field: Callable[..., PyTree[Array]],
        y0: PyTree[Array],
        args: PyTree,
        *,
        solver: diffrax.AbstractSolver,
        stepsize_controller: diffrax.AbstractStepSizeController,
        t1: float,
        dt0: float | None,
        max_steps: int,
    ) -> diffrax.Solution:
        """`diffrax.diffeqsolve` of y' = field(t, y, args) from 0 to `t1`, saving y(t1).

        What it is differentiated by must be in `y0` and `args`; `args` is the same for all examples
        of a batch. Raises `ValueError` for a solver
        that is not an explicit Runge-Kutta method.
        """
        every = math.ceil(max_steps / _STATES) if self.every is None else self.every
        problem = _Problem(
            field, RungeKutta(solver), solver, stepsize_controller, t1, dt0, max_steps, every
        )
        batched = batch_is_whole()
        start = jax.tree.map(
            lambda a: lax.all_gather(a, BATCH_AXIS) if batched else jnp.asarray(a)[None], y0
        )
        solution = _solve((start, args), problem)
        index = lax.axis_index(BATCH_AXIS) if batched else 0
        return jax.tree.map(lambda a: a[index] if eqx.is_array(a) else a, solution)


class _Problem(eqx.Module):
    field: Callable[..., Any] = eqx.field(static=True)
    step: RungeKutta
    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController
    t1: float = eqx.field(static=True)
    dt0: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    every: int = eqx.field(static=True)

    def solve(self, start, args, saveat: diffrax.SaveAt) -> diffrax.Solution:
        """Of each of a batch of initial values."""

        def one(y0):
            return diffrax.diffeqsolve(
                diffrax.ODETerm(self.field),
                self.solver,
                0.0,
                self.t1,
                self.dt0,
                y0,
                args,
                saveat=saveat,
                stepsize_controller=self.stepsize_controller,
                max_steps=self.max_steps,
                throw=False,  # raising needs a host callback, which defeats compilation caches
            )

        return jax.vmap(one)(start)

    def take(self, t, h, y, args):
        """A step of each of a batch, from its own time and of its own size."""

        def one(t, h, y):
            return self.step.at_times(lambda s, y: self.field(s, y, args), t, y, h)

        return jax.vmap(one)(t, h, y)


@eqx.filter_custom_vjp
def _solve(start_and_args, problem):
    start, args = start_and_args
    return problem.solve(start, args, diffrax.SaveAt(t1=True))


@_solve.def_fwd
def _solve_forward(perturbed, start_and_args, problem):
    start, args = start_and_args
    saveat = diffrax.SaveAt(
        subs=(
            diffrax.SubSaveAt(t1=True),
            diffrax.SubSaveAt(steps=1, fn=lambda t, y, args: t),
            diffrax.SubSaveAt(t0=True, steps=problem.every),
        )
    )
    solution = problem.solve(start, args, saveat)
    (t, _, _), (y, times, states) = solution.ts, solution.ys
    accepted = solution.stats["num_accepted_steps"]
    solution = eqx.tree_at(lambda s: (s.ts, s.ys), solution, (t, y))
    return solution, (times, states, accepted)


@_solve.def_bwd
def _solve_backward(residuals, cotangent, perturbed, start_and_args, problem):
    times, states, accepted = residuals
    start, args = start_and_args
    wanted, rest = eqx.partition(args, perturbed[1])
    every = problem.every

    def times_of(i):
        """When step i starts, how long it is, and whether the example takes it."""
        end = times[:, i]
        t = jnp.where(i > 0, times[:, jnp.maximum(i - 1, 0)], 0.0)
        taken = i < accepted
        return jnp.where(taken, t, 0.0), jnp.where(taken, end - t, 0.0), taken

    def where(taken, a, b):
        def leaf(a, b):
            return jnp.where(taken.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        return jax.tree.map(leaf, a, b)

    def state_at(i):
        # Behind an example's last step the buffer holds infinities, and 0 x inf would be NaN.
        return where(i <= accepted, jax.tree.map(lambda a: a[:, i // every], states), start)

    def back(i, y, carry):
        t, h, taken = times_of(i)
        of_y, of_args = carry
        seed = where(taken, of_y, jax.tree.map(jnp.zeros_like, of_y))

        def take(y, wanted):
            return problem.take(t, h, y, eqx.combine(wanted, rest))

        _, pull_back = jax.vjp(take, y, wanted)
        before, more = pull_back(seed)
        return where(taken, before, of_y), jax.tree.map(jnp.add, of_args, more)

    def segment(carry):
        """The steps from one kept state to the next, taken again and then back."""
        j, carry = carry
        first = j * every
        last = jnp.minimum(first + every, jnp.max(accepted))
        y = state_at(first)
        if every == 1:
            return j - 1, back(first, y, carry)

        kept = jax.tree.map(lambda a: jnp.zeros((every, *a.shape), a.dtype).at[0].set(a), y)

        def ahead(i, kept):
            t, h, _ = times_of(first + i)
            y = problem.take(t, h, jax.tree.map(lambda a: a[i], kept), args)
            return jax.tree.map(lambda a, new: a.at[i + 1].set(new), kept, y)

        kept = lax.fori_loop(0, last - first - 1, ahead, kept)

        def inner(carry):
            i, carry = carry
            return i - 1, back(first + i, jax.tree.map(lambda a: a[i], kept), carry)

        _, carry = lax.while_loop(lambda c: c[0] >= 0, inner, (last - first - 1, carry))
        return j - 1, carry

    of_y = jax.tree.map(
        lambda y, a: jnp.zeros_like(y) if a is None else a[:, 0], start, cotangent.ys
    )
    carry = of_y, jax.tree.map(jnp.zeros_like, wanted)
    segments = -(-jnp.max(accepted) // every)
    _, (of_y, of_args) = lax.while_loop(lambda c: c[0] >= 0, segment, (segments - 1, carry))
    return of_y, of_args
