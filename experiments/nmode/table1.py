"""*nmode* Table 1: nmODE damps a perturbation of its input, P-nmODE amplifies it.

    python -m experiments.nmode.table1

Two neurons with weights 0.4/9 and 0.5/9, x = [1, 0, 1, 0, 1, 0, 1, 0, 1], one component raised by
0.8; lambda = 5, which the paper does not print. Solved by Dopri5 at a tolerance of 1e-7, with which
every printed digit is the paper's, and by Dopri8 at 1e-8 relative, which differs in one (4.7678).
One entry of the paper is a misprint, 0.0837, which its own columns give as 0.0891. Ends in seconds.
"""

from collections.abc import Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from odejax.models import NmODE

from ..ledger.printed import Claim, claims_of
from ..ledger.sources import Source
from ..lib import report
from ..lib.run import Config, Experiment, Once, run

KIND = "nmode_table1"
LAM = 5.0
X = np.array([1.0, 0, 1, 0, 1, 0, 1, 0, 1])
WEIGHTS = np.array([0.4, 0.5])[:, None] * np.ones((1, 9)) / 9
PERTURBATION = 0.8 * np.eye(9)[0]
SOLVERS = {
    "Dopri5, 1e-7": {"solver": diffrax.Dopri5(), "rtol": 1e-7, "atol": 1e-7},
    "Dopri8, 1e-8": {"solver": diffrax.Dopri8(), "rtol": 1e-8, "atol": 1e-13},
}
COLUMNS = ("y1", "y1'", "|y1 - y1'|", "y2", "y2'", "|y2 - y2'|")
PAPER: dict[tuple[str, float], list[float]] = {}  # as printed, by family and t
for claim in claims_of("nmode", "two neurons", "Table 1"):
    name, at = claim.model.split(" t=")
    PAPER.setdefault((name, float(at)), []).append(claim.claimed)


def plan(config: Config, chosen: Mapping[tuple[str, float], list[float]] = PAPER) -> Once:
    def measure():
        rows = {name: table(settings, chosen) for name, settings in SOLVERS.items()}
        return {
            "columns": COLUMNS,
            "rows": [
                {"family": family, "t": t, "paper": figures}
                | {name: solved[family, t] for name, solved in rows.items()}
                for (family, t), figures in chosen.items()
            ],
        }

    return Once(measure)


def tables(result: dict[str, Any]) -> list[Any]:
    shown = report.table("nmode Table 1 (in brackets: the paper)", "", "t", *COLUMNS, names=2)
    for row in result["rows"]:
        pairs = zip(printed_row(row["Dopri5, 1e-7"]), row["paper"], strict=True)
        cells = [f"{measured}\n({as_printed(printed)})" for measured, printed in pairs]
        shown.add_row(row["family"], f"{row['t']:g}", *cells)
    return [shown]


def table(settings, chosen) -> dict[tuple[str, float], list[float]]:
    """y1, y1', y2, y2' for every row."""
    gamma = np.concatenate([WEIGHTS @ X, WEIGHTS @ (X + PERTURBATION)])[[0, 2, 1, 3]]
    rows = {}
    for family, t in chosen:
        # P-nmODE grows to 1e9, and sin^2(y + gamma) oscillates as fast: very many steps.
        nmode = NmODE(LAM if family == "nmODE" else -LAM, t, max_steps=10**6, **settings)
        with jax.enable_x64(True):
            rows[family, t] = np.asarray(nmode(jnp.asarray(gamma))).tolist()
    return rows


def printed_row(row: list[float]) -> list[str]:
    """As the paper prints it: four decimals, in the last row three digits, cut and not rounded;
    the differences are those of the printed columns.
    """
    y1, y1_bar, y2, y2_bar = (float(as_printed(y)) for y in row)
    columns = (y1, y1_bar, abs(y1_bar - y1), y2, y2_bar, abs(y2_bar - y2))
    return [as_printed(value + 1e-12 * value) for value in columns]


def as_printed(value: float) -> str:
    return f"{np.floor(value / 1e7 + 1e-6) / 100:.2f}e9" if value > 1e8 else f"{value:.4f}"


def _read(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    family, t = name.split(" t=")
    for row in result["rows"]:
        if (row["family"], f"{row['t']:g}") == (family, t):
            value = float(printed_row(row["Dopri5, 1e-7"])[COLUMNS.index(claim.attack)])
            return {"device": result["device"], "value": value}
    return None


def sources(claim: Claim) -> list[Source]:
    if (claim.paper, claim.table) != ("nmode", "Table 1"):
        return []
    return [Source(KIND, KIND, "python -m experiments.nmode.table1", _read, claim.model)]


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {}, sources=sources)

if __name__ == "__main__":
    run(EXPERIMENT)
