"""What the papers print: the figures of their tables, from `claims.csv`.

Accuracies are in percent, eps in pixels of [0, 1]. No figure is listed twice: one that a paper
prints in two places is listed at the first table that has it. Where a paper contradicts itself,
both figures are listed. A few rows are no accuracies but quantities, such as the outputs of *nmode*
Table 1, tau, or numbers of parameters: their `norm` is empty and `attack` names the quantity.

The texts of *ssp* and *structured* are not at hand: of the former there is nothing, of the latter
the attacks on its networks of margin 0.07 on CIFAR-10. Robust ratios (*nmode* Table 5) are left
out, since they follow from the rest. Four figures of *natural* lost their decimal point in the copy
at hand: 25.20, 4.65 (Table 1), 41.61 and 59.06 (Table 2).
"""

import csv
import dataclasses
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """One figure of a paper."""

    paper: str
    table: str
    dataset: str
    model: str
    attack: str  # "clean" for none; which quantity, where it is no accuracy
    norm: str  # of the attack's ball: linf or l2
    eps: str  # its radius, as printed; *enresnet* gives none for C&W
    claimed: float
    deviation: float | None
    quoted: str  # the other work that the paper has the figure from; empty if it is its own
    size_given: bool  # whether the paper gives the network's size
    epochs: int | None  # of training, where the paper gives them

    @property
    def radius(self) -> float:
        """eps as a number; 0 where there is none."""
        return float(Fraction(self.eps)) if self.eps else 0.0

    @property
    def is_quantity(self) -> bool:
        """Whether the figure is no accuracy."""
        return self.attack != "clean" and not self.norm


@cache
def all_claims() -> tuple[Claim, ...]:
    with (Path(__file__).parent / "claims.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["claimed"] = float(row["claimed"])
        row["deviation"] = float(row["deviation"]) if row["deviation"] else None
        row["size_given"] = {"yes": True, "no": False}[row["size_given"]]
        row["epochs"] = int(row["epochs"]) if row["epochs"] else None
    return tuple(Claim(**row) for row in rows)


def claimed(paper: str, dataset: str, model: str, *tables: str) -> dict[tuple, float]:
    """A model's figures by (attack, norm, eps), ("clean", "", 0) among them; eps to 6 digits."""
    return {
        (claim.attack, claim.norm, round(claim.radius, 6)): claim.claimed
        for claim in claims_of(paper, dataset, *tables)
        if claim.model == model
    }


def claims_of(paper: str, dataset: str, *tables: str) -> tuple[Claim, ...]:
    """A paper's figures on a data set, from these of its tables."""
    return tuple(
        claim
        for claim in all_claims()
        if (claim.paper, claim.dataset) == (paper, dataset) and claim.table in tables
    )
