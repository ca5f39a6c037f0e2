"""A labelled set of images in memory."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._checks import as_images, as_labels, check_count, check_labels
from .._fingerprint import fingerprint
from .._words import counted


@dataclasses.dataclass(frozen=True, init=False)
class ArrayDataset:
    """A labelled set of images in memory.

    - `images`: uint8, or floats in [0, 1], which are kept as float32. (n, h, w, c), or (n, h, w)
      for grey images, which are kept as (n, h, w, 1).
    - `labels`: integers of any type, (n,): classes from 0, kept as int32.
    - `n_classes`: by default as many as there are `class_names`, and without these as many as the
      labels show, which then must be 0 to k - 1, each at least once.
    - `name`, `split`: "custom" and "all" by default.
    - `source`: in words, where the images come from.
    - `how_to_get`: in words, how others can have the same.
    - `class_names`: of class 0, 1, ...; () by default.

    Raises `ValueError` for arrays of another form (such as channels first), pixels outside [0, 1],
    labels that are not classes, or no images.

    >>> images, labels = np.zeros((6, 4, 4), np.uint8), [0, 1, 2, 0, 1, 2]
    >>> data = odejax.data.ArrayDataset(images, labels)
    >>> rest, held_out = data.holdout(2)
    >>> len(rest), held_out.image_shape, held_out.n_classes, held_out.split
    (4, (4, 4, 1), 3, 'validation')
    >>> data
    ArrayDataset(custom, all: 6 images 4 x 4 x 1, uint8, 3 classes)
    """

    images: np.ndarray
    labels: np.ndarray
    n_classes: int
    name: str
    split: str
    source: str
    how_to_get: str
    class_names: tuple[str, ...]

    def __init__(
        self,
        images: ArrayLike,
        labels: ArrayLike,
        n_classes: int | None = None,
        name: str = "custom",
        split: str = "all",
        source: str = "custom",
        how_to_get: str = "not said",
        class_names: Sequence[str] = (),
    ):
        images = as_images(images, grey=True)
        labels = as_labels(labels, len(images))
        set_field = partial(object.__setattr__, self)  # frozen
        set_field("images", images)
        set_field("labels", labels)
        set_field("n_classes", _count_classes(labels, n_classes, class_names))
        set_field("name", name)
        set_field("split", split)
        set_field("source", source)
        set_field("how_to_get", how_to_get)
        set_field("class_names", tuple(class_names))

    def __iter__(self):
        """The images and the labels, so that `*dataset` passes both arguments."""
        return iter((self.images, self.labels))

    def __repr__(self) -> str:
        """One line: its name and split, how many images of which form, and how many classes."""
        height, width, channels = self.image_shape
        return (
            f"ArrayDataset({self.name}, {self.split}: {counted(len(self), 'image')} "
            f"{height} x {width} x {channels}, {self.images.dtype}, {self.n_classes} classes)"
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]  # pyright: ignore[reportReturnType]

    @property
    def pixels(self) -> np.ndarray:
        """The images as float32 in [0, 1]."""
        pixels = self.images.astype(np.float32)
        return pixels / 255 if self.images.dtype == np.uint8 else pixels

    def provenance(self) -> dict[str, Any]:
        """What a result has to say of its data, ready for JSON.

        `name`, `split`, `n` images, `source`, `how_to_get`, and `digest`: that of the images and
        labels. It is the same wherever these are the same, in the same order.
        """
        return {
            "name": self.name,
            "split": self.split,
            "n": len(self),
            "source": self.source,
            "digest": fingerprint(self.images, self.labels),
            "how_to_get": self.how_to_get,
        }

    def take(self, indices, split: str | None = None) -> "ArrayDataset":
        """The examples at `indices` (an index array or a slice)."""
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            split=self.split if split is None else split,
        )

    def sample(self, n: int, *, seed: int = 0) -> "ArrayDataset":
        """`n` random examples in their order here. Those of a smaller `n` and one seed are among
        them."""
        order = self._shuffled(n, seed)
        if n > len(self):
            raise ValueError(f"cannot draw {n} of {counted(len(self), 'image')}")
        return self.take(np.sort(order[:n]))

    def holdout(self, n: int, *, seed: int = 0) -> tuple["ArrayDataset", "ArrayDataset"]:
        """Split off `n` random examples for validation: (the rest, the `n`)."""
        order = self._shuffled(n, seed)
        if n >= len(self):
            raise ValueError(f"cannot hold out {n} of {counted(len(self), 'image')}")
        rest, held = np.sort(order[n:]), np.sort(order[:n])
        return self.take(rest), self.take(held, split="validation")

    def _shuffled(self, n: int, seed: int) -> np.ndarray:
        check_count(n=n)
        check_count(0, seed=seed)
        return np.random.default_rng(seed).permutation(len(self))


def _count_classes(labels: np.ndarray, n_classes: int | None, class_names: Sequence[str]) -> int:
    """The number of classes; `ValueError` for labels, or names, of another number."""
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be several names; got {class_names!r}")
    if n_classes is None and class_names:
        n_classes = len(class_names)
    if n_classes is None:
        different = np.unique(labels)
        if different[0] != 0 or different[-1] != len(different) - 1:
            raise ValueError(
                f"without n_classes, labels must be 0 to k - 1, each at least once; got "
                f"{len(different)} different ones from {different[0]} to {different[-1]}"
            )
        return len(different)
    check_count(n_classes=n_classes)
    if class_names and len(class_names) != n_classes:
        raise ValueError(f"class_names must be {n_classes} names; got {len(class_names)}")
    check_labels(labels, n_classes)
    return int(n_classes)
