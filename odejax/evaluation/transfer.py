"""Transfer (blind) attacks: crafted on one network, judged by another."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from .._checks import check_arrays, check_callable, check_count, check_key
from .._predictor import predict
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .robust_accuracy import robust_accuracy


class TransferMatrix(NamedTuple):
    """Accuracy of every target on the images that were made for every oracle.

    `accuracy` (oracles, targets); `correct` (oracles, targets, n); `clean` (targets,).
    Where an oracle is its own target the figure is the white-box one.
    """

    oracles: tuple[str, ...]
    targets: tuple[str, ...]
    accuracy: np.ndarray
    correct: np.ndarray
    clean: np.ndarray


def transfer_matrix(
    attack: Callable,
    oracles: Mapping[str, LogitsFn],
    targets: Mapping[str, LogitsFn],
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 256,
    progress: bool = False,
) -> TransferMatrix:
    """Attack every oracle once, and show what it found to every target (*enresnet* Tables 3, 6).

    The attack goes to its end even where the oracle is fooled before, since it is the target that
    is to be fooled, and to images that the oracle gets wrong anyhow.
    For randomised targets pass `MeanLogits`. Raises `ValueError` without oracles or targets.
    """
    if not oracles or not targets:
        raise ValueError(f"got {len(oracles)} oracles and {len(targets)} targets; at least 1 each")
    check_key(key)
    check_ball(ball)
    check_count(batch_size=batch_size)
    check_callable(attack=attack)
    images, labels = check_arrays(images, labels)

    def classified(target, x):
        logits = predict(target, x, key=key, batch_size=batch_size)
        return logits.argmax(axis=1) == labels

    clean = np.stack([classified(target, images) for target in targets.values()])
    rows = []
    for i, oracle in enumerate(oracles.values()):
        report = robust_accuracy(
            attack,
            oracle,
            images,
            labels,
            ball,
            key=jax.random.fold_in(key, i),
            batch_size=batch_size,
            stop_at_first_success=False,
            attack_misclassified=True,
            progress=progress,
        )
        rows.append([classified(target, report.x_adv) for target in targets.values()])
    correct = np.array(rows)
    return TransferMatrix(
        tuple(oracles),
        tuple(targets),
        correct.mean(axis=2),
        correct,
        clean.mean(axis=1),
    )
