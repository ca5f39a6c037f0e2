"""Gradient steps and divergence-free steps in turn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.models import GradientLayer, SplitLayer

N = 4
LAYERS = {"gradient": GradientLayer, "split": SplitLayer}


def layer(kind, seed=0, step_size=0.3):
    return LAYERS[kind](N, width=8, step_size=step_size, key=jax.random.key(seed))


def state(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=N), jnp.float32)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_steps_have_symmetric_jacobians_and_split_ones_have_not(seed):
    jacobian = jax.jacfwd(layer("gradient", seed))(state(seed))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)
    assert np.abs(jacobian - jnp.eye(N)).max() > 0.01
    jacobian = jax.jacfwd(layer("split", seed))(state(seed))
    assert np.abs(jacobian - jacobian.T).max() > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_volume_changes_by_the_gradient_step_alone(seed):
    split, y = layer("split", seed), state(seed)
    volumes = [np.linalg.det(jax.jacfwd(step)(y)) for step in (split, split.gradient)]
    assert volumes[0] == pytest.approx(volumes[1], rel=1e-5)
    assert abs(volumes[0] - 1) > 0.01


def test_a_step_follows_the_sum_of_both_fields():
    h, y = 1e-3, state()
    split = layer("split", step_size=h)
    u, v = jnp.split(y, 2)
    gradient = split.gradient.slope
    rotational = jnp.concatenate([split.volume.first(v), split.volume.second(u)])
    np.testing.assert_allclose((split(y) - y) / h, gradient(y) + rotational, atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_the_gradient_of_its_potential(seed):
    """sum_i w_i log cosh(A y + b)_i, by finite differences in double precision."""
    bias = jnp.linspace(-1, 1, 8)
    slope = eqx.tree_at(lambda slope: slope.bias, layer("gradient", seed).slope, bias)
    a, w, b = (np.asarray(p, np.float64) for p in (slope.matrix, slope.weights, slope.bias))
    y, h = np.asarray(state(seed), np.float64), 1e-5

    def potential(y):
        return w @ np.log(np.cosh(a @ y + b))

    expected = [(potential(y + h * e) - potential(y - h * e)) / (2 * h) for e in np.eye(N)]
    np.testing.assert_allclose(slope(state(seed)), expected, atol=1e-5)


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
