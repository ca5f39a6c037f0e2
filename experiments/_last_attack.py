"""AutoAttack, the dearest attack, on what all others leave in doubt in balls of several sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from odejax import AbstractBall, Predictor
from odejax.attacks import AutoAttack
from odejax.data import ArrayDataset
from odejax.evaluation import Bracket, robust_accuracy, sequence_flags

_BATCH = 32  # few are left, and a batch is never smaller


def after_autoattack(
    attack: AutoAttack,
    brackets: Sequence[Bracket],
    predictor: Predictor,
    dataset: ArrayDataset,
    ball: Callable[[float], AbstractBall],
    *,
    key,
) -> list[dict[str, Any]]:
    """The summaries of `brackets`, in balls of ascending eps, with `attack` among what they hold.

    What is broken in a ball is so in all larger ones. `attack` is run from the largest ball down,
    on the images that stand and are not certified; one that withstood it in a larger ball is taken
    to do so in a smaller one, whose images the larger has, too. So each costs one run to the end,
    whatever the number of balls, and the attack has no figure of its own: only `attacked`.
    """
    standing_in = np.logical_and.accumulate([measured.standing for measured in brackets])
    withstood, summaries = np.zeros(len(dataset), bool), []
    for measured, standing in zip(reversed(brackets), reversed(standing_in), strict=True):
        in_doubt = standing & ~measured.proven & ~withstood
        report = robust_accuracy(
            attack,
            predictor,
            dataset.pixels,
            dataset.labels,
            ball(measured.eps),
            key=key,
            batch_size=_BATCH,
            already_broken=~in_doubt,
            progress=True,
        )
        standing = (standing & ~in_doubt) | report.still_correct
        withstood |= report.still_correct
        measured = measured._replace(
            standing=standing,
            attacked=float(standing.mean()),
            seconds=measured.seconds | {"AutoAttack": report.seconds},
            flags=(*measured.flags, *sequence_flags(attack, in_doubt, report.broken_by)),
        )
        summaries.append(measured.summary() | {"in_doubt": int(in_doubt.sum())})
    return summaries[::-1]
