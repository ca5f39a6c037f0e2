"""Networks of other libraries: any function from an image to logits can be evaluated."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import digits

from odejax import LinfBall, predict
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


def test_a_network_of_batches_is_told_how_it_is_called():
    with pytest.raises(TypeError) as raised:
        predict(lambda images: images @ jnp.eye(3), np.zeros((1, 2, 2, 1)), key=0)
    assert "write lambda x: net(x[None])[0]" in raised.value.__notes__[0]
