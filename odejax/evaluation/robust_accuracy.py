"""Robust accuracy under one attack."""

import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np

from .._predictor import batches, predict
from .._progress import progress_bar
from .._threat_model import AbstractBall
from .._types import Key, LogitsFn
from ..attacks import check_labels, check_pixels


class AttackReport(NamedTuple):
    """What an attack leaves of a set of images.

    - `accuracy`: the fraction still classified correctly.
    - `still_correct`: (n,) bool. Judged by evaluating `x_adv` anew, never by the attack's own word.
    - `x_adv`: (n, h, w, c), in ball and box; the image itself where it was misclassified already.
    - `queries`: logits evaluations spent on each image.
    """

    accuracy: float
    still_correct: np.ndarray
    x_adv: np.ndarray
    queries: np.ndarray
    seconds: float


def robust_accuracy(
    attack: Callable,
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 256,
    judge: LogitsFn | None = None,
    already_broken: np.ndarray | None = None,
    progress: bool = False,
) -> AttackReport:
    """Attack every image that is classified correctly, and count those that withstand.

    `images` (n, h, w, c) are floats in [0, 1], `labels` (n,) classes. Only images that still stand
    are attacked, packed into full batches; image i draws from `fold_in(key, i)`, so the result does
    not depend on `batch_size`.

    - `judge`: the classifier that decides who is correct, by default `logits_fn`. For a randomised
      network pass `MeanLogits`, which is deterministic.
    - `already_broken`: images that this attack broke within a smaller ball; they count as lost
      without another attack.

    Raises `ValueError` for images of another form, no images, pixels outside [0, 1], labels out of
    range; `FloatingPointError` where logits are not finite; `RuntimeError` for an attack that
    leaves ball or box.
    """
    started = time.perf_counter()
    images, labels = check_arrays(images, labels)
    judge = logits_fn if judge is None else judge
    clean_key, attack_key, judge_key = jax.random.split(key, 3)
    logits = predict(judge, images, key=clean_key, batch_size=batch_size)
    check_labels(labels, logits.shape[1])
    still_correct = logits.argmax(axis=1) == labels
    if already_broken is not None:
        still_correct &= ~already_broken
    x_adv = images.copy()
    queries = np.ones(len(images), np.int64)
    targets = np.flatnonzero(still_correct)
    # Never fewer rows than the full set would have: one shape, one trace, whoever still stands.
    size = min(batch_size, len(images))
    with progress_bar(enabled=progress, transient=True) as bar:
        task = bar.add_task(type(attack).__name__, total=len(targets), note="")
        for _, batch, n in batches(len(targets), size):
            index = targets[batch]
            result, inside = _attack_batch(
                attack, logits_fn, images[index], labels[index], ball, attack_key, index
            )
            if not np.asarray(inside)[:n].all():
                raise RuntimeError(
                    f"{type(attack).__name__} returned an image outside the ball or the box"
                )
            x_adv[index[:n]] = np.asarray(result.x_adv)[:n]
            queries[index[:n]] += np.asarray(result.queries)[:n]
            bar.update(task, advance=n)
    if len(targets):
        logits = predict(judge, x_adv, key=judge_key, batch_size=batch_size)
        still_correct &= logits.argmax(axis=1) == labels
    return AttackReport(
        float(still_correct.mean()), still_correct, x_adv, queries, time.perf_counter() - started
    )


@eqx.filter_jit
def _attack_batch(attack, logits_fn, images, labels, ball, key, index):
    def attack_one(x, y, i):
        result = attack(logits_fn, x, y, ball, key=jax.random.fold_in(key, i))
        return result, ball.contains(result.x_adv, x)

    return jax.vmap(attack_one)(images, labels, index)


def check_arrays(images, labels) -> tuple[np.ndarray, np.ndarray]:
    """`images` and `labels` as arrays of the form that evaluation takes, or a `ValueError`."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        hint = "; divide uint8 pixels by 255" if images.dtype == np.uint8 else ""
        raise ValueError(
            f"images must be floats of shape (n, h, w, c); "
            f"got {images.dtype} of shape {images.shape}{hint}"
        )
    if len(images) == 0:
        raise ValueError("there are no images: got an empty array")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({len(images)},); "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    check_pixels(images)
    return images.astype(np.float32), labels.astype(np.int32)
