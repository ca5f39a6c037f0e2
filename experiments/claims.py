"""The ledger: the figures that the papers print, beside what was measured here.

    python -m experiments.claims                     # from the committed results; seconds
    python -m experiments.claims --papers nmode

A claim is measured where `experiments/results` has its network, at the paper's size, under its
attack: what that attack leaves, what the worst of all attacks leaves, what is proven, as means over
the seeds. All others are listed as not measured yet. A claim is "not reached" where it lies above
what the worst attack leaves of our network by more than sampling error (95 %).

The figures of *ssp* are not at hand. What it claims, that its blocks keep perturbations small and
so resist attacks, stands at the end: growth and accuracy of its networks, side by side.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from odejax.evaluation import confidence_interval, load_result, save_result

from . import enresnet_cifar, natural, nmode_cifar, nmode_mnist, ssp, structured
from ._claims import Claim, all_claims
from ._cli import check_choices, run
from ._enresnet import TABLES
from ._report import copy_to_repository
from ._seeds import by_name, mean_and_deviation, shown
from .nmode_table1 import COLUMNS, as_printed, printed_row

KIND = "claims"
PAPERS = ("natural", "nmode", "enresnet", "ssp", "structured")
RESULTS = Path(__file__).parent / "results"
COLORS = dict(zip(PAPERS, ("#7570b3", "#b2182b", "#1b9e77", "#e7298a", "#d95f02"), strict=True))


@dataclasses.dataclass
class Config:
    """Gather the numeric claims of the papers, and what was measured of them."""

    papers: tuple[str, ...] = PAPERS
    """Which papers."""
    out: Path = Path("runs/claims")
    """Run folder."""
    publish: bool = False
    """Also copy the ledger and its figure into experiments/results and experiments/figures."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The experiment that measures some claims: `read(result, claim)` is a measurement or None.

    `settings` are those of the paper's size; a run with others, one cut short say, measures none.
    """

    result: str  # its file in `experiments/results`, and its kind
    kind: str
    command: str
    read: Callable[[dict[str, Any], Claim], dict[str, Any] | None]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _measured(records: list[dict[str, Any]], claim: Claim, bracket_of) -> dict[str, Any] | None:
    """The means over `records`, one for each seed."""
    if not records:
        return None
    told = {"seeds": len(records), "device": records[0]["device"]}
    if claim.attack == "clean":
        if "clean_accuracy" not in records[0]:
            return None
        return told | _mean([record["clean_accuracy"] for record in records])
    brackets = [bracket_of(record) for record in records]
    if None in brackets or claim.attack not in brackets[0]["per_attack"]:
        return None
    first = brackets[0]
    told |= _mean([b["per_attack"][claim.attack] for b in brackets])
    if "attacked" in first:  # a transfer attack has no interval
        told |= {
            "n": first["n"],
            "worst_attack": 100 * float(np.mean([b["attacked"] for b in brackets])),
            "certified": 100 * float(np.mean([b["certified"] for b in brackets])),
            "flags": sorted({flag for b in brackets for flag in b["flags"]}),
        }
    return told


def _mean(fractions: list[float]) -> dict[str, float]:
    mean, deviation = mean_and_deviation(fractions)
    return {"papers_attack": mean} | ({} if deviation is None else {"deviation": deviation})


def _at(brackets: list[dict[str, Any]], claim: Claim) -> dict[str, Any] | None:
    """The one of the claim's eps."""
    return next((b for b in brackets if np.isclose(b["eps"], claim.radius)), None)


def _from_nmode(result: dict[str, Any], claim: Claim) -> dict[str, Any] | None:
    # Tables 2 and 3 do not say which t their nmODE has: the more robust one stands for it.
    name = "nmODE t=1" if claim.model == "nmODE" else claim.model

    records = by_name(result).get(name, [])
    found = _measured(records, claim, lambda record: _at(record["balls"][claim.norm], claim))
    return found and {"network": name} | found


def _from_natural(result: dict[str, Any], claim: Claim) -> dict[str, Any] | None:
    records = by_name(result).get(claim.model, [])
    return _measured(records, claim, lambda record: _at(record["brackets"], claim))


