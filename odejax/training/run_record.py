"""What a run is after some epochs, kept in a folder from which it can be continued."""

import dataclasses
import json
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from equinox.nn import State
from jaxtyping import PyTree

from .._checkpoints import CheckpointError, Checkpoints, array_digest
from .._fingerprint import fingerprint
from .._mesh import replicate, to_host
from .._network_structure import describe, is_array
from .._paths import written_whole
from .._types import Key
from .._words import counted
from ..data import ArrayDataset, StreamedDataset
from ..data.augment import Augmentation
from .gradients import AbstractGradientRule
from .objectives import Objective
from .train_state import Metrics, Sums, TrainState


class RunRecord(NamedTuple):
    """A run after `len(history)` epochs. A checkpoint holds this and the `TrainState`."""

    best: tuple[PyTree, State]  # weights and batch statistics of `best_epoch`
    history: list[Metrics]
    best_epoch: int
    best_score: float

    @staticmethod
    def initial(train: TrainState) -> "RunRecord":
        """Before the first epoch."""
        return RunRecord((train.params, train.state), [], 0, -np.inf)

    def after_epoch(
        self, train: TrainState, metrics: Metrics, *, epoch: int, score: float
    ) -> "RunRecord":
        """With the metrics of one more epoch; its weights are the best if their score is."""
        best, best_epoch, best_score = self.best, self.best_epoch, self.best_score
        if score > best_score:
            best, best_epoch, best_score = train.validated(), epoch, score
        return RunRecord(best, [*self.history, metrics], best_epoch, best_score)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run is saved after every epoch: its checkpoints, and `metrics.jsonl` beside them.

    - `fingerprint`: what distinguishes it from other runs (`run_fingerprint`).
    - `static`: all of the model but its weights.

    It says, too, what the network is made of, so that `odejax.load` needs nothing but the folder.
    """

    checkpoints: Checkpoints
    fingerprint: dict[str, Any]
    static: PyTree

    @property
    def path(self) -> Path:
        return self.checkpoints.folder

    def restore(
        self, train: TrainState, record: RunRecord, *, epochs: int
    ) -> tuple[TrainState, RunRecord]:
        """The run that the folder holds; `train` and `record` where it is empty.

        Raises `CheckpointError` for another run, for one of more than `epochs` epochs, and where
        the disk has no room for one epoch more.
        """
        meta = self.checkpoints.restore_meta()
        if meta is not None:
            _check_fingerprint(meta.get("fingerprint", {}), self.fingerprint, self.path)
            like = (train, record.best, self._constants)
            train, best, _ = self.checkpoints.restore_arrays(like)
            history = meta["history"]
            if len(history) > epochs:
                ran = counted(len(history), "epoch")
                raise CheckpointError(f"{self.path} holds a run of {ran}; got epochs={epochs}")
            record = RunRecord(best, history, meta["best_epoch"], meta["best_score"])
            self._write_metrics(history)
        self.checkpoints.check_room((train, record.best, self._constants))
        return train, record

    def save(self, train: TrainState, record: RunRecord):
        """Write the newest epoch of the run, then the metrics of all epochs."""
        arrays = (train, record.best, self._constants)
        meta = {
            "fingerprint": self.fingerprint,
            "history": record.history,
            "best_epoch": record.best_epoch,
            "best_score": record.best_score,
            "network": self._network(arrays),
        }
        self.checkpoints.save(len(record.history), arrays, meta)
        self._write_metrics(record.history)

    @property
    def _constants(self) -> PyTree:
        """Arrays of the model that are not trained, such as integers."""
        return replicate(eqx.filter(self.static, is_array))

    def _network(self, arrays: PyTree) -> dict[str, Any]:
        """What the best model and its state are made of, and which of the arrays are theirs."""
        leaves, structure = jax.tree.flatten(arrays)
        _, (params, state), constants = jax.tree.unflatten(structure, range(len(leaves)))
        weights, statistics = arrays[1]
        return {
            "structure": describe((eqx.combine(weights, self.static), statistics)),
            "arrays": jax.tree.leaves((eqx.combine(params, constants), state)),
        }

    def _write_metrics(self, history):
        if jax.process_index() != 0:
            return
        with written_whole(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(metrics) + "\n" for metrics in history))


def run_fingerprint(
    train: TrainState,
    static: PyTree,
    datasets: tuple[ArrayDataset | StreamedDataset, ArrayDataset | None],
    functions: tuple[Objective | AbstractGradientRule, Augmentation | None],
    *,
    batch_size: int,
    average: float | None,
    key: Key,
) -> dict[str, Any]:
    """What distinguishes one run from another, ready for JSON.

    - `train`: the run before its first step; `static`: the rest of the model.
    - `datasets`: for training and for validation.
    - `functions`: the objective and the augmentation.
    """
    dataset, validation = datasets
    objective, augment = functions
    return {
        "key": to_host(jax.random.key_data(key)).tolist(),
        "batch_size": batch_size,
        "dataset": _describe(dataset),
        "validation": None if validation is None else _describe(validation),
        "model": fingerprint(static),
        "objective": fingerprint(objective),
        "augmentation": fingerprint(augment),
        "average": average,
        "arrays": array_digest(train),
        "initialisation": _sums((train.params, train.state)),
    }


def epoch_metrics(
    epoch: int, sums: Sums, *, steps: int, batch_size: int, seconds: float
) -> Metrics:
    """The metrics of one epoch of `steps` steps that took `seconds`."""
    return {
        "epoch": epoch,
        "loss": float(sums[0]) / steps,
        "train_accuracy": int(sums[1]) / (steps * batch_size),
        "seconds": seconds,
        "examples_per_second": steps * batch_size / seconds,
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int:
    """Bytes, the most so far: of a device that counts them, else of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    import resource  # which not every system has

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _describe(dataset: ArrayDataset | StreamedDataset):
    if isinstance(dataset, StreamedDataset):
        return [dataset.name, dataset.split, len(dataset), dataset.digest]
    digest = zlib.crc32(dataset.labels.tobytes(), zlib.crc32(dataset.images.tobytes()))
    return [dataset.name, dataset.split, len(dataset), digest]


def _sums(arrays) -> list[float]:
    """A number for each array: another device, which may round otherwise, has nearly the same."""
    leaves = [to_host(leaf) for leaf in jax.tree.leaves(arrays) if eqx.is_inexact_array(leaf)]
    return [float(np.dot(np.linspace(1, 2, x.size), np.ravel(x).astype(float))) for x in leaves]


def _check_fingerprint(saved: dict[str, Any], current: dict[str, Any], folder: Path):
    def same(name):
        if name == "initialisation" and name in saved and len(saved[name]) == len(current[name]):
            return np.allclose(saved[name], current[name], rtol=1e-3, atol=1e-6)
        return saved.get(name) == current[name]

    different = [name for name in current if not same(name)]
    if different:
        name = different[0]
        raise CheckpointError(
            f"{folder} holds a run with another {name}: {str(saved.get(name))[:80]}, "
            f"not {str(current[name])[:80]}; "
            f"give another folder, or the arguments it was started with"
        )
