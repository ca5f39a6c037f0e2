"""A run's folder: a result that gains one record after another, each saved when it is there."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from odejax.evaluation import load_result, provenance, save_result

from ._cli import UsageError


@dataclasses.dataclass
class Runs:
    """`result` = {"settings": ..., records: {name: record}}, kept at `path`."""

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
        resume: bool,
        records: str = "runs",
    ) -> "Runs":
        """The run in the folder, or a new one.

        Without `resume` the folder's old checkpoints are removed. Raises `UsageError` where the run
        to be resumed was started with other settings.
        """
        path = folder / "result.json"
        runs = cls(path, kind, {"settings": settings, records: {}}, records)
        if resume and path.exists():
            runs.result |= load_result(path, kind)
            for name, wanted in settings.items():
                found = runs.result["settings"].get(name)
                if found != wanted:
                    raise UsageError(
                        f"--resume: {path} was started with {name} {found}, not {wanted}; "
                        f"give the same arguments, or another --out"
                    )
            return runs
        if not resume:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
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