def _from_structured(result: dict[str, Any], claim: Claim) -> dict[str, Any] | None:
    records = by_name(result).get(claim.model, [])
    return _measured(records, claim, lambda record: _at(record["brackets"], claim))


def _from_enresnet(result: dict[str, Any], claim: Claim) -> dict[str, Any] | None:
    kind = next(kind for kind, tables in TABLES.items() if claim.table in tables)
    records = by_name(result).get(f"{kind}/{claim.model}", [])
    return _measured(records, claim, lambda record: record)


def _from_table1(result: dict[str, Any], claim: Claim) -> dict[str, Any] | None:
    family, t = claim.model.split(" t=")
    for row in result["rows"]:
        if (row["family"], f"{row['t']:g}") == (family, t):
            ours = float(printed_row(row["Dopri5, 1e-7"])[COLUMNS.index(claim.attack)])
            return {"device": result["device"], "value": ours}
    return None


def _source(claim: Claim) -> Source:
    """Which experiment measures a claim."""
    if (claim.paper, claim.table) == ("nmode", "Table 1"):
        command = "python -m experiments.nmode_table1"
        return Source("nmode_table1", "nmode_table1", command, _from_table1)
    data = f"--dataset {claim.dataset} --data-dir FOLDER"
    if claim.paper == "nmode" and claim.dataset in ("mnist", "fashion_mnist"):
        command = f"python -m experiments.nmode_mnist {data} --test-images 250"
        name, longest = f"nmode_mnist_{claim.dataset}", nmode_mnist.SETTINGS[claim.dataset].epochs
        epochs = {name: net.epochs or longest for name, net in nmode_mnist.NETWORKS.items()}
        return Source(name, "nmode_mnist", command, _from_nmode, {"epochs": epochs})
    if claim.paper == "nmode":
        command = "python -m experiments.nmode_cifar --preset paper --data-dir FOLDER"
        name = f"nmode_{claim.dataset}_paper"
        preset = nmode_cifar.PRESETS["paper"]
        settings = _chosen(preset, "depth", "epochs_pretrained", "epochs", "train_images")
        return Source(name, "nmode_cifar", command, _from_nmode, settings)
    if claim.paper == "natural":
        command = f"python -m experiments.natural --preset paper {data}"
        networks = natural.PRESETS["paper"].networks(claim.dataset)
        epochs = {name: network.epochs for name, network in networks.items()}
        name = f"natural_{claim.dataset}_paper"
        return Source(name, "natural", command, _from_natural, {"epochs": epochs})
    if claim.paper == "enresnet":
        command = f"python -m experiments.enresnet_cifar --preset paper {data}"
        name = f"enresnet_{claim.dataset}_paper"
        settings = _chosen(enresnet_cifar.PRESETS["paper"], "epochs", "train_images", "pgd_steps")
        return Source(name, "enresnet_cifar", command, _from_enresnet, settings)
    command = "python -m experiments.structured --preset paper --data-dir FOLDER"
    settings = _chosen(structured.PRESETS["paper"]["cifar10"], "epochs", "margin")
    return Source("structured_cifar10_paper", "structured", command, _from_structured, settings)


def _chosen(preset: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(preset, name) for name in names}


def ledger(papers: Collection[str], results: Path = RESULTS) -> list[dict[str, Any]]:
    """Every claim of `papers` with its measurement, or why there is none."""
    loaded: dict[Path, dict[str, Any] | None] = {}
    entries = []
    for claim in all_claims():
        if claim.paper not in papers:
            continue
        entry = {k: v for k, v in dataclasses.asdict(claim).items() if v not in ("", None)}
        source = _source(claim)
        entry["command"] = source.command
        path = results / f"{source.result}.json"
        if path not in loaded:
            loaded[path] = load_result(path, source.kind) if path.exists() else None
        result = loaded[path]
        if result is None:
            entries.append(entry | {"not_measured": "not run yet"})
            continue
        settings = result.get("settings", {})
        if any(settings.get(name) != value for name, value in source.settings.items()):
            entries.append(entry | {"not_measured": "run with other settings than the paper's"})
            continue
        measured = source.read(result, claim)
        if measured is None:
            entries.append(entry | {"not_measured": "not among the networks of the experiment"})
            continue
        entries.append(entry | measured | {"result": path.name})
    return entries


