"""The networks of a result whose robustness is an interval, as the page of results lists them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .accuracy import Bracket, of_all
from .report import Record, by_name

CLEAN = "clean images"  # the training of a network that sees nothing else
# Of a run's name and the result's settings: what the network is, and how it was trained.
Named = Callable[[str, dict[str, Any]], tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Listed:
    """A network in the balls of one norm.

    - `network`, `training`: what it is, and how it was trained.
    - `records`: one for each seed, which say where they were measured.
    - `brackets`: those of each record, by eps.
    - `radii`: the certified radius of every image, where a single seed has them.
    """

    network: str
    training: str
    records: Sequence[Record]
    brackets: Sequence[Sequence[Bracket]]
    radii: Sequence[float] | None = None


def listed(result: dict[str, Any], named: Named) -> list[Listed]:
    """Every network of the result's runs, in each norm."""
    return [
        Listed(
            *named(name, result["settings"]),
            records,
            [by_norm(record)[norm] for record in records],
        )
        for name, records in by_name(result).items()
        if "balls" in records[0] or "brackets" in records[0]
        for norm, brackets in by_norm(records[0]).items()
        if brackets
    ]


def by_norm(record: Record) -> dict[str, list[Bracket]]:
    """The brackets of what `measure.measure` returns; `of_all`, where that was measured too."""
    if "balls" in record:
        return record["balls"]
    brackets = of_all(record) if "certified_of_all" in record else record["brackets"]
    return {brackets[0]["ball"]: brackets}
