"""SSPRK methods: their order, the property in their name, and the papers' blocks."""

from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from odejax.solvers import SSPRK22, SSPRK33, SSPRK43, SSPRK104

ORDERS = [(SSPRK22(), 2), (SSPRK33(), 3), (SSPRK43(), 3), (SSPRK104(), 4)]
SOLVERS = [solver for solver, _ in ORDERS]
deterministic = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def name(value):
    return type(value).__name__ if isinstance(value, diffrax.AbstractSolver) else str(value)


def logistic(t, y, args):
    return y * (1 - y)


def logistic_solution(t):
    return 0.1 * np.exp(t) / (0.9 + 0.1 * np.exp(t))


def decay(t, y, args):
    """Not autonomous, so that the nodes c count: y = 1 / (1 + t^2) from y(0) = 1."""
    return -2 * t * y**2


@eqx.filter_jit
def _solve(field, solver, y0, t1, dt0, kwargs):
    term = diffrax.ODETerm(field)
    return diffrax.diffeqsolve(term, solver, 0.0, t1, dt0, y0, **dict(kwargs))


def solve(field, solver, y0, t1, steps, **kwargs):
    """Times, steps and starts are arrays, so that one program does for all."""
    t1, dt0 = jnp.asarray(float(t1)), jnp.asarray(t1 / steps)
    return _solve(field, solver, jnp.asarray(y0), t1, dt0, tuple(kwargs.items()))


def observed_order(errors):
    return np.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=name)
def test_order_of_convergence(solver, order):
    with jax.enable_x64(True):
        errors = [
            abs(float(solve(decay, solver, 1.0, 2.0, n).ys[0]) - 1 / 5) for n in (40, 80, 160)
        ]
    assert abs(observed_order(errors) - order) < 0.2


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=name)
def test_order_of_the_dense_output(solver, order):
    ts = np.linspace(0, 2, 401)
    with jax.enable_x64(True):
        errors = [
            np.abs(
                solve(logistic, solver, 0.1, 2.0, n, saveat=diffrax.SaveAt(ts=ts)).ys
                - logistic_solution(ts)
            ).max()
            for n in (20, 40, 80)
        ]
    assert observed_order(errors) > min(order, 3) - 0.2  # cubic


# The property: upwind schemes whose Euler step does not increase the total variation.


def total_variation(u):
    return np.abs(u - np.roll(u, 1, axis=-1)).sum(axis=-1)


def advection(t, u, args):
    """u_t + u_x = 0 on the unit circle, first-order upwind."""
    return -(u - jnp.roll(u, 1)) * len(u)


def burgers(t, u, args):
    """u_t + (u^2 / 2)_x = 0 on the unit circle, first-order upwind, for u >= 0."""
    return -(u**2 - jnp.roll(u, 1) ** 2) / 2 * len(u)


def variations(field, solver, u0, courant=1.0, steps=8):
    """The total variation of the profile before and after each of `steps` steps, in float64."""
    with jax.enable_x64(True):
        solution = solve(
            field, solver, u0, steps * courant / len(u0), steps, saveat=diffrax.SaveAt(steps=True),
            max_steps=steps,
        )  # fmt: skip
        return total_variation(np.vstack([u0, solution.ys]))


def grows(variation):
    return bool((np.diff(variation) > 1e-12 * (1 + variation[0])).any())


class NegativeWeight(diffrax.AbstractERK):
    """Order 2, two stages, but no convex combination of Euler steps (Gottlieb and Shu 1998)."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([-20.0]),
        a_lower=(np.array([-20.0]),),
        b_sol=np.array([41 / 40, -1 / 40]),
        b_error=np.array([1 / 40, -1 / 40]),
    )
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 2


STEP = np.where(np.arange(32) < 16, 1.0, 0.0)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("field", [advection, pytest.param(burgers, marks=pytest.mark.slow)])
@example(u0=STEP)
@given(u0=arrays(np.float64, 32, elements=st.floats(0, 1, allow_subnormal=False)))
@deterministic
def test_the_total_variation_of_no_profile_grows(solver, field, u0):
    assert not grows(variations(field, solver, u0, solver.ssp_coefficient))


def test_a_method_with_a_negative_weight_does_grow():
    assert grows(variations(burgers, NegativeWeight(), STEP, steps=1))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_the_coefficient_is_no_larger(solver):
    assert grows(variations(advection, solver, STEP, courant=1.2 * solver.ssp_coefficient))


def _residual(n=5):
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)))
    return lambda x: jnp.tanh(matrix @ x)


def test_ssp2_block_is_one_step():
    with jax.enable_x64(True):
        f = _residual()
        x = jnp.asarray(np.random.default_rng(1).normal(size=5))
        x1 = x + f(x)
        block = x / 2 + (x1 + f(x1)) / 2
        step = solve(lambda t, y, args: f(y), SSPRK22(), x, 1.0, 1).ys[0]
        np.testing.assert_allclose(step, block, rtol=0, atol=1e-14)


def test_ssp3_block_is_one_step():
    with jax.enable_x64(True):
        f = _residual()
        x = jnp.asarray(np.random.default_rng(2).normal(size=5))
        x1 = x + f(x)
        x2 = 3 * x / 4 + (x1 + f(x1)) / 4
        block = x / 3 + 2 * (x2 + f(x2)) / 3
        step = solve(lambda t, y, args: f(y), SSPRK33(), x, 1.0, 1).ys[0]
        np.testing.assert_allclose(step, block, rtol=0, atol=1e-14)


@eqx.filter_jit
def adaptive(solver, tol):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(logistic), solver, 0.0, 2.0, None, jnp.asarray(0.1),
        stepsize_controller=diffrax.PIDController(tol, tol), max_steps=100_000,
    )  # fmt: skip


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=name)
def test_adaptive_steps_reach_the_tolerance(solver, order):
    steps = []
    with jax.enable_x64(True):
        for tol in (1e-4, 1e-6, 1e-8):
            solution = adaptive(solver, jnp.asarray(tol))
            assert abs(float(solution.ys[0]) - logistic_solution(2.0)) < 10 * tol
            steps.append(int(solution.stats["num_accepted_steps"]))
    # The local error that is controlled has the size of h^order.
    assert abs(np.log(steps[2] / steps[1]) / np.log(100) - 1 / order) < 0.1
