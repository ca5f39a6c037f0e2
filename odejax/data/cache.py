"""The decoded arrays of a data set, kept so that later loads take a fraction of a second."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .._fingerprint import fingerprint
from .._paths import local_path
from .._warnings import warn

Decoded = tuple[np.ndarray, np.ndarray, dict[str, Any]]  # images, labels, what else is known
_UNFINISHED = ".tmp-"  # cache entries in the making


def cache_dir() -> Path:
    """Where decoded data and compiled programs are kept: $ODEJAX_CACHE_DIR or ~/.cache/odejax.

    >>> odejax.data.cache_dir().is_absolute()
    True
    """
    chosen = os.environ.get("ODEJAX_CACHE_DIR")
    return local_path("ODEJAX_CACHE_DIR", chosen) if chosen else home() / ".cache" / "odejax"


def home() -> Path:
    """The user's folder, or that of temporary files for a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir())


def read_entry(entry: Path) -> Decoded | None:
    """What `store_entry` kept; None where there is nothing, or what is there is damaged."""
    if not entry.exists():
        return None
    try:
        images, labels = (np.load(entry / f"{array}.npy") for array in ("images", "labels"))
        stored = json.loads((entry / "stored.json").read_text())
        if (entry / "digest").read_text() == fingerprint(images, labels, stored):
            return images, labels, stored
    except (OSError, EOFError, ValueError):
        pass
    warn(f"the cached data {entry} is damaged: it is decoded anew")
    shutil.rmtree(entry, ignore_errors=True)
    return None


def store_entry(entry: Path, images: np.ndarray, labels: np.ndarray, stored: dict[str, Any]):
    """Atomic: a reader sees the whole entry or none; a race between two writers is harmless.

    Where the disk does not take it the data is decoded again next time, and the work goes on.
    """
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _forget_killed(entry.parent)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=entry.parent))
        np.save(temporary / "images.npy", images)
        np.save(temporary / "labels.npy", labels)
        (temporary / "stored.json").write_text(json.dumps(stored))
        (temporary / "digest").write_text(fingerprint(images, labels, stored))
        temporary.rename(entry)
    except OSError as error:
        if not entry.exists():
            warn(f"the decoded data could not be kept in {entry}: {error}")
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _forget_killed(folder):
    """Remove what a process that was killed an hour ago or more did not finish."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        if time.time() - unfinished.stat().st_mtime > 3600:
            shutil.rmtree(unfinished, ignore_errors=True)
