"""Ensembles: their mean, their weights, and what they take to attack."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import IMAGE_SHAPE, NoisyLogits, constant_image, digits, linear_logits

from odejax import EnsembleLogits
from odejax.attacks import cross_entropy
from odejax.models import MLP, EnResNet, MixedEnResNet, ResNet
from odejax.solvers import ConstantNoise
from odejax.training import CrossEntropy, fit, mixture_weights, steps_per_epoch

KEY = jax.random.key(0)
X = constant_image(0.3)


def quiet(*args, noise, key):
    """A base that compiles fast."""
    return MLP(*args, width=8, depth=1, key=key)


def mixed(softmax, bases=(quiet, quiet), noise=None):
    make = partial(eqx.nn.make_with_state(MixedEnResNet), IMAGE_SHAPE, bases=bases, noise=noise)
    return eqx.filter_jit(lambda key: make(softmax=softmax, key=key))(KEY)


NOISY = [partial(ResNet, width=4, depth=depth) for depth in (1, 2)]


@pytest.mark.parametrize(("softmax", "bases"), [(True, NOISY), (False, (quiet, quiet))])
def test_a_mixture_is_the_weighted_mean_of_its_members(softmax, bases):
    model, state = mixed(softmax, bases, ConstantNoise(0.2))
    raw = np.array([0.7, -0.4], np.float32)
    model = eqx.tree_at(lambda m: m.weights, model, raw)
    weights = np.exp(raw) / np.exp(raw).sum() if softmax else raw

    @eqx.filter_jit
    def logits(model, state):
        keys = jax.random.split(KEY, 2)
        each = [net(X, state, key=k)[0] for net, k in zip(model.nets, keys, strict=True)]
        return model(X, state, key=KEY)[0], each

    actual, each = logits(model, state)
    expected = sum(w * np.asarray(z) for w, z in zip(weights, each, strict=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="draws noise"):
        eqx.filter_eval_shape(lambda model: model(X, state)[0], model)


def test_an_ensemble_is_the_mean_of_members_with_noise_of_their_own():
    make = partial(
        eqx.nn.make_with_state(EnResNet),
        IMAGE_SHAPE, width=4, depth=1, members=2, noise=ConstantNoise(0.2),
    )  # fmt: skip

    @eqx.filter_jit
    def logits(key):
        model, state = make(key=key)
        arrays, static = eqx.partition(model.nets, eqx.is_array)

        def alone(member):
            arrays, k = member
            return eqx.combine(arrays, static)(X, state, key=k)[0]

        each = jax.lax.map(alone, (arrays, jax.random.split(KEY, 2)))
        return model(X, state, key=KEY)[0], each

    actual, each = logits(KEY)
    np.testing.assert_allclose(actual, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)


def test_a_mixture_starts_with_equal_weights_and_refuses_none():
    for softmax in (True, False):
        model, _ = mixed(softmax)
        weights = jax.nn.softmax(model.weights) if softmax else model.weights
        np.testing.assert_allclose(weights, 0.5)
    with pytest.raises(ValueError, match="bases must name at least one"):
        MixedEnResNet(IMAGE_SHAPE, bases=[], key=KEY)


@pytest.mark.parametrize("softmax", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_weights_of_a_mixture_are_trained_and_keep_their_sum(softmax):
    model, state = mixed(softmax)
    data = digits("train", 64)
    optimizer = optax.adam(3e-3)
    if not softmax:
        steps = steps_per_epoch(len(data), 32)
        optimizer = mixture_weights(optimizer, lambda m: m.weights, learning_rate=0.1, every=steps)
    result = fit(
        model, state, data, CrossEntropy(), optimizer, epochs=2, batch_size=32, key=KEY,
        progress=False,
    )  # fmt: skip
    weights = result.model.weights
    weights = jax.nn.softmax(weights) if softmax else weights
    assert float(jnp.sum(weights)) == pytest.approx(1, abs=1e-6)
    assert float(jnp.abs(weights - 0.5).max()) > 1e-4


def test_separately_trained_networks_are_integrated():
    members = [linear_logits(n_classes=4, seed=s) for s in range(3)]

    @eqx.filter_jit
    def logits(members, noisy, x):
        plain = EnsembleLogits(members)(x), EnsembleLogits(members, [0.5, 0.2, 0.3])(x)
        pair = EnsembleLogits([noisy, noisy])(x, key=KEY)
        keys = jax.random.split(KEY)
        return plain, pair, [m(x) for m in members], [noisy(x, key=k) for k in keys]

    actual = logits(members, NoisyLogits(linear_logits(n_classes=10)), X)
    (mean, weighted), pair, each, drawn = jax.tree.map(np.asarray, actual)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    expected = sum(w * z for w, z in zip((0.5, 0.2, 0.3), each, strict=True))
    np.testing.assert_allclose(weighted, expected, rtol=1e-5, atol=1e-5)
    # Members that draw noise draw apart.
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3
    np.testing.assert_allclose(pair, np.mean(drawn, axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least one member"):
        EnsembleLogits([])
    with pytest.raises(ValueError, match="2 members need as many weights; got 1"):
        EnsembleLogits(members[:2], [1.0])


def test_members_in_half_precision_are_added_up_in_float32():
    members = [linear_logits(n_classes=4, seed=s) for s in range(3)]
    half = [jax.tree.map(lambda a: a.astype(jnp.bfloat16), member) for member in members]

    @jax.jit
    def logits(x):
        return EnsembleLogits([*half, members[0]])(x), [m(x) for m in (*half, members[0])]

    together, each = logits(X.astype(jnp.bfloat16))
    assert together.dtype == jnp.float32
    expected = np.mean([np.asarray(z, np.float32) for z in each], axis=0)
    # As close as one bfloat16 number is to the next: XLA may keep more within a fusion.
    np.testing.assert_allclose(together, expected, rtol=0, atol=2**-8 * np.abs(expected).max())


class Deep(eqx.Module):
    """What takes memory in a gradient: layers whose values are kept."""

    weights: jax.Array

    def __call__(self, x, *, key=None):
        x, _ = jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, self.weights)
        return jnp.mean(x, axis=(0, 1))


def test_a_gradient_of_many_members_takes_the_memory_of_few():
    rng = np.random.default_rng(0)
    members = [Deep(jnp.asarray(rng.normal(size=(8, 16, 16)), jnp.float32)) for _ in range(8)]
    images = np.zeros((8, 16, 16, 16), np.float32)
    labels = np.zeros(8, np.int32)

    def memory(logits_fn):
        def gradient(images):
            return jax.vmap(jax.grad(lambda x, y: cross_entropy(logits_fn(x), y)))(images, labels)

        return jax.jit(gradient).lower(images).compile().memory_analysis().temp_size_in_bytes

    few, many = (memory(EnsembleLogits(members[:n])) for n in (2, 8))
    assert many < 1.1 * few
    assert memory(lambda x: sum(member(x) for member in members) / 8) > 2 * many
