"""Neural ODEs trained to one time after another, and attacks on solves that stop early."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

import odejax
from odejax.evaluation import Bracket

from ..lib.recipe import Recipe, adam, cosine, fitted, keep

EARLY, ALL = "solve stopped early", "all attacks"


def trained_in_stages(
    make: Callable[..., Any],
    times: Sequence[float],
    images: Any,
    setting: Any,
    key: Any,
    folder: Path | None = None,
    *,
    in_training: Callable[[Any], Any] = lambda ode: ode,
) -> Iterator[odejax.Predictor]:
    """The network after each stage of training, to one of `times` each.

    - `setting`: has the `epochs` of a stage and the `batch_size`.
    - `in_training`: how the equation is solved there; the networks solve it as they were made.
    """
    model, state = eqx.nn.make_with_state(make)(images.image_shape, images.n_classes, key=key)
    ode = model.ode
    recipe = Recipe(make, setting.epochs, setting.batch_size, adam(cosine(3e-3), clip=1.0))
    for stage, t1 in enumerate(times):
        model = eqx.tree_at(lambda m: m.ode, model, in_training(ode.replace(t1=t1)))
        checkpoints = folder and folder / "-".join(f"{t:g}" for t in times[: stage + 1])
        trained = fitted(recipe, images, key, checkpoints, start=(model, state), stage=stage)
        model = eqx.tree_at(lambda m: m.ode, trained.model, ode.replace(t1=t1))
        predictor = odejax.Predictor(model, trained.state)
        keep(predictor, checkpoints)
        yield predictor


def correct_under(bracket: Bracket, oracles: Sequence[str]) -> np.ndarray:
    """(n,): whether an image is classified correctly under transfer from each of the oracles."""
    return np.logical_and.reduce([bracket.still_correct_under[name] for name in oracles])


def robust_accuracies(bracket: Bracket, oracles: Sequence[str]) -> dict[str, float]:
    """Under each attack, under transfer from the solves that stop early, and under all of them."""
    early = float(correct_under(bracket, oracles).mean())
    return bracket.per_attack | {EARLY: early, ALL: bracket.attacked}
