"""Results of several seeds: the records of a network, their mean and deviation."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def by_name(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of every name, one for each seed: runs are called "NAME/SEED", or "NAME"."""
    found: dict[str, list] = {}
    for run, record in result["runs"].items():
        found.setdefault(run.rpartition("/")[0] or run, []).append(record)
    return found


def mean_and_deviation(fractions: list[float]) -> tuple[float, float | None]:
    """In percent; no deviation of a single seed."""
    percent = 100 * np.asarray(fractions)
    return float(percent.mean()), float(percent.std(ddof=1)) if len(percent) > 1 else None


def cell(fractions: list[float]) -> str:
    """The same as a table shows it."""
    return shown(*mean_and_deviation(fractions))


def shown(mean: float, deviation: float | None) -> str:
    """With the deviation where there is one."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def flags_raised(records: Iterable[dict[str, Any]]) -> list[str]:
    """The names of all flags in the records' brackets."""
    return sorted({flag for record in records for b in record["brackets"] for flag in b["flags"]})
