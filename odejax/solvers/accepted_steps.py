"""The gradient of an adaptive solve through its accepted steps alone.

The solve records no tape. It keeps the times of the accepted steps and a few states to start from
again. The backward pass then takes each accepted step once more, from the last to the
first, and differentiates through that one step. This is the gradient of the numbers that were
computed (as with `diffrax.RecursiveCheckpointAdjoint`), step sizes held fixed, at the cost of the
solve and 3 evaluations of the field for each of its stages: 4/3 of what a tape would take that had
the accepted steps alone on it.

Steps and their sizes are those of `diffrax.diffeqsolve`, from its own solvers and controllers. The
loop over them is written out here, for a whole batch: it can keep a state without copying all that
it kept before. `_integrate` mirrors `diffeqsolve` and `loop` in `diffrax/_integrate.py` of the
versions `MIRRORED_DIFFRAX`, and `test_accepted_steps.py` compares the two step by step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._batch import gather_batch
from .._checks import check_count
from .._promotion import own_promotion
from .layer_steps import RungeKutta

# The first Diffrax version whose loop `_integrate` mirrors, and the first that is not compared.
MIRRORED_DIFFRAX = ((0, 7, 2), (0, 8))

# Where none is given: what `diffeqsolve` comes to, since Diffrax's choice of a first step does not
# take terms for those of an ODE once `diffeqsolve` has wrapped them.
_FIRST_STEP = 0.01


class AcceptedSteps(eqx.Module):
    """How to differentiate a solve through its accepted steps; reverse mode, once.

        v_i = (d y_{i+1} / d y_i)^T v_{i+1}, over the accepted steps i from the last to the first

    For `jax.jvp`, Hessians and other second derivatives pass `diffrax.DirectAdjoint()` instead.

    - `states`: how many to keep of each solve, an even number (32). One that takes more steps keeps
      the state of every second (fourth, ...) of them and recomputes those between, which costs a
      further evaluation for each of their stages, and memory for `max_steps / states` states more.

    In training (within `vmap_batch`) the gradient by the weights is that of the whole batch at
    once, not one for each example, summed.

    Raises `ValueError` for an odd number of states, or fewer than 2.

        >>> import diffrax, odejax
        >>> controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        >>> odejax.solvers.AcceptedSteps.supports(diffrax.Dopri5(), controller)
        True
        >>> odejax.solvers.AcceptedSteps.supports(diffrax.Kvaerno3(), controller)
        False

    Zhuang et al. (2020), arXiv:2006.02493, differentiate through accepted steps too; the loop is
    that of Diffrax, Kidger (2021), arXiv:2202.02435.
    """

    states: int = eqx.field(static=True, default=32)

    def __check_init__(self):
        check_count(2, states=self.states)
        if self.states % 2:
            raise ValueError(f"states must be even and at least 2; got {self.states}")

    @staticmethod
    def supports(
        solver: diffrax.AbstractSolver, stepsize_controller: diffrax.AbstractStepSizeController
    ) -> bool:
        """Whether it can differentiate what these make.

        Explicit Runge-Kutta steps of a `diffrax.ConstantStepSize`, or of a `diffrax.PIDController`
        that does not give up at a smallest step.
        """
        explicit = isinstance(solver, diffrax.Euler | diffrax.AbstractERK)
        if isinstance(stepsize_controller, diffrax.PIDController):
            return explicit and (
                stepsize_controller.dtmin is None or stepsize_controller.force_dtmin
            )
        return explicit and isinstance(stepsize_controller, diffrax.ConstantStepSize)

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

        What it is differentiated by, and what differs between the examples of a batch, must be in
        `y0` and `args`. States of less than 32 bits are solved for in float32; the field is
        evaluated at, and the end is, what they round to. Raises `ValueError` for a solver or
        controller that is not supported (`supports`).
        """
        if not self.supports(solver, stepsize_controller):
            raise ValueError(
                f"AcceptedSteps takes diffrax.Euler or an explicit Runge-Kutta method, and a "
                f"diffrax.PIDController or diffrax.ConstantStepSize; got "
                f"{type(solver).__name__} and {type(stepsize_controller).__name__}"
            )
        if dt0 is None and isinstance(stepsize_controller, diffrax.PIDController):
            dt0 = _FIRST_STEP
        y0 = jax.tree.map(lambda a: a if eqx.is_inexact_array(a) else jnp.asarray(a, float), y0)
        dtypes = jax.tree.map(lambda a: a.dtype, y0)

        def rounded(y):
            return jax.tree.map(lambda a, dtype: a.astype(dtype), y, dtypes)

        def wide(t, y, args):
            return jax.tree.map(lambda dy, a: dy.astype(a.dtype), field(t, rounded(y), args), y)

        problem = _Problem(
            wide, RungeKutta(solver), solver, stepsize_controller, t1, dt0, max_steps, self.states
        )
        start = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a, jnp.float32)), y0)
        start, own_of = gather_batch(start)
        end = own_of(_solve((start, args), problem))
        results = diffrax.RESULTS
        return diffrax.Solution(
            t0=jnp.zeros_like(end.t),
            t1=end.t,
            ts=end.t[None],
            ys=jax.tree.map(lambda a: a[None], rounded(end.y)),
            interpolation=None,
            stats={
                "max_steps": max_steps,
                "num_steps": end.steps,
                "num_accepted_steps": end.accepted,
                "num_rejected_steps": end.steps - end.accepted,
            },
            result=results.where(end.t < t1, results.max_steps_reached, results.successful),
            solver_state=None,
            controller_state=None,
            made_jump=None,
            event_mask=None,
        )


