"""Flags from attacks of their own: whether a stronger attack breaks more images."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._inputs import images_and_labels
from .._threat_model import AbstractBall, LinfBall
from .._types import Key, LogitsFn
from .._words import counted
from ..attacks import APGD, PGD, Restarts
from .flags import MORE_RESTARTS, MORE_STEPS, UNBOUNDED, Flag
from .robust_accuracy import robust_accuracy


@images_and_labels
def attack_flags(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    *,
    key: Key | int,
    batch_size: int = 64,
    judge: LogitsFn | None = None,
) -> tuple[Flag, ...]:
    """The flags "unbounded attack fails", "more steps help", "more restarts help" (`FLAGS`).

    Costs up to 40 + 400 + 400 + 100 gradients of every image, fewer where an attack succeeds early.
    The arguments are those of `robust_accuracy`, and so are the errors.

    >>> from odejax import LinfBall, data, evaluation
    >>> linear = lambda x: x.ravel()[:10]
    >>> few = data.load("digits", "test").take(slice(8))
    >>> evaluation.attack_flags(linear, *few, LinfBall(0.1), key=0)
    ()
    """
    images = np.asarray(images)

    def still_correct(attack, ball, already_broken=None):
        report = robust_accuracy(
            logits_fn,
            images,
            labels,
            ball,
            attack,
            key=key,
            batch_size=batch_size,
            judge=judge,
            already_broken=already_broken,
            progress=False,
        )
        return report.still_correct

    flags, n = [], len(images)
    short = still_correct(APGD(int(MORE_STEPS.few)), ball)
    for kind, stronger in (
        (MORE_STEPS, APGD(int(MORE_STEPS.many))),
        (MORE_RESTARTS, Restarts(APGD(40), int(MORE_RESTARTS.many))),
    ):
        broken = int((short & ~still_correct(stronger, ball, ~short)).sum())
        if broken >= kind.least and broken > kind.share * n:
            flags.append(kind(f"{broken} of {counted(n, 'image')} more"))
    diameter = ball.covering_radius(LinfBall(1.0), images[0].size)
    everything = eqx.tree_at(lambda ball: ball.eps, ball, jnp.asarray(diameter))
    survivors = int(still_correct(PGD(100), everything).sum())
    if survivors > UNBOUNDED.share * n:
        flags.append(UNBOUNDED(f"{survivors} of {counted(n, 'image')} still correct"))
    return tuple(flags)
