"""The leaderboard: a row for each network and ball, and the curve of each network and norm."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..lib.accuracy import NORMS, OF_ALL, Bracket
from ..lib.intervals import Listed

ENDS = ("clean", "certified", "attacked")
MOST_POINTS = 150  # of a curve of certified radii


def rows_of(name: str, dataset: str, network: Listed) -> list[dict[str, Any]]:
    """One for each ball: means over the seeds, and in `seeds` what each of them has.

    Accuracies are fractions. `id` is the row's own on the page.
    """
    return [
        _row(name, dataset, network, brackets) for brackets in zip(*network.brackets, strict=True)
    ]


def _row(name: str, dataset: str, network: Listed, brackets: tuple[Bracket, ...]) -> dict[str, Any]:
    first = brackets[0]
    ball = f"{first['ball']} {eps_text(first['eps'], dataset)}"
    row = {
        "id": f"{name}: {network.training}: {network.network}: {ball}",
        "curve": curve_id(name, network),
        "result": name,
        "dataset": dataset,
        "network": network.network,
        "training": network.training,
        "norm": first["ball"],
        "eps": first["eps"],
        "ball": f"{NORMS[first['ball']]} {eps_text(first['eps'], dataset)}",
        "n": first["n"],
        **{end: _mean(b[end] for b in brackets) for end in ENDS},
        "all_images": _mean(r["clean_accuracy"] for r in network.records),
        "attacks": _each(brackets, "per_attack"),
        "transfers": _each(brackets, "per_transfer"),
        "certificates": _each(brackets, "per_certificate"),
        "in_turn": first.get("in_turn", False),
        "uncertified": list(first.get("uncertified", ())),
        "alpha": first.get("alpha", {}),
        "last": _last(first),
        "seconds": _mean(sum(b["seconds"].values()) for b in brackets),
        "flags": _flags(brackets),
        "seeds": [_seed(r, b) for r, b in zip(network.records, brackets, strict=True)],
    }
    if OF_ALL in first:
        row["certified_of_all"] = _mean(b[OF_ALL] for b in brackets)
    return row


def _seed(record: dict[str, Any], bracket: Bracket) -> dict[str, Any]:
    """Both ends with their sampling error (95 %), and where they were measured."""
    kept = ("seed", "commit", "command", "device", "processor", "time")
    training = ("epochs", "parameters", "training_seconds")
    return {
        **{end: bracket[end] for end in ENDS},
        **{f"{end}_interval": bracket[f"{end}_interval"] for end in ENDS},
        "n_last": bracket.get("n_last"),
        **{field: record[field] for field in (*kept, *training) if field in record},
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }


def eps_text(eps: float, dataset: str) -> str:
    """A radius as the papers write it: on CIFAR in grey levels."""
    levels = 255 * eps
    if dataset.startswith("cifar") and levels > 0.99 and abs(levels - round(levels)) < 1e-3:
        return f"{round(levels)}/255"
    return f"{eps:.3g}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


def _each(brackets: tuple[Bracket, ...], of: str) -> dict[str, float]:
    return {name: _mean(b[of][name] for b in brackets) for name in brackets[0][of]}


def _last(bracket: Bracket) -> list[str]:
    """The attack on the images that no other one broke, which has no accuracy of its own."""
    if "last" in bracket:
        return [] if bracket["last"] is None else [bracket["last"]]
    if bracket.get("n_last") is None:
        return []
    # A result of a time when its name was kept among `seconds` alone.
    own = (*bracket["per_attack"], *bracket["per_transfer"], *bracket["per_certificate"])
    return [name for name in bracket["seconds"] if name not in own]


def _flags(brackets: tuple[Bracket, ...]) -> list[dict[str, Any]]:
    names = dict.fromkeys(flag for bracket in brackets for flag in bracket["flags"])
    return [
        {"name": name, "evidence": [b["flags"][name] for b in brackets if name in b["flags"]]}
        for name in names
    ]


def curve_id(name: str, network: Listed) -> str:
    norm = network.brackets[0][0]["ball"]
    return f"{name}: {network.training}: {network.network}: {norm}"


def curves_of(name: str, dataset: str, network: Listed) -> list[dict[str, Any]]:
    """The network's accuracies by eps, from 0 (clean) on, where several balls were measured.

    - `attacked`, and each of `attacks`: at `eps`; holds up to the next one.
    - `certified`: at `proven_at`; holds down to the one before. None without a certificate.
    """
    first = network.brackets[0]
    if len(first) < 2:
        return []

    def mean(read: Callable[[Bracket], float]) -> list[float]:
        grid = [[read(b) for b in brackets] for brackets in network.brackets]
        return np.mean(grid, axis=0).tolist()

    eps, clean = [b["eps"] for b in first], _mean(b[0]["clean"] for b in network.brackets)
    at, certified = eps, mean(lambda b: b["certified"])
    if network.radii is not None:
        at, certified = _steps(np.asarray(network.radii), eps, certified)
    everywhere = [a for a in first[0]["per_attack"] if all(a in b["per_attack"] for b in first)]
    return [
        {
            "id": curve_id(name, network),
            "result": name,
            "network": network.network,
            "training": network.training,
            "norm": first[0]["ball"],
            "eps": [0.0, *eps],
            "texts": ["0", *(eps_text(radius, dataset) for radius in eps)],
            "attacked": [clean, *mean(lambda b: b["attacked"])],
            "attacks": {
                attack: [clean, *mean(lambda b, attack=attack: b["per_attack"][attack])]
                for attack in everywhere
            },
            "proven_at": [0.0, *at],
            "certified": [clean, *certified] if first[0]["per_certificate"] else None,
            "seeds": len(network.records),
        }
    ]


def _steps(
    radii: np.ndarray, eps: list[float], certified: list[float]
) -> tuple[list[float], list[float]]:
    """How many images are certified, by eps: at every eps that was measured, and between them.

    Stored radii are rounded down, and of many only some are shown. Both draw the curve too low,
    never too high. At the eps that were measured `certified` has all.
    """
    inside = np.unique(radii[(radii > 0) & (radii < eps[-1])])
    chosen = inside[np.linspace(0, len(inside) - 1, min(len(inside), MOST_POINTS)).astype(int)]
    at = np.unique(np.concatenate([eps, chosen]))
    from_radii = (radii[None] >= at[:, None]).mean(axis=1)
    from_brackets = np.asarray(certified)[np.searchsorted(eps, at)]
    return at.tolist(), np.maximum(from_radii, from_brackets).tolist()
