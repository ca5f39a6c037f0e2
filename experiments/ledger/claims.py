"""The ledger: the figures that the papers print, beside what was measured here.

    python -m experiments.ledger.claims                     # from the committed results; seconds
    python -m experiments.ledger.claims --papers nmode

Each measurement says how it was made: whether the network has the paper's size, whether it was
trained for the paper's epochs, how many images were attacked, and how many seeds there are. Three
kinds are counted apart:

- as in the paper: the network has the paper's size, and no other epochs than the paper gives;
- its network, shorter training: the size is the paper's, the epochs are not;
- smaller network: a result of a `cpu` preset.

Where the paper does not give a network's size, a result belongs to none of the three. A claim is
measured only as in the paper; what else was measured stands beside it, under `instead`. A row that
no command measures says so, and whether the paper quotes it from another.

Measured are the accuracy under the claim's attack, under the worst of all attacks, and what is
proven, as means over the seeds. A claim is "not reached" where it was measured as in the paper and
lies above the accuracy under the worst attack by more than sampling error (95 %). *enresnet* gives
no eps for C&W: ours stays within the eps of the other attacks, so nothing else is compared with it.

The figures of *ssp* are not at hand. What it claims, that its blocks keep perturbations small and
so resist attacks, stands at the end: growth and accuracy of its networks, side by side.

3 seconds, from the committed results.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from odejax.evaluation import confidence_interval, load_result

from ..enresnet import cifar
from ..lib import report
from ..lib.report import by_name, mean_and_deviation, shown
from ..lib.run import Config as Base, Experiment, Once, check_choices, run
from ..natural import tables as tables_of_natural
from ..nmode import cifar as nmode_cifar, figures as nmode_figures, mnist, table1
from ..nmode.table1 import as_printed
from ..ssp import networks as ssp
from ..structured import networks as structured
from .printed import Claim, all_claims
from .sources import Source

KIND = "claims"
# Those that measure claims.
EXPERIMENTS = tuple(
    script.EXPERIMENT
    for script in (tables_of_natural, table1, nmode_figures, mnist, nmode_cifar, cifar, structured)
)
PAPERS = ("natural", "nmode", "enresnet", "ssp", "structured")
RESULTS = Path(__file__).parents[1] / "results"
COLORS = dict(zip(PAPERS, ("#7570b3", "#b2182b", "#1b9e77", "#e7298a", "#d95f02"), strict=True))
AS_IN_PAPER, SHORTER, SMALLER = THREE = (
    "as in the paper",
    "its network, shorter training",
    "smaller network",
)
SIZE_NOT_GIVEN, NOT_MEASURED = "size not given", "not measured"
# In the tables: one word for each.
WORDS = {AS_IN_PAPER: "paper", SHORTER: "shorter", SMALLER: "smaller", SIZE_NOT_GIVEN: "unknown"}


@dataclasses.dataclass
class Config(Base):
    """Gather the numeric claims of the papers, and what was measured of them."""

    papers: tuple[str, ...] = PAPERS
    """Which papers."""


def sources(claim: Claim) -> list[Source]:
    """How experiments measure a claim, that of the paper's size first; none if there is none."""
    return [source for experiment in EXPERIMENTS for source in experiment.sources(claim)]


def why_no_command(claim: Claim) -> str:
    if claim.quoted:
        return "quoted from another paper"
    missing = claim.table if claim.is_quantity else claim.model
    return f"no command measures it: no experiment has {claim.paper}'s {missing}"


