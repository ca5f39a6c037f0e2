"""What `nmode_mnist` shows: its tables and its figure, with the paper's numbers beside ours."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from odejax.plots.curves import AXIS_LABELS

# The paper's figures, by network, attack and eps.
PAPER_CLEAN = {
    "nmODE t=0.05": 98.38,
    "nmODE+ t=0.05, wd=1e-5": 98.36,
    "nmODE+ t=0.05, wd=1e-4": 98.30,
    "nmODE+ t=0.05, wd=1e-3": 97.25,
}
PAPER_LINF = {  # Table 2, by eps: 0.01, 0.03, 0.05
    "NODE": {
        "PGD-40": (86.14, 71.04, 47.40),
        "AutoPGD": (84.41, 68.99, 46.31),
        "Square": (86.55, 72.50, 51.58),
    },
    "AT-NODE": {
        "PGD-40": (91.76, 85.80, 78.38),
        "AutoPGD": (91.34, 87.60, 78.35),
        "Square": (92.65, 89.50, 81.13),
    },
    "ODE-TRADES": {
        "PGD-40": (91.46, 85.08, 77.32),
        "AutoPGD": (92.19, 85.31, 76.89),
        "Square": (92.06, 90.08, 82.41),
    },
    "TisODE": {
        "PGD-40": (92.67, 87.48, 81.28),
        "AutoPGD": (91.12, 87.02, 79.48),
        "Square": (94.10, 87.60, 83.24),
    },
    "nmODE": {
        "PGD-40": (94.92, 93.02, 90.23),
        "AutoPGD": (97.92, 94.16, 85.13),
        "Square": (98.35, 97.82, 95.77),
    },
}
PAPER_L2 = {"nmODE": {"PGD-40": (99.49, 99.36)}}  # Table 3, by eps: 0.1, 0.2
PAPER_TABLE_5 = {
    "nmODE t=0.05": 96.71,
    "nmODE+ t=0.05, wd=1e-5": 97.87,
    "nmODE+ t=0.05, wd=1e-4": 97.91,
    "nmODE+ t=0.05, wd=1e-3": 96.37,
}


def _by_network(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of every network, one for each seed."""
    runs: dict[str, list] = {}
    for name, record in result["runs"].items():
        runs.setdefault(name.split("/")[0], []).append(record)
    return runs


def _published(result: dict[str, Any], paper: dict[str, Any], name: str) -> dict[str, Any]:
    """What the paper has of a network (it does not say which t1 Table 2 has), if on this data."""
    on_mnist = result["settings"]["dataset"] == "mnist"
    return paper.get(name.split(" t=")[0], {}) if on_mnist else {}


