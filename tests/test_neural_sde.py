"""A network's noisy layers and Diffrax's solve are one, path by path."""

from functools import partial
from itertools import pairwise

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE, digits

from odejax.models import BatchNorm, EnResNet, NeuralSDENet
from odejax.solvers import (
    ConstantNoise,
    RelativeNoise,
    diffusion_path,
    feynman_kac,
    integrate_layers,
    layered_drift,
)

KEY, X = jax.random.key(3), digits().pixels[0]
DEPTH, PATHS, H = 3, 4, 0.5  # times that are exact in binary: the Brownian tree has the same
NOISE = RelativeNoise(0.4)


class WithIncrement(eqx.Module):
    """A layer and its step's noise, sigma dB, as one layer without noise."""

    field: eqx.Module
    increment: jax.Array

    def __call__(self, y, state, *, key=None):
        dy, state = self.field(y, state)
        return dy + NOISE.std(y + H * dy) * self.increment / H, state


def increments(key, shape, steps, h):
    """Those of the tree that `diffusion_path` draws by this key."""
    start, end = np.float32([0, steps * h])
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    tree = diffrax.VirtualBrownianTree(start, end, end / steps / 2, like, key)
    times = h * jnp.arange(steps + 1, dtype=jnp.float32)
    with jax.threefry_partitionable(False):
        return jnp.stack([tree.evaluate(a, b) for a, b in pairwise(times)])


class Bent(eqx.Module):
    rate: jax.Array

    def __call__(self, y, state, *, key=None):
        return jnp.sin(self.rate * y), state


def test_a_path_of_diffrax_is_the_layers_for_the_same_increments():
    layers, x = Bent(jnp.array([1.0, -2.0, 3.0])), jnp.linspace(-1, 1, 5)

    @jax.jit
    def both(key):
        state = eqx.nn.State(layers)
        drift = layered_drift(layers, state, H)
        solved = diffusion_path(drift, NOISE, x, steps=DEPTH, key=key, t1=DEPTH * H)
        drawn = WithIncrement(layers, increments(key, x.shape, DEPTH, H))
        return solved, integrate_layers(drawn, x, state, step_size=H)[0]

    solved, layered = both(KEY)
    np.testing.assert_allclose(solved, layered, rtol=1e-5, atol=1e-6)
    other, _ = both(jax.random.key(4))
    assert np.abs(np.asarray(other) - solved).min() > 1e-3  # the noise is seen


