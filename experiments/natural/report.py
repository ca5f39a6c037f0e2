"""What `natural` shows: a table for every network, and its figure, the paper's numbers in both."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from odejax.plots.curves import AXIS_LABELS

from ..ledger.printed import claimed
from ..lib.seeds import by_name, cell, flags_raised

WORST = "all, then AutoAttack"
PRINTED = ("Section 4.2", "Table 1", "Table 2")
STYLES: dict[str, dict[str, Any]] = {
    "FGSM": {"color": "#fdb863", "marker": "v"},
    "PGD-40": {"color": "#ef8a62", "marker": "s"},
    "PGD-20": {"color": "#e08214", "marker": "D"},
    "DI2-FGSM": {"color": "#b35806", "marker": "^"},
    "Boundary": {"color": "#7fbf7b"},
    "SPSA": {"color": "#1b7837"},
    "Square": {"color": "#5ab4ac"},
}


def _papers_model(name: str) -> str:
    """Whose figures stand beside a network's; a small one stands for the paper's."""
    return {"ResNet": "ResNet-50"}.get(name, name.split(", t1")[0])


def _left(brackets: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What each attack and each transfer leaves, one figure for each seed."""
    rows = {
        attack: [b["per_attack"][attack] for b in brackets] for attack in brackets[0]["per_attack"]
    }
    for oracle in brackets[0]["per_transfer"]:
        rows[f"from: {oracle}"] = [b["per_transfer"][oracle] for b in brackets]
    rows[WORST] = [b["attacked"] for b in brackets]
    return rows


def _at_each_eps(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The brackets of all seeds, eps by eps."""
    return [list(row) for row in zip(*(record["brackets"] for record in records), strict=True)]


def tables(result: dict[str, Any]) -> list[Table]:
    """For each network what every attack leaves, in %: mean +- deviation over the seeds."""
    settings, out = result["settings"], []
    for name, records in by_name(result).items():
        grid = _at_each_eps(records)
        clean = cell([record["clean_accuracy"] for record in records])
        title = (
            f"{settings['dataset']}, {name}: {clean} % of all test images; "
            f"left of the first {settings['n']}"
        )
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("L-infinity eps")
        for brackets in grid:
            table.add_column(f"{brackets[0]['eps']:.3g}", justify="right", no_wrap=True)
        printed = claimed("natural", settings["dataset"], _papers_model(name), *PRINTED)
        for attack in _left(grid[0]):
            table.add_row(attack, *(cell(_left(brackets)[attack]) for brackets in grid))
            paper = [printed.get((attack, "linf", round(b[0]["eps"], 6))) for b in grid]
            if any(p is not None for p in paper):
                table.add_row("  paper", *("" if p is None else f"{p:.1f}" for p in paper))
        table.caption = "flags: " + (", ".join(flags_raised(records)) or "none")
        out.append(table)
    return out


def figure(result: dict[str, Any]):
    """A panel for each network: what every attack leaves against eps, and what the paper has."""
    runs, settings = by_name(result), result["settings"]
    drawn, axes = plt.subplots(
        1,
        len(runs),
        figsize=(3.6 * len(runs) + 0.6, 5.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles: dict[str, Any] = {}
    for axis, (name, records) in zip(axes[0], runs.items(), strict=True):
        grid = _at_each_eps(records)
        eps = [0.0, *(brackets[0]["eps"] for brackets in grid)]
        clean = np.mean([b["clean"] for b in grid[0]])
        rows = [_left(brackets) for brackets in grid]
        for attack in rows[0]:
            style = {"color": "#998ec3", "ls": ":"} if attack.startswith("from") else {}
            style |= STYLES.get(attack, {})
            if attack == WORST:
                style = {"color": "#b2182b", "lw": 2.5, "marker": "o"}
            values = 100 * np.array([clean, *(np.mean(row[attack]) for row in rows)])
            label = "images of other networks" if attack.startswith("from") else attack
            (handles[label],) = axis.plot(eps, values, **{"lw": 1, "ms": 3, **style}, label=label)
        printed = claimed("natural", settings["dataset"], _papers_model(name), *PRINTED)
        for (attack, norm, at), value in printed.items():
            if norm and attack in STYLES:
                label, color = f"the paper, {attack}", STYLES[attack]["color"]
                handles[label] = axis.plot(at, value, "X", ms=8, color=color, mec="k")[0]
        flags = flags_raised(records)
        title = f"{name}\nclean {100 * clean:.1f} %"  # of the images that are attacked
        axis.set_title(f"{title}, {len(flags)} flag{'' if len(flags) == 1 else 's'}", fontsize=10)
        axis.set_xlabel(AXIS_LABELS["linf"])
        axis.grid(alpha=0.3, lw=0.5)
        axis.set_ylim(-2, 102)
    axes[0, 0].set_ylabel("accuracy (%)")
    drawn.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8
    )
    title = f"{settings['dataset']}, {settings['n']} test images, preset {settings['preset']}"
    drawn.suptitle(title, fontsize=11)
    return drawn
