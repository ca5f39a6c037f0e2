"""Burgers' equation: shocks at the right speed, and which time steps keep them clean."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.solvers import (
    SSPRK22,
    SSPRK33,
    SSPRK43,
    PublishedMidpoint,
    burgers,
    total_variation,
)


def cells(n):
    return (np.arange(n) + 0.5) / n


def step_profile(n):
    """1 on the left half, 0 on the right: a shock at 1/2 that moves at 1/2, a fan at 0."""
    return jnp.asarray(np.where(cells(n) < 0.5, 1.0, 0.0))


def exact(n, t):
    """The smooth solution u = u_0(x - u t), in float64."""
    x = cells(n)
    u = 1 + 0.5 * np.sin(2 * np.pi * x)
    for _ in range(200):
        u = 1 + 0.5 * np.sin(2 * np.pi * (x - u * t))
    return u


# Each solver in one of this test and the next, and in both in the slow pass.
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        pytest.param(diffrax.Euler(), 1, id="Euler"),
        pytest.param(SSPRK22(), 2, id="SSPRK22", marks=pytest.mark.slow),
        pytest.param(SSPRK33(), 3, id="SSPRK33"),
    ],
)
def test_smooth_solutions_converge_at_the_order_of_the_time_step(solver, order):
    errors = []
    with jax.enable_x64(True):
        for n in (40, 80):
            states = burgers(jnp.asarray(exact(n, 0.0)), solver=solver, t1=0.1)
            errors.append(np.abs(np.asarray(states)[-1] - exact(n, 0.1)).mean())
    assert np.log2(errors[0] / errors[1]) > order - 0.35
    assert errors[1] < 10.0 ** (-1 - order)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(SSPRK22(), id="SSPRK22"),
        pytest.param(SSPRK33(), id="SSPRK33", marks=pytest.mark.slow),
    ],
)
def test_the_shock_moves_at_half_the_jump_and_mass_is_kept(solver):
    n = 200
    states = np.asarray(burgers(step_profile(n), solver=solver, t1=0.4))
    np.testing.assert_allclose(states.mean(axis=1), 0.5, atol=1e-5)
    right = np.flatnonzero(states[-1] > 0.5).max()
    assert abs((right + 1) / n - 0.7) < 0.02  # 1/2 + 0.4 / 2


def test_stable_methods_keep_the_variation_where_euler_does_not():
    variation = jax.jit(total_variation)

    def most(solver, courant=0.5):
        states = burgers(step_profile(200), solver=solver, courant=courant)
        assert states.shape == (1 + 200 / courant, 200)
        return float(np.max(variation(states)))

    assert float(total_variation(step_profile(200))) == 2.0
    assert most(SSPRK33()) < 2.01
    assert most(SSPRK43(), courant=1.0) < 2.02
    assert most(diffrax.Euler()) > 2.1


def test_the_published_midpoint_goes_too_far():
    n = 200
    states = np.asarray(burgers(step_profile(n), solver=PublishedMidpoint(), t1=0.2))
    right = np.flatnonzero(states[-1] > 0.5).max()
    assert abs((right + 1) / n - 0.65) < 0.02  # 1/2 + 1.5 * 0.2 / 2


@pytest.mark.parametrize(
    ("initial", "settings", "message"),
    [
        (jnp.ones(4), {}, "5 cells; got 4"),
        (jnp.ones(8), {"courant": 0.0}, "courant must be finite and positive; got 0.0"),
        (jnp.ones(8), {"t1": float("inf")}, "t1 must be finite and positive; got inf"),
        (jnp.zeros(8), {}, "nothing moves"),
    ],
)
def test_what_cannot_be_solved_is_refused(initial, settings, message):
    with pytest.raises(ValueError, match=message):
        burgers(initial, **settings)
