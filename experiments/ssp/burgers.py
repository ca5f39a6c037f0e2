"""*ssp*, the illustration: a shock of Burgers' equation under Euler's step and SSP ones.

    python -m experiments.ssp.burgers          # a minute

u_t + (u^2/2)_x = 0 on the periodic unit interval from a step, by WENO of fifth order in space: what
differs is the step in time alone. Strong stability would be that the total variation, 2 at the
start, does not grow. At the same Courant number Euler's step oscillates in the fan behind the
shock; so does the mid-point block of the paper's code, whose shock is also half as fast again. The
right panel has the largest variation against the Courant number for each slope that a step
evaluates, which is what a step costs.

Not all of it is strong stability: Euler's own step does not preserve the variation along this
slope, so there is none to inherit, and the midpoint rule, whose SSP coefficient is 0, does nearly
as well as SSPRK(2,2).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import diffrax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odejax.plots import colors, plain_ticks, set_title
from odejax.solvers import (
    SSPRK22,
    SSPRK33,
    SSPRK43,
    SSPRK104,
    PublishedMidpoint,
    burgers,
    total_variation,
)

from ..lib import report
from ..lib.run import Config as Base, Experiment, Once, check_counts, run

KIND = "ssp_burgers"
# The step, and how many slopes it evaluates.
METHODS: dict[str, tuple[Any, int]] = {
    "Euler": (diffrax.Euler(), 1),
    "midpoint rule": (diffrax.Midpoint(), 2),
    "midpoint, published": (PublishedMidpoint(), 2),
    "SSPRK(2,2)": (SSPRK22(), 2),
    "SSPRK(3,3)": (SSPRK33(), 3),
    "SSPRK(4,3)": (SSPRK43(), 4),
    "SSPRK(10,4)": (SSPRK104(), 10),
}
COURANTS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 4.0)
SHOWN = 0.5
T1 = 0.4
IN_THE_FIGURE = ("Euler", "midpoint rule", "midpoint, published", "SSPRK(3,3)", "SSPRK(10,4)")
LARGEST = 3.5  # variation in the figure


@dataclasses.dataclass
class Config(Base):
    """Solve Burgers' equation past a shock and measure total variations."""

    cells: int = 200
    """How many cells, at least 5."""


def plan(
    config: Config,
    methods: Mapping[str, tuple[Any, int]] = METHODS,
    courants: Sequence[float] = COURANTS,
    shown: float = SHOWN,
) -> Once:
    check_counts(config, "cells")
    n = config.cells

    def of_method(solver, slopes):
        states = {c: burgers(initial, solver=solver, courant=c, t1=T1) for c in courants}
        return {
            "slopes": slopes,
            "largest_variation": {
                f"{c:g}": _finite(jnp.max(total_variation(us))) for c, us in states.items()
            },
            "profile": [_finite(u) for u in states[shown][-1]],
        }

    initial = jnp.where((jnp.arange(n) + 0.5) / n < 0.5, 1.0, 0.0)
    settings = {"cells": n, "t1": T1, "courant": shown}
    return Once(
        lambda: {
            "settings": settings,
            "methods": {name: of_method(*method) for name, method in methods.items()},
        }
    )


def _finite(value) -> float | None:
    """None where the solution has overflown."""
    return float(value) if np.isfinite(value) else None


def tables(result: dict[str, Any]) -> list[Any]:
    """The largest total variation on the way, by method and Courant number."""
    methods = result["methods"]
    columns = [*next(iter(methods.values()))["largest_variation"]]
    title = "largest total variation (2 at the start) by Courant number"
    shown = report.table(title, "method", *columns)
    for name, method in methods.items():
        values = [method["largest_variation"][courant] for courant in columns]
        shown.add_row(name, *(_cell(value) for value in values))
    return [shown]


def _cell(value: float | None) -> str:
    if value is None:
        return "inf"
    return f"{value:.2f}" if value < 100 else f"{value:.0e}"


def figure(result: dict[str, Any]):
    """The profile at the shock, and the largest variation against Courant number for each slope."""
    methods, settings = result["methods"], result["settings"]
    methods = {name: methods[name] for name in IN_THE_FIGURE if name in methods}
    n, t1, color = settings["cells"], settings["t1"], colors(IN_THE_FIGURE)
    x = (np.arange(n) + 0.5) / n
    drawn, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
    exact = np.where(x < t1, x / t1, np.where(x < 0.5 + t1 / 2, 1.0, 0.0))
    left.plot(x, exact, "k", lw=1, label="exact")
    variations = []
    for name, method in methods.items():
        if name in ("Euler", "midpoint, published", "SSPRK(3,3)"):
            profile = np.array(method["profile"], float)
            left.plot(x, profile, ".-", ms=3, lw=0.8, color=color[name], label=name)
            variation = method["largest_variation"][f"{settings['courant']:g}"]
            variations.append(f"{_cell(variation)} ({name})")
        courants = np.array([float(c) for c in method["largest_variation"]]) / method["slopes"]
        values = [np.inf if v is None else v for v in method["largest_variation"].values()]
        shown = np.minimum(values, LARGEST)
        until = np.argmax(shown == LARGEST) + 1 if LARGEST in shown else len(shown)
        right.plot(courants[:until], shown[:until], "-o", ms=3, color=color[name], label=name)
    left.set_xlabel("x")
    left.set_ylabel("u")
    left.set_title(f"t = {t1:g}", fontsize=10)
    right.set_xscale("log")
    right.set_xlabel("Courant number for each evaluation of the slope")
    right.set_ylabel(f"largest total variation (top: {LARGEST:g} or more)")
    right.set_title("by the length of the step", fontsize=10)
    for axis in (left, right):
        axis.grid(alpha=0.3, lw=0.5)
        plain_ticks(axis)
    report.legend_below(drawn, ncols=6, fontsize=9)
    set_title(
        drawn,
        f"At Courant number {settings['courant']:g} the total variation grows from 2 to "
        + ", ".join(variations),
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"burgers": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