def test_the_logits_are_the_mean_over_paths_that_differ():
    make = eqx.nn.make_with_state(NeuralSDENet)

    @jax.jit
    def both(x, key):
        model, state = make(IMAGE_SHAPE, width=4, steps=1, paths=3, noise=NOISE, key=KEY)
        start, _ = model.stem(x, state)
        drift, head = model.problem(state)

        def path(key):
            return head(diffusion_path(drift, NOISE, start, steps=1, key=key))

        return model(x, state, key=key)[0], jax.lax.map(path, jax.random.split(key, 3))

    logits, each = both(jnp.asarray(X), KEY)
    np.testing.assert_allclose(logits, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.std(each, axis=0).mean() > 1e-3


@pytest.mark.slow
def test_diffrax_solves_the_layers_of_an_ensemble_for_the_same_increments():
    members = 2
    sizes = {"width": 4, "depth": DEPTH}
    make = eqx.nn.make_with_state(EnResNet)
    solved = {"steps": DEPTH, "paths": PATHS, "t1": DEPTH * H, "noise": NOISE}

    @eqx.filter_jit
    def both(x):
        model, state = make(
            IMAGE_SHAPE, members=members, base=NeuralSDENet, **sizes, **solved, key=KEY
        )
        logits, _ = model(x, state, key=KEY)
        noisy, _ = make(IMAGE_SHAPE, members=members, step_size=H, **sizes, noise=NOISE, key=KEY)
        layered = []
        for m, member_key in enumerate(jax.random.split(KEY, members)):
            arrays, static = eqx.partition(noisy.nets, eqx.is_array)
            net = eqx.combine(jax.tree.map(lambda a: a[m], arrays), static)  # noqa: B023
            net = eqx.tree_at(lambda n: n.noise, net, None)
            shape = net.stem(x, state)[0].shape

            def path(key, net=net, shape=shape):
                drawn = WithIncrement(net.layers, increments(key, shape, DEPTH, H))
                return eqx.tree_at(lambda n: n.layers, net, drawn)(x, state)[0]

            layered.append(jax.vmap(path)(jax.random.split(member_key, PATHS)))
        return logits, jnp.concatenate(layered)

    logits, layered = (np.asarray(a) for a in both(jnp.asarray(X)))
    np.testing.assert_allclose(logits, layered.mean(0), rtol=2e-5, atol=2e-6)
    assert layered.std(0).min() > 1e-3  # the noise is seen


class Linear(eqx.Module):
    rate: jax.Array

    def __call__(self, y, state, *, key=None):
        return self.rate * y, state


@pytest.mark.parametrize("steps", [5, 15])
def test_every_layer_is_the_drift_in_its_own_time(steps):
    rates = np.array([0.3, -1.0, 2.0, 0.7, -0.4], np.float32)
    h = 0.1  # no sum of which is exact
    layers = Linear(jnp.asarray(rates))
    drift = layered_drift(layers, eqx.nn.State(layers), h)
    quiet = ConstantNoise(0.0)
    end = diffusion_path(drift, quiet, jnp.ones(2), steps=steps, key=KEY, t1=5 * h)
    each = steps // 5
    expected = np.prod((1 + h / each * rates) ** each)
    np.testing.assert_allclose(end, expected, rtol=1e-5)
    if each == 1:
        layered, _ = integrate_layers(layers, jnp.ones(2), eqx.nn.State(layers), step_size=h)
        np.testing.assert_allclose(end, layered, rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [diffrax.Heun(), pytest.param(diffrax.SRA1(), marks=pytest.mark.slow)], ids=str
)
def test_a_solver_of_higher_order_is_closer_to_the_equation(solver):
    theta, sigma, x = 1.0, 0.8, jnp.array([1.0, -0.5])
    problem = (lambda y: jnp.stack([y, y**2])), (lambda t, y: -theta * y), ConstantNoise(sigma), x

    @eqx.filter_jit
    def estimate(solver):
        return feynman_kac(*problem, steps=3, paths=20_000, key=KEY, solver=solver)

    mean = np.asarray(x) * np.exp(-theta)
    variance = sigma**2 * (1 - np.exp(-2 * theta)) / (2 * theta)
    exact = np.stack([mean, mean**2 + variance])
    better, euler = estimate(solver), estimate(None)
    error = np.abs(np.asarray(better.mean) - exact)
    assert (error < np.abs(np.asarray(euler.mean) - exact)).all()
    assert (error < 0.02 + 4.5 * np.asarray(better.standard_error)).all()


def _make(**settings):
    make = eqx.nn.make_with_state(NeuralSDENet)
    return eqx.filter_eval_shape(lambda key: make(IMAGE_SHAPE, width=4, key=key, **settings), KEY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 3, "steps": 8}, "steps must be a multiple of the depth 3; got 8"),
        ({"paths": 0}, "paths must be at least 1; got 0"),
        ({"t1": 0.0}, "t1 must be finite and positive; got 0"),
        ({"norm": BatchNorm}, "use GroupNorm"),
    ],
)
def test_a_network_that_cannot_be_solved_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _make(**settings)


def test_a_solver_of_another_equation_is_refused():
    path = partial(diffusion_path, lambda t, y: -y, x=jnp.ones(1), steps=2, key=KEY)
    with pytest.raises(ValueError, match=r"Ito's equation .* got Heun with RelativeNoise"):
        path(RelativeNoise(0.1), solver=diffrax.Heun())
    with pytest.raises(ValueError, match="got Kvaerno3"):
        path(ConstantNoise(0.1), solver=diffrax.Kvaerno3())


def test_an_sde_needs_a_key():
    model, state = _make()
    with pytest.raises(ValueError, match="NeuralSDENet draws noise"):
        eqx.filter_eval_shape(lambda m: m(jnp.asarray(X), state), model)
