"""Gradient-flow layers expand nothing, and LipschitzNet's bound holds for any weights."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from odejax import Predictor
from odejax.models import GradientFlow, LipschitzNet
from odejax.models.lipschitz import ConvOperator, DenseOperator

SHAPE = (8, 8, 2)
deterministic = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def conv_flow(kernel, bias):
    return GradientFlow(ConvOperator(kernel, (5, 6), math.sqrt(2)), bias)


def dense_flow(matrix, bias):
    return GradientFlow(DenseOperator(matrix, math.sqrt(2)), bias)


def flow(kind, seed, log_scale):
    rng = np.random.default_rng(seed)
    weights, points, n = {
        "conv": ((3, 3, 3, 4), (2, 5, 6, 3), 4), "dense": ((8, 12), (2, 12), 8),
    }[kind]  # fmt: skip
    weights = jnp.asarray(10.0**log_scale * rng.normal(size=weights), jnp.float32)
    bias, points = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (n, points))
    return (conv_flow if kind == "conv" else dense_flow)(weights, bias), points


@eqx.filter_jit
def expansion(layer, points):
    x, y = points
    return jnp.linalg.norm(jnp.ravel(layer(x) - layer(y))) / jnp.linalg.norm(jnp.ravel(x - y))


@pytest.mark.parametrize("kind", ["conv", "dense"])
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-12, 12))
@deterministic
def test_a_gradient_flow_expands_no_pair_of_points(kind, seed, log_scale):
    assert float(expansion(*flow(kind, seed, log_scale))) <= 1 + 1e-5


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_twice_the_norm_would_expand(kind):
    layer, points = flow(kind, 0, 0.0)
    operator = layer.operator
    weights = (operator.kernel, (5, 6)) if kind == "conv" else (operator.matrix,)
    longer = GradientFlow(type(operator)(*weights, 4 * math.sqrt(2)), layer.bias)
    assert float(expansion(longer, points)) > 1.01


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_adjoint_is_the_adjoint(kind):
    layer, (x, _) = flow(kind, 1, 0.0)
    ax, pullback = jax.vjp(layer.operator, x)
    np.testing.assert_allclose(layer.operator.adjoint(ax), pullback(ax)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_a_layer_with_zero_weights_is_finite(kind):
    layer, (x, _) = flow(kind, 0, 0.0)
    layer = jax.tree.map(jnp.zeros_like, layer)
    assert jnp.isfinite(layer(x)).all()


def net(scale=None, seed=0):
    make = eqx.nn.make_with_state(LipschitzNet)
    model, state = make(SHAPE, 5, width=4, depth=1, features=16, key=jax.random.key(seed))
    if scale is not None:
        leaves, tree = jax.tree.flatten(model)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        leaves = [
            scale * jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]  # fmt: skip
        model = jax.tree.unflatten(tree, leaves)
    return model, state


@eqx.filter_jit
def largest_ratio(predictor, key, pairs=64, ascents=60):
    """||f(x) - f(x')|| / ||x - x'|| over random pairs, before and after gradient ascent."""

    def ratio(pair):
        return jnp.linalg.norm(predictor(pair[0]) - predictor(pair[1])) / jnp.linalg.norm(
            jnp.ravel(pair[0] - pair[1])
        )

    def step(pair, _):
        gradient = jax.grad(ratio)(pair)
        size = jnp.linalg.norm(jnp.ravel(gradient))
        return pair + 0.3 * gradient / jnp.where(size > 0, size, 1.0), None

    start = jax.random.uniform(key, (pairs, 2, *SHAPE))
    end = jax.vmap(lambda p: jax.lax.scan(step, p, length=ascents)[0])(start)
    return jnp.max(jax.vmap(ratio)(start)), jnp.max(jax.vmap(ratio)(end))


@pytest.mark.parametrize("scale", [None, 0.1, 1.0, 30.0])
def test_no_pair_exceeds_the_bound_and_the_bound_is_near_one(scale):
    model, state = net(scale)
    sampled, ascended = largest_ratio(Predictor(model, state), jax.random.key(2))
    bound = float(model.lipschitz_bound())
    assert float(sampled) < float(ascended) <= bound * (1 + 1e-5)
    assert bound <= 1.01


def test_the_frozen_predictor_computes_the_same():
    model, state = net(1.0)
    predictor = Predictor(model, state)
    for x in jax.random.uniform(jax.random.key(3), (5, *SHAPE)):
        np.testing.assert_allclose(predictor(x), model(x, state)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        predictor.model.lipschitz_bound(), model.lipschitz_bound(), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(7, 8, 1), (8, 7, 1), (9, 9, 3)], ids=str)
def test_images_with_odd_sides_are_refused(shape):
    with pytest.raises(ValueError, match="sides must be even"):
        LipschitzNet(shape, key=jax.random.key(0))
