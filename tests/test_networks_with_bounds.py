"""Networks have finite bounds, or an error that names the primitive: a few, for their time."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import IMAGE_SHAPE, NOISY, REFUSED, all_models, digits, warm

from odejax import LinfBall, Predictor
from odejax.certificates import IntervalBounds, LinearRelaxation
from odejax.models import (
    BatchNorm,
    FractalNet,
    ODESolve,
)
from odejax.relaxation import deterministic, trace

KEY = jax.random.key(5)
EPS = np.float32(1e-5)
QUICK = ("ResNet", "ResNet BatchNorm", "HamiltonianNet")


class NnxNet(nnx.Module):
    """A small convolutional network of Flax."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        y = nnx.gelu(self.norm(self.first(x[None])))
        return self.last(nnx.silu(y).reshape(1, -1))[0]


def plain_function(x):
    """Two layers, without any library."""
    w = jnp.sin(jnp.arange(64.0 * 8)).reshape(8, 64) / 4
    v = jnp.cos(jnp.arange(8.0 * 10)).reshape(10, 8)
    y = jax.nn.gelu(w @ x.ravel())
    return jax.nn.log_softmax(v @ (y * jax.nn.sigmoid(y)))


def network_of(make):
    model, state = make(KEY)
    state = warm(model, state, digits().pixels[:16], KEY) if jax.tree.leaves(state) else state
    if isinstance(getattr(model, "ode", None), ODESolve):
        model = eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(2))
    return Predictor(model, state)


def bounds_of(network, certificate):
    """Lower bounds on the margins, and the margins."""
    x = jnp.asarray(digits("test").pixels[0])

    def bounds(x, label, eps):
        logits_fn = deterministic(network, x) if isinstance(network, Predictor) else network
        graph = trace(logits_fn, x)
        return certificate.margins(graph, x, label, LinfBall(eps))

    logits = network(x)
    label = jnp.argmax(logits)
    return jax.jit(bounds)(x, label, EPS), logits[label] - logits


def are_bounds(network, certificate):
    bounds, margins = bounds_of(network, certificate)
    assert np.isfinite(bounds).all()
    assert (bounds <= margins + 1e-5).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in all_models
        if name not in (*NOISY, *REFUSED)
    ],
)
def test_every_family_has_finite_intervals(name):
    are_bounds(network_of(all_models[name]), IntervalBounds())


@pytest.mark.parametrize("name", ["MLP", "NmODENet flow map"])
def test_a_family_has_finite_bounds(name):
    are_bounds(network_of(all_models[name]), LinearRelaxation())


def test_a_fractal_network_with_batch_norm_has_finite_bounds():
    net = partial(FractalNet, width=4, depth=1, columns=2, norm=BatchNorm)
    make = partial(eqx.nn.make_with_state(net), IMAGE_SHAPE, 10)
    are_bounds(network_of(lambda key: make(key=key)), LinearRelaxation())


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_without_a_rule_names_the_primitive(name):
    network, x = network_of(all_models[name]), digits("test").pixels[0]
    with pytest.raises(ValueError, match=rf"for the primitive {REFUSED[name]} \(at .*:\d+, in "):
        trace(deterministic(network, x), x)


@pytest.mark.parametrize("network", [NnxNet(nnx.Rngs(0)), plain_function], ids=["nnx", "plain"])
@pytest.mark.parametrize("intermediate", ["interval", "linear"])
def test_a_network_of_another_library_has_finite_bounds(network, intermediate):
    are_bounds(network, LinearRelaxation(intermediate))
