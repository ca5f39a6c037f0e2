"""Brackets of a model, in any form that holds them, as curves by norm."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation import Bracket


@dataclasses.dataclass(frozen=True)
class Curve:
    """One model in balls of one norm; accuracies are fractions, each eps begins at 0."""

    eps: np.ndarray
    attacked: np.ndarray
    per_attack: dict[str, np.ndarray]  # nan where an attack was not run
    certified_at: np.ndarray
    certified: np.ndarray | None  # None without a certificate


def read_curves(name: str, value: Any) -> dict[str, Curve]:
    """A model's curve in each norm, from any of the forms that `robustness_curves` accepts."""
    if isinstance(value, Mapping) and "balls" in value:
        return {
            norm: _curve(
                name,
                list(stored["brackets"]),
                np.asarray(stored["radii"], float) if stored["certificates"] else None,
            )
            for norm, stored in value["balls"].items()
        }
    by_norm: dict[str, list[Any]] = {}
    for one in _flat(name, value):
        by_norm.setdefault(one.ball if isinstance(one, Bracket) else one["ball"], []).append(one)
    if not by_norm:
        raise ValueError(f"models[{name!r}] must hold at least one Bracket; got none")
    curves = {}
    for norm, brackets in by_norm.items():
        radii = None
        if all(isinstance(one, Bracket) and one.per_certificate for one in brackets):
            radii = np.max([one.radius for one in brackets], axis=0)
        summaries = [vars(one) if isinstance(one, Bracket) else one for one in brackets]
        curves[norm] = _curve(name, summaries, radii)
    return curves


def _flat(name: str, value: Any) -> Iterator[Any]:
    """All brackets and summaries in nested sequences."""
    if isinstance(value, Bracket) or (isinstance(value, Mapping) and "attacked" in value):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | np.ndarray):
        for one in value:
            yield from _flat(name, one)
    else:
        raise ValueError(
            f"models[{name!r}] must be a Bracket, several, or their summaries; got "
            f"{type(value).__name__}"
        )


def _curve(name: str, summaries: Sequence[Mapping[str, Any]], radii: np.ndarray | None) -> Curve:
    if not summaries:
        raise ValueError(f"models[{name!r}] must hold at least one Bracket; got none")
    summaries = sorted(summaries, key=lambda one: one["eps"])
    eps = np.array([0.0, *(one["eps"] for one in summaries)])
    if len(set(eps)) < len(eps):
        raise ValueError(
            f"models[{name!r}] must hold one Bracket for each eps above 0; got {eps[1:].tolist()}"
        )
    clean = summaries[0]["clean"]
    attacks = dict.fromkeys(attack for one in summaries for attack in one["per_attack"])
    at, certified = eps, None
    if radii is not None:
        # Between two radii nothing changes; at eps = 0 every correct prediction is certified.
        inside = radii[(radii > 0) & (radii < eps[-1])]
        at = np.unique(np.concatenate([eps, inside]))
        certified = np.array([clean, *((radii >= radius).mean() for radius in at[1:])])
    elif any(one["per_certificate"] for one in summaries):
        certified = np.array([clean, *(one["certified"] for one in summaries)])
    return Curve(
        eps=eps,
        attacked=np.array([clean, *(one["attacked"] for one in summaries)]),
        per_attack={
            attack: np.array([clean, *(one["per_attack"].get(attack, np.nan) for one in summaries)])
            for attack in attacks
        },
        certified_at=at,
        certified=certified,
    )