def ledger(papers: Collection[str], results: Path = RESULTS) -> list[dict[str, Any]]:
    """Every claim of `papers` with its measurement, or why there is none.

    Of a claim that was measured, but not as in the paper, `not_measured` says how and `instead`
    has the measurement.
    """
    loaded: dict[str, dict[str, Any] | None] = {"": {}}

    def load(source: Source) -> dict[str, Any] | None:
        if source.result not in loaded:
            path = results / f"{source.result}.json"
            loaded[source.result] = load_result(path, source.kind) if path.exists() else None
        return loaded[source.result]

    entries = []
    for claim in all_claims():
        if claim.paper not in papers:
            continue
        entry = {k: v for k, v in dataclasses.asdict(claim).items() if v not in ("", None)}
        if "deviation" in entry:  # ours is another
            entry["claimed_deviation"] = entry.pop("deviation")
        if found := sources(claim):
            entry |= {"command": found[0].command} | _measure(claim, found, load)
        else:
            entry["not_measured"] = why_no_command(claim)
        entries.append(entry)
    return entries


def _measure(claim: Claim, nearest_first: list[Source], load) -> dict[str, Any]:
    """The measurement of the first source that has one, or why there is none."""
    reason = "not run yet"
    for source in nearest_first:
        result = load(source)
        if result is None:
            continue
        settings = result.get("settings", {})
        if any(settings.get(name) != value for name, value in source.settings.items()):
            reason = "run with other settings than the preset's"
            continue
        found = source.read(result, claim, source.network)
        if found is None:
            continue
        how = _how(claim, source, settings)
        kind = how.pop("kind")
        found = {"network": source.network} | found | how
        if source.result:
            found["result"] = f"{source.result}.json"
        return found if kind == AS_IN_PAPER else {"not_measured": kind, "instead": found}
    return {"not_measured": reason}


