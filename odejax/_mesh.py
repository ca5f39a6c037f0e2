"""Many devices, and many hosts: batches spread over the mesh that JAX has in use.

    with jax.set_mesh(odejax.batch_mesh()):
        trained = fit(...)
        interval = bracket(...)

Nothing else changes. With several processes, each runs the same script on the same arguments after
`jax.distributed.initialize()`, with checkpoints and state files where all of them can read; what is
returned is the same on all, but for seconds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def batch_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "batch", over devices.

    - `devices`: by default all, of all processes.

    >>> odejax.batch_mesh(jax.devices()[:1]).axis_names
    ('batch',)
    """
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), ("batch",), (AxisType.Auto,), devices=chosen)


def mesh_size() -> int:
    """The number of devices in the mesh in use; 1 without one.

    Raises `ValueError` for a mesh with axes that are not `AxisType.Auto`, and in a program of
    several processes where none is in use.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        if jax.process_count() > 1:
            raise ValueError(
                f"{jax.process_count()} processes need a mesh in common: "
                f"with jax.set_mesh(odejax.batch_mesh())"
            )
        return 1
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the axes of the mesh must be AxisType.Auto, as those of odejax.batch_mesh(); "
            f"got {dict(zip(mesh.axis_names, mesh.axis_types, strict=True))}"
        )
    return mesh.size


def spread(tree: PyTree) -> Any:
    """Arrays with their first axis, that of the batch, over the mesh; without one as they are.

    Inside `jit` a constraint, outside it the transfer.
    """
    if mesh_size() == 1:
        return tree
    names = jax.sharding.get_abstract_mesh().axis_names
    return _lay_out(tree, lambda leaf: PartitionSpec(names))


def replicate(tree: PyTree) -> Any:
    """Arrays whole on every device of the mesh."""
    return tree if mesh_size() == 1 else _lay_out(tree, lambda leaf: PartitionSpec())


def shard(tree: PyTree) -> Any:
    """Arrays cut along their longest axis that the devices divide; whole where there is none."""
    size = mesh_size()
    if size == 1:
        return tree
    names = jax.sharding.get_abstract_mesh().axis_names

    def cut(leaf):
        axes = [i for i, length in enumerate(leaf.shape) if length % size == 0]
        longest = max(axes, key=lambda i: leaf.shape[i], default=None)
        return PartitionSpec(*[names if i == longest else None for i in range(leaf.ndim)])

    return _lay_out(tree, cut)


def on_mesh(tree: PyTree) -> Any:
    """The arrays of a network, brought to the mesh if they live on other devices.

    Those of a checkpoint do, that was read outside it. What is on the mesh stays as it is cut.
    """
    if mesh_size() == 1:
        return tree
    devices = _devices()

    def elsewhere(leaf):
        return isinstance(leaf, jax.Array) and leaf.sharding.device_set != devices

    return jax.tree.map(lambda leaf: replicate(leaf) if elsewhere(leaf) else leaf, tree)


def _devices() -> set:
    return set(jax.sharding.get_mesh().devices.flat)


def _lay_out(tree: PyTree, spec: Callable[[Any], PartitionSpec]) -> Any:
    def one(leaf):
        if isinstance(leaf, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(leaf, spec(leaf))
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            moved = place(jax.random.key_data(leaf), spec(leaf))
            return jax.random.wrap_key_data(moved, impl=jax.random.key_impl(leaf))
        return place(leaf, spec(leaf))

    def place(leaf, spec):
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == _devices():
            return jax.device_put(leaf, spec)
        # Every process has all of it; `device_put` would gather and compare what they have.
        host, sharding = np.asarray(leaf), NamedSharding(jax.sharding.get_mesh(), spec)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def whole_batch(batch_size: int) -> int:
    """The smallest batch of at least `batch_size` that the devices of the mesh divide."""
    size = mesh_size()
    return -(-batch_size // size) * size


def to_host(array: Any) -> np.ndarray:
    """An array of all devices, and of all processes, as NumPy's."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def agreed(value: float) -> float:
    """What the first process has: for decisions that rest on a clock, which all must share."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(jnp.asarray(value)))
