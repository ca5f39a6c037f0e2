"""A digest of a network, attack or objective: the same in every process."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np

from ._mesh import to_host


def fingerprint(*parts: Any) -> str:
    """A digest of arrays, constants, structure and functions, by their code and all they hold.

    It does not depend on addresses, but may on the version of Python, whose code it reads. An
    object that is no pytree, dataclass, container or function enters by its representation alone.
    The values of a function's global names do not enter.
    """
    digest = hashlib.sha256()
    for word in _words(parts, ()):
        digest.update(len(word).to_bytes(8, "little") + word)
    return digest.hexdigest()


def _words(thing: Any, inside: tuple) -> Iterator[bytes]:
    """`inside`: what is being read; functions may close over each other."""
    if isinstance(thing, jax.Array) and jax.dtypes.issubdtype(thing.dtype, jax.dtypes.prng_key):
        thing = jax.random.key_data(thing)
    if isinstance(thing, jax.Array | np.ndarray | np.generic):
        array = to_host(thing)
        yield f"{array.dtype}{array.shape}".encode()
        yield array.tobytes()
        return
    yield type(thing).__qualname__.encode()
    if any(thing is one for one in inside):
        return
    held = _held(thing)
    if held is None:
        # Without addresses, which beartype has in the names of its objects, too.
        yield re.sub(r"( at 0x|__beartype_object_)[0-9a-f]+", "", repr(thing)).encode()
        return
    yield str(len(held)).encode()
    for one in held:
        yield from _words(one, (*inside, thing))


def _held(thing: Any) -> list[Any] | None:
    """What an object consists of; None of one that is known by its representation."""
    if isinstance(thing, list | tuple):
        return list(thing)
    if isinstance(thing, Mapping):
        return [part for item in thing.items() for part in item]
    if isinstance(thing, set | frozenset):
        return sorted(map(repr, thing))
    if isinstance(thing, CodeType):
        return [thing.co_code, thing.co_names, thing.co_consts]
    if isinstance(thing, FunctionType):
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        return [thing.__qualname__, thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, type):
        return None
    if dataclasses.is_dataclass(thing):  # an Equinox module among them
        names = [field.name for field in dataclasses.fields(thing)]
        return [part for name in names for part in (name, getattr(thing, name, None))]
    if (wrapped := getattr(thing, "__wrapped__", None)) is not None:  # of jax.jit, say
        return [wrapped]
    node = jax.tree_util.default_registry.flatten_one_level(thing)
    return None if node is None else [*node[0], node[1]]


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
