"""Labelled images that are read while they are used, since they do not fit into memory."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

_PART_BYTES = 2**20  # of a batch, that a thread reads at a time


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """A data set beyond memory, for `fit` in the place of an `ArrayDataset`.

    Grain reads ahead in several threads, about a megabyte in each; each host reads the rows of its
    own devices. The order is `fit`'s, so a streamed run is the in-memory run.

    - `source`: anything with a length whose item `i` is `{"image": uint8 (h, w, c), "label": int}`,
      such as `tfds.data_source(...)` or a data source of Grain's; `__getitems__`, where it has one,
      reads several rows in one call.
    - `n_classes`: 10 by default.
    - `name`, `split`: "custom" and "all" by default.
    - `transform(image)`: applied on the host; it must bring all images to one shape, and draw
      nothing at random (`fit` augments on the device). None by default.
    - `threads`: 16 by default.

    Raises `ValueError` for no images, and where one read has another form than the first.

    >>> source = [{"image": np.zeros((4, 4, 1), np.uint8), "label": i} for i in range(3)]
    >>> data = odejax.data.StreamedDataset(source)
    >>> len(data), data.image_shape
    (3, (4, 4, 1))
    """

    source: Sequence[Any] | Any
    n_classes: int = 10
    name: str = "custom"
    split: str = "all"
    transform: Callable[[np.ndarray], np.ndarray] | None = None
    threads: int = 16

    def __post_init__(self):
        if len(self.source) == 0:
            raise ValueError(f"the data set {self.name!r} ({self.split}) has no images")

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        image, _ = self._checked(0, self.source[0], None)
        return image.shape  # pyright: ignore[reportReturnType]

    @cached_property
    def digest(self) -> int:
        """Of ten images and labels, by which a checkpoint identifies the data set."""
        sampled_rows = np.linspace(0, len(self) - 1, 10, dtype=int).tolist()
        digest = 0
        for image, label in zip(*self._batch(sampled_rows, self.image_shape), strict=True):
            digest = zlib.crc32(image.tobytes(), digest ^ int(label))
        return digest

    def read(
        self, order: np.ndarray, batch_size: int, *, ahead: int = 2
    ) -> Generator[tuple[np.ndarray, np.ndarray]]:
        """Batches (images uint8 (b, h, w, c), labels int32 (b,)) of the rows `order`.

        Up to `ahead` batches, or a part of one in each thread, are read before they are asked for.
        """
        import grain

        shape = self.image_shape
        rows = order.tolist()
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        # A part of a batch is one item of Grain's: an image each would cost more than reading it.
        size = min(batch_size, max(1, _PART_BYTES // math.prod(shape)))
        parts = [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]
        items = grain.MapDataset.source(parts).map(lambda rows: self._batch(rows, shape))
        buffered = max(ahead * -(-batch_size // size), self.threads)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=buffered)
        parts_read = iter(items.to_iter_dataset(options))
        for batch in batches:
            read = [next(parts_read) for _ in range(0, len(batch), size)]
            images, labels = zip(*read, strict=True)
            yield np.concatenate(images), np.concatenate(labels)

    def _batch(self, rows: list[int], shape: tuple[int, ...]):
        read: Any = getattr(self.source, "__getitems__", None)
        rows_read = [self.source[i] for i in rows] if read is None else read(rows)
        checked = [self._checked(i, row, shape) for i, row in zip(rows, rows_read, strict=True)]
        images, labels = zip(*checked, strict=True)
        return np.stack(images), np.asarray(labels)

    def _checked(self, i: int, row: Any, shape: tuple[int, ...] | None):
        image, label = np.asarray(row["image"]), np.int32(row["label"])
        if self.transform is not None:
            image = self.transform(image)
        if image.dtype != np.uint8 or image.ndim != 3 or shape not in (None, image.shape):
            expected = "(h, w, c)" if shape is None else shape
            raise ValueError(
                f"images must be uint8 of shape {expected}; image {i} of {self.name!r} is "
                f"{image.dtype} of shape {image.shape}"
            )
        if not 0 <= label < self.n_classes:
            raise ValueError(
                f"labels must be classes 0 to {self.n_classes - 1}; that of image {i} is {label}"
            )
        return image, label
