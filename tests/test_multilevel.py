"""Multilevel Monte Carlo against closed forms of the Ornstein-Uhlenbeck process and plain Monte
Carlo; weak order 1.
"""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.solvers import (
    ConstantNoise,
    RelativeNoise,
    feynman_kac,
    multilevel_feynman_kac,
)

KEY = jax.random.key(0)
THETA, SIGMA, X = 1.0, 0.8, jnp.array([1.0, -0.5])


def drift(t, y):
    return -THETA * y


def gaussian(y):
    return jnp.exp(-(y**2) / 2)


def square(y):
    return y**2


def exact(f, mean, variance):
    if f is square:
        return mean**2 + variance
    return np.exp(-(mean**2) / (2 * (1 + variance))) / np.sqrt(1 + variance)


def process(f):
    """u(x, 0) of the differential equation."""
    x = np.asarray(X)
    variance = SIGMA**2 * (1 - np.exp(-2 * THETA)) / (2 * THETA)
    return exact(f, x * np.exp(-THETA), variance)


def scheme(f, steps):
    """u(x, 0) of Euler-Maruyama: y+ = r y + sigma sqrt(h) N."""
    r, h = 1 - THETA / steps, 1 / steps
    variance = SIGMA**2 * h * np.sum(r ** (2 * np.arange(steps)))
    return exact(f, np.asarray(X) * r**steps, variance)


each_function = pytest.mark.parametrize(
    "f", [square, pytest.param(gaussian, marks=pytest.mark.slow)]
)


@each_function
def test_the_weak_error_is_of_first_order(f):
    counts, noise = np.array([2, 4, 8]), 1e-3
    means = [
        multilevel_feynman_kac(
            f, drift, ConstantNoise(SIGMA), X, steps=(int(n),), standard_error=noise, key=KEY,
            batch=32_768,
        ).mean
        for n in counts
    ]  # fmt: skip
    errors = np.array([mean - process(f) for mean in means])
    order = -np.polyfit(np.log(counts), np.log(np.abs(errors).max(axis=1)), 1)[0]
    assert np.abs(errors[-1]).max() > 5 * noise  # it is the bias that is seen
    assert order == pytest.approx(1, abs=0.25)


@each_function
def test_it_has_the_mean_of_the_finest_scheme_at_less_cost(f):
    out = multilevel_feynman_kac(
        f, drift, ConstantNoise(SIGMA), X, steps=(4, 8, 16, 32), standard_error=2e-3, key=KEY,
        batch=256,
    )  # fmt: skip
    assert (np.abs(out.mean - scheme(f, 32)) < 4.5 * out.standard_error).all()
    assert out.standard_error.max() < 2.2e-3
    assert out.cost == sum(level.paths * level.cost for level in out.levels)
    assert [level.cost for level in out.levels] == [4, 12, 24, 48]
    assert out.plain_cost > 2 * out.cost
    # The noise is additive: the differences shrink like the step, their variances like its square.
    variances = [level.variance.max() for level in out.levels[1:]]
    assert all(3 < a / b < 6 for a, b in itertools.pairwise(variances))
    paths = [level.paths for level in out.levels]
    assert paths == sorted(paths, reverse=True)


def test_its_standard_error_is_that_of_repeated_estimates():
    def estimate(seed):
        return multilevel_feynman_kac(
            jnp.sum, drift, RelativeNoise(0.5), X, steps=(1, 2, 4), standard_error=1.0,
            key=jax.random.key(seed), batch=64,
        )  # fmt: skip

    estimates = [estimate(seed) for seed in range(300)]
    ratio = np.std([e.mean for e in estimates]) / np.mean([e.standard_error for e in estimates])
    assert ratio == pytest.approx(1, abs=0.2)  # 5 standard errors of a standard deviation


PLAIN_PATHS = 16_384


@cache
def plain(steps):
    problem = square, drift, ConstantNoise(SIGMA), X
    estimate = jax.jit(lambda key: feynman_kac(*problem, steps=steps, paths=PLAIN_PATHS, key=key))
    return estimate(KEY)


def test_what_plain_monte_carlo_costs_is_what_it_takes():
    out = multilevel_feynman_kac(
        square, drift, ConstantNoise(SIGMA), X, steps=(4, 8), standard_error=4e-3, key=KEY
    )
    paths = int(out.plain_cost / 8)
    error = np.max(plain(8).standard_error) * (PLAIN_PATHS / paths) ** 0.5
    assert error / out.standard_error.max() == pytest.approx(1, abs=0.1)


def test_one_level_is_plain_monte_carlo():
    out = multilevel_feynman_kac(
        square, drift, ConstantNoise(SIGMA), X, steps=(8,), standard_error=4e-3, key=KEY
    )
    both = np.hypot(out.standard_error, plain(8).standard_error)
    assert (np.abs(out.mean - plain(8).mean) < 4.5 * both).all()
    error = np.asarray(plain(8).standard_error) * (PLAIN_PATHS / out.levels[0].paths) ** 0.5
    np.testing.assert_allclose(out.standard_error, error, rtol=0.05)
    assert out.cost == pytest.approx(out.plain_cost, rel=0.01)


def test_without_noise_it_is_the_deterministic_solution():
    out = multilevel_feynman_kac(
        square, drift, ConstantNoise(0.0), X, steps=(2, 4), standard_error=1e-3, key=KEY, batch=4
    )
    np.testing.assert_allclose(out.mean, (np.asarray(X) * 0.75**4) ** 2, rtol=1e-5)
    assert out.plain_cost == pytest.approx(0, abs=1e-3)


def test_paths_that_diverge_are_reported():
    with pytest.raises(FloatingPointError, match="paths of 8 steps are not finite"):
        multilevel_feynman_kac(
            square, lambda t, y: y**9, ConstantNoise(50.0), X, steps=(8,), standard_error=1.0,
            key=KEY, batch=64,
        )  # fmt: skip


@pytest.mark.parametrize("steps", [(), (0, 2), (2, 3), (4, 2)])
def test_levels_that_do_not_nest_are_refused(steps):
    with pytest.raises(
        ValueError, match=r"steps must be (positive, each a larger multiple|at least 1)"
    ):
        multilevel_feynman_kac(
            jnp.sum, drift, ConstantNoise(1.0), X, steps=steps, standard_error=1.0, key=KEY
        )


@pytest.mark.parametrize("error", [0.0, -1.0, float("nan")])
def test_an_error_that_is_not_positive_is_refused(error):
    with pytest.raises(ValueError, match="standard_error must be finite and positive"):
        multilevel_feynman_kac(jnp.sum, drift, ConstantNoise(1.0), X, standard_error=error, key=KEY)
