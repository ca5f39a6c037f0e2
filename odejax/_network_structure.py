"""A network as data, ready for JSON: its classes, settings and functions, and numbers for arrays.

    {"class": ["equinox.nn.Linear", {"weight": {"array": [0, "jax"]}, ...}]}

Numbers, text, None and lists are JSON's own. All else is a dictionary of one entry, as above.
Rebuilding calls nothing that is named there. It makes empty objects of the classes that files may
name (`_network_names.py`) and sets their fields, as `jax.tree.unflatten` does.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import State

from ._network_names import DTYPES, KEY_KINDS, classes, functions, name_of
from ._version import __version__


class Unreadable(Exception):
    """Why no network can be made of a description: the rest of a sentence about its file."""


class _Unnamed(Exception):
    """What a description has no words for."""


@dataclasses.dataclass(frozen=True)
class _Numbered:
    number: int
    array: Any


def is_array(leaf: Any) -> bool:
    """Whether a leaf is written as an array; shapes without values are, too."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def arrays_of(network: Any) -> dict[str, Any]:
    """The arrays of a network, in their order, by their place: ".model.head.linear.weight"."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(network):
        if is_array(leaf):
            name = jax.tree_util.keystr(path)
            arrays[f"{name} ({len(arrays)})" if name in arrays else name] = leaf
    return arrays


def describe(network: Any) -> Any:
    """The description of a network, whose arrays are those of `arrays_of`.

    {"unnamed": "..."} of a network with something that files may not name.
    """
    count = itertools.count()
    numbered = jax.tree.map(
        lambda leaf: _Numbered(next(count), leaf) if is_array(leaf) else leaf, network
    )
    try:
        return _described(numbered)
    except _Unnamed as unnamed:
        return {"unnamed": str(unnamed)}


def _described(thing: Any) -> Any:
    kind = type(thing)
    if thing is None or kind in (bool, int, str) or (kind is float and math.isfinite(thing)):
        return thing
    if kind is list:
        return [_described(entry) for entry in thing]
    if kind is _Numbered:
        return {"array": [thing.number, _kind(thing.array)]}
    if kind is float:
        return {"float": str(thing)}
    if kind is complex:
        return {"complex": [_described(thing.real), _described(thing.imag)]}
    if kind is tuple:
        return {"tuple": _described([*thing])}
    if kind is dict:
        return {"dict": [_described([*item]) for item in thing.items()]}
    if kind is State:
        values, markers = thing.tree_flatten()
        return {"state": [_described([*pair]) for pair in zip(markers, values, strict=True)]}
    if isinstance(thing, np.dtype) and thing.name in DTYPES:
        return {"dtype": thing.name}
    if isinstance(thing, np.generic) and thing.dtype.name in DTYPES:
        return {"scalar": [thing.dtype.name, _described(thing.item())]}
    if type(thing) is partial:  # not `kind`, for type checkers
        function = _described(thing.func)
        return {"partial": [function, _described([*thing.args]), _described(thing.keywords)]}
    if (name := name_of(thing)) in functions():
        return {"function": name}
    if (name := name_of(kind)) is not None:
        return {"class": [name, _fields(thing)]}
    raise _Unnamed(_shown(thing))


def _fields(module: Any) -> dict[str, Any]:
    """A field that cannot be described is left out if it has its default value."""
    described = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        try:
            described[field.name] = _described(value)
        except _Unnamed:
            if eqx.tree_equal(value, field.default, typematch=True) is not True:
                raise
    return described


def _shown(thing: Any) -> str:
    if isinstance(thing, np.ndarray | jax.Array):
        return "an array in a static field or a partial function"
    kind, what = ("function", thing) if hasattr(thing, "__qualname__") else ("class", type(thing))
    return f"the {kind} {getattr(what, '__module__', '')}.{what.__qualname__}"


def _kind(array: Any) -> str:
    """How an array is made of its numbers: `_of_kind`."""
    if isinstance(array, np.ndarray):
        return "numpy"
    if _is_key(array):
        made = {kind: jax.eval_shape(partial(jax.random.key, 0, impl=kind)) for kind in KEY_KINDS}
        return next((k for k, key in made.items() if key.dtype == array.dtype), str(array.dtype))
    # A weak type is that of a Python number, which does not widen the dtype of a result.
    return "weak" if array.weak_type and array.shape == () else "jax"


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def key_numbers(array: Any) -> Any:
    """The numbers that keys consist of; any other array as it is."""
    return jax.random.key_data(array) if _is_key(array) else array


def rebuild(description: Any, arrays: Sequence[np.ndarray]) -> Any:
    """The network of a description, with these arrays. Raises `Unreadable` where there is none."""
    if isinstance(description, dict) and list(description) == ["unnamed"]:
        raise Unreadable(
            f"holds arrays alone, of a network with {str(description['unnamed'])[:200]}, which "
            f"odejax does not know: give load(path, like=network)"
        )
    try:
        return _rebuilt(description, arrays)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:150]
        raise Unreadable(f"describes no network: {reason}") from None


def _rebuilt(node: Any, arrays: Sequence[np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_rebuilt(entry, arrays) for entry in node]
    if not isinstance(node, dict):
        return node
    match list(node.items()):
        case [("array", [int(number), str(kind)])] if 0 <= number < len(arrays):
            return _of_kind(arrays[number], kind)
        case [("float", str(text))]:
            return float(text)
        case [("complex", [real, imaginary])]:
            return complex(_rebuilt(real, arrays), _rebuilt(imaginary, arrays))
        case [("tuple", list(entries))]:
            return tuple(_rebuilt(entries, arrays))
        case [("dict", list(items))]:
            return dict(_rebuilt(items, arrays))
        case [("state", list(pairs))]:
            markers, values = zip(*_rebuilt(pairs, arrays), strict=True) if pairs else ((), ())
            return State.tree_unflatten(markers, values)
        case [("dtype", str(name))]:
            return _dtype(name)
        case [("scalar", [str(name), value])]:
            return np.asarray(_rebuilt(value, arrays), _dtype(name))[()]
        case [("partial", [{"function": _} as function, list(args), dict(keywords)])]:
            function = _rebuilt(function, arrays)
            return partial(function, *_rebuilt(args, arrays), **_rebuilt(keywords, arrays))
        case [("function", str(name))]:
            return _look_up(name, functions(), "function")
        case [("class", [str(name), dict(fields)])]:
            return _module(name, fields, arrays)
    raise Unreadable(f"has an entry {str(node)[:60]} that odejax {__version__} does not know")


def _module(name: str, described: dict[str, Any], arrays: Sequence[np.ndarray]) -> eqx.Module:
    cls = _look_up(name, classes(), "class")
    fields = {f"{name}.{field.name}": field for field in dataclasses.fields(cls)}
    given = {_look_up(f"{name}.{field}", fields, "field").name for field in described}
    module = object.__new__(cls)
    for field in fields.values():
        if field.name in given:
            value = _rebuilt(described[field.name], arrays)
        elif field.default is not dataclasses.MISSING:
            value = field.default  # of a field that is newer than the file, for one
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            raise Unreadable(f"has no field {field.name} of its {name}")
        object.__setattr__(module, field.name, value)
    return module


def _look_up(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name not in known:
        raise Unreadable(f"names the {what} {name[:100]}, which odejax {__version__} does not know")
    return known[name]


def _dtype(name: str) -> np.dtype:
    _look_up(name, DTYPES, "dtype")
    return jnp.dtype(name)


def _of_kind(array: np.ndarray, kind: str) -> Any:
    if kind == "numpy":
        return array.copy()
    made = jnp.asarray(array.item()) if kind == "weak" else jnp.array(array)
    if made.dtype != array.dtype:
        raise Unreadable(f"holds {array.dtype} arrays: set the option jax_enable_x64 of JAX")
    if kind in ("jax", "weak"):
        return made
    _look_up(kind, dict.fromkeys(KEY_KINDS), "kind of key")
    return jax.random.wrap_key_data(made, impl=kind)


def fill(like: Any, arrays: Sequence[np.ndarray]) -> Any:
    """`like` with these arrays in the place of its own. Raises `Unreadable` for other shapes."""
    own, given = arrays_of(like), iter(arrays)
    if len(own) != len(arrays):
        raise Unreadable(f"holds {len(arrays)} arrays, and like has {len(own)}")
    for (place, leaf), array in zip(own.items(), arrays, strict=True):
        wanted = jax.eval_shape(key_numbers, leaf)
        if (array.dtype, array.shape) != (wanted.dtype, wanted.shape):
            raise Unreadable(
                f"holds {array.dtype}{list(array.shape)} for like{place}, which is "
                f"{wanted.dtype}{list(wanted.shape)}"
            )
    return jax.tree.map(
        lambda leaf: _of_kind(next(given), _kind(leaf)) if is_array(leaf) else leaf, like
    )
