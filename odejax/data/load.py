"""Real data by name: digits from scikit-learn, the rest through TensorFlow Datasets (TFDS)."""

import importlib.util
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import ArrayDataset

N_CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
DIGITS_TRAIN = 1297  # of 1,797; the last 500 are the test set


class DataNotFoundError(FileNotFoundError):
    """A data set is not on disk and cannot be fetched; the message says what to do."""


def load(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> ArrayDataset:
    """The whole split of a data set as arrays.

    - `name`: "digits" (8 x 8 x 1, carried by scikit-learn), "mnist", "fashion_mnist" (28 x 28 x 1),
      "cifar10" or "cifar100" (32 x 32 x 3).
    - `split`: "train" or "test". The 1,797 digits stay in the order of their file; the first
      1,297 are for training and the last 500 for testing. Their 17 grey levels are stretched to
      0..255.
    - `data_dir`: a TFDS data folder; by default $ODEJAX_DATA_DIR, else TFDS's own default.

    TFDS data is decoded once; the arrays are kept in `cache_dir()` and later loads take a
    fraction of a second. Reading prepared data needs no TensorFlow; downloading does (the
    `download` extra). Raises `DataNotFoundError` within seconds without data and network.
    """
    if name not in N_CLASSES:
        raise ValueError(f"unknown data set {name!r}; accepted: {', '.join(N_CLASSES)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; accepted: train, test")
    images, labels = _digits(split) if name == "digits" else _tfds(name, split, data_dir)
    return ArrayDataset(images, labels, N_CLASSES[name], name, split)


def cache_dir() -> Path:
    """Where decoded data and compiled programs are kept: $ODEJAX_CACHE_DIR or ~/.cache/odejax."""
    return Path(os.environ.get("ODEJAX_CACHE_DIR") or Path.home() / ".cache" / "odejax")


def _digits(split):
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    images = np.round(bunch.images[part] * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target[part].astype(np.int32)


def _tfds(name, split, data_dir):
    folder = _data_dir(data_dir)
    cached = _cached(folder, name, split)
    if cached is not None and cached.exists():
        arrays = [np.load(cached / f"{array}.npy") for array in ("images", "labels")]
        return arrays[0], arrays[1]
    _prepare(name, folder)
    arrays = _decode(name, split, folder)
    cached = _cached(folder, name, split)
    assert cached is not None
    _store(cached, *arrays)
    return arrays


def _data_dir(data_dir):
    if data_dir is not None:
        folder = Path(data_dir)
        if not folder.is_dir():
            raise DataNotFoundError(f"the data folder {folder} does not exist")
        return folder
    chosen = os.environ.get("ODEJAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen) if chosen else Path.home() / "tensorflow_datasets"


def _cached(folder, name, split):
    """The cache entry of a prepared data set, named by the files it was decoded from."""
    infos = sorted((folder / name).glob("*/dataset_info.json"))
    if not infos:
        return None
    version = infos[-1].parent
    files = sorted(version.glob(f"*-{split}.*"))
    stamp = "-".join(f"{f.stat().st_size:x}.{int(f.stat().st_mtime):x}" for f in files)
    return cache_dir() / "data" / f"{name}-{version.name}-{split}-{stamp}"


def _decode(name, split, folder):
    import tensorflow_datasets as tfds

    source: Any = tfds.data_source(
        name, split=split, data_dir=folder, builder_kwargs={"file_format": "array_record"}
    )
    rows = source.__getitems__(range(len(source)))  # one batched read, far faster than a loop
    images = np.stack([row["image"] for row in rows])
    return images, np.array([row["label"] for row in rows], np.int32)


def _store(cached, images, labels):
    """Atomic: a reader sees the whole entry or none; a race between two writers is harmless."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cached.parent))
    try:
        np.save(temporary / "images.npy", images)
        np.save(temporary / "labels.npy", labels)
        try:
            temporary.rename(cached)
        except OSError:
            if not cached.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _prepare(name, folder):
    """Make sure that TFDS finds the data prepared; download it if that can work."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=folder, file_format="array_record")
    # Asked first: without it TFDS retries for minutes offline and leaves a half-made folder.
    if builder.is_prepared():
        return
    missing = f"{name} is not prepared in {folder}"
    instead = (
        "point --data-dir (data_dir, $ODEJAX_DATA_DIR) at a folder where TFDS has prepared it"
        " as array_record, or use the embedded 'digits'"
    )
    needed = [m for m in ("tensorflow", "importlib_resources") if not importlib.util.find_spec(m)]
    if needed:
        raise DataNotFoundError(
            f"{missing}, and downloading it needs {' and '.join(needed)}: "
            f"install odejax[download], or {instead}"
        )
    url = next(iter(builder.url_infos))
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # the host answers: let TFDS try, with its mirrors
    except OSError as error:
        raise DataNotFoundError(
            f"{missing}, and {url} cannot be reached ({error}): {instead}"
        ) from None
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # whatever its downloads and extractors raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataNotFoundError(
            f"{missing}, and preparing it failed ({reason}): {instead}"
        ) from error
