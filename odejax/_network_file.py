"""A network in a file, which holds data only: `save` and `load`.

The file is of the safetensors format: a header in JSON, then the arrays. Any reader of that format
has the weights by name. The header's metadata are

- `sha256`: the digest of the file, in which these 64 digits are zeros,
- `format`, `version`: that it is such a file, and how the rest is to be read,
- `odejax`: the version of odejax that wrote it,
- `network`: what the network is made of (`_network_structure.py`).

The format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._checkpoints import CheckpointError, Checkpoints
from ._checks import check_instance
from ._mesh import to_host
from ._network_names import DTYPES
from ._network_structure import Unreadable, arrays_of, describe, fill, key_numbers, rebuild
from ._paths import local_path, writable_file, written_whole
from ._predictor import Predictor
from ._version import __version__

_FORMAT, _VERSION = "odejax network", "1"
_NO_DIGEST = "0" * 64
_OF_CODE = {code: jnp.dtype(name) for name, code in DTYPES.items()}


def save(path: str | os.PathLike, network: Any):
    """Write a network to a file: its arrays, and the settings that it was made with.

    The file holds data only. It is written whole or not at all, and any reader of safetensors files
    can read the weights.

    - `path`: a local file.
    - `network`: a `Predictor` or any other module, or a tuple such as `(model, state)`, made of the
      modules of odejax, `equinox.nn` and Diffrax. Of a network with classes or functions of your
      own the file has the arrays alone: `load` needs it as `like`.

    Raises `ValueError` for what is no network with values, and a path that cannot be written to.

    >>> import tempfile
    >>> make = eqx.nn.make_with_state(odejax.models.ResNet)
    >>> predictor = odejax.Predictor(*make((8, 8, 1), width=4, depth=1, key=jax.random.key(0)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     odejax.save(f"{folder}/resnet.odejax", predictor)
    ...     loaded = odejax.load(f"{folder}/resnet.odejax")
    >>> bool(eqx.tree_equal(loaded, predictor))
    True
    """
    if type(network) is not tuple:  # nor a named one, such as what `fit` returns
        check_instance(eqx.Module, "a module, or a tuple of them", network=network)
    arrays = {place: _on_host(place, array) for place, array in arrays_of(network).items()}
    metadata = {
        "sha256": _NO_DIGEST,
        "format": _FORMAT,
        "version": _VERSION,
        "odejax": __version__,
        "network": json.dumps(describe(network), allow_nan=False),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for place, array in arrays.items():
        begin, end = end, end + array.nbytes
        code, shape = DTYPES[array.dtype.name], list(array.shape)
        header[place] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    content = [len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays.values())]
    content[1] = text.replace(_NO_DIGEST.encode(), _digest(content).encode(), 1)
    file = writable_file("path", path)
    if jax.process_index() == 0:
        with written_whole(file) as temporary, open(temporary, "wb") as out:
            out.writelines(content)


def _on_host(place: str, array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array | np.ndarray) or isinstance(array, Tracer):
        raise ValueError(f"network must hold arrays with values; got {array} at {place}")
    numbers = to_host(key_numbers(array))
    if numbers.dtype.name not in DTYPES:
        raise ValueError(f"{numbers.dtype} arrays cannot be saved; network has one at {place}")
    return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False)


def _digest(content: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()


def load(path: str | os.PathLike, *, like: Any = None) -> Any:
    """The network that `save` wrote, or the best one of a run of `training.fit`.

    Nothing that a file names is imported or called. A network has the same weights and settings, so
    its logits are the same bit for bit.

    - `path`: a file of `save`; or the `checkpoint_dir` of `fit`, of which this is
      `Predictor(model, state)` with the model and state that `fit` returns.
    - `like`: needed for a network with classes or functions of your own, and None by default: a
      network of the same structure (for a `checkpoint_dir` the tuple `(model, state)`). All but its
      arrays is used, so they may be shapes, from `eqx.filter_eval_shape`.

    Raises `ValueError` for another file or folder, for one in which a bit was changed, and for a
    network that this version of odejax does not know.

    >>> import tempfile
    >>> make = lambda key: eqx.nn.MLP(2, 3, width_size=4, depth=1, activation=my_own, key=key)
    >>> my_own = lambda x: x**2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     odejax.save(f"{folder}/mlp.odejax", make(jax.random.key(0)))
    ...     like = eqx.filter_eval_shape(make, jax.random.key(0))
    ...     odejax.load(f"{folder}/mlp.odejax", like=like)(jnp.zeros(2)).shape
    (3,)
    """
    place = local_path("path", path)
    try:
        if place.is_dir():
            return Predictor(*_network(*_read_run(place), like))
        return _network(*_read(place), like)
    except Unreadable as error:
        raise ValueError(f"{place} {' '.join(str(error).split())}") from None


def _network(description: Any, arrays: list[np.ndarray], like: Any) -> Any:
    return rebuild(description, arrays) if like is None else fill(like, arrays)


def _read_run(folder: Path) -> tuple[Any, list[np.ndarray]]:
    try:
        with closing(Checkpoints(folder, read_only=True)) as run:
            meta = run.restore_meta()
            if meta is None:
                raise Unreadable("holds no checkpoint of odejax.training.fit")
            if "network" not in meta:
                raise Unreadable(
                    "holds a run of an earlier odejax, which did not say what its network is made "
                    "of: train it again"
                )
            return meta["network"]["structure"], run.restore_numbered(meta["network"]["arrays"])
    except CheckpointError as error:
        raise Unreadable(f"cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise Unreadable(f"describes no network: {error}") from None


def _read(file: Path) -> tuple[Any, list[np.ndarray]]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    start = 8 + int.from_bytes(content[:8], "little")
    size, text, data = content[:8], content[8:start], memoryview(content)[start:]
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__")
        digest = metadata["sha256"]
        blank = text.replace(digest.encode(), _NO_DIGEST.encode(), 1)
        whole = metadata["format"] == _FORMAT and digest == _digest([size, blank, data])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise Unreadable("is damaged, or was not written by odejax.save")
    # A digest is no signature: what follows may still be written to do harm.
    try:
        if metadata["version"] != _VERSION:
            raise Unreadable(
                f"has version {metadata['version']} of the format, by odejax {metadata['odejax']}; "
                f"odejax {__version__} reads version {_VERSION}"
            )
        return json.loads(metadata["network"]), [_array(one, data) for one in header.values()]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise Unreadable(f"describes no network: {error}") from None


def _array(described: Any, data: memoryview) -> np.ndarray:
    begin, end = described["data_offsets"]
    piece = data[begin:end]  # of the file, whatever the numbers are
    array = np.ndarray(tuple(described["shape"]), _OF_CODE[described["dtype"]], piece)
    if not array.nbytes == len(piece) == end - begin:
        raise ValueError(f"{len(piece)} bytes for an array of {array.nbytes}")
    return array
