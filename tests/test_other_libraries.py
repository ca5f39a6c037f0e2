"""Networks of other libraries: any function from an image to logits can be evaluated."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import digits

from odejax import LinfBall, Predictor, predict
from odejax._logits import check_network, count_classes
from odejax.attacks import APGD, AutoAttack, Square
from odejax.evaluation import masking_flags, robust_accuracy

KEY = jax.random.key(0)
BALL = LinfBall(0.1)
ATTACK = AutoAttack({"APGD": APGD(steps=4), "Square": Square(n_queries=10)})


class FlaxNet(nn.Module):
    @nn.compact
    def __call__(self, images):
        y = nn.relu(nn.Conv(8, (3, 3), strides=2)(images))
        return nn.Dense(10)(y.reshape(len(images), -1))


def haiku_net(images):
    y = jax.nn.relu(hk.Conv2D(8, 3, stride=2)(images))
    return hk.Linear(10)(hk.Flatten()(y))


def evaluate(logits_fn):
    """Attack what the network itself predicts."""
    data = digits("test", 40)
    logits = jax.jit(jax.vmap(lambda x: logits_fn(x, key=KEY)))(data.pixels)
    labels = np.asarray(logits).argmax(axis=1)
    report = robust_accuracy(logits_fn, data.pixels, labels, BALL, ATTACK, key=KEY, batch_size=20)
    flags = masking_flags(logits_fn, data.pixels, labels, BALL, key=KEY)
    assert flags == ()
    return report, labels


@pytest.mark.parametrize(
    "network",
    [
        FlaxNet(),
        # Like flax's, a function of an image that holds its parameters.
        pytest.param(hk.without_apply_rng(hk.transform(haiku_net)), marks=pytest.mark.slow),
    ],
    ids=["flax", "haiku"],
)
def test_a_network_is_attacked_as_a_function_of_one_image(network):
    params = jax.jit(network.init)(KEY, jnp.zeros((1, 8, 8, 1)))

    def logits_fn(x, *, key):
        return network.apply(params, x[None])[0]

    report, labels = evaluate(logits_fn)
    correct = np.asarray(jax.jit(network.apply)(params, report.x_adv)).argmax(axis=1) == labels
    np.testing.assert_array_equal(correct, report.still_correct)
    assert 0 < report.accuracy < 1


def test_a_network_in_training_mode_is_refused():
    network = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"training mode: call its method eval\(\) first"):
        predict(lambda x: network(x.ravel()), np.zeros((1, 2, 2, 1)), key=0)


class Dropped(eqx.Module):
    """A network of Equinox whose dropout is on."""

    dropout: eqx.nn.Dropout

    def __call__(self, x, *, key=None):
        return self.dropout(x.ravel(), key=key)


class Normed(eqx.Module):
    """A network of Equinox that needs a state, and in training a batch."""

    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")

    def __call__(self, x, s, *, key=None):
        return self.norm(x.ravel(), s)


DROPPED, (NORMED, STATE) = Dropped(eqx.nn.Dropout(0.5)), eqx.nn.make_with_state(Normed)()
IN_INFERENCE = r"write equinox.nn.inference_mode\(model\), .* odejax.Predictor\(model, state\)"


@pytest.mark.parametrize(
    ("network", "advice"),
    [
        (DROPPED, f"has a Dropout in training mode: {IN_INFERENCE}; if its noise is meant"),
        (DROPPED.__call__, f"has a Dropout in training mode: {IN_INFERENCE}"),
        (eqx.filter_jit(DROPPED), f"has a Dropout in training mode: {IN_INFERENCE}"),
        (lambda x: DROPPED(x), f"has its dropout on: {IN_INFERENCE}"),
        (NORMED, r"Normed takes 2 arguments, x and s: .* odejax.Predictor\(model, state\)"),
        (lambda x: NORMED(x, STATE)[0], f"its BatchNorm asks for a batch: {IN_INFERENCE}"),
        (lambda x: np.maximum(x, 0).ravel(), r"must be written in JAX, .* odejax.BlackBox\(scores"),
        (lambda x, t: t * x.ravel(), r"takes 2 arguments, x and t: .* lambda x: net\(x, other\)"),
    ],
)
def test_a_network_in_another_form_is_told_what_to_write(network, advice):
    with pytest.raises(ValueError, match=advice) as raised:
        predict(network, np.zeros((1, 2, 2, 1)), key=0)
    assert "x[None]" not in " ".join(getattr(raised.value, "__notes__", []))


@pytest.mark.parametrize(
    "network",
    [
        eqx.nn.inference_mode(DROPPED),
        Dropped(eqx.nn.Dropout(0.0)),
        lambda x, *, key: DROPPED(x, key=key),
        Predictor(NORMED, STATE),
    ],
    ids=["inference", "no dropout", "noise that is meant", "predictor"],
)
def test_dropout_that_is_off_or_meant_is_accepted(network):
    check_network(network)
    assert count_classes(network, jnp.zeros((2, 2, 1)), KEY) == 4


def test_a_network_of_batches_is_told_how_it_is_called():
    with pytest.raises(TypeError) as raised:
        predict(lambda images: images @ jnp.eye(3), np.zeros((1, 2, 2, 1)), key=0)
    assert "write lambda x: net(x[None])[0]" in raised.value.__notes__[0]
