"""Experiments that train networks by name, for one seed or several, and measure each of them."""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import jax

from .recipe import Recipe, train
from .run import Job, RunConfig, check_choices, check_counts, seeded


@dataclasses.dataclass
class NetworksConfig(RunConfig):
    """Their options."""

    networks: tuple[str, ...] | None = None
    """Which networks, by name; by default all."""
    seeds: int = 1
    """How many seeds of each."""

    def chosen(self, known: Collection[str]) -> tuple[str, ...]:
        """The networks that are asked for; `UsageError` where one is not known."""
        check_counts(self, "seeds")
        if self.networks is None:
            return tuple(known)
        check_choices("network", self.networks, known)
        return self.networks


def train_in(folder: Path, recipe: Recipe, dataset: Any, name: str, seed: int):
    """The network's predictor and the record of its training; its checkpoints are in `folder`."""
    return train(recipe, dataset, jax.random.key(seed), folder / folder_name(name, seed))


def folder_name(name: str, seed: int) -> str:
    """Of the checkpoints, and of the network that is published."""
    return f"{name}_{seed}".replace("/", "_").replace(" ", "_").replace(",", "")


def state_file(folder: Path, name: str, seed: int) -> Path:
    """Of an evaluation that is interrupted, beside the checkpoints."""
    return folder / folder_name(name, seed) / "evaluation"


def trained_and_measured(
    seeds: int,
    names: Iterable[str],
    recipe_of: Callable[[str], Recipe],
    dataset: Any,
    measure: Callable[[Any, str, int, Path], dict[str, Any]],
    folder: Path,
) -> Iterable[Job]:
    """A job for each seed and name: train by the recipe, then measure.

    `measure(predictor, name, seed, state)`, where `state` is the file that it may go on from.
    """

    def record(name: str, seed: int) -> dict[str, Any]:
        predictor, training = train_in(folder, recipe_of(name), dataset, name, seed)
        return training | measure(predictor, name, seed, state_file(folder, name, seed))

    return seeded(seeds, names, record)
