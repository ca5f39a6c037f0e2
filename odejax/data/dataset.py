"""A labelled set of images in memory."""

import dataclasses
from typing import Any

import numpy as np

from .._fingerprint import fingerprint


@dataclasses.dataclass(frozen=True)
class ArrayDataset:
    """A labelled set of images in memory.

    - `images`: uint8 (n, h, w, c).
    - `labels`: int32 (n,), classes from 0.
    - `n_classes`: 10 by default.
    - `name`, `split`: "custom" and "all" by default.
    - `source`: in words, where the images come from.
    - `how_to_get`: in words, how others can have the same.

    Raises `ValueError` for arrays of another form, labels that are not classes, or no images.

    >>> images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32)
    >>> data = odejax.data.ArrayDataset(images, labels)
    >>> rest, held_out = data.holdout(2)
    >>> len(rest), held_out.image_shape, held_out.split
    (4, (4, 4, 1), 'validation')
    """

    images: np.ndarray
    labels: np.ndarray
    n_classes: int = 10
    name: str = "custom"
    split: str = "all"
    source: str = "custom"
    how_to_get: str = "not said"

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 of shape (n, h, w, c); "
                f"got {self.images.dtype} of shape {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int32:
            raise ValueError(
                f"labels must be int32 of shape ({len(self.images)},); "
                f"got {self.labels.dtype} of shape {self.labels.shape}"
            )
        if len(self.images) == 0:
            raise ValueError(f"the data set {self.name!r} ({self.split}) has no images")
        if self.labels.min() < 0 or self.labels.max() >= self.n_classes:
            raise ValueError(
                f"labels must be classes 0 to {self.n_classes - 1}; "
                f"got {self.labels.min()} to {self.labels.max()}"
            )

    def __iter__(self):
        """The images and the labels, so that `*dataset` passes both arguments."""
        return iter((self.images, self.labels))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]  # pyright: ignore[reportReturnType]

    @property
    def pixels(self) -> np.ndarray:
        """The images as float32 in [0, 1]."""
        return self.images.astype(np.float32) / 255

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

    def holdout(self, n: int, *, seed: int = 0) -> tuple["ArrayDataset", "ArrayDataset"]:
        """Split off `n` random examples for validation: (the rest, the `n`)."""
        if not 0 < n < len(self):
            raise ValueError(f"cannot hold out {n} of {len(self)} images")
        order = np.random.default_rng(seed).permutation(len(self))
        rest, held = np.sort(order[n:]), np.sort(order[:n])
        return self.take(rest), self.take(held, split="validation")
