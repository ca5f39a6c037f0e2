"""Data sets of TensorFlow Datasets (TFDS): read from the folder where TFDS prepared them.

The folder itself says what is in it, so that reading needs neither TensorFlow nor the code that
made it; downloading needs both.
"""

import contextlib
import difflib
import importlib.util
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from .._paths import local_path
from .cache import Decoded, cache_dir, home, read_entry, store_entry
from .dataset import ArrayDataset

_NAME = re.compile(r"(?P<base>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?", re.A)
_VERSION = re.compile(r"\d+\.\d+\.\d+", re.A)
_FORMAT = "array_record"  # the only one that is read without TensorFlow
_ENCODINGS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG"}  # by the first bytes of a stored image
# TFDS stores every pixel of these, which it does not say: a copy in JPEG is not what it downloads.
_LOSSLESS = ("mnist", "fashion_mnist", "cifar10", "cifar100")


class DataNotFoundError(FileNotFoundError):
    """A data set is not on disk or damaged, and cannot be fetched; the message says what to do."""


def load_prepared(name: str, split: str, data_dir: str | os.PathLike | None) -> ArrayDataset:
    """The whole split of a prepared data set, which is downloaded where it can be; see `load`."""
    folder = _data_dir(data_dir)
    prepared = _find(name, folder)
    if prepared is None:
        prepared = _download(name, folder)
    splits = [one["name"] for one in _read_info(prepared).get("splits", [])]
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of {name}; accepted: {', '.join(splits)}")
    entry = _cache_entry(prepared, folder, split)
    decoded = read_entry(entry)
    if decoded is None:
        decoded = _decode(name, split, prepared)
        store_entry(entry, *decoded)
    images, labels, stored = decoded
    source, how_to_get = _origin(name, split, stored["version"], stored["encoding"])
    return ArrayDataset(
        images,
        labels,
        name=name,
        split=split,
        source=source,
        how_to_get=how_to_get,
        class_names=stored["class_names"],
    )


def _data_dir(data_dir) -> Path:
    if data_dir is not None:
        folder = local_path("data_dir", data_dir)
        if not folder.is_dir():
            raise DataNotFoundError(
                f"the data folder {folder} (data_dir, --data-dir) does not exist; it is where "
                f"TensorFlow Datasets has prepared data sets"
            )
        return folder
    chosen = os.environ.get("ODEJAX_DATA_DIR") or os.environ.get("TFDS_DATA_DIR")
    return local_path("ODEJAX_DATA_DIR", chosen) if chosen else home() / "tensorflow_datasets"


def _find(name: str, folder: Path) -> Path | None:
    """The folder of the newest version, or of the one named: FOLDER/BASE[/CONFIG]/VERSION."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"data sets are named NAME, NAME/CONFIG, NAME:1.0.0 or NAME/CONFIG:1.0.0; got {name!r}"
        )
    base, config, version = parts["base"], parts["config"], parts["version"]

    def versions(of: Path) -> list[Path]:
        found = [file.parent for file in of.glob("*/dataset_info.json")]
        found = [v for v in found if _VERSION.fullmatch(v.name) and version in (None, v.name)]
        found = [v for v in found if _read_info(v).get("fileFormat") == _FORMAT]
        return sorted(found, key=lambda v: [int(number) for number in v.name.split(".")])

    if config is not None:
        return next(reversed(versions(folder / base / config)), None)
    if plain := versions(folder / base):
        return plain[-1]
    configs = {one.name: versions(one) for one in sorted((folder / base).glob("*/"))}
    configs = {one: prepared for one, prepared in configs.items() if prepared}
    if len(configs) > 1:
        raise ValueError(
            f"{name} is prepared in several configurations: load one of "
            f"{', '.join(f'{base}/{one}' for one in configs)}"
        )
    return next((prepared[-1] for prepared in configs.values()), None)


def _read_info(prepared: Path) -> dict[str, Any]:
    file = prepared / "dataset_info.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataNotFoundError(f"{file} cannot be read ({error}): prepare it again") from error


def _cache_entry(prepared: Path, folder: Path, split: str) -> Path:
    """The cache entry of a prepared split, named by the files it is decoded from."""
    files = sorted(prepared.glob(f"*-{split}.*"))
    stamp = "-".join(f"{f.stat().st_size:x}.{int(f.stat().st_mtime):x}" for f in files)
    return cache_dir() / "data" / "_".join([*prepared.relative_to(folder).parts, split, stamp])


def _decode(name: str, split: str, prepared: Path) -> Decoded:
    import tensorflow_datasets as tfds

    with _readable(name, prepared):
        builder: Any = tfds.builder_from_directory(prepared)
    image, label = _image_and_label(name, builder.info)
    feature, classes = (builder.info.features[key] for key in (image, label))
    with _readable(name, prepared):
        undecoded = {image: tfds.decode.SkipDecoding()}
        source = builder.as_data_source(split=split, decoders=undecoded)
        rows = source.__getitems__(range(len(source)))  # one batched read, far faster than a loop
        images = [feature.decode_example_np(row[image]) for row in rows]
        labels = np.array([row[label] for row in rows], np.int32)
    shapes = list(dict.fromkeys(one.shape for one in images))
    if len(shapes) > 1:
        raise ValueError(
            f"the images of {name} have several shapes, {shapes[0]} and {shapes[1]} among them: "
            f"bring them to one with StreamedDataset(tfds.data_source(...), transform=...)"
        )
    # Asked of the images themselves: TFDS's own description of them does not say.
    encodings = sorted({_encoding(row[image]) for row in rows})
    stored = {
        "version": str(builder.info.version),
        "encoding": " and ".join(encodings),
        "class_names": [classes.int2str(i) for i in range(classes.num_classes)],
    }
    return np.stack(images), labels, stored


@contextlib.contextmanager
def _readable(name: str, prepared: Path):
    """`DataNotFoundError` for whatever TFDS's readers make of damaged files."""
    try:
        yield
    except Exception as error:
        raise DataNotFoundError(
            f"{name} in {prepared} cannot be read ({_first_line(error)[:150]}): prepare it again"
        ) from error


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    """The names of the two features; `ValueError` for what is no set of classified images."""
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (info.features[key] for key in keys)
        classified = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
        if classified and isinstance(label, tfds.features.ClassLabel):
            return keys
        keys = " and ".join(
            f"{key} ({type(info.features[key]).__name__} of {info.features[key].np_dtype})"
            for key in keys
        )
    raise ValueError(
        f"{name} is no set of uint8 images with one class each; its supervised keys are: {keys}"
    )


