"""What the page shows, as plain data: every result, its intervals, the ledger and the pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odejax.evaluation import FLAGS, ResultError, load_result
from odejax.plots import palette

from ..ledger import claims as ledger
from ..ledger.report import COLORS
from ..lib.report import KEPT
from ..lib.run import Experiment
from ..redraw import every_experiment
from .claims import VERDICTS, claim_rows
from .pictures import figures_of, pictures_of
from .provenance import origins
from .rows import curves_of, rows_of

DATASETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def content(folder: Path = KEPT / "results") -> dict[str, Any]:
    """Of all results in the folder, by their files' names; nothing in it is a number of its own."""
    experiments = {experiment.kind: experiment for experiment in every_experiment()}
    made: dict[str, Any] = {
        "datasets": DATASETS,
        "flags": {
            name: {"raised_if": kind.raised_if, "why": kind.why, "what_to_do": kind.what_to_do}
            for name, kind in FLAGS.items()
        },
        "verdicts": VERDICTS,
        "colors": {
            **{name.lower(): getattr(palette, name) for name in ("ATTACKED", "CERTIFIED")},
            "papers": COLORS,
        },
        **{part: [] for part in ("results", "rows", "curves", "claims", "pictures")},
    }
    for path in sorted(folder.glob("*.json")):
        name, kind = path.stem, _kind(path, experiments)
        experiment, result = experiments[kind], load_result(path, kind)
        networks = list(experiment.networks(result))
        dataset = result.get("settings", {}).get("dataset", "")
        rows = [row for network in networks for row in rows_of(name, dataset, network)]
        made["results"].append(_about(name, experiment, result, len(rows)))
        made["rows"] += rows
        made["curves"] += [c for network in networks for c in curves_of(name, dataset, network)]
        made["pictures"] += pictures_of(name, dataset, experiment.examples(result))
        if kind == ledger.KIND:
            made["claims"] += claim_rows(result["claims"])
    return made


def _kind(path: Path, experiments: Mapping[str, Experiment]) -> str:
    """Of the file's experiment; what is wrong with the rest of the file `load_result` says."""
    try:
        kind = json.loads(path.read_text())["kind"]
    except (ValueError, KeyError, TypeError):
        raise ResultError(f"{path} is no result of an experiment") from None
    if kind not in experiments:
        raise ResultError(f"{path} is of kind {kind!r}; experiments: {', '.join(experiments)}")
    return kind


def _about(
    name: str, experiment: Experiment, result: dict[str, Any], intervals: int
) -> dict[str, Any]:
    """What was run, how, where and on what."""
    title, _, rest = (experiment.about or "").replace("*", "").partition("\n")
    settings = result.get("settings", {})
    return {
        "name": name,
        "kind": experiment.kind,
        "title": title.rstrip("."),
        "about": rest.strip(),
        "dataset": settings.get("dataset", ""),
        "settings": settings,
        "data": result.get("data"),
        "command": f"python -m {experiment.plan.__module__}",
        "origins": origins(result),
        "intervals": intervals,
        "figures": figures_of(name, experiment),
    }
