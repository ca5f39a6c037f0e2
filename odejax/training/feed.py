"""Where the batches of an epoch come from: the device's memory, or a stream."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .._mesh import mesh_size, replicate, spread
from ..data import ArrayDataset, StreamedDataset

_WINDOW_BYTES = 2**24  # that a stream brings to the device at a time


class Resident:
    """All images are on the device; a step gathers its batch."""

    def __init__(self, dataset: ArrayDataset, batch_size: int):
        self.batch_size = batch_size
        self.images, self.labels = (
            jnp.asarray(rows) if mesh_size() == 1 else replicate(rows)
            for rows in (dataset.images, dataset.labels)
        )

    def windows(self, order) -> Generator[tuple[Any, int, int]]:
        """(data, first, last): what `batch` needs for the batches `first` to `last` of an epoch."""
        yield (self.images, self.labels, order), 0, len(order) // self.batch_size

    def batch(self, data, i):
        """Images and labels of batch `i` of a window, inside `jit`."""
        images, labels, order = data
        rows = jax.lax.dynamic_slice_in_dim(order, i * self.batch_size, self.batch_size)
        return spread((images[rows], labels[rows]))


class Streamed:
    """A window of batches is brought to the device at a time, while steps are taken on the last."""

    def __init__(self, dataset: StreamedDataset, batch_size: int):
        self.dataset, self.batch_size = dataset, batch_size
        self.length = max(1, _WINDOW_BYTES // (batch_size * int(np.prod(dataset.image_shape))))

    def windows(self, order) -> Generator[tuple[Any, int, int]]:
        n = len(order) // self.batch_size
        rows = np.asarray(order)[: n * self.batch_size].reshape(n, self.batch_size)
        length = min(self.length, n)
        local_rows = rows[:, self._rows_of_this_process()]
        # Here and not in the reader, whose thread has no mesh.
        sharding = None if mesh_size() == 1 else self._sharding()
        reading = closing(self.dataset.read(local_rows.ravel(), local_rows.shape[1], ahead=length))
        with reading as batches, ThreadPoolExecutor(1) as reader:

            def window(first: int):
                pairs = [next(batches) for _ in range(first, min(first + length, n))]
                pairs += pairs[-1:] * (length - len(pairs))  # one shape for all
                images, labels = zip(*pairs, strict=True)
                return [self._global(np.stack(part), sharding) for part in (images, labels)]

            ahead = reader.submit(window, 0)
            for first in range(0, n, length):
                data, last = ahead.result(), min(first + length, n)
                if last < n:
                    ahead = reader.submit(window, last)
                yield data, first, last

    def batch(self, data, i):
        images, labels = data
        return spread((images[i], labels[i]))

    def _sharding(self):
        mesh = jax.sharding.get_mesh()
        return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))

    def _rows_of_this_process(self) -> np.ndarray:
        if mesh_size() == 1:
            return np.arange(self.batch_size)
        by_device: Any = self._sharding().addressable_devices_indices_map((1, self.batch_size))
        rows = [np.arange(self.batch_size)[rows] for _, rows in by_device.values()]
        return np.unique(np.concatenate(rows))

    def _global(self, rows: np.ndarray, sharding: NamedSharding | None):
        if sharding is None:
            return jnp.asarray(rows)
        shape = (len(rows), self.batch_size, *rows.shape[2:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)