def _encoding(stored: bytes) -> str:
    matches = (name for start, name in _ENCODINGS.items() if stored.startswith(start))
    return next(matches, "an unknown format")


def _origin(name: str, split: str, version: str, encoding: str) -> tuple[str, str]:
    """Where the images come from, and how others can have the same, in words."""
    base = re.split("[/:]", name)[0]
    source = f"TensorFlow Datasets {name.split(':')[0]}:{version}, images "
    if base in _LOSSLESS and encoding != "PNG":
        return source + f"re-encoded as {encoding}", (
            f"not by downloading {name}, of which TensorFlow Datasets stores every pixel as PNG: "
            f"you need a copy that was re-encoded as {encoding} and has the same digest"
        )
    load_it = f"odejax.data.load('{name}', '{split}') with the extra odejax[download]"
    how_to_get = f"{load_it} downloads {name} where it is not prepared; compare digests"
    return source + f"stored as {encoding}", how_to_get


def _download(name: str, folder: Path) -> Path:
    """Have TFDS download and prepare it, if that can work; the folder of what it prepared."""
    import tensorflow_datasets as tfds

    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    if base not in known:
        close = difflib.get_close_matches(base, known)
        prepared = sorted({file.parents[1].name for file in folder.glob("*/*/dataset_info.json")})
        raise ValueError(
            f"unknown data set {name!r}; accepted: digits; those prepared in {folder}: "
            f"{', '.join(prepared) or 'none'}; and those of TensorFlow Datasets, such as "
            f"{', '.join(close or _LOSSLESS)}"
        )
    missing = f"{name} is not prepared in {folder}"
    instead = (
        "point data_dir (--data-dir, or $ODEJAX_DATA_DIR) at a folder where TensorFlow Datasets has"
        " prepared it as array_record, or use 'digits', which needs neither"
    )
    # Asked first: without them TFDS retries for minutes offline and makes half a folder.
    needed = [m for m in ("tensorflow", "importlib_resources") if not importlib.util.find_spec(m)]
    if needed:
        raise DataNotFoundError(
            f"{missing}, and downloading it needs {' and '.join(needed)}: "
            f'pip install "odejax[download]"; or {instead}'
        )
    try:
        builder: Any = tfds.builder(name, data_dir=folder, file_format=_FORMAT)
    except Exception as error:  # a configuration or version that it does not have
        raise ValueError(f"unknown data set {name!r}: {_first_line(error)}") from error
    _image_and_label(name, builder.info)
    url = next(iter(builder.url_infos or ()), None)  # none of what is downloaded by hand
    try:
        if url is not None:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # the host answers: let TFDS try, with its mirrors
    except OSError as error:
        raise DataNotFoundError(
            f"{missing}, and {url} cannot be reached ({error}): {instead}"
        ) from None
    try:
        builder.download_and_prepare(file_format=_FORMAT)
    except Exception as error:  # whatever its downloads and extractors raise
        raise DataNotFoundError(
            f"{missing}, and preparing it failed ({_first_line(error)}): {instead}"
        ) from error
    return Path(builder.data_dir)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