def _how(claim: Claim, source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether size and epochs are the paper's, and which kind of measurement that makes."""
    size = "not given" if not claim.size_given else "no" if source.smaller else "yes"
    told = {"papers_size": size}
    epochs = "not given"
    if source.epochs is not None:
        trained = settings["epochs"]
        trained = trained[source.network] if isinstance(trained, dict) else trained
        # Where the paper gives none the preset's own count, so that no run cut short passes.
        if trained != (claim.epochs or source.epochs):
            epochs = "no"
        elif claim.epochs is not None:
            epochs = "yes"
        told |= {"papers_epochs": epochs, "trained_epochs": trained}
    kind = {"not given": SIZE_NOT_GIVEN, "no": SMALLER}.get(size)
    return told | {"kind": kind or (SHORTER if epochs == "no" else AS_IN_PAPER)}


def kind_of(entry: dict[str, Any]) -> str:
    """How a claim was measured: one of `THREE`, "size not given" or "not measured"."""
    if "not_measured" not in entry:
        return AS_IN_PAPER
    return entry["not_measured"] if "instead" in entry else NOT_MEASURED


def counts(entries: list[dict[str, Any]]) -> dict[str, int]:
    """How many claims were measured in each way; the sum is that of all entries."""
    kinds = [kind_of(entry) for entry in entries]
    return {kind: kinds.count(kind) for kind in (*THREE, SIZE_NOT_GIVEN, NOT_MEASURED)}


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


def entry_tables(entries: list[dict[str, Any]]) -> list[Any]:
    """One for each table of each paper and data set, then one of counts."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["paper"], entry["table"], entry["dataset"]), []).append(entry)
    out = []
    for (paper, name, dataset), rows in groups.items():
        columns = ("attack", "eps", "claimed", "measured", "worst", "proven", "how")
        table = report.table(f"{paper} {name}, {dataset}", "", *columns)
        for column in (table.columns[1], table.columns[2], table.columns[-1]):
            column.justify = "left"
        for row in rows:
            table.add_row(*_cells(row))
        table.caption = "; ".join(_notes(rows))
        out.append(table)
    return [*out, counts_table(entries)]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What stands below a table: how its rows were measured, flags, and why others were not."""
    notes = []
    for kind, word in WORDS.items():
        measured = [_measurement(row) for row in rows if kind_of(row) == kind]
        if images := {m["n"] for m in measured if "n" in m}:
            notes.append(f"{word}: {_range(images)} images attacked, seeds: ")
            notes[-1] += _range({m["seeds"] for m in measured})
    flags = {flag for row in rows for flag in _measurement(row).get("flags", ())}
    notes += [f"*: {', '.join(sorted(flags))}"] if flags else []
    reasons = {row["not_measured"] for row in rows if kind_of(row) == NOT_MEASURED}
    return notes + ([f"-: {', '.join(sorted(reasons))}"] if reasons else [])


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def counts_table(entries: list[dict[str, Any]]) -> Any:
    """For each paper how many claims were measured in each way, and how many are not reached."""
    title = "the ledger: how many figures, and how measured"
    kinds = (*THREE, SIZE_NOT_GIVEN, NOT_MEASURED)
    table = report.table(title, "", "claims", *kinds, "not reached")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.no_wrap = False
        column.min_width = max(map(len, str(column.header).split()))
    papers = [*dict.fromkeys(entry["paper"] for entry in entries)]
    groups = {paper: [e for e in entries if e["paper"] == paper] for paper in papers}
    for paper, mine in (groups | {"all": entries}).items():
        attacked = [entry for entry in mine if "worst_attack" in entry]
        beyond = f"{sum(map(not_reached, attacked))} of {len(attacked)}"
        table.add_row(paper, str(len(mine)), *map(str, counts(mine).values()), beyond)
    table.caption = "not reached: of the claims under attack that were measured as in the paper"
    return table


def _measurement(entry: dict[str, Any]) -> dict[str, Any]:
    """Where an entry has its measurement, if it has one."""
    return entry.get("instead", entry)


def _spread(row: dict[str, Any], what: str) -> str:
    return shown(row[what], row[f"{what}_deviation"])


def ssp_tables(rows: list[dict[str, Any]]) -> list[Any]:
    """One for each run of `ssp`."""
    out = []
    for result in dict.fromkeys(row["result"] for row in rows):
        mine = [row for row in rows if row["result"] == result]
        growth = f"growth at {mine[0]['growth_eps']:.3g}"
        columns = ("trained", "network", growth, "clean", "eps", ssp.SHOWN, "all attacks")
        title = f"ssp, {mine[0]['dataset']} ({result})"
        table = report.table(title, *columns, names=2, collapse_padding=False)
        table.columns[2].no_wrap = False
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

    def number(value: float) -> str:  # of a quantity
        return as_printed(value) if row["table"] == "Table 1" else f"{value:.3g}"

    found = _measurement(row)
    is_quantity = row["attack"] != "clean" and "norm" not in row
    claimed = number(row["claimed"]) if is_quantity else percent(row["claimed"])
    measured = "-"
    if "value" in found:
        measured = number(found["value"])
    elif "papers_attack" in found:
        measured = percent(found["papers_attack"]) + ("*" if found.get("flags") else "")
    worst = percent(found.get("worst_attack")) + (" <" if not_reached(row) else "")
    return [
        row["model"],
        row["attack"],
        f"{row.get('norm', '')} {row.get('eps', '')}".strip(),
        claimed,
        measured,
        worst,
        percent(found.get("certified")),
        WORDS.get(kind_of(row), ""),
    ]


def figure(entries: list[dict[str, Any]]):
    """Claimed against measured, in percent: under attack, and clean."""
    drawn, axes = plt.subplots(
        1, 2, figsize=(11, 6.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, clean in zip(axes, (False, True), strict=True):
        axis.plot((0, 100), (0, 100), "k-", lw=0.8)
        axis.fill_between((0, 100), (0, 100), color="0.94", lw=0)
        of_kind = [e for e in entries if (e["attack"] == "clean") == clean]
        of_kind = [e for e in of_kind if clean or "norm" in e]
        for paper, color in COLORS.items():
            mine = [entry for entry in of_kind if entry["paper"] == paper]
            for entry in mine:
                _draw(axis, entry, color)
            if mine:
                found = counts(mine)
                three = " / ".join(str(found[kind]) for kind in THREE)
                label = f"{paper}: {three} of {len(mine)}"
                axis.plot([], [], "o", color=color, ms=5, label=label)
        found = counts(of_kind)
        axis.set_title(_finding(of_kind, clean), fontsize=11)
        axis.set_xlabel(
            f"claimed (%); at the foot: {found[NOT_MEASURED]} not measured; "
            f"left out: {found[SIZE_NOT_GIVEN]}, size not given"
        )
        axis.set_xlim(-2, 102)
        axis.set_ylim(-6, 102)
        axis.set_aspect("equal")
        axis.grid(alpha=0.3, lw=0.5)
        if axis.get_legend_handles_labels()[0]:
            title = "as in the paper / its network, shorter\ntraining / smaller network"
            legend = axis.legend(loc="upper left", fontsize=8, title=title, title_fontsize=8)
            legend.set_zorder(5)
    axes[0].set_ylabel("measured (%)")
    axes[0].text(
        *(0.02, 0.53),
        "dot: as in the paper\nsquare: its network, shorter training\n"
        "triangle: smaller network\n(each under the worst attack)\n"
        "dash: under the paper's attack\nbar: down to what is proven\n"
        "grey: below the claim",
        transform=axes[0].transAxes,
        fontsize=8,
    )
    return drawn


def _draw(axis: Any, entry: dict[str, Any], color: str):
    """One claim: a tick at the foot, or a marker for how it was measured."""
    kind, found, at = kind_of(entry), _measurement(entry), entry["claimed"]
    if kind == SIZE_NOT_GIVEN:
        return
    if kind == NOT_MEASURED:
        axis.plot(at, -3, "|", color=color, ms=8)
        return
    theirs = found["papers_attack"]
    worst = found.get("worst_attack", theirs)
    if kind == AS_IN_PAPER and "certified" in found:
        axis.plot((at, at), (found["certified"], worst), "-", color=color, lw=2, alpha=0.25)
    if kind != SMALLER and entry["attack"] != "clean":
        axis.plot(at, theirs, "_", color=color, ms=8)
    marker = {AS_IN_PAPER: "o", SHORTER: "s", SMALLER: "^"}[kind]
    face = color if kind == AS_IN_PAPER else "none"
    axis.plot(at, worst, marker, color=color, mfc=face, ms=5)


def _finding(entries: list[dict[str, Any]], clean: bool) -> str:
    """What a panel shows, as its title."""
    found = [entry for entry in entries if kind_of(entry) == AS_IN_PAPER]
    found = [entry for entry in found if clean or "worst_attack" in entry]
    what = "clean accuracy" if clean else "accuracy under attack"
    if not found:
        return f"{what}:\nnone measured as in the paper"
    if clean:
        near = sum(entry["papers_attack"] >= entry["claimed"] - 1 for entry in found)
        return (
            f"{what}: {near} of {len(found)} claims measured as in the paper\n"
            "are reached within one point"
        )
    return (
        f"{what}: {sum(map(not_reached, found))} of {len(found)} claims measured as in the paper\n"
        "are not reached under the worst attack"
    )


def plan(config: Config) -> Once:
    check_choices("paper", config.papers, PAPERS)

    def measure():
        compared = side_by_side() if "ssp" in config.papers else []
        return {"claims": ledger(config.papers), "ssp": compared}

    return Once(measure, seed=None)


def tables(result: dict[str, Any]) -> list[Any]:
    return [*entry_tables(result["claims"]), *ssp_tables(result["ssp"])]


def notes(result: dict[str, Any]) -> list[str]:
    return [
        "in %: accuracy under the paper's attack, under the worst of all attacks, proven; <: not "
        "reached, the claim is above the worst by more than sampling error",
        "how: paper, as in the paper; shorter, its network, shorter training; smaller, smaller "
        "network; unknown, the paper does not give the network's size",
    ]


def drawn(result: dict[str, Any]):
    return figure(result["claims"])


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"claims": drawn}, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
