"""How a claim of a paper is measured: by which command, and how its result is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..lib.recipe import Recipe
from ..lib.report import by_name, mean_and_deviation
from .printed import Claim

FOLDER = "--data-dir FOLDER"


@dataclasses.dataclass(frozen=True)
class Work:
    """What it takes to measure one network, with seed 0, for `experiments.gpu`.

    - `options`: those that limit the command to it.
    - `trained`: all that is trained for it, by the folder of the checkpoints.
    - `attacks`: each with the number of images that it attacks, those of all balls together.
    - `attacked`: the networks that these attack, by their folders; by default all.
    - `train_images`: by default all of the data set's.
    """

    options: tuple[str, ...]
    trained: Mapping[str, Recipe]
    attacks: tuple[tuple[Any, int], ...]
    train_images: int | None = None
    attacked: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """An experiment that measures some claims: `read(result, claim, network)`, or None.

    A run with other `settings` measures none.
    """

    result: str  # its file in `experiments/results`; empty if it needs none
    kind: str
    command: str
    read: Callable[[dict[str, Any], Claim, str], dict[str, Any] | None]
    network: str = ""  # the claim's network, as the experiment calls it
    epochs: int | None = None  # of the preset; None: nothing is trained
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    smaller: bool = False
    work: Callable[[], Work] | None = None  # of a network of the paper's size


def measured(records: list[dict[str, Any]], claim: Claim, bracket_of) -> dict[str, Any] | None:
    """The means over `records`, one for each seed."""
    if not records:
        return None
    measurement = {"seeds": len(records), "device": records[0]["device"]}
    if claim.attack == "clean":
        if "clean_accuracy" not in records[0]:
            return None
        return measurement | _mean([record["clean_accuracy"] for record in records])
    brackets = [bracket_of(record) for record in records]
    if None in brackets or claim.attack not in brackets[0]["per_attack"]:
        return None
    first = brackets[0]
    measurement |= _mean([b["per_attack"][claim.attack] for b in brackets])
    if "n" in first:
        measurement["n"] = first["n"]
    if not claim.eps:  # of another ball than the claim's, which is not known
        return measurement | ({"measured_eps": first["eps"]} if "eps" in first else {})
    if "attacked" in first:  # a transfer attack has no interval
        measurement |= {
            "worst_attack": 100 * float(np.mean([b["attacked"] for b in brackets])),
            "certified": 100 * float(np.mean([b["certified"] for b in brackets])),
            "flags": sorted({flag for b in brackets for flag in b["flags"]}),
        }
    return measurement


def _mean(fractions: list[float]) -> dict[str, float]:
    mean, deviation = mean_and_deviation(fractions)
    return {"papers_attack": mean} | ({} if deviation is None else {"deviation": deviation})


def _at(brackets: list[dict[str, Any]], claim: Claim) -> dict[str, Any] | None:
    """The one of the claim's eps."""
    return next((b for b in brackets if np.isclose(b["eps"], claim.radius)), None)


def from_balls(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    records = by_name(result).get(name, [])
    return measured(records, claim, lambda record: _at(record["balls"][claim.norm], claim))


def from_brackets(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    records = by_name(result).get(name, [])
    return measured(records, claim, lambda record: _at(record["brackets"], claim))


def chosen(preset: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(preset, name) for name in names}
