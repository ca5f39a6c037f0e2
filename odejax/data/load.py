"""Real data by name: digits from scikit-learn, the rest through TensorFlow Datasets (TFDS)."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .._fingerprint import fingerprint
from .._paths import local_path
from .dataset import ArrayDataset

N_CLASSES = {"digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
_UNFINISHED = ".tmp-"  # cache entries in the making
DIGITS_TRAIN = 1297  # of 1,797; the last 500 are the test set
_ENCODINGS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}  # by the first bytes of a stored image


class DataNotFoundError(FileNotFoundError):
    """A data set is not on disk or damaged, and cannot be fetched; the message says what to do."""


def load(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> ArrayDataset:
    """The whole split of a data set, as arrays.

    - `name`: "digits" (8 x 8 x 1, carried by scikit-learn), "mnist", "fashion_mnist" (28 x 28 x 1),
      "cifar10" or "cifar100" (32 x 32 x 3).
    - `split`: "train" or "test". The 1,797 digits stay in the order of their file; the first
      1,297 are for training and the last 500 for testing. Their 17 grey levels are stretched to
      0..255.
    - `data_dir`: a TFDS data folder; by default $ODEJAX_DATA_DIR, else TFDS's own default.

    TFDS data is decoded once; the arrays are kept in `cache_dir()` and later loads take a fraction
    of a second. Reading prepared data needs no TensorFlow; downloading does (the `download` extra).
    The data set's `provenance()` has its version, how its images were stored, and a digest.

    Raises `ValueError` for another name or split, and `DataNotFoundError`, within seconds, without
    data and network.

    >>> data = odejax.data.load("digits", "test")
    >>> data.images.shape, data.images.dtype, data.labels.shape
    ((500, 8, 8, 1), dtype('uint8'), (500,))
    """
    if not isinstance(name, str) or name not in N_CLASSES:
        raise ValueError(f"unknown data set {name!r}; accepted: {', '.join(N_CLASSES)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; accepted: train, test")
    if name == "digits":
        images, labels, origin = *_digits(split), _origin_of_digits(split)
    else:
        images, labels, stored = _tfds(name, split, data_dir)
        origin = _origin(name, split, **stored)
    return ArrayDataset(images, labels, N_CLASSES[name], name, split, **origin)


def cache_dir() -> Path:
    """Where decoded data and compiled programs are kept: $ODEJAX_CACHE_DIR or ~/.cache/odejax.

    >>> odejax.data.cache_dir().is_absolute()
    True
    """
    chosen = os.environ.get("ODEJAX_CACHE_DIR")
    return local_path("ODEJAX_CACHE_DIR", chosen) if chosen else _home() / ".cache" / "odejax"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without one
        return Path(tempfile.gettempdir())


def _digits(split):
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    images = np.round(bunch.images[part] * (255 / 16)).astype(np.uint8)[..., None]
    return images, bunch.target[part].astype(np.int32)


def _origin_of_digits(split) -> dict[str, str]:
    version = importlib.metadata.version("scikit-learn")
    return {
        "source": f"scikit-learn {version} load_digits, 17 grey levels stretched to 0..255",
        "how_to_get": f"odejax.data.load('digits', '{split}'): scikit-learn carries the images",
    }


def _origin(name, split, version, encoding) -> dict[str, str]:
    """In words. TFDS stores all of these data sets as PNG, which loses nothing."""
    source = f"TensorFlow Datasets {name}:{version}, images "
    if encoding == "PNG":
        load_it = f"odejax.data.load('{name}', '{split}') with the extra odejax[download]"
        return {
            "source": source + "stored as PNG",
            "how_to_get": f"{load_it} downloads {name} where it is not prepared; compare digests",
        }
    return {
        "source": source + f"re-encoded as {encoding}",
        "how_to_get": (
            f"not by downloading {name}, of which TensorFlow Datasets stores every pixel as PNG: "
            f"you need a copy that was re-encoded as {encoding} and has the same digest"
        ),
    }


def _tfds(name, split, data_dir):
    """Images, labels, and the version and encoding of the prepared data."""
    folder = _data_dir(data_dir)
    cached = _cached(folder, name, split)
    if cached is not None and (decoded := _read(cached)) is not None:
        return decoded
    _prepare(name, folder)
    try:
        decoded = _decode(name, split, folder)
    except Exception as error:  # whatever its readers make of damaged records
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataNotFoundError(
            f"{name} in {folder} cannot be read ({reason[:150]}): prepare it again"
        ) from error
    cached = _cached(folder, name, split)
    assert cached is not None
    _store(cached, *decoded)
    return decoded


def _data_dir(data_dir):
    if data_dir is not None:
        folder = local_path("data_dir", data_dir)
        if not folder.is_dir():
            raise DataNotFoundError(f"the data folder {folder} does not exist")
        return folder
    chosen = os.environ.get("ODEJAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return local_path("ODEJAX_DATA_DIR", chosen) if chosen else _home() / "tensorflow_datasets"


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
        name,
        split=split,
        data_dir=folder,
        decoders={"image": tfds.decode.SkipDecoding()},
        builder_kwargs={"file_format": "array_record"},
    )
    rows = source.__getitems__(range(len(source)))  # one batched read, far faster than a loop
    feature = source.dataset_info.features["image"]
    images = np.stack([feature.decode_example_np(row["image"]) for row in rows])
    labels = np.array([row["label"] for row in rows], np.int32)
    # Asked of the images themselves: TFDS's own description of them does not say.
    encodings = sorted({_encoding(row["image"]) for row in rows})
    version = str(source.dataset_info.version)
    return images, labels, {"version": version, "encoding": " and ".join(encodings)}


def _encoding(stored: bytes) -> str:
    matches = (name for start, name in _ENCODINGS.items() if stored.startswith(start))
    return next(matches, "an unknown format")


def _read(cached):
    """What `_store` kept; None where there is nothing, or what is there is damaged."""
    if not cached.exists():
        return None
    if (cached / "stored.json").exists():
        try:
            images, labels = (np.load(cached / f"{array}.npy") for array in ("images", "labels"))
            stored = json.loads((cached / "stored.json").read_text())
            if (cached / "digest").read_text() == fingerprint(images, labels, stored):
                return images, labels, stored
        except (OSError, EOFError, ValueError):
            pass
        warnings.warn(f"the cached data {cached} is damaged: it is decoded anew", stacklevel=2)
    # Else of an earlier version of odejax, which did not keep how the images were stored.
    shutil.rmtree(cached, ignore_errors=True)
    return None


def _store(cached, images, labels, stored):
    """Atomic: a reader sees the whole entry or none; a race between two writers is harmless.

    Where the disk does not take it the data is decoded again next time, and the work goes on.
    """
    temporary = None
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _forget_killed(cached.parent)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=cached.parent))
        np.save(temporary / "images.npy", images)
        np.save(temporary / "labels.npy", labels)
        (temporary / "stored.json").write_text(json.dumps(stored))
        (temporary / "digest").write_text(fingerprint(images, labels, stored))
        temporary.rename(cached)
    except OSError as error:
        if not cached.exists():
            warnings.warn(f"the decoded data could not be kept in {cached}: {error}", stacklevel=2)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _forget_killed(folder):
    """Remove what a process that was killed an hour ago or more did not finish."""
    for unfinished in folder.glob(f"{_UNFINISHED}*"):
        if time.time() - unfinished.stat().st_mtime > 3600:
            shutil.rmtree(unfinished, ignore_errors=True)


def _prepare(name, folder):
    """Make sure that TFDS finds the data prepared; download it if that can work."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=folder, file_format="array_record")
    # Asked first: without it TFDS retries for minutes offline and makes half a folder.
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
