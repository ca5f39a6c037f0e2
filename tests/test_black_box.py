"""Networks known by their scores alone: attacks need no more, and gradients are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits, linear_logits

from odejax import BlackBox, L2Ball, LinfBall, MeanLogits, Smoothed, predict
from odejax.attacks import PGD, AutoAttack, Boundary, Square
from odejax.evaluation import bracket, masking_flags, robust_accuracy

KEY, BALL = jax.random.key(0), LinfBall(0.1)
DATA = digits("test", 12)
LINEAR = linear_logits(n_classes=10)
WEIGHT, BIAS = np.asarray(LINEAR.weight), np.asarray(LINEAR.bias)


class Counted:
    """The linear network in NumPy, and the sizes of the batches that it was called with."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        assert isinstance(images, np.ndarray)
        assert images.flags.writeable  # as torch.from_numpy asks
        self.sizes.append(len(images))
        return images.reshape(len(images), -1) @ WEIGHT.T + BIAS


LABELS = Counted()(DATA.pixels).argmax(1)


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (Square(n_queries=30), BALL),
        pytest.param(Boundary(n_queries=60), L2Ball(0.6), marks=pytest.mark.slow),
    ],
)
def test_an_attack_by_scores_is_that_on_the_same_network_in_jax(attack, ball):
    scores = Counted()
    network = BlackBox(scores, 10)
    report = robust_accuracy(network, DATA.pixels, LABELS, ball, attack, key=KEY)
    expected = robust_accuracy(LINEAR, DATA.pixels, LABELS, ball, attack, key=KEY)
    np.testing.assert_array_equal(report.still_correct, expected.still_correct)
    np.testing.assert_array_equal(report.queries, expected.queries)
    assert 0 < report.accuracy < 1
    # A batch is one call: no image is scored alone, but the one that is tried before the start.
    assert set(scores.sizes) == {1, 12}
    assert scores.sizes.count(12) <= attack.n_queries + 5


def test_nested_batches_and_single_images_have_their_own_scores():
    network, scores = BlackBox(Counted(), 10), Counted()
    images = DATA.pixels.reshape(3, 4, 8, 8, 1)
    nested = jax.jit(jax.vmap(jax.vmap(network)))(images)
    np.testing.assert_array_equal(nested.reshape(12, 10), scores(DATA.pixels))
    one = network(jnp.asarray(DATA.pixels[0]))
    np.testing.assert_array_equal(one, scores(DATA.pixels[:1])[0])


@pytest.mark.parametrize(
    "wrap",
    [lambda box: box, lambda box: MeanLogits(box, KEY[None]), lambda box: Smoothed(box, 0.1)],
)
def test_what_needs_gradients_is_refused_before_the_first_query(wrap):
    scores = Counted()
    network, data = wrap(BlackBox(scores, 10)), (DATA.pixels, LABELS)
    message = r"PGD needs gradients, and a BlackBox has no gradient: attack it with Square, SPSA"
    with pytest.raises(ValueError, match=message):
        robust_accuracy(network, *data, BALL, PGD(3), key=KEY)
    suite = AutoAttack({"Square": Square(10), "PGD": PGD(3)})
    for asked in ({"attacks": [Square(10), PGD(3)]}, {"last": suite}):
        with pytest.raises(ValueError, match=message):
            bracket(network, *data, BALL, key=KEY, **asked)
    assert scores.sizes == []


def test_a_gradient_is_refused_wherever_it_is_taken():
    network = BlackBox(Counted(), 10)
    with pytest.raises(ValueError, match="a BlackBox has no gradient"):
        jax.grad(lambda x: jnp.sum(network(x / 2)))(DATA.pixels[0])


def test_a_look_at_its_gradients_raises_a_flag_instead():
    flags = masking_flags(BlackBox(Counted(), 10), DATA.pixels, LABELS, BALL, key=KEY)
    assert [flag.name for flag in flags] == ["no gradients"]
    assert masking_flags(LINEAR, DATA.pixels, LABELS, BALL, key=KEY) == ()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda images: images.sum((1, 2)), r"shape \(1, 10\); got float32 of shape \(1, 1\)"),
        (lambda images: np.zeros(10), r"shape \(1, 10\); got float64 of shape \(10,\)"),
        (lambda images: np.zeros((len(images), 10), int), "floats .* got int64"),
    ],
)
def test_scores_of_another_form_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        predict(BlackBox(scores, 10), DATA.pixels, key=KEY)


@pytest.mark.usefixtures("unchecked")
def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="scores must be a function; got 3"):
        BlackBox(3, 10)
    with pytest.raises(ValueError, match="n_classes must be at least 2; got 1"):
        BlackBox(Counted(), 1)