class _Problem(eqx.Module):
    field: Callable[..., Any] = eqx.field(static=True)
    step: RungeKutta
    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController
    t1: float = eqx.field(static=True)
    dt0: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    states: int = eqx.field(static=True)

    def take(self, t, h, y, args):
        """A step of each of a batch, from its own time and of its own size."""

        def one(t, h, y):
            return self.step.at_times(lambda s, y: self.field(s, y, args), t, y, h)

        return jax.vmap(one)(t, h, y)


class _Progress(NamedTuple):
    """Where each of a batch of solves is."""

    t: Array
    t_next: Array
    y: PyTree[Array]
    of_solver: PyTree[Array]
    of_controller: PyTree[Array]
    steps: Array
    accepted: Array


class _Kept(NamedTuple):
    """Of each solve: when its accepted steps ended, and the states before some of them.

    State i is that before step i `stride`, which is the same of all.
    """

    times: Array
    states: PyTree[Array]
    stride: Array


@eqx.filter_custom_vjp
def _solve(start_and_args, problem) -> _Progress:
    start, args = start_and_args
    progress, _ = _as_one_batch(_integrate, problem, (start,), args, keep=False)
    return progress


@_solve.def_fwd
def _solve_forward(perturbed, start_and_args, problem):
    start, args = start_and_args
    progress, kept = _as_one_batch(_integrate, problem, (start,), args, keep=True)
    return progress, (kept, progress.accepted)


@_solve.def_bwd
def _solve_backward(residuals, cotangent, perturbed, start_and_args, problem):
    start, args = start_and_args
    diff_args, other_args = eqx.partition(args, perturbed[1])
    cotangent_y = jax.tree.map(
        lambda y, a: jnp.zeros_like(y) if a is None else a, start, cotangent.y
    )
    # The gradient by the weights is a sum over the batch: then two batches must stay two.
    fold = not jax.tree.leaves(diff_args)
    batch, shared = (start, cotangent_y, *residuals), (diff_args, other_args)
    return _as_one_batch(_differentiate, problem, batch, shared, fold=fold)