def side_by_side(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Of each run of `ssp`: a network's growth ratio beside what attacks leave of it, in percent.

    The growth is that in the largest ball, `growth_eps`. The accuracies of networks that were
    trained in it are so too, of those trained on clean images they are in the smallest.
    """
    rows = []
    names = [f"{dataset}_{preset}" for preset, sets in ssp.PRESETS.items() for dataset in sets]
    for path in sorted(path for name in names for path in results.glob(f"ssp_{name}*.json")):
        result = load_result(path, ssp.KIND)
        for name, records in by_name(result).items():
            training, network = name.split("/")
            brackets = [
                record["brackets"][0 if training == "natural" else -1] for record in records
            ]
            row = {
                "result": path.name,
                "dataset": result["settings"]["dataset"],
                "training": training,
                "network": network,
                "seeds": len(records),
                "eps": brackets[0]["eps"],
                "growth": ssp.last_growth(records),
                "growth_eps": result["settings"]["eps"][-1],
            }
            figures = {
                "clean": [record["clean_accuracy"] for record in records],
                "papers_attack": [b["per_attack"][ssp.SHOWN] for b in brackets],
                "worst_attack": [b["attacked"] for b in brackets],
            }
            for what, fractions in figures.items():
                row[what], row[f"{what}_deviation"] = mean_and_deviation(fractions)
            rows.append(row)
    return rows


def not_reached(entry: dict[str, Any]) -> bool:
    """Whether a claim lies above what the worst attack leaves, by more than sampling error."""
    if "worst_attack" not in entry:
        return False
    left, n = entry["worst_attack"] / 100, entry["n"]
    _, high = confidence_interval(round(left * n), n)
    return entry["claimed"] > 100 * high


def tables(entries: list[dict[str, Any]]) -> list[Table]:
    """One for each table of each paper and data set, then one of counts."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["paper"], entry["table"], entry["dataset"]), []).append(entry)
    out = []
    for (paper, name, dataset), rows in groups.items():
        table = Table(
            title=f"{paper} {name}, {dataset}",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("", overflow="fold", min_width=14)
        for column in ("attack", "eps"):
            table.add_column(column, no_wrap=True)
        for column in ("claimed", "measured", "worst", "proven"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*_cells(row))
        reasons = {row["not_measured"] for row in rows if "not_measured" in row}
        flags = {flag for row in rows for flag in row.get("flags", ())}
        notes = [f"-: {', '.join(sorted(reasons))}"] if reasons else []
        notes += [f"*: {', '.join(sorted(flags))}"] if flags else []
        table.caption = "; ".join(notes)
        out.append(table)
    counts = Table(title="the ledger", box=SIMPLE_HEAD, pad_edge=False)
    counts.add_column("")
    for column in ("claims", "measured", "under attack", "not reached"):
        counts.add_column(column, justify="right")
    for paper in dict.fromkeys(entry["paper"] for entry in entries):
        mine = [entry for entry in entries if entry["paper"] == paper]
        measured = [entry for entry in mine if "not_measured" not in entry]
        attacked = [entry for entry in measured if "worst_attack" in entry]
        beyond = sum(map(not_reached, attacked))
        counts.add_row(paper, *map(str, (len(mine), len(measured), len(attacked), beyond)))
    return [*out, counts]


def _spread(row: dict[str, Any], what: str) -> str:
    return shown(row[what], row[f"{what}_deviation"])


def ssp_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One for each run of `ssp`."""
    out = []
    for result in dict.fromkeys(row["result"] for row in rows):
        mine = [row for row in rows if row["result"] == result]
        table = Table(
            title=f"ssp, {mine[0]['dataset']} ({result})", box=SIMPLE_HEAD, pad_edge=False
        )
        for column in ("trained", "network"):
            table.add_column(column)
        growth = f"growth at {mine[0]['growth_eps']:.3g}"
        for column in (growth, "clean", "eps", ssp.SHOWN, "all attacks"):
            table.add_column(column, justify="right", no_wrap=column != growth)
        for row in mine:
            table.add_row(
                row["training"],
                row["network"],
                ssp.shown_growth(row["growth"]),
                _spread(row, "clean"),
                f"{row['eps']:.3g}",
                _spread(row, "papers_attack"),
                _spread(row, "worst_attack"),
            )
        out.append(table)
    return out


def _cells(row: dict[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    claimed, measured = percent(row["claimed"]), "-"
    if "value" in row:  # a quantity, not an accuracy in percent
        claimed, measured = (as_printed(row[k]) for k in ("claimed", "value"))
    elif "papers_attack" in row:
        measured = percent(row["papers_attack"]) + ("*" if row.get("flags") else "")
    worst = percent(row.get("worst_attack")) + (" <" if not_reached(row) else "")
    return [
        row["model"],
        row["attack"],
        f"{row.get('norm', '')} {row.get('eps', '')}".strip(),
        claimed,
        measured,
        worst,
        percent(row.get("certified")),
    ]


def figure(entries: list[dict[str, Any]]):
    """Claimed against measured, in percent: under attack, and clean."""
    drawn, axes = plt.subplots(
        1, 2, figsize=(11, 5.6), sharex=True, sharey=True, layout="constrained"
    )
    for axis, clean in zip(axes, (False, True), strict=True):
        axis.plot((0, 100), (0, 100), "k-", lw=0.8)
        missing = 0
        for paper, color in COLORS.items():
            mine = [
                entry
                for entry in entries
                if entry["paper"] == paper
                and (entry["attack"] == "clean") == clean
                and (clean or "norm" in entry)
            ]
            measured = [e for e in mine if "papers_attack" in e]
            left = [e for e in mine if "papers_attack" not in e]
            missing += len(left)
            if left:
                axis.plot([e["claimed"] for e in left], [-3] * len(left), "|", color=color, ms=8)
            x = [e["claimed"] for e in measured]
            worst = [e.get("worst_attack", e["papers_attack"]) for e in measured]
            for entry, at, high in zip(measured, x, worst, strict=True):
                low = entry.get("certified")
                if low is not None:
                    axis.plot((at, at), (low, high), "-", color=color, lw=2, alpha=0.35)
            if not clean:
                theirs = [e["papers_attack"] for e in measured]
                axis.plot(x, theirs, "o", mfc="none", color=color, ms=6)
            label = f"{paper}: {len(measured)} of {len(mine)}" if mine else None
            axis.plot(x, worst, "o", color=color, ms=4, label=label)
        axis.set_title("clean accuracy" if clean else "accuracy under attack")
        axis.set_xlabel(f"claimed (%); at the foot: {missing} not measured yet")
        axis.set_xlim(-2, 102)
        axis.set_ylim(-6, 102)
        axis.set_aspect("equal")
        axis.grid(alpha=0.3, lw=0.5)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper left", fontsize=8, title="measured")
    axes[0].set_ylabel("measured (%)")
    axes[0].text(
        0.02,
        0.66,
        "dot: left by the worst attack\ncircle: by the paper's\nbar: down to what is proven",
        transform=axes[0].transAxes,
        fontsize=8,
    )
    return drawn


def main(config: Config):
    check_choices("paper", config.papers, PAPERS)
    entries = ledger(config.papers)
    console = Console()
    compared = side_by_side() if "ssp" in config.papers else []
    for table in (*tables(entries), *ssp_tables(compared)):
        console.print(table)
    console.print(
        "in %: measured under the paper's attack, worst of all attacks, proven; <: not "
        "reached, the claim is above what the worst attack leaves by more than sampling error"
    )
    path = config.out / "claims.json"
    save_result(path, KIND, {"claims": entries, "ssp": compared})
    figure(entries).savefig(config.out / "claims.png", dpi=150)
    plt.close("all")
    if config.publish:
        copy_to_repository(path, "claims.json")
        copy_to_repository(config.out / "claims.png", "claims.png")
    console.print(f"{path} and claims.png written")


if __name__ == "__main__":
    run(main, Config)
