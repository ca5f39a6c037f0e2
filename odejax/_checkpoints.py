"""Checkpoints of a training run: atomic, of the last epoch and of the best, through Orbax."""

import contextlib
import gc
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._fingerprint import fingerprint
from ._paths import local_path, lock_folder, reserve_room, writable_folder


class CheckpointError(RuntimeError):
    """A checkpoint folder that cannot be read, or belongs to another run."""


class Checkpoints:
    """The folder of one run. `meta` is JSON (epoch history, fingerprint), `arrays` any pytree.

    Every array has a digest, and so has `meta`: an epoch that is damaged is never used. With
    `read_only` the folder stays as it is, and another process may be at work in it.
    """

    def __init__(self, folder: str | os.PathLike, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        if read_only:
            self.folder = local_path("checkpoint_dir", folder)
        else:
            self.folder = writable_folder("checkpoint_dir", folder)
            if jax.process_index() == 0:
                lock_folder("checkpoint_dir", self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=not read_only, enable_async_checkpointing=False
        )
        with _failing_once(f"{self.folder} cannot be read"):
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def check_room(self, arrays: PyTree):
        """Raise `CheckpointError` unless the disk has room for one epoch more."""
        size = sum(leaf.nbytes for leaf in _numbered(arrays).values()) + 2**20
        try:
            reserve_room(self.folder, size)
        except OSError as error:
            raise CheckpointError(
                f"a checkpoint takes {size / 1e6:.1f} MB, for which there is no room in "
                f"{self.folder} ({error.strerror})"
            ) from None

    def save(self, epoch: int, arrays: PyTree, meta: dict[str, Any]):
        """Write one epoch; it appears whole or not at all, and older ones go only afterwards.

        Raises `CheckpointError` where the disk does not take it.
        """
        self.check_room(arrays)
        named = _numbered(arrays)
        content = {"meta": meta, "digests": {name: fingerprint(a) for name, a in named.items()}}
        failed = f"epoch {epoch} could not be saved in {self.folder}"
        with _failing_once(failed), _uninterrupted():
            self._manager.save(
                epoch,
                args=self._ocp.args.Composite(
                    arrays=self._ocp.args.StandardSave(named),
                    meta=self._ocp.args.JsonSave({**content, "digest": _digest(content)}),
                ),
            )
            self._manager.wait_until_finished()

    def restore_meta(self) -> dict[str, Any] | None:
        """The `meta` of the newest epoch; None in an empty folder."""
        epoch = self._manager.latest_step()
        return None if epoch is None else self._content(epoch)["meta"]

    def restore_arrays(self, like: PyTree) -> PyTree:
        """The arrays of the newest epoch, in the structure of `like`.

        Raises `CheckpointError` where one is damaged, naming the newest epoch that is whole.
        """
        epoch = self._manager.latest_step()
        assert epoch is not None
        try:
            return self._arrays(epoch, like)
        except CheckpointError as error:
            whole = [e for e in self._manager.all_steps() if e != epoch and self._is_whole(e, like)]
            hint = (
                f"delete {self.folder / str(epoch)} to go on from epoch {max(whole)}"
                if whole
                else "no older epoch is whole: give another checkpoint_dir"
            )
            raise CheckpointError(f"{error}; {hint}") from None

    def restore_numbered(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Some arrays of the newest epoch, whatever devices had them; keys as their numbers.

        - `numbers`: their places among the leaves of what was saved.
        """
        epoch, names = self._manager.latest_step(), [_name(number) for number in numbers]
        folder, digests = self.folder / str(epoch), self._content(epoch)["digests"]
        on_host = {name: self._ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        what = self._ocp.args.PyTreeRestore(
            dict.fromkeys(names, 0), restore_args=on_host, partial_restore=True
        )
        with _failing_once(f"the checkpoint {folder} cannot be read"):
            reader = self._ocp.Checkpointer(self._ocp.PyTreeCheckpointHandler())
            restored = reader.restore(folder / "arrays", args=what)
        _check_digests(folder, restored, digests)
        return [restored[name] for name in names]

    def _is_whole(self, epoch, like) -> bool:
        try:
            self._arrays(epoch, like)
        except CheckpointError:
            return False
        return True

    def _arrays(self, epoch, like):
        digests, named = self._content(epoch)["digests"], _numbered(like)
        restored = self._restore(epoch, arrays=self._ocp.args.StandardRestore(named))["arrays"]
        _check_digests(self.folder / str(epoch), {name: restored[name] for name in named}, digests)
        leaves = [
            _as_key(restored[name], leaf)
            for name, leaf in zip(named, jax.tree.leaves(like), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _content(self, epoch):
        content = dict(self._restore(epoch, meta=self._ocp.args.JsonRestore())["meta"])
        if content.pop("digest", None) != _digest(content):
            raise CheckpointError(
                f"the checkpoint {self.folder / str(epoch)} is damaged: its history differs from "
                f"its digest"
            )
        return content

    def _restore(self, epoch, **what):
        with _failing_once(f"the checkpoint {self.folder / str(epoch)} cannot be read"):
            return self._manager.restore(epoch, args=self._ocp.args.Composite(**what))

    def close(self):
        self._manager.close()


@contextlib.contextmanager
def _uninterrupted():
    """Ctrl-C, and a SIGTERM that does the same, wait for the end.

    In the middle of it Orbax's threads would each report a failure.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught, before = [], {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    before = {s: handler for s, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _failing_once(what: str):
    """What fails within is one `CheckpointError`; Orbax's threads and log would each report it."""
    log, failure = logging.getLogger("absl"), None
    before = sys.excepthook, sys.unraisablehook, threading.excepthook, log.disabled
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    log.disabled = True
    try:
        yield
    except Exception as error:  # Orbax raises whatever its storage does
        failure = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook, log.disabled = before
    # Out here: within, the new error would keep Orbax's unfinished work alive until Python ends.
    if failure is not None:
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # coroutines that were never run say so when they go
        raise CheckpointError(f"{what}: {failure}")


def _check_digests(folder: Path, arrays: dict[str, Any], digests: dict[str, str]):
    damaged = [name for name, a in arrays.items() if fingerprint(a) != digests.get(name)]
    if damaged:
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: {len(damaged)} of {len(arrays)} arrays differ "
            f"from their digests"
        )


def _digest(content: dict[str, Any]) -> str:
    read = json.loads(json.dumps(content))  # where keys are text, and are sorted as such
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def _numbered(arrays):
    # By number: a model's own structure holds functions and static fields that Orbax cannot store.
    return {_name(i): _as_data(leaf) for i, leaf in enumerate(jax.tree.leaves(arrays))}


def _name(number: int) -> str:
    return f"{number:05d}"


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_data(leaf):
    """Keys, which Orbax does not support, as the numbers they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_key(data, like):
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like)) if _is_key(like) else data


def array_digest(tree: PyTree) -> list[str]:
    """Shapes and dtypes of a pytree's arrays, which a checkpoint must match."""
    return [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree)]
