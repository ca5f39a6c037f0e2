"""Draw every figure of `experiments/figures` again, from the results in `experiments/results`.

    python -m experiments.redraw            # all
    python -m experiments.redraw ssp        # those of results whose file name holds "ssp"

Nothing is measured: half a minute. For when the way in which something is drawn has changed.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import experiments
from odejax.evaluation import load_result

from .lib.report import KEPT, published
from .lib.run import Experiment


def every_experiment() -> Iterator[Experiment]:
    """The experiments of all files that declare one."""
    for info in pkgutil.walk_packages(experiments.__path__, "experiments."):
        if not info.ispkg and info.name != __name__:
            declared = getattr(importlib.import_module(info.name), "EXPERIMENT", None)
            if isinstance(declared, Experiment):
                yield declared


def main(wanted: str = ""):
    by_kind = {experiment.kind: experiment for experiment in every_experiment()}
    for path in sorted((KEPT / "results").glob("*.json")):
        if wanted not in path.stem:
            continue
        kind = json.loads(path.read_text())["kind"]
        experiment = by_kind.get(kind)
        if experiment is None or not experiment.figures:
            continue
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "result.json"
            copy.write_bytes(path.read_bytes())
            result = load_result(copy, kind)
            written = published(result, experiment.figures, copy, path.stem, experiment.figure_stem)
        print(path.stem, *(file.name for file in written[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
