"""Robust accuracy of several networks, as a table and as a figure, beside what a paper reports."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from odejax.plots import colors, draw_interval, plain_ticks, set_title

from . import report
from .report import Read, Record

Bracket = dict[str, Any]  # its summary, as a result file has it
NORMS = {"linf": "L-infinity", "l2": "l2"}
COLUMNS = 5  # of numbers in a table, so that it fits into 80 letters
OF_ALL = "certified of all"
ATTACKED, CERTIFIED = report.end("attacked"), report.end("certified")
CERTIFIED_OF_ALL = report.end(OF_ALL)


def _stored(record: Record) -> list[Bracket]:
    return record["brackets"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A network in balls of one norm.

    - `records`: one for each seed, with its clean accuracy on all test images.
    - `published`: what a paper reports, by its table: percent by (attack, norm, eps), as
      `ledger.printed.claimed` returns it.
    - `notes`: what else there is to say of it, each a few words.
    - `brackets`: those of a record, by eps.
    """

    records: list[Record]
    published: Mapping[str, Mapping[tuple, float]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    brackets: Callable[[Record], list[Bracket]] = _stored

    @property
    def seeds(self) -> list[list[Bracket]]:
        return [self.brackets(record) for record in self.records]

    @property
    def first(self) -> Bracket:
        return self.seeds[0][0]

    @property
    def eps(self) -> list[float]:
        return [bracket["eps"] for bracket in self.seeds[0]]

    @property
    def flags(self) -> list[str]:
        return sorted({flag for seed in self.seeds for b in seed for flag in b["flags"]})

    def mean(self, read: Read) -> np.ndarray:
        """In percent and over the seeds: clean accuracy, then `read` of the bracket of each eps."""
        return report.curve([list(row) for row in zip(*self.seeds, strict=True)], read)

    def reported(self, table: str, attack: str) -> dict[float, float]:
        """A paper's robust accuracy under an attack, in percent, by eps to 6 digits."""
        figures, kind = self.published[table], (attack, self.first["ball"])
        return {eps: value for (*of, eps), value in figures.items() if tuple(of) == kind}


def every_row(bracket: Bracket) -> dict[str, Read]:
    """Under each attack, transferred from each network, under all of these; each certificate."""

    def entry(of: str, name: str) -> Read:
        return lambda b: b[of][name]

    rows = {name: entry("per_attack", name) for name in bracket["per_attack"]}
    rows |= {f"transfer from {n}": entry("per_transfer", n) for n in bracket["per_transfer"]}
    rows["all attacks"] = ATTACKED
    certificates = bracket["per_certificate"]
    if len(certificates) > 1:
        rows |= {f"certified, {name}": entry("per_certificate", name) for name in certificates}
    return rows | ({"certified": CERTIFIED} if certificates else {})


def of_all(record: Record) -> list[Bracket]:
    """A record's brackets, with what is certified of all test images (`measure.radii_of_all`)."""
    pairs = zip(record["brackets"], record["certified_of_all"], strict=True)
    return [bracket | {OF_ALL: share} for bracket, share in pairs]


def rows_of_all(bracket: Bracket) -> dict[str, Read]:
    return every_row(bracket) | {"certified, all": CERTIFIED_OF_ALL}


def tables(
    title: str,
    networks: Mapping[str, Measured],
    rows: Callable[[Bracket], Mapping[str, Read]] = every_row,
    means: Mapping[str, Callable[[list[Bracket]], Bracket]] | None = None,
) -> list[Table]:
    """Robust accuracy in % as mean ± deviation over the seeds; a paper's figures in rows beneath.

    - `rows(bracket)`: what is shown of each network, by name.
    - `means`: columns behind those of the eps, each computed from all brackets of a seed.

    Every five columns are a table.
    """
    shape, means = next(iter(networks.values())), means or {}
    columns = [*(f"{eps:.3g}" for eps in shape.eps), *means]
    made = []
    for start in range(0, len(columns), COLUMNS):
        part = slice(start, start + COLUMNS)
        table = report.table(title, f"{NORMS[shape.first['ball']]} eps", *columns[part])
        for name, network in networks.items():
            for line in _head(name, network):
                table.add_row(line)
            seeds = [[*seed, *(mean(seed) for mean in means.values())] for seed in network.seeds]
            for label, read in rows(network.first).items():
                grid = [*zip(*seeds, strict=True)][part]
                table.add_row(f"  {label}", *(report.cell(map(read, row)) for row in grid))
                for source in network.published:
                    reported = network.reported(source, label)
                    cells = [reported.get(round(eps, 6)) for eps in network.eps[part]]
                    if any(cell is not None for cell in cells):
                        shown = ("" if cell is None else f"{cell:.1f}" for cell in cells)
                        table.add_row(f"    {source}", *shown)
            table.add_section()
        flags = [f"{n}: {', '.join(m.flags)}" for n, m in networks.items() if m.flags]
        table.caption = (
            "robust accuracy in %; clean: of the attacked images; all: of all test images; "
            f"flags: {'; '.join(flags) or 'none'}"
        )
        made.append(table)
    return made


def _head(name: str, network: Measured) -> list[str]:
    lines = [name, f"clean {report.cell(seed[0]['clean'] for seed in network.seeds)}"]
    lines.append(f"all {report.cell(r['clean_accuracy'] for r in network.records)}")
    for source, figures in network.published.items():
        if ("clean", "", 0) in figures:
            lines.append(f"  {source} {figures['clean', '', 0]:.1f}")
    return [*lines, *network.notes]


def figure(
    title: str, setting: str, networks: Mapping[str, Measured], alone: Sequence[str], **size: Any
) -> Any:
    """A panel for each network: true robust accuracy lies in the band, from certified to attacked.

    - `title`, `setting`: the finding, as a sentence, and which images were attacked.
    - `alone`: attacks that are drawn by themselves too, and as crosses what a paper reports under
      them; "transfer" is the lowest accuracy on adversarial examples of another network.
    """
    drawn, axes = report.panels(networks.items(), **size)
    color = colors(alone)
    for (name, network), axis in axes:
        eps, reads = [0.0, *network.eps], every_row(network.first)
        if network.first["per_transfer"]:
            reads["transfer"] = lambda b: min(b["per_transfer"].values())
        certified = network.mean(CERTIFIED) if "certified" in reads else None
        draw_interval(axis, eps, network.mean(ATTACKED), certified)
        for attack in alone:
            if attack in reads:
                style = {"color": color[attack], "ms": 3, "label": f"under {attack} alone"}
                axis.plot(eps, network.mean(reads[attack]), "s", **style)
            for source, marker in zip(network.published, "X*P", strict=False):
                if points := network.reported(source, attack):
                    style = {"mfc": color[attack], "mec": "k", "ms": 7, "ls": "", "zorder": 5}
                    style |= {"marker": marker, "label": f"{source}: {attack}"}
                    axis.plot(*zip(*points.items(), strict=True), **style)
        notes = ", ".join([*network.notes, f"flags: {len(network.flags)}"])
        report.accuracy_axis(axis, network.first["ball"], f"{name}\n{notes}")
        plain_ticks(axis)
    report.legend_below(drawn, ncols=int(drawn.get_figwidth() / 1.6), title=setting)
    set_title(drawn, title)
    return drawn


def overstated(networks: Mapping[str, Measured], attack: str) -> str:
    """By how much robust accuracy under one attack exceeds that under all, as a sentence."""
    gaps = []
    for name, network in networks.items():
        gap = network.mean(report.attack(attack)) - network.mean(ATTACKED)
        at = int(gap.argmax())
        gaps.append((gap[at], f"{name}, eps {[0.0, *network.eps][at]:.3g}"))
    largest, where = max(gaps)
    return f"{attack} alone overstates robust accuracy by up to {largest:.0f} points ({where})"


def compared(networks: Mapping[str, Measured], ball: int = 0) -> str:
    """Robust accuracy under all attacks in one of the balls, as a sentence."""
    means = [(network.mean(ATTACKED)[1:][ball], name) for name, network in networks.items()]
    shown = [f"{mean:.0f} % ({name})" for mean, name in sorted(means)]
    values = " and ".join(shown) if len(shown) < 3 else f"{shown[0]} to {shown[-1]}"
    eps = next(iter(networks.values())).eps[ball]
    return f"At eps {eps:.3g} robust accuracy is at most {values}"
