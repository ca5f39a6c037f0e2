"""BatchNorm against its formulas, in PyTorch's conventions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax._types import BATCH_AXIS
from odejax.models import BatchNorm, GroupNorm


@eqx.filter_jit
def normalise(norm, state, xs):
    return jax.vmap(lambda x: norm(x, state), out_axes=(0, None), axis_name=BATCH_AXIS)(xs)


@pytest.fixture
def made():
    norm, state = eqx.filter_jit(eqx.nn.make_with_state(BatchNorm))(3)
    weights = np.array([1.0, 2, 3], np.float32), np.array([0.5, 0, -1], np.float32)
    return eqx.tree_at(lambda n: (n.scale, n.shift), norm, weights), state


def test_a_training_batch_is_normalised_and_moves_the_running_statistics(made):
    norm, state = made
    rng = np.random.default_rng(0)
    mean, variance = np.zeros(3), np.ones(3)
    for _ in range(3):
        xs = rng.normal(2, 3, size=(5, 4, 2, 3))
        ys, state = normalise(norm, state, np.float32(xs))
        pixels = xs.reshape(-1, 3)
        expected = (xs - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5) * [1, 2, 3] + [0.5, 0, -1]
        np.testing.assert_allclose(ys, expected, atol=1e-5)
        mean = 0.9 * mean + 0.1 * pixels.mean(0)
        variance = 0.9 * variance + 0.1 * pixels.var(0, ddof=1)
    for actual, expected in zip(state.get(norm.statistics), (mean, variance), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    one, after = eqx.filter_jit(eqx.nn.inference_mode(norm))(np.float32(xs[0]), state)
    expected = (xs[0] - mean) / np.sqrt(variance + 1e-5) * [1, 2, 3] + [0.5, 0, -1]
    np.testing.assert_allclose(one, expected, atol=1e-5)
    np.testing.assert_array_equal(after.get(norm.statistics)[0], state.get(norm.statistics)[0])


def test_the_derivative_counts_what_a_pixel_does_to_the_statistics(made):
    norm, state = made
    # f: a fixed linear form of the output, so its derivative tests every entry of the Jacobian.
    xs, weights, direction = np.random.default_rng(0).normal(size=(3, 4, 2, 2, 3))

    def f(xs):
        copied = jax.tree.map(lambda leaf: leaf, state)
        return jnp.sum(weights * normalise(norm, copied, xs)[0])

    value_and_grad, h = jax.jit(jax.value_and_grad(f)), 1e-2
    above, below = (value_and_grad(np.float32(xs + s * h * direction))[0] for s in (1, -1))
    _, gradient = value_and_grad(np.float32(xs))
    np.testing.assert_allclose(np.sum(gradient * direction), (above - below) / (2 * h), rtol=2e-3)


@eqx.filter_jit
def alone(norm, x):
    return norm(x, eqx.nn.State(norm))


@pytest.mark.parametrize("mean", [10.0, 100.0, 1000.0])
def test_group_norm_of_features_far_from_zero(mean):
    norm = GroupNorm(8, groups=2)
    x = (mean + 0.01 * np.random.default_rng(0).normal(size=(8, 8, 8))).astype(np.float32)
    y, _ = alone(norm, x)
    groups = np.asarray(x, np.float64).reshape(8, 8, 2, 4)
    moments = {"axis": (0, 1, 3), "keepdims": True}
    exact = (groups - groups.mean(**moments)) / np.sqrt(groups.var(**moments) + 1e-5)
    np.testing.assert_allclose(y, exact.reshape(8, 8, 8), atol=0.02)


def test_group_norm_of_bfloat16_features_has_float32_moments():
    norm = GroupNorm(4, groups=1)
    x = (4 + 0.25 * np.random.default_rng(0).normal(size=(8, 8, 4))).astype(jnp.bfloat16)
    y, _ = alone(norm, x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)


def test_features_in_bfloat16_have_statistics_in_float32(made):
    norm, state = made
    xs = (100 + np.random.default_rng(0).normal(size=(8, 4, 4, 3))).astype(jnp.bfloat16)
    ys, state = normalise(norm, state, xs)
    assert ys.dtype == jnp.bfloat16
    mean, _ = state.get(norm.statistics)
    rounded = np.asarray(xs, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean, 0.1 * rounded.mean(0), rtol=1e-6)  # bfloat16 rounds to 0.5