def tables(result: dict[str, Any]) -> list[Table]:
    """Tables 2, 3 and 5, and what each certificate proves: mean +- deviation over the seeds.

    The paper's figures are in rows of their own.
    """
    runs = _by_network(result)
    title = "nmode {}: {dataset}, the first {n} test images, accuracy in %"
    out = []
    for number, ball, attacks, published in (
        (2, "linf", ["PGD-40", "AutoPGD", "Square", "AutoAttack"], (0.01, 0.03, 0.05)),
        (3, "l2", ["PGD-40", "AutoAttack"], (0.1, 0.2)),
    ):
        table = _table(title.format(f"Table {number}", **result["settings"]), ball, "eps", *attacks)
        for name, records in runs.items():
            paper = _published(result, PAPER_LINF if number == 2 else PAPER_L2, name)
            for i, first in enumerate(records[0]["balls"][ball]):
                eps = first["eps"]
                measured = [record["balls"][ball][i]["per_attack"] for record in records]
                cells = (_cell([m[attack] for m in measured]) for attack in attacks)
                table.add_row(name, f"{eps:g}", *cells)
                if paper and eps in published:
                    printed = (paper.get(attack) for attack in attacks)
                    at = published.index(eps)
                    table.add_row("  paper", "", *(f"{p[at]:.1f}" if p else "" for p in printed))
        out.append(table)
    certificates = max(
        ([*records[0]["balls"]["linf"][0]["per_certificate"]] for records in runs.values()), key=len
    )
    table = _table(title.format("certified", **result["settings"]), "", "eps", *certificates)
    for name, records in runs.items():
        for ball, intervals in records[0]["balls"].items():
            for i, first in enumerate(intervals):
                measured = [record["balls"][ball][i]["per_certificate"] for record in records]
                cells = (
                    _cell([m[c] for m in measured]) if c in first["per_certificate"] else ""
                    for c in certificates
                )
                if first["per_certificate"]:
                    table.add_row(name, f"{ball} {first['eps']:g}", *cells)
    out.append(table)
    columns = ("clean", "PGD-40", "of std", "AutoAttack", "certified", "tau")
    table = _table(title.format("Table 5", **result["settings"]), "eps 0.05", *columns)
    table.caption = (
        "clean: of all test images; of std: PGD-40, eps in units of the pixels' deviation"
    )
    for name, records in runs.items():
        last = [record["balls"]["linf"][-1] for record in records]
        pgd = [m["per_attack"]["PGD-40"] for m in last]
        tau = [record["tau"] for record in records if "tau" in record]
        table.add_row(
            name,
            _cell([record["clean_accuracy"] for record in records]),
            _cell(pgd),
            _cell([record["pgd_standardised"][-1]["PGD-40"] for record in records]),
            _cell([m["per_attack"]["AutoAttack"] for m in last]),
            _cell([m["certified"] for m in last]) if last[0]["per_certificate"] else "",
            f"{np.mean(tau):.1f}" if tau else "",
        )
        if name in PAPER_TABLE_5 and result["settings"]["dataset"] == "mnist":
            clean, left = PAPER_CLEAN[name], PAPER_TABLE_5[name]
            table.add_row("  paper", f"{clean:.1f}", f"{left:.1f}")
    return [*out, table]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold", min_width=12)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def figure(result: dict[str, Any]):
    """A panel for each network: the interval against eps, and what the paper has there."""
    runs, settings = _by_network(result), result["settings"]
    columns = min(5, len(runs))
    rows = -(-len(runs) // columns)
    drawn, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.4 * columns + 0.6, 2.3 * rows + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, records) in zip(axes.flat, runs.items(), strict=False):
        brackets = [record["balls"]["linf"] for record in records]
        eps = [0.0, *(b["eps"] for b in brackets[0])]
        clean = np.mean([b[0]["clean"] for b in brackets])

        def mean(pick, brackets=brackets, clean=clean):
            return 100 * np.array([clean, *np.mean([[*map(pick, b)] for b in brackets], axis=0)])

        attacked, certified = mean(lambda b: b["attacked"]), mean(lambda b: b["certified"])
        axis.fill_between(eps, certified, attacked, color="0.9", label="the truth lies in here")
        axis.plot(
            eps,
            mean(lambda b: b["per_attack"]["PGD-40"]),
            ":s",
            ms=3,
            color="#ef8a62",
            label="PGD-40 alone",
        )
        axis.plot(eps, attacked, "-o", ms=3, color="#b2182b", label="worst case of all attacks")
        if brackets[0][0]["per_certificate"]:
            axis.plot(eps, certified, "-o", ms=3, color="#2166ac", label="certified")
        paper = _published(result, PAPER_LINF, name).get("PGD-40")
        if paper:
            axis.plot((0.01, 0.03, 0.05), paper, "kx", label="paper, PGD (Table 2)")
        if name in PAPER_TABLE_5 and settings["dataset"] == "mnist":
            axis.plot(0.05, PAPER_TABLE_5[name], "k+", ms=9, label="paper, PGD (Table 5)")
        axis.set_title(name, fontsize=9)
        axis.set_ylim(-2, 102)
        axis.grid(alpha=0.3, lw=0.5)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(runs) - columns : len(runs)]:  # the lowest of each column
        axis.set_xlabel(AXIS_LABELS["linf"])
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    drawn.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3 if columns < 5 else 6,
        frameon=False,
        fontsize=8,
    )
    drawn.suptitle(
        f"nmode Tables 2 and 5, {settings['dataset']}, the first {settings['n']} test images",
        fontsize=11,
    )
    return drawn


def _cell(fractions: list[float]) -> str:
    percent = 100 * np.asarray(fractions)
    spread = f" ± {percent.std(ddof=1):.1f}" if len(percent) > 1 else ""
    return f"{percent.mean():.1f}{spread}"
