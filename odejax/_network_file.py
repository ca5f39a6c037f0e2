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
    """Write the arrays of `network`, a `Predictor` or any module, whole or not at all.

    `ValueError` for a path that cannot be written to.
    """
    file, content = writable_file("path", path), io.BytesIO()
    eqx.tree_serialise_leaves(content, network)
    data = content.getvalue()
    with written_whole(file) as temporary:
        temporary.write_bytes(_MARK + hashlib.sha256(data).digest() + data)


def load_network(path: str | os.PathLike, like: Network) -> Network:
    """The network that `save_network` wrote, in the structure of `like`, one of the same settings.

        predictor = odejax.load_network("net.odejax", like=eqx.filter_eval_shape(make, key))

    `ValueError` for a file that is none, that one bit of was changed, or of another structure.
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
    except Exception as error:  # whatever Equinox and NumPy make of other leaves
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"{file} holds a network of another structure: {reason}") from None
