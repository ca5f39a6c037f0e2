"""A network in a file of its own: its arrays, and a digest of them."""

import hashlib
import io
import os
from typing import TypeVar

import equinox as eqx

from ._paths import local_path, writable_file, written_whole

Network = TypeVar("Network")
_MARK = b"odejax network 1\n"


def save_network(path: str | os.PathLike, network: eqx.Module):
    """Write the arrays of a network to a file, whole or not at all.

    - `path`: a local file.
    - `network`: a `Predictor` or any module.

    Raises `ValueError` for a path that cannot be written to.

    >>> import tempfile
    >>> layer = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     odejax.save_network(f"{folder}/net.odejax", layer)
    ...     copy = odejax.load_network(f"{folder}/net.odejax", like=layer)
    >>> bool(jnp.array_equal(copy.weight, layer.weight))
    True
    """
    file, content = writable_file("path", path), io.BytesIO()
    eqx.tree_serialise_leaves(content, network)
    data = content.getvalue()
    with written_whole(file) as temporary:
        temporary.write_bytes(_MARK + hashlib.sha256(data).digest() + data)


def load_network(path: str | os.PathLike, like: Network) -> Network:
    """The network that `save_network` wrote.

    - `path`: a local file.
    - `like`: a network of the same settings; its arrays may be shapes without values, from
      `eqx.filter_eval_shape(make, key)`.

    Raises `ValueError` for a file that was not written by `save_network`, in which one bit was
    changed, or that holds another structure.

    >>> import tempfile
    >>> make = lambda key: eqx.nn.Linear(2, 3, key=key)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     odejax.save_network(f"{folder}/net.odejax", make(jax.random.key(0)))
    ...     like = eqx.filter_eval_shape(make, jax.random.key(0))
    ...     odejax.load_network(f"{folder}/net.odejax", like=like).weight.shape
    (3, 2)
    """
    file = local_path("path", path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    digest, data = content[len(_MARK) :][:32], content[len(_MARK) + 32 :]
    if not content.startswith(_MARK) or hashlib.sha256(data).digest() != digest:
        raise ValueError(f"{file} is damaged, or was not written by save_network")
    try:
        return eqx.tree_deserialise_leaves(io.BytesIO(data), like)
    except Exception as error:  # whatever Equinox and NumPy raise for other leaves
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{file} holds a network of another structure: {reason}") from None
