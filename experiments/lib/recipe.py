"""How a network is made and trained: `Recipe`, the optimizers that experiments use, and `train`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax

import odejax
from odejax.data import ArrayDataset
from odejax.training import CrossEntropy, Fit, RisingEps, fit, steps_per_epoch

NETWORK = "network.odejax"  # the file of a trained network

# What depends on the number of steps an epoch and the number of epochs.
Schedule = Callable[[int, int], optax.ScalarOrSchedule]
Rule = Callable[[int, int], optax.GradientTransformation]


def constant(rate: float) -> Schedule:
    return lambda steps, epochs: rate


def one_cycle(peak: float, rise: float = 0.2) -> Schedule:
    """Up in the first `rise` of all steps, and down to nothing in the rest."""
    return lambda steps, epochs: optax.cosine_onecycle_schedule(steps * epochs, peak, rise)


def cosine(peak: float) -> Schedule:
    return lambda steps, epochs: optax.cosine_decay_schedule(peak, steps * epochs)


def staircase(rate: float, every: int, factor: float) -> Schedule:
    """The rate times `factor` after every so many epochs."""
    return lambda steps, epochs: optax.exponential_decay(
        rate, every * steps, factor, staircase=True
    )


def drops(rate: float, *shares: float) -> Schedule:
    """A tenth of the rate after each of these shares of the epochs."""

    def schedule(steps: int, epochs: int):
        at = {round(share * steps * epochs): 0.1 for share in shares}
        return optax.piecewise_constant_schedule(rate, at)

    return schedule


def adam(rate: Schedule, *, clip: float | None = None, decay: float = 0.0) -> Rule:
    """`clip`: the gradient's largest norm; `decay`: coupled weight decay, as PyTorch's Adam."""
    return lambda steps, epochs: _chain(optax.adam(rate(steps, epochs)), clip, decay)


def sgd(rate: Schedule, *, decay: float = 5e-4, nesterov: bool = False) -> Rule:
    """With momentum 0.9."""

    def rule(steps: int, epochs: int):
        descent = optax.sgd(rate(steps, epochs), momentum=0.9, nesterov=nesterov)
        return _chain(descent, None, decay)

    return rule


def _chain(rule: optax.GradientTransformation, clip: float | None, decay: float):
    before = [] if clip is None else [optax.clip_by_global_norm(clip)]
    before += [optax.add_decayed_weights(decay)] if decay else []
    return optax.chain(*before, rule) if before else rule


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An architecture, `make(image_shape, n_classes, *, key)` with state, and how it is trained."""

    make: Callable[..., Any]
    epochs: int
    batch_size: int
    optimizer: Rule
    objective: Any = dataclasses.field(default_factory=CrossEntropy)
    augment: Callable | None = None
    rise: float = 0.0  # the share of all steps in which the objective's eps rises to its own
    wait: float = 0.0  # and that of the steps before, at eps 0

    def over(self, steps: int) -> Any:
        """The objective, for epochs of so many steps."""
        if not self.rise:
            return self.objective
        rise, wait = (round(share * steps * self.epochs) for share in (self.rise, self.wait))
        return RisingEps(self.objective, max(1, rise), wait)


def fitted(
    recipe: Recipe,
    dataset: ArrayDataset,
    key,
    folder: Path | None = None,
    *,
    start: Any = None,
    stage: int = 1,
    **held_out: Any,
) -> Fit:
    """Train by the recipe; what is finished in the folder is only read.

    - `start`: a model and its state to go on from, instead of new ones.
    - `stage`: other stages of the same key draw other batches.
    - `held_out`: `validation` and `score`, by which `fit` keeps the best epoch.
    """
    if start is None:
        make = eqx.nn.make_with_state(recipe.make)
        start = make(dataset.image_shape, dataset.n_classes, key=key)
    batch_size = min(recipe.batch_size, len(dataset))
    steps = steps_per_epoch(len(dataset), batch_size)
    model, state = start
    return fit(
        model,
        state,
        dataset,
        recipe.over(steps),
        recipe.optimizer(steps, recipe.epochs),
        epochs=recipe.epochs,
        batch_size=batch_size,
        key=jax.random.fold_in(key, stage),
        checkpoint_dir=folder,
        augment=recipe.augment,
        **held_out,
    )


def keep(predictor: odejax.Predictor, folder: Path | None):
    """Write the network into the folder of its checkpoints, from where it may be published."""
    if folder is not None:
        odejax.save(folder / NETWORK, predictor)


def train(
    recipe: Recipe, dataset: ArrayDataset, key, folder: Path | None = None, **settings: Any
) -> tuple[odejax.Predictor, dict[str, Any]]:
    """The same as a predictor, and what there is to say about its training."""
    trained = fitted(recipe, dataset, key, folder, **settings)
    predictor = odejax.Predictor(trained.model, trained.state)
    keep(predictor, folder)
    arrays = jax.tree.leaves(eqx.filter(trained.model, eqx.is_inexact_array))
    record = {
        "epochs": recipe.epochs,
        "parameters": sum(a.size for a in arrays),
        "training_seconds": sum(epoch["seconds"] for epoch in trained.history),
        "last_epoch": trained.history[-1],
    }
    if "validation" in settings:
        record |= {"best_epoch": trained.best_epoch, "history": trained.history}
    return predictor, record
