"""Reversible layers: the inverse, and a gradient that needs the last state alone."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE
from test_convolution import largest_intermediate_of

from odejax._batch import vmap_batch
from odejax.models import BatchNorm, ResidualField, RevNet, conv2d
from odejax.solvers import integrate_reversible, invert_reversible, stack_layers

KEY = jax.random.key(0)


class Tanh(eqx.Module):
    weight: jax.Array

    def __call__(self, y, state):
        return jnp.tanh(self.weight @ y), state


def tanh_layers(depth, n=4):
    rng = np.random.default_rng(depth)
    return tuple(Tanh(rng.normal(size=(depth, n, n))) for _ in range(2))


def written_out(layers, halves, h):
    x, y = halves
    for first, second in zip(layers[0].weight, layers[1].weight, strict=True):
        x = x + h * jnp.tanh(first @ y)
        y = y + h * jnp.tanh(second @ x)
    return x, y


HALVES = (np.linspace(-1.0, 1.0, 4), np.linspace(2.0, 0.0, 4))


def test_values_and_gradients_are_those_of_the_formula():
    layers, h = tanh_layers(5), 0.3

    def loss(run):
        def of(layers, halves):
            x, y = run(layers, halves)
            return jnp.sum(x**2) + jnp.sum(jnp.cos(y))

        return jax.value_and_grad(of, (0, 1))

    def reversible(layers, halves):
        state = eqx.nn.State(layers)
        return integrate_reversible(layers, halves, state, step_size=h)

    with jax.enable_x64(True):
        plain = loss(lambda layers, halves: written_out(layers, halves, h))
        actual, expected = (jax.jit(f)(layers, HALVES) for f in (loss(reversible), plain))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_the_inverse_undoes_a_hundred_layers():
    layers = tanh_layers(100)

    @jax.jit
    def there_and_back(layers, halves):
        state = eqx.nn.State(layers)
        out = integrate_reversible(layers, halves, state, step_size=0.1)
        return out, invert_reversible(layers, out, state, step_size=0.1)

    with jax.enable_x64(True):
        out, back = there_and_back(layers, HALVES)
    assert np.abs(np.asarray(out[0]) - HALVES[0]).max() > 0.1
    np.testing.assert_allclose(back, HALVES, atol=1e-11)


def kept_bytes(f, *arguments):
    """What a backward pass holds beside the arguments."""
    held = {id(leaf) for leaf in jax.tree.leaves(arguments)}
    _, pull_back = jax.vjp(f, *arguments)
    leaves = jax.tree.leaves(pull_back)
    return sum(leaf.nbytes for leaf in leaves if eqx.is_array(leaf) and id(leaf) not in held)


def test_the_memory_of_a_gradient_does_not_grow_with_depth():
    # The weights are small beside the state, so what is kept for each layer would show.
    def kept(depth, run):
        layers = tuple(jnp.asarray(w) for w in np.random.default_rng(0).normal(size=(2, depth)))
        return kept_bytes(run, layers, (jnp.ones(1000), jnp.ones(1000)))

    class Scale(eqx.Module):
        weight: jax.Array

        def __call__(self, y, state):
            return jnp.tanh(self.weight * y), state

    def reversible(layers, halves):
        layers = tuple(map(Scale, layers))
        return integrate_reversible(layers, halves, eqx.nn.State(layers))

    def plain(layers, halves):
        def step(halves, weights):
            x = halves[0] + jnp.tanh(weights[0] * halves[1])
            return (x, halves[1] + jnp.tanh(weights[1] * x)), None

        return jax.lax.scan(step, halves, layers)[0]

    assert kept(64, reversible) - kept(2, reversible) < 1000
    assert kept(64, plain) - kept(2, plain) > 60 * 2 * 4000


class Convolve(eqx.Module):
    kernel: jax.Array

    def __call__(self, y, state):
        return conv2d(jnp.tanh(y), self.kernel, padding=1), state


def test_in_a_batch_no_example_has_a_weight_gradient_of_its_own():
    # They would be kept for every layer, and are larger than what is not kept.
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 6, 4, 4, 16)).astype(np.float32)
    kernels = 0.1 * rng.normal(size=(2, 4, 3, 3, 16, 16)).astype(np.float32)

    def loss(vmap):
        def one(halves, layers):
            halves = integrate_reversible(layers, halves, eqx.nn.State(layers))
            return sum(jnp.sum(jnp.cos(half)) for half in halves)

        return lambda layers: jnp.sum(vmap(lambda halves: one(halves, layers))(tuple(features)))

    layers = tuple(map(Convolve, kernels))
    traced = [jax.jit(jax.grad(loss(vmap))).trace(layers) for vmap in (jax.vmap, vmap_batch)]
    actual = [jax.tree.leaves(t.lower().compile()(layers)) for t in traced]
    for a, b in zip(*actual, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    alone, at_once = (largest_intermediate_of(t.jaxpr.jaxpr) for t in traced)
    of_each = 6 * kernels[0].size  # one for each example, of all layers
    assert at_once < of_each <= alone


def test_batch_statistics_are_those_of_the_state():
    def field(key):
        return ResidualField(2, BatchNorm, key=key)

    @eqx.filter_jit
    @eqx.nn.make_with_state
    def make(key):
        return tuple(stack_layers(field, 3, key=key) for key in jax.random.split(key))

    layers, state = make(KEY)
    layers = eqx.nn.inference_mode(layers)
    state = jax.tree.map(
        lambda a: a + np.linspace(0, 1, a.size, dtype=np.float32).reshape(a.shape), state
    )
    halves = tuple(np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32))

    @eqx.filter_jit
    def loop(layers, state, halves):
        x, y = halves
        for i in range(3):
            first, second = (
                jax.tree.map(
                    lambda a, i=i: a[i] if eqx.is_array(a) else a, (stack, state.substate(stack))
                )
                for stack in layers
            )
            x = x + 0.5 * first[0](y, first[1])[0]
            y = y + 0.5 * second[0](x, second[1])[0]
        return x, y

    actual = eqx.filter_jit(integrate_reversible)(layers, halves, state, step_size=0.5)
    for a, b in zip(actual, loop(layers, state, halves), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_batch_statistics_of_training_are_refused():
    with pytest.raises(ValueError, match="use GroupNorm"):
        eqx.nn.make_with_state(RevNet)(IMAGE_SHAPE, norm=BatchNorm, key=KEY)


def test_a_revnet_gives_back_the_features_of_its_stem():
    make = partial(eqx.nn.make_with_state(RevNet), IMAGE_SHAPE, width=8, depth=5)
    model, state = eqx.filter_jit(lambda key: make(key=key))(KEY)
    x = np.random.default_rng(1).uniform(size=IMAGE_SHAPE).astype(np.float32)

    @eqx.filter_jit
    def there_and_back(model, state, x):
        features, _ = model.stem(x, state)
        ahead = model.forward(features, state)
        return features, ahead, model.inverse(ahead, state)

    features, ahead, back = map(np.asarray, there_and_back(model, state, x))
    assert np.abs(ahead - features).max() > 0.1
    np.testing.assert_allclose(back, features, atol=1e-5)