def _as_one_batch(function, problem, batch, shared, *, fold=True, **settings):
    """`function(problem, batch, shared, **settings)`, under `vmap` of both batches as one.

    The first axis of all of `batch`, and of what is returned, is that of the batch. The loops in it
    change their buffers in place; under `vmap` they would copy them in every step.
    """
    arrays, static = eqx.partition(shared, eqx.is_array)

    def run(batch, arrays):
        return function(problem, batch, eqx.combine(arrays, static), **settings)

    @jax.custom_batching.custom_vmap
    def of_one_batch(batch, arrays):
        return run(batch, arrays)

    @of_one_batch.def_vmap
    def of_many(size, in_batched, batch, arrays):
        if fold and not any(jax.tree.leaves(in_batched[1])):

            def merge(a, batched):
                a = a if batched else jnp.broadcast_to(a, (size, *a.shape))
                return a.reshape(-1, *a.shape[2:])

            out = of_one_batch(jax.tree.map(merge, batch, in_batched[0]), arrays)
            out = jax.tree.map(lambda a: a.reshape(size, -1, *a.shape[1:]), out)
        else:
            axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
            out = jax.vmap(run, in_axes=axes, axis_size=size)(batch, arrays)
        return out, jax.tree.map(lambda _: True, out)

    return of_one_batch(batch, arrays)


