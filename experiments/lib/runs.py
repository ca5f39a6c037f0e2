"""A run's folder: a result that gains one record after another, each saved when it is there."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from odejax._paths import lock_folder, writable_folder
from odejax.data import ArrayDataset
from odejax.evaluation import load_result, provenance, save_result

from .run import UsageError


@dataclasses.dataclass
class Runs:
    """`result` = {"settings": ..., "data": [...], records: {name: record}}, kept at `path`."""

    path: Path
    kind: str
    result: dict[str, Any]
    records: str = "runs"

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: str,
        settings: dict[str, Any],
        config: Any,
        data: Iterable[ArrayDataset],
        records: str = "runs",
    ) -> "Runs":
        """The run in the folder, with `config.resume`, or a new one. `data`: all that it uses.

        Raises `UsageError` where the folder holds a run and neither `resume` nor `overwrite` says
        what becomes of it, where the run to be resumed was started with other settings or data, and
        where another process is at work there.
        """
        try:
            folder = writable_folder("--out", folder)
            lock_folder("--out", folder)
        except ValueError as error:
            raise UsageError(str(error)) from None
        path = folder / "result.json"
        told = [dataset.provenance() for dataset in data]
        runs = cls(path, kind, {"settings": settings, "data": told, records: {}}, records)
        if config.resume and path.exists():
            earlier = load_result(path, kind)
            for name, wanted in settings.items():
                found = earlier["settings"].get(name)
                if found != wanted:
                    raise UsageError(
                        f"--resume: {path} was started with {name} {found}, not {wanted}; "
                        f"give the same arguments, --overwrite, or another --out"
                    )
            _check_data(path, earlier.get("data"), told)
            runs.result |= earlier
            return runs
        if path.exists() and not config.overwrite:
            raise UsageError(
                f"{folder} holds a run: go on with it by --resume, start anew by --overwrite, or "
                f"give another --out"
            )
        if config.overwrite:
            _forget(folder)
        runs.save()  # before anything else, so that --resume can tell which run it was
        return runs

    def record(self, name: str, seed: int, measure: Callable[[], dict[str, Any]]) -> None:
        """Keep what `measure` tells of `name`, and where it was measured, unless the run has it."""
        told = name in self.result[self.records]
        Console().print(f"[bold]{name}[/]" + (f": already in {self.path}" if told else ""))
        if told:
            return
        origin = provenance(seed)
        self.result[self.records][name] = origin | measure()
        self.save()
        # A process may map only so many pieces of memory, and every compiled program takes some.
        jax.clear_caches()

    def save(self) -> None:
        save_result(self.path, self.kind, self.result)


def _check_data(path: Path, found: Any, wanted: list[dict[str, Any]]):
    """`UsageError` unless the run used these images and labels, and says so."""
    if not isinstance(found, list):
        raise UsageError(
            f"--resume: {path} does not say which data it used; give --overwrite or another --out"
        )
    digests = {told["split"]: told["digest"] for told in found}
    for told in wanted:
        if (earlier := digests.get(told["split"])) != told["digest"]:
            raise UsageError(
                f"--resume: {path} was started with other {told['split']} images of "
                f"{told['name']} (digest {str(earlier)[:12]}, not {told['digest'][:12]}); "
                f"give the same data, --overwrite, or another --out"
            )


def _forget(folder: Path):
    """Remove the checkpoints of an earlier run, and nothing that no run has made."""
    for metrics in sorted((folder / "checkpoints").rglob("metrics.jsonl")):
        shutil.rmtree(metrics.parent, ignore_errors=True)
