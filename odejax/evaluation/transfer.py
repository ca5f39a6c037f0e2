"""Transfer (blind) attacks: crafted on one network, judged by another."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_count
from .._inputs import as_key, as_method, images_and_labels
from .._predictor import predict
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .._words import counted
from .intervals import percent
from .robust_accuracy import robust_accuracy
from .tables import Shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TransferMatrix(Shown):
    """Accuracy of every target on the images that were crafted on every oracle.

    `accuracy` (oracles, targets); `correct` (oracles, targets, n); `clean` (targets,).
    Where an oracle is its own target the figure is the white-box one.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> networks = {"a": lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])}
    >>> odejax.evaluation.transfer_matrix(
    ...     networks, images, labels, odejax.LinfBall(0.2), odejax.attacks.FGSM(), key=0
    ... )
    accuracy in %, 4 images
                     of a
      clean         100.0
      crafted on a    0.0
    """

    oracles: tuple[str, ...]
    targets: tuple[str, ...]
    accuracy: np.ndarray
    correct: np.ndarray
    clean: np.ndarray

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        rows = [["clean", *map(percent, self.clean)]]
        rows += [
            [f"crafted on {oracle}", *map(percent, row)]
            for oracle, row in zip(self.oracles, self.accuracy, strict=True)
        ]
        title = f"accuracy in %, {counted(self.correct.shape[2], 'image')}"
        return title, ["", *(f"of {target}" for target in self.targets)], rows, []


@images_and_labels
def transfer_matrix(
    oracles: Mapping[str, LogitsFn],
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    attack: Callable,
    *,
    targets: Mapping[str, LogitsFn] | None = None,
    key: Key | int,
    batch_size: int = 256,
    progress: bool | None = None,
) -> TransferMatrix:
    """Attack every oracle once, and test every target on the images (*enresnet* Tables 3, 6).

    The attack takes all its steps even where the oracle is fooled before, since it is the target
    that is to be fooled. Images that the oracle misclassifies are attacked as well.

    - `oracles`, `targets`: networks by name; by default the targets are the oracles. For a
      randomised target pass `MeanLogits`.
    - the other arguments: as for `robust_accuracy`.

    Raises `ValueError` without oracles or targets.

    >>> from odejax import LinfBall, attacks, data, evaluation
    >>> few = data.load("digits", "test").take(slice(8))
    >>> networks = {"left": lambda x: x.ravel()[:10], "right": lambda x: x.ravel()[-10:]}
    >>> matrix = evaluation.transfer_matrix(networks, *few, LinfBall(0.1), attacks.FGSM(), key=0)
    >>> matrix.accuracy.shape
    (2, 2)

    N. Papernot, P. McDaniel and I. Goodfellow, "Transferability in machine learning", 2016,
    arXiv:1605.07277.
    """
    targets = oracles if targets is None else targets
    if not oracles or not targets:
        raise ValueError(f"got {len(oracles)} oracles and {len(targets)} targets; at least 1 each")
    key, attack = as_key(key), as_method("attack", attack)
    check_ball(ball)
    check_count(batch_size=batch_size)
    images, labels = check_arrays(images, labels)

    def classified(target, x):
        logits = predict(target, x, key=key, batch_size=batch_size)
        return logits.argmax(axis=1) == labels

    clean = np.stack([classified(target, images) for target in targets.values()])
    rows = []
    for i, oracle in enumerate(oracles.values()):
        report = robust_accuracy(
            oracle,
            images,
            labels,
            ball,
            attack,
            key=jax.random.fold_in(key, i),
            batch_size=batch_size,
            stop_at_first_success=False,
            attack_misclassified=True,
            progress=progress,
        )
        rows.append([classified(target, report.x_adv) for target in targets.values()])
    correct = np.array(rows)
    return TransferMatrix(
        tuple(oracles), tuple(targets), correct.mean(axis=2), correct, clean.mean(axis=1)
    )
