"""What `nmode_mnist` shows: its tables and its figure, with the paper's numbers beside ours."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from odejax.plots import draw_interval
from odejax.plots.curves import AXIS_LABELS

from ..ledger.printed import claimed
from ..lib.seeds import by_name, cell


def _claimed(result: dict[str, Any], name: str, number: int) -> dict[tuple, float]:
    """What a table of the paper has of a network; Tables 2 and 3 do not say which t1 nmODE has."""
    model = name if number == 5 else name.split(" t=")[0]
    return claimed("nmode", result["settings"]["dataset"], model, f"Table {number}")


def tables(result: dict[str, Any]) -> list[Table]:
    """Tables 2, 3 and 5, and what each certificate proves: mean +- deviation over the seeds.

    The paper's figures are in rows of their own.
    """
    runs = by_name(result)
    title = "nmode {}: {dataset}, the first {n} test images, accuracy in %"
    out = []
    for number, ball, attacks in (
        (2, "linf", ["PGD-40", "AutoPGD", "Square", "AutoAttack"]),
        (3, "l2", ["PGD-40", "AutoAttack"]),
    ):
        table = _table(title.format(f"Table {number}", **result["settings"]), ball, "eps", *attacks)
        for name, records in runs.items():
            paper = _claimed(result, name, number)
            for i, first in enumerate(records[0]["balls"][ball]):
                eps = first["eps"]
                measured = [record["balls"][ball][i]["per_attack"] for record in records]
                cells = (cell([m[attack] for m in measured]) for attack in attacks)
                table.add_row(name, f"{eps:g}", *cells)
                printed = [paper.get((attack, ball, round(eps, 6))) for attack in attacks]
                if any(printed):
                    table.add_row("  paper", "", *(f"{p:.1f}" if p else "" for p in printed))
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
                    cell([m[c] for m in measured]) if c in first["per_certificate"] else ""
                    for c in certificates
                )
                if first["per_certificate"]:
                    table.add_row(name, f"{ball} {first['eps']:g}", *cells)
    out.append(table)
    columns = ("clean (all)", "PGD-40", "of std", "AutoAttack", "certified", "tau")
    table = _table(title.format("Table 5", **result["settings"]), "eps 0.05", *columns)
    table.caption = "of std: PGD-40, eps in units of the pixels' deviation"
    for name, records in runs.items():
        last = [record["balls"]["linf"][-1] for record in records]
        pgd = [m["per_attack"]["PGD-40"] for m in last]
        tau = [record["tau"] for record in records if "tau" in record]
        table.add_row(
            name,
            cell([record["clean_accuracy"] for record in records]),
            cell(pgd),
            cell([record["pgd_standardised"][-1]["PGD-40"] for record in records]),
            cell([m["per_attack"]["AutoAttack"] for m in last]),
            cell([m["certified"] for m in last]) if last[0]["per_certificate"] else "",
            f"{np.mean(tau):.1f}" if tau else "",
        )
        if paper := _claimed(result, name, 5):
            figures = (paper["clean", "", 0], paper["PGD-40", "linf", 0.05])
            table.add_row("  paper", *(f"{figure:.1f}" for figure in figures))
    return [*out, table]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold", min_width=12)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def figure(result: dict[str, Any]):
    """A panel for each network: the interval against eps, and what the paper has there."""
    runs, settings = by_name(result), result["settings"]
    columns = min(5, len(runs))
    rows = -(-len(runs) // columns)
    drawn, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(7.0, 2.4 * columns + 0.6), 2.3 * rows + 0.9),  # the legend takes 7
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
        proof = certified if brackets[0][0]["per_certificate"] else None
        draw_interval(axis, eps, attacked, proof)
        axis.plot(
            eps,
            mean(lambda b: b["per_attack"]["PGD-40"]),
            ":s",
            ms=3,
            color="#ef8a62",
            label="PGD-40 alone",
        )
        for number, marker in ((2, "kx"), (5, "k+")):
            for (attack, _, at), figure in _claimed(result, name, number).items():
                if attack == "PGD-40":
                    axis.plot(at, figure, marker, label=f"paper, PGD (Table {number})")
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
