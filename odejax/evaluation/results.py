"""Results: JSON with everything needed to believe a number or to measure it again."""

import base64
import datetime
import functools
import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._paths import local_path, written_whole

FORMAT = 2
_PACKAGES = ("odejax", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy")


class ResultError(ValueError):
    """A file that `save_result` did not write, or another version of it did."""


def provenance(seed: int) -> dict[str, Any]:
    """Seed, commit, versions, device and time of a measurement, ready for JSON.

    >>> sorted(odejax.evaluation.provenance(seed=3))
    ['commit', 'device', 'processor', 'seed', 'time', 'versions']
    """
    device = jax.devices()[0]
    return {
        "seed": seed,
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
        "device": f"{device.platform}: {device.device_kind}",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def save_result(path: str | os.PathLike, kind: str, result: dict[str, Any]):
    """Write `result` as JSON with a digest, whole or not at all.

    - `path`: the file; its folder is made.
    - `kind`: which experiment it is of.
    - `result`: what `json` can write.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> odejax.evaluation.save_result(f"{folder}/result.json", "table1", {"attacked": 0.25})
    >>> odejax.evaluation.load_result(f"{folder}/result.json", "table1")["attacked"]
    0.25
    """
    path = local_path("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"format": FORMAT, "kind": kind, **result}
    text = json.dumps({**result, "digest": _digest(result)}, indent=1)
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n")


def load_result(path: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Read what `save_result` wrote.

    Raises `ResultError` for another kind or format, anything else, or a changed digit.

    >>> odejax.evaluation.load_result("no/such/file.json", "table1")
    Traceback (most recent call last):
        ...
    odejax.evaluation.results.ResultError: the result file ... cannot be read: ...
    """
    path = local_path("path", path)
    try:
        result = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(f"the result file {path} cannot be read: {error}") from None
    saved = (result.get("format"), result.get("kind")) if isinstance(result, dict) else None
    if saved != (FORMAT, kind):
        raise ResultError(
            f"{path} has (format, kind) {saved}; this version of odejax reads {(FORMAT, kind)}"
        )
    if result.pop("digest", None) != _digest(result):
        raise ResultError(f"{path} is damaged or was edited: it differs from its digest")
    return result


def _digest(result: dict[str, Any]) -> str:
    """Of the numbers as they are read back, however the file is laid out."""
    read = json.loads(json.dumps(result))  # where keys are text, and are sorted as such
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """An array of pictures as JSON: float16 (finer than 8-bit pixels), base64.

    >>> odejax.evaluation.encode_array(np.zeros((1, 2)))
    {'shape': [1, 2], 'float16': 'AAAAAA=='}
    """
    data = base64.b64encode(np.ascontiguousarray(array, np.float16).tobytes()).decode()
    return {"shape": list(array.shape), "float16": data}


def decode_array(encoded: dict[str, Any]) -> np.ndarray:
    """What `encode_array` stored, as float32.

    >>> odejax.evaluation.decode_array({"shape": [1, 2], "float16": "AAAAAA=="})
    array([[0., 0.]], dtype=float32)
    """
    flat = np.frombuffer(base64.b64decode(encoded["float16"]), np.float16)
    return flat.reshape(encoded["shape"]).astype(np.float32)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from a folder, not installed
        return None


@functools.cache  # a process runs the code that it began with, whatever is committed meanwhile
def _commit() -> str | None:
    """The commit that the code came from, with "+changes" if files differ from it."""

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else another project's commit
        # Results and figures are what a run writes; they do not change the code that wrote them.
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py", ":/*.toml")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
