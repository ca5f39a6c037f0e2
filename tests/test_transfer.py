"""Images made on one network, shown to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, NoisyLogits, digits, linear_logits, trained_mlp, trained_nmode

from odejax import LinfBall, MeanLogits, predict
from odejax.attacks import FGSM, PGD
from odejax.evaluation import robust_accuracy, transfer_matrix

KEY = jax.random.key(2)


def test_the_matrix_holds_every_oracle_against_every_target():
    data, ball = digits("test", 100), LinfBall(0.1)
    networks = {"MLP": trained_mlp(), "nmODE": trained_nmode()}
    matrix = transfer_matrix(
        networks, data.pixels, data.labels, ball, PGD(10, None), targets=networks, key=KEY
    )
    assert matrix.oracles == matrix.targets == ("MLP", "nmODE")
    assert matrix.correct.shape == (2, 2, 100)
    np.testing.assert_array_equal(matrix.accuracy, matrix.correct.mean(axis=2))
    # White box is the strongest column, and every transfer does something.
    assert (np.diag(matrix.accuracy) < matrix.accuracy[[0, 1], [1, 0]]).all()
    assert (matrix.accuracy < matrix.clean).all()
    for i, network in enumerate(networks.values()):
        correct = predict(network, data.pixels, key=KEY).argmax(axis=1) == data.labels
        assert matrix.clean[i] == correct.mean()
        alone = robust_accuracy(
            network, data.pixels, data.labels, ball, PGD(10, None),
            key=jax.random.fold_in(KEY, i), stop_at_first_success=False,
        )  # fmt: skip
        np.testing.assert_array_equal(matrix.correct[i, i], alone.still_correct)


def test_an_attack_goes_on_where_its_oracle_is_fooled():
    linear, eps = linear_logits(scale=0.2), 0.05
    images = np.full((1, 8, 8, 1), 0.5, np.float32)
    w = np.asarray(linear.weight[0] - linear.weight[1])

    def with_margin(share):
        """At the image, this share of what the attack can take of it."""
        bias = np.array([share * eps * np.abs(w).sum() - 0.5 * w.sum(), 0.0], np.float32)
        return LinearLogits(linear.weight, bias)

    matrix = transfer_matrix(
        {"fooled at once": with_margin(0.05)},
        images,
        np.zeros(1, np.int32),
        LinfBall(eps),
        PGD(10, eps / 10, random_start=False),
        targets={"fooled late": with_margin(0.7)},
        key=KEY,
    )
    np.testing.assert_array_equal((matrix.clean, matrix.accuracy[0]), ([1.0], [0.0]))


def test_what_an_oracle_gets_wrong_from_the_start_is_attacked_as_well():
    target = linear_logits(scale=0.2)
    images = np.full((4, 8, 8, 1), 0.5, np.float32)
    labels = np.asarray(jax.jit(jax.vmap(target))(images)).argmax(axis=1).astype(np.int32)
    oracles = {
        "same": target,
        "opposite": jax.tree.map(lambda leaf: jnp.asarray(-np.asarray(leaf)), target),
        # Wrong about every image, with the target's own gradients.
        "biased": LinearLogits(
            target.weight,
            jnp.asarray(np.asarray(target.bias) - 100 * np.eye(2, dtype=np.float32)[labels[0]]),
        ),
    }
    matrix = transfer_matrix(
        oracles, images, labels, LinfBall(0.3), FGSM(), targets={"target": target}, key=KEY
    )
    np.testing.assert_array_equal(matrix.accuracy, [[0.0], [1.0], [0.0]])
    np.testing.assert_array_equal(matrix.clean, [1.0])


def test_a_randomised_target_is_judged_by_its_mean():
    noisy = NoisyLogits(trained_mlp())
    target = MeanLogits(noisy, jax.random.split(KEY, 4))
    data = digits("test", 20)
    labels = predict(target, data.pixels, key=KEY).argmax(axis=1).astype(np.int32)
    matrix = transfer_matrix(
        {"noisy": noisy},
        data.pixels,
        labels,
        LinfBall(0.0),
        PGD(3, None),
        targets={"mean": target},
        key=KEY,
    )
    np.testing.assert_array_equal(matrix.accuracy, [[1.0]])


def test_no_oracle_or_no_target_is_refused():
    images, labels = np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="0 oracles and 1 targets"):
        transfer_matrix(
            {}, images, labels, LinfBall(0.1), FGSM(), targets={"a": linear_logits()}, key=KEY
        )
