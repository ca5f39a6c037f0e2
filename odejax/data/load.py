"""Real data by name: digits from scikit-learn, the rest through TensorFlow Datasets (TFDS)."""

import importlib.metadata
import os
from typing import Any

import numpy as np

from .dataset import ArrayDataset
from .prepared import load_prepared

DIGITS_TRAIN = 1297  # of 1,797; the last 500 are the test set


def load(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> ArrayDataset:
    """The whole split of a data set, as arrays.

    - `name`: "digits" (8 x 8 x 1, carried by scikit-learn), or any data set of classified images
      as TFDS names it: "mnist", "cifar10", "NAME/CONFIG", "NAME/CONFIG:1.0.0". Without a version
      the newest one that is prepared is read.
    - `split`: "train", "test", or another that the data set has. The 1,797 digits stay in the order
      of their file; the first 1,297 are for training and the last 500 for testing. Their 17 grey
      levels are stretched to 0..255.
    - `data_dir`: a TFDS data folder; by default $ODEJAX_DATA_DIR, else TFDS's own default.

    TFDS data is decoded once; the arrays are kept in `cache_dir()` and later loads take a fraction
    of a second. Reading prepared data needs no TensorFlow; downloading does (the `download` extra).
    The classes and their names are those that TFDS states. The data set's `provenance()` has its
    version, how its images were stored, and a digest.

    Raises `ValueError` for another name or split, a data set for another task, and images of
    several sizes; `DataNotFoundError`, within seconds, without data and network.

    >>> data = odejax.data.load("digits", "test")
    >>> data.images.shape, data.images.dtype, data.labels.shape, data.n_classes
    ((500, 8, 8, 1), dtype('uint8'), (500,), 10)
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str):
            raise ValueError(f"{argument} must be a text; got {value}")
    if name != "digits":
        return load_prepared(name, split, data_dir)
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of digits; accepted: train, test")
    return _digits(split)


def _digits(split: str) -> ArrayDataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    version = importlib.metadata.version("scikit-learn")
    return ArrayDataset(
        np.round(bunch.images[part] * (255 / 16)).astype(np.uint8)[..., None],
        bunch.target[part],
        name="digits",
        split=split,
        source=f"scikit-learn {version} load_digits, 17 grey levels stretched to 0..255",
        how_to_get=f"odejax.data.load('digits', '{split}'): scikit-learn carries the images",
        class_names=[str(name) for name in bunch.target_names],
    )
