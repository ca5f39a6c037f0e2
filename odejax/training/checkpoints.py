"""Checkpoints of a training run: atomic, of the last epoch and of the best, through Orbax."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint folder that cannot be read, or belongs to another run."""


class Checkpoints:
    """The folder of one run. `meta` is JSON (epoch history, fingerprint), `arrays` any pytree."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, epoch: int, arrays: PyTree, meta: dict[str, Any]):
        """Write one epoch; it appears whole or not at all, and older ones go only afterwards."""
        self._manager.save(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(_numbered(arrays)), meta=ocp.args.JsonSave(meta)
            ),
        )
        self._manager.wait_until_finished()

    def restore_meta(self) -> dict[str, Any] | None:
        """The `meta` of the newest epoch; None in an empty folder."""
        if self._manager.latest_step() is None:
            return None
        return self._restore(meta=ocp.args.JsonRestore())["meta"]

    def restore_arrays(self, like: PyTree) -> PyTree:
        """The arrays of the newest epoch, in the structure of `like`."""
        restored = self._restore(arrays=ocp.args.StandardRestore(_numbered(like)))["arrays"]
        leaves = [restored[name] for name in _numbered(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _restore(self, **what):
        epoch = self._manager.latest_step()
        try:
            return self._manager.restore(epoch, args=ocp.args.Composite(**what))
        except Exception as error:  # Orbax raises whatever its storage does
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(
                f"the checkpoint {self.folder / str(epoch)} cannot be read: {reason[0][:200]}"
            ) from error

    def close(self):
        self._manager.close()


def _numbered(arrays):
    # By number: a model's own structure holds functions and static fields that Orbax cannot store.
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(arrays))}


def array_digest(tree: PyTree) -> list[str]:
    """Shapes and dtypes of a pytree's arrays, which a checkpoint must match."""
    return [f"{np.dtype(x.dtype)}{list(x.shape)}" for x in jax.tree.leaves(tree)]
