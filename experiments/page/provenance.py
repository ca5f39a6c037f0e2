"""Where a result was measured: every commit, command, machine and set of versions in it."""

from collections.abc import Iterator
from typing import Any

FIELDS = ("commit", "command", "device", "processor", "versions")


def origins(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each of them once, with its first and last time, its seeds and how many measurements."""
    groups: dict[str, dict[str, Any]] = {}
    for record in _measured(result):
        group = {field: record[field] for field in FIELDS if field in record}
        group = groups.setdefault(repr(group), group | {"times": [], "seeds": set()})
        group["times"].append(record["time"])
        group["seeds"].add(record["seed"])
    made = []
    for group in groups.values():
        times = sorted(group.pop("times"))
        seeds = sorted(group.pop("seeds"))
        made.append(group | {"n": len(times), "from": times[0], "to": times[-1], "seeds": seeds})
    return made


def _measured(value: Any) -> Iterator[dict[str, Any]]:
    """What `odejax.evaluation.provenance` is a part of, at any depth."""
    if isinstance(value, dict):
        if "commit" in value and "time" in value:
            yield value
        for inner in value.values():
            yield from _measured(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _measured(inner)
