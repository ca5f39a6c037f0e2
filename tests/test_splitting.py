"""Gradient steps and divergence-free steps in turn."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.models import GradientLayer, SplitLayer

N = 4
LAYERS = {"gradient": GradientLayer, "split": SplitLayer}


@partial(jax.jit, static_argnums=(0, 2))
def layer(kind, seed=0, step_size=0.3):
    return LAYERS[kind](N, width=8, step_size=step_size, key=jax.random.key(seed))


def state(seed=0):
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


@jax.jit
def jacobians(seed, y):
    """Of a gradient layer, of a split one, and of the gradient step in that."""
    split = layer("split", seed)
    return [jax.jacfwd(step)(y) for step in (layer("gradient", seed), split, split.gradient)]


@pytest.mark.parametrize("seed", range(3))
def test_gradient_steps_have_symmetric_jacobians_and_split_ones_have_not(seed):
    gradient, split, _ = map(np.asarray, jacobians(seed, state(seed)))
    np.testing.assert_allclose(gradient, gradient.T, atol=1e-6)
    assert np.abs(gradient - np.eye(N)).max() > 0.01
    assert np.abs(split - split.T).max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_volume_changes_by_the_gradient_step_alone(seed):
    volumes = [np.linalg.det(jacobian) for jacobian in jacobians(seed, state(seed))[1:]]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-5)
    assert abs(volumes[0] - 1) > 0.01


def test_a_step_follows_the_sum_of_both_fields():
    h, y = 1e-3, state()

    @jax.jit
    def end_and_slope(y):
        split = layer("split", 0, h)
        u, v = jnp.split(y, 2)
        rotational = jnp.concatenate([split.volume.first(v), split.volume.second(u)])
        return split(y), split.gradient.slope(y) + rotational

    end, slope = end_and_slope(y)
    np.testing.assert_allclose((end - y) / h, slope, atol=0.01)


along = jax.jit(lambda slope, y: slope(y))


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_the_gradient_of_its_potential(seed):
    """sum_i w_i log cosh(A y + b)_i, by finite differences in double precision."""
    bias = np.linspace(-1, 1, 8, dtype=np.float32)
    slope = eqx.tree_at(lambda slope: slope.bias, layer("gradient", seed).slope, bias)
    a, w, b = (np.asarray(p, np.float64) for p in (slope.matrix, slope.weights, slope.bias))
    y, h = np.asarray(state(seed), np.float64), 1e-5

    def potential(y):
        return w @ np.log(np.cosh(a @ y + b))

    expected = [(potential(y + h * e) - potential(y - h * e)) / (2 * h) for e in np.eye(N)]
    np.testing.assert_allclose(along(slope, state(seed)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("split", {"n": 5}, "n must be even; got 5"),
        ("gradient", {"n": 0}, "n must be at least 1; got 0"),
        ("gradient", {"n": 4, "width": 0}, "width must be at least 1; got 0"),
    ],
)
def test_wrong_sizes_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        LAYERS[kind](**arguments, key=jax.random.key(0))