@own_promotion
def _integrate(problem: _Problem, batch, args, *, keep: bool):
    """The end of each solve, and what it kept (None unless asked for)."""
    (start,) = batch
    n = len(jax.tree.leaves(start)[0])
    solver, controller = problem.solver, problem.stepsize_controller
    term: Any = diffrax.ODETerm(problem.field)
    order: Any = solver.error_order(term)
    dtype = jnp.result_type(float, *jax.tree.leaves(start))
    t1 = near = np.asarray(problem.t1, dtype)
    for _ in range(100):  # as Diffrax does: a step that ends this close to t1 ends there
        near = np.nextafter(near, np.asarray(0, dtype))

    def begin(y):
        zero = jnp.zeros((), dtype)
        dt0 = None if problem.dt0 is None else jnp.asarray(problem.dt0, dtype)
        t_next, of_controller = controller.init(term, zero, t1, y, dt0, args, solver.func, order)
        t_next = jnp.minimum(t_next, t1)
        of_solver = solver.init(term, zero, t_next, y, args)
        none = jnp.zeros((), jnp.int32)
        progress = _Progress(zero, t_next, y, of_solver, of_controller, none, none)
        return jax.tree.map(jnp.asarray, progress)

    def advance(now: _Progress):
        y, error, _, of_solver, _ = solver.step(
            term, now.t, now.t_next, now.y, args, now.of_solver, made_jump=False
        )
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        accepted, t, t_next, _, of_controller, _ = controller.adapt_step_size(
            now.t, now.t_next, now.y, y, args, error, order, now.of_controller
        )
        t = jnp.minimum(t, t1)
        last = jnp.where(accepted, t1, t + 0.5 * (t1 - t))
        t_next = jnp.where(t_next > near, last, t_next)
        y, of_solver = jax.tree.map(
            lambda a, b: jnp.where(accepted, a, b), (y, of_solver), (now.y, now.of_solver)
        )
        counts = now.steps + 1, now.accepted + jnp.where(accepted, 1, 0)
        return _Progress(t, t_next, y, of_solver, of_controller, *counts)

    def goes_on(now: _Progress):
        return (now.t < t1) & (now.steps < problem.max_steps)

    def move(now: _Progress):
        return _where(goes_on(now), jax.vmap(advance)(now), now)

    progress = jax.vmap(begin)(start)
    if not keep:
        return lax.while_loop(lambda now: jnp.any(goes_on(now)), move, progress), None

    rows = jnp.arange(n)

    def full(now: _Progress, kept: _Kept):
        return jnp.any(goes_on(now) & (now.accepted == problem.states * kept.stride))

    def step(carry):
        now, kept = carry
        # Written again where the last step was rejected; dropped where the index is out of bounds.
        due = goes_on(now) & (now.accepted % kept.stride == 0)
        slot = jnp.where(due, now.accepted // kept.stride, problem.states)
        states = jax.tree.map(
            lambda buffer, y: buffer.at[rows, slot].set(y, mode="drop"), kept.states, now.y
        )
        then = move(now)
        ended = jnp.where(then.accepted > now.accepted, now.accepted, problem.max_steps)
        times = kept.times.at[rows, ended].set(then.t, mode="drop")
        return then, _Kept(times, states, kept.stride)

    def steps_until_full(carry):
        """Half of the states are given up, then steps taken until there are as many again."""
        now, kept = carry
        half = problem.states // 2
        states = jax.tree.map(lambda a: a.at[:, :half].set(a[:, ::2]), kept.states)
        stride = jnp.where(jnp.any(now.steps > 0), 2 * kept.stride, kept.stride)
        return lax.while_loop(
            lambda carry: jnp.any(goes_on(carry[0])) & ~full(*carry),
            step,
            (now, _Kept(kept.times, states, stride)),
        )

    kept = _Kept(
        jnp.zeros((n, problem.max_steps), dtype),
        jax.tree.map(lambda a: jnp.zeros((n, problem.states, *a.shape[1:]), a.dtype), start),
        jnp.ones((), jnp.int32),
    )
    progress, kept = lax.while_loop(
        lambda carry: jnp.any(goes_on(carry[0])), steps_until_full, (progress, kept)
    )
    return progress, kept._replace(stride=jnp.full(n, kept.stride))


@own_promotion
def _differentiate(problem: _Problem, batch, shared):
    """The cotangents of the initial values and of the part of `args` that is differentiated."""
    start, cotangent_end, (times, states, stride), accepted = batch
    diff_args, other_args = shared
    stride = stride[0]
    longest = 1
    while problem.states * longest < problem.max_steps:
        longest *= 2

    def back(i, y, carry):
        cotangent_y, cotangent_args = carry
        taken = i < accepted
        t = jnp.where(i > 0, times[:, jnp.maximum(i - 1, 0)], 0.0)
        t, h = jnp.where(taken, t, 0.0), jnp.where(taken, times[:, i] - t, 0.0)
        seed = _where(taken, cotangent_y, jax.tree.map(jnp.zeros_like, cotangent_y))

        def take(y, diff_args):
            return problem.take(t, h, y, eqx.combine(diff_args, other_args))

        _, pull_back = jax.vjp(take, y, diff_args)
        cotangent_before, of_step = pull_back(seed)
        cotangent_args = jax.tree.map(jnp.add, cotangent_args, of_step)
        return _where(taken, cotangent_before, cotangent_y), cotangent_args

    def segment(carry):
        """The steps from one kept state to the next, taken again and then back."""
        j, carry = carry
        first = j * stride
        last = jnp.minimum(first + stride, jnp.max(accepted))
        # After an example's last step there are zeros, or states that belong to no step.
        y = _where(first < accepted, jax.tree.map(lambda a: a[:, j], states), start)
        if longest == 1:
            return j - 1, back(first, y, carry)

        again = jax.tree.map(lambda a: jnp.zeros((longest, *a.shape), a.dtype).at[0].set(a), y)

        def ahead(i, again):
            t = jnp.where(first + i > 0, times[:, jnp.maximum(first + i - 1, 0)], 0.0)
            h = jnp.where(first + i < accepted, times[:, first + i] - t, 0.0)
            y = jax.tree.map(lambda a: a[i], again)
            y = problem.take(t, h, y, eqx.combine(diff_args, other_args))
            return jax.tree.map(lambda a, new: a.at[i + 1].set(new), again, y)

        again = lax.fori_loop(0, last - first - 1, ahead, again)

        def inner(carry):
            i, carry = carry
            return i - 1, back(first + i, jax.tree.map(lambda a: a[i], again), carry)

        _, carry = lax.while_loop(lambda c: c[0] >= 0, inner, (last - first - 1, carry))
        return j - 1, carry

    carry = cotangent_end, jax.tree.map(jnp.zeros_like, diff_args)
    segments = -(-jnp.max(accepted) // stride)
    _, cotangents = lax.while_loop(lambda c: c[0] >= 0, segment, (segments - 1, carry))
    return cotangents


def _where(chosen, a, b):
    """Of each example of a batch, `a` or `b`."""

    def leaf(a, b):
        return jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(leaf, a, b)
