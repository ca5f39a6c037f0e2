"""How the claims of the ledger are counted, and what it shows of them: tables and a figure."""

from typing import Any

import matplotlib.pyplot as plt

from odejax.evaluation import confidence_interval
from odejax.plots import set_title
from odejax.plots.palette import BLUE, GREEN, ORANGE, PURPLE, SKY

from ..lib import report
from ..lib.report import shown
from ..nmode.table1 import as_printed
from ..ssp import networks as ssp

Entry = dict[str, Any]
COLORS = {"natural": PURPLE, "nmode": BLUE, "enresnet": GREEN, "ssp": SKY, "structured": ORANGE}
PAPERS = tuple(COLORS)
AS_IN_PAPER, SHORTER, SMALLER = THREE = (
    "as in the paper",
    "its network, shorter training",
    "smaller network",
)
SIZE_NOT_GIVEN, NOT_MEASURED = "size not given", "not measured"
KINDS = (*THREE, SIZE_NOT_GIVEN, NOT_MEASURED)
# In the tables: one word for each.
WORDS = {AS_IN_PAPER: "paper", SHORTER: "shorter", SMALLER: "smaller", SIZE_NOT_GIVEN: "unknown"}
MARKERS = {AS_IN_PAPER: "o", SHORTER: "s", SMALLER: "^"}


def kind_of(entry: Entry) -> str:
    """How a claim was measured: one of `KINDS`."""
    if "not_measured" not in entry:
        return AS_IN_PAPER
    return entry["not_measured"] if "instead" in entry else NOT_MEASURED


def counts(entries: list[Entry]) -> dict[str, int]:
    """How many claims were measured in each way; the sum is that of all entries."""
    kinds = [kind_of(entry) for entry in entries]
    return {kind: kinds.count(kind) for kind in KINDS}


def kinds_of(entries: list[Entry]) -> list[str]:
    """The kinds that there are, and "as in the paper"."""
    return [kind for kind, n in counts(entries).items() if n or kind == AS_IN_PAPER]


def not_reached(entry: Entry) -> bool:
    """Whether a claim is above robust accuracy under all attacks by more than sampling error."""
    if "worst_attack" not in entry:
        return False
    n = entry["n"]
    _, high = confidence_interval(round(entry["worst_attack"] / 100 * n), n)
    return entry["claimed"] > 100 * high


def _measurement(entry: Entry) -> Entry:
    """Where an entry has its measurement, if it has one."""
    return entry.get("instead", entry)


