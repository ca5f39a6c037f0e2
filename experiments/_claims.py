"""What the papers print: the figures of their tables, from `claims.csv`.

Accuracies are in percent, eps in pixels of [0, 1]. The texts of *ssp* and *structured* are not at
hand: of the former there is nothing, of the latter the attacks on its networks of margin 0.07 on
CIFAR-10. Robust ratios (*nmode* Table 5) are left out, since they follow from the rest. Four
figures of *natural* lost their decimal point in ours: 25.20, 4.65 (Table 1), 41.61 and 59.06
(Table 2).
"""

import csv
import dataclasses
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """One figure of a table."""

    paper: str
    table: str
    dataset: str
    model: str
    attack: str  # "clean" for none; of *nmode* Table 1, which quantity
    norm: str  # of the attack's ball: linf or l2
    eps: str  # its radius, as printed
    claimed: float
    deviation: float | None

    @property
    def radius(self) -> float:
        """eps as a number; 0 without an attack."""
        return float(Fraction(self.eps)) if self.eps else 0.0


@cache
def all_claims() -> tuple[Claim, ...]:
    with (Path(__file__).parent / "claims.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row["claimed"] = float(row["claimed"])
        row["deviation"] = float(row["deviation"]) if row["deviation"] else None
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
