"""What the file of a network may name: classes, functions and dtypes of these lists alone.

A file's names are looked up here; nothing is imported for them. They stay for ever, since files
hold them. A class of odejax is named by its subpackage, so it may move from one file to another; to
rename it takes an entry for the old name.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable)

# By the name that NumPy has for it, as the safetensors format writes it.
DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
KEY_KINDS = ("threefry2x32", "rbg", "unsafe_rbg")  # of `jax.random`

_SUBPACKAGES = ("odejax", "odejax.models", "odejax.solvers")
# Functions of arrays without side effects: with `jnp.save` a network could write files.
_OF_NUMPY = (
    "abs", "arctan", "clip", "cos", "cosh", "exp", "expm1", "log1p", "max", "maximum", "mean",
    "min", "minimum", "ravel", "sign", "sin", "sinc", "sinh", "sqrt", "square", "sum", "tan",
    "tanh",
)  # fmt: skip
_OF_LAX = ("add", "max", "min")  # what the pools of Equinox reduce by
_OWN_FUNCTIONS: dict[str, Callable] = {}


def nameable(function: F) -> F:
    """`function`, which files may name from now on; it must have no side effects."""
    _OWN_FUNCTIONS[_own_name(function)] = function
    return function


@functools.cache
def classes() -> dict[str, type[eqx.Module]]:
    """By name: the modules of odejax and `equinox.nn`; Diffrax's solvers, controllers, adjoints."""
    import diffrax  # which takes time, and is needed here alone

    _import_own()
    own = {_own_name(cls): cls for cls in _subclasses(eqx.Module)}
    known = {name: cls for name, cls in own.items() if name.rpartition(".")[0] in _SUBPACKAGES}
    of_diffrax = diffrax.AbstractSolver, diffrax.AbstractStepSizeController, diffrax.AbstractAdjoint
    known |= _public(eqx.nn, eqx.Module) | _public(diffrax, *of_diffrax)
    # What `eqx.nn.make_with_state` puts in the place of the initial value of a state.
    deleted = eqx.nn.delete_init_state(eqx.nn.StateIndex(0)).init
    known["equinox.nn.StateIndex.deleted"] = type(deleted)
    return {name: cls for name, cls in known.items() if ".Abstract" not in name}


@functools.cache
def functions() -> dict[str, Any]:
    """By name: activations and other functions of arrays; the types of their entries."""
    _import_own()
    of_nn = [name for name, thing in vars(jax.nn).items() if callable(thing) and name[0] != "_"]
    types = [name for name in DTYPES if name != "bool"]
    known = {f"numpy.{name}": getattr(np, name) for name in types if hasattr(np, name)}
    for package, names in ((jnp, types), (jax.lax, _OF_LAX), (jnp, _OF_NUMPY), (jax.nn, of_nn)):
        known |= {f"{package.__name__}.{name}": getattr(package, name) for name in names}
    # A private function of Equinox, the identity.
    default = inspect.signature(eqx.nn.MLP).parameters["final_activation"].default
    return {**known, "equinox.nn.MLP.final_activation": default, **_OWN_FUNCTIONS}


@functools.cache
def _names() -> dict[int, str]:
    return {id(thing): name for name, thing in (classes() | functions()).items()}


def name_of(thing: Any) -> str | None:
    """The name of a class or function of these lists; None of any other thing."""
    return _names().get(id(thing))


def _import_own():
    """What files may name is known once the packages are imported that define it."""
    for package in _SUBPACKAGES:
        importlib.import_module(package)


def _subclasses(cls: type) -> Iterator[type]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _own_name(thing: Any) -> str:
    """As "odejax.models.ResNet", wherever in `odejax.models` it is defined, private or not."""
    package = thing.__module__.split(".")
    subpackage = package[:2] if len(package) > 2 else package[:1]
    return ".".join([*subpackage, thing.__qualname__.lstrip("_")])


def _public(package: ModuleType, *kinds: type) -> dict[str, type]:
    return {
        f"{package.__name__}.{name}": thing
        for name, thing in vars(package).items()
        if isinstance(thing, type) and issubclass(thing, kinds) and name[0] != "_"
    }
