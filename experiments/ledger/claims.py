"""The ledger: the figures that the papers print, beside what was measured here.

    python -m experiments.ledger.claims                     # from the committed results; seconds
    python -m experiments.ledger.claims --papers nmode

Each measurement says how it was made: whether the network has the paper's size, whether it was
trained for the paper's epochs, how many images were attacked, and how many seeds there are. Three
kinds are counted separately:

- as in the paper: the network has the paper's size, and no other epochs than the paper gives;
- its network, shorter training: the size is the paper's, the epochs are not;
- smaller network: a result of a `cpu` preset.

Where the paper does not give a network's size, a result belongs to none of the three. Only what is
as in the paper counts as measured; any other measurement is under `instead`. A row that no command
measures says so, and whether the paper quotes it from another.

Measured are robust accuracy under the claim's attack and under all attacks, and certified accuracy,
as means over the seeds. A claim is "not reached" where it was measured as in the paper and is above
robust accuracy under all attacks by more than sampling error (95 %). *enresnet* gives no eps for
C&W: here it stays within the eps of the other attacks, so nothing else is compared with it.

The figures of *ssp* are not at hand. What it claims, that its blocks keep perturbations small and
so resist attacks, is the last table: growth and robust accuracy of its networks, side by side.

3 seconds, from the committed results.
"""

import dataclasses
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from odejax.evaluation import load_result

from ..enresnet import cifar
from ..lib.report import by_name, mean_and_deviation
from ..lib.run import Config as Base, Experiment, Once, check_choices, run
from ..natural import tables as tables_of_natural
from ..nmode import cifar as nmode_cifar, figures as nmode_figures, mnist, table1
from ..ssp import networks as ssp
from ..structured import networks as structured
from .printed import Claim, all_claims
from .report import (
    AS_IN_PAPER,
    PAPERS,
    SHORTER,
    SIZE_NOT_GIVEN,
    SMALLER,
    Entry,
    entry_tables,
    figure,
    ssp_tables,
)
from .sources import Source

KIND = "claims"
# Those that measure claims.
EXPERIMENTS = tuple(
    script.EXPERIMENT
    for script in (tables_of_natural, table1, nmode_figures, mnist, nmode_cifar, cifar, structured)
)
RESULTS = Path(__file__).parents[1] / "results"


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


def ledger(papers: Collection[str], results: Path = RESULTS) -> list[Entry]:
    """Every claim of `papers` with its measurement, or why there is none.

    Of a claim that was measured, but not as in the paper, `not_measured` says how and `instead`
    has the measurement.
    """

    @cache
    def load(name: str, kind: str) -> dict[str, Any] | None:
        path = results / f"{name}.json"
        if not name:
            return {}
        return load_result(path, kind) if path.exists() else None

    entries = []
    for claim in all_claims():
        if claim.paper not in papers:
            continue
        entry = {k: v for k, v in dataclasses.asdict(claim).items() if v not in ("", None)}
        if "deviation" in entry:  # that of a measurement is another
            entry["claimed_deviation"] = entry.pop("deviation")
        if nearest_first := sources(claim):
            entry |= {"command": nearest_first[0].command} | _measure(claim, nearest_first, load)
        else:
            entry["not_measured"] = why_no_command(claim)
        entries.append(entry)
    return entries


def _measure(claim: Claim, nearest_first: list[Source], load: Callable[[str, str], Any]) -> Entry:
    """The measurement of the first source that has one, or why there is none."""
    reason = "not run yet"
    for source in nearest_first:
        result = load(source.result, source.kind)
        if result is None:
            continue
        settings = result.get("settings", {})
        if any(settings.get(name) != value for name, value in source.settings.items()):
            reason = "run with other settings than the preset's"
            continue
        measurement = source.read(result, claim, source.network)
        if measurement is None:
            continue
        kind, how = _how(claim, source, settings)
        measurement = {"network": source.network} | measurement | how
        if source.result:
            measurement["result"] = f"{source.result}.json"
        if kind == AS_IN_PAPER:
            return measurement
        return {"not_measured": kind, "instead": measurement}
    return {"not_measured": reason}


def _how(claim: Claim, source: Source, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Which kind of measurement it is, and whether size and epochs are the paper's."""
    size = "not given" if not claim.size_given else "no" if source.smaller else "yes"
    how: dict[str, Any] = {"papers_size": size}
    epochs = "not given"
    if source.epochs is not None:
        trained = settings["epochs"]
        trained = trained[source.network] if isinstance(trained, dict) else trained
        # Where the paper gives none the preset's own count, so that no run cut short passes.
        if trained != (claim.epochs or source.epochs):
            epochs = "no"
        elif claim.epochs is not None:
            epochs = "yes"
        how |= {"papers_epochs": epochs, "trained_epochs": trained}
    kind = {"not given": SIZE_NOT_GIVEN, "no": SMALLER}.get(size)
    return kind or (SHORTER if epochs == "no" else AS_IN_PAPER), how


def side_by_side(results: Path = RESULTS) -> list[Entry]:
    """Of each run of `ssp`: a network's growth ratio and its robust accuracy, in percent.

    The growth is that in the largest ball, `growth_eps`. Accuracies of networks that were trained
    against attacks are in that ball, too; of those trained on clean images in the smallest.
    """
    rows = []
    names = [f"{dataset}_{preset}" for preset, sets in ssp.PRESETS.items() for dataset in sets]
    for path in sorted(path for name in names for path in results.glob(f"ssp_{name}*.json")):
        result = load_result(path, ssp.KIND)
        for name, records in by_name(result).items():
            training, network = name.split("/")
            ball = 0 if training == "natural" else -1
            brackets = [record["brackets"][ball] for record in records]
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
            accuracies = {
                "clean": [record["clean_accuracy"] for record in records],
                "papers_attack": [b["per_attack"][ssp.SHOWN] for b in brackets],
                "worst_attack": [b["attacked"] for b in brackets],
            }
            for what, fractions in accuracies.items():
                row[what], row[f"{what}_deviation"] = mean_and_deviation(fractions)
            rows.append(row)
    return rows


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
        "in %: measured, robust accuracy under the paper's attack; all, under all attacks; <: not "
        "reached, the claim is above it by more than sampling error",
        "how: paper, as in the paper; shorter, its network, shorter training; smaller, smaller "
        "network; unknown, the paper does not give the network's size",
    ]


FIGURES = {"claims": lambda result: figure(result["claims"])}
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