def entry_tables(entries: list[Entry]) -> list[Any]:
    """One for each table of each paper and data set, then one of counts."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["paper"], entry["table"], entry["dataset"]), []).append(entry)
    out = []
    for (paper, name, dataset), rows in groups.items():
        columns = ("attack", "eps", "claimed", "measured", "all", "certified", "how")
        table = report.table(f"{paper} {name}, {dataset}", "", *columns)
        for column in (table.columns[1], table.columns[2], table.columns[-1]):
            column.justify = "left"
        for row in rows:
            table.add_row(*_cells(row))
        table.caption = "; ".join(_notes(rows))
        out.append(table)
    return [*out, counts_table(entries)]


def _cells(entry: Entry) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    def number(value: float) -> str:  # of a quantity
        return as_printed(value) if entry["table"] == "Table 1" else f"{value:.3g}"

    measurement = _measurement(entry)
    is_quantity = entry["attack"] != "clean" and "norm" not in entry
    measured = "-"
    if "value" in measurement:
        measured = number(measurement["value"])
    elif "papers_attack" in measurement:
        flagged = "*" if measurement.get("flags") else ""
        measured = percent(measurement["papers_attack"]) + flagged
    return [
        entry["model"],
        entry["attack"],
        f"{entry.get('norm', '')} {entry.get('eps', '')}".strip(),
        (number if is_quantity else percent)(entry["claimed"]),
        measured,
        percent(measurement.get("worst_attack")) + (" <" if not_reached(entry) else ""),
        percent(measurement.get("certified")),
        WORDS.get(kind_of(entry), ""),
    ]


def _notes(rows: list[Entry]) -> list[str]:
    """Below a table: how its rows were measured, flags, and why others were not."""
    notes = []
    for kind, word in WORDS.items():
        measured = [_measurement(row) for row in rows if kind_of(row) == kind]
        if images := {m["n"] for m in measured if "n" in m}:
            seeds = _range({m["seeds"] for m in measured})
            notes.append(f"{word}: {_range(images)} images attacked, seeds: {seeds}")
    flags = {flag for row in rows for flag in _measurement(row).get("flags", ())}
    notes += [f"*: {', '.join(sorted(flags))}"] if flags else []
    reasons = {row["not_measured"] for row in rows if kind_of(row) == NOT_MEASURED}
    return notes + ([f"-: {', '.join(sorted(reasons))}"] if reasons else [])


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def counts_table(entries: list[Entry]) -> Any:
    """For each paper how many claims were measured in each way, and how many are not reached."""
    title = "the ledger: how many figures, and how measured"
    kinds = kinds_of(entries)
    table = report.table(title, "", "claims", *kinds, "not reached")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.no_wrap = False
        column.min_width = max(map(len, str(column.header).split()))
    papers = dict.fromkeys(entry["paper"] for entry in entries)
    groups = {paper: [e for e in entries if e["paper"] == paper] for paper in papers}
    for name, group in (groups | {"all": entries}).items():
        attacked = [entry for entry in group if "worst_attack" in entry]
        beyond = f"{sum(map(not_reached, attacked))} of {len(attacked)}"
        numbers = counts(group)
        table.add_row(name, str(len(group)), *(str(numbers[kind]) for kind in kinds), beyond)
    table.caption = "not reached: of the claims under attack that were measured as in the paper"
    return table


def ssp_tables(rows: list[Entry]) -> list[Any]:
    """One for each run of `ssp`."""

    def spread(row: Entry, what: str) -> str:
        return shown(row[what], row[f"{what}_deviation"])

    out = []
    for result in dict.fromkeys(row["result"] for row in rows):
        of_run = [row for row in rows if row["result"] == result]
        growth = f"growth at {of_run[0]['growth_eps']:.3g}"
        columns = ("trained", "network", growth, "clean", "eps", ssp.SHOWN, "all attacks")
        title = f"ssp, {of_run[0]['dataset']} ({result})"
        table = report.table(title, *columns, names=2, collapse_padding=False)
        table.columns[2].no_wrap = False
        for row in of_run:
            table.add_row(
                row["training"],
                row["network"],
                ssp.shown_growth(row["growth"]),
                spread(row, "clean"),
                f"{row['eps']:.3g}",
                spread(row, "papers_attack"),
                spread(row, "worst_attack"),
            )
        out.append(table)
    return out


def figure(entries: list[Entry]):
    """Claimed against measured, in percent: under attack, and clean."""
    drawn, axes = plt.subplots(
        1, 2, figsize=(9, 6.4), sharex=True, sharey=True, layout="constrained"
    )
    attacked, clean = [], []
    for entry in entries:
        if entry["attack"] == "clean":
            clean.append(entry)
        elif "norm" in entry:  # no quantity
            attacked.append(entry)
    titles = ("accuracy under attack", "clean accuracy")
    for axis, of_panel, title in zip(axes, (attacked, clean), titles, strict=True):
        axis.plot((0, 100), (0, 100), "k-", lw=0.8)
        axis.fill_between((0, 100), (0, 100), color="0.94", lw=0)
        for entry in of_panel:
            _draw(axis, entry, COLORS[entry["paper"]])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"claimed (%); {counts(of_panel)[NOT_MEASURED]} not measured, at the foot")
        axis.set_xlim(-2, 102)
        axis.set_ylim(-6, 102)
        axis.grid(alpha=0.3, lw=0.5)
    axes[0].set_ylabel("measured (%)")
    papers = dict.fromkeys(entry["paper"] for entry in entries)
    styles: dict[str, dict[str, Any]] = {
        paper: {"marker": "o", "color": COLORS[paper]} for paper in papers
    }
    kinds = {kind_of(entry) for entry in entries}
    for kind, marker in MARKERS.items():
        if kind not in kinds:
            continue
        styles[f"{kind}, all attacks"] = {"marker": marker, "mfc": _face(kind, "0.3")}
    styles["under the paper's attack"] = {"marker": "_", "ms": 8}
    styles["down to certified accuracy"] = {"ls": "-", "lw": 2, "alpha": 0.4}
    for label, style in styles.items():
        axes[0].plot([], [], label=label, **{"ls": "", "color": "0.3", "ms": 5} | style)
    report.legend_below(drawn, ncols=3, fontsize=10)
    set_title(drawn, f"Measured as in the paper: {_finding(attacked, clean)}")
    return drawn


def _face(kind: str, color: str) -> str:
    return color if kind == AS_IN_PAPER else "none"


def _draw(axis: Any, entry: Entry, color: str):
    """One claim: a tick at the foot, or a marker for how it was measured."""
    kind, measurement, at = kind_of(entry), _measurement(entry), entry["claimed"]
    if kind == SIZE_NOT_GIVEN:
        return
    if kind == NOT_MEASURED:
        axis.plot(at, -3, "|", color=color, ms=8)
        return
    papers_attack = measurement["papers_attack"]
    worst = measurement.get("worst_attack", papers_attack)
    if kind == AS_IN_PAPER and "certified" in measurement:
        axis.plot((at, at), (measurement["certified"], worst), "-", color=color, lw=2, alpha=0.25)
    if kind != SMALLER and entry["attack"] != "clean":
        axis.plot(at, papers_attack, "_", color=color, ms=8)
    axis.plot(at, worst, MARKERS[kind], color=color, mfc=_face(kind, color), ms=5)


def _finding(attacked: list[Entry], clean: list[Entry]) -> str:
    measured = [entry for entry in attacked if "worst_attack" in entry]
    too_high = f"{sum(map(not_reached, measured))} of {len(measured)} claims under attack"
    measured = [entry for entry in clean if kind_of(entry) == AS_IN_PAPER]
    near = sum(entry["papers_attack"] >= entry["claimed"] - 1 for entry in measured)
    return (
        f"{too_high} are above robust accuracy under all attacks, beyond sampling error; "
        f"{near} of {len(measured)} clean ones are reached within one point"
    )
