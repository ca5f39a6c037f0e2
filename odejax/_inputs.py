"""What callers may write in a shorter form, and what the library makes of it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from ._checks import check_key, is_integer
from ._threat_model import AbstractBall, LinfBall
from ._types import Key
from ._warnings import warn

F = TypeVar("F", bound=Callable)


def as_key(key: Any) -> Key:
    """A key of `jax.random`, of the new kind; an integer is a seed. `ValueError` for others."""
    if is_integer(key) and not hasattr(key, "dtype"):
        try:
            return jax.random.key(key)
        except OverflowError:
            raise ValueError(f"a seed must be an integer of 64 bits; got {key}") from None
    check_key(key)
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # as jax.random.PRNGKey makes it
    return key


def images_and_labels(function: F) -> F:
    """A `function(logits_fn, images, labels, ...)` that names `*dataset` to who hands over one.

    Python itself would say that an argument is missing.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        for given in (*args[1:3], kwargs.get("images")):
            if hasattr(given, "images") and hasattr(given, "labels"):
                name = type(given).__name__
                raise ValueError(f"give images and labels, *dataset; got the {name} for both")
        return function(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]


def as_method(name: str, method: Any) -> Callable:
    """An attack or certificate; a class is called without arguments.

    Raises `ValueError` for what cannot be called, and for a class that needs arguments.
    """
    if isinstance(method, type):
        try:
            return as_method(name, method())
        except TypeError:
            raise ValueError(
                f"{name}: {method.__name__} is a class that needs arguments; "
                f"give an object, {method.__name__}(...)"
            ) from None
    if not callable(method):
        raise ValueError(f"{name} must be a function, such as PGD(); got {method!r}")
    return method


def as_methods(name: str, methods: Any) -> dict[str, Callable]:
    """Attacks or certificates by name: one, several (named by their class), or a mapping.

    Raises `ValueError` for several of one class without names.
    """
    if isinstance(methods, Mapping):
        return {str(key): as_method(name, method) for key, method in methods.items()}
    if callable(methods):
        methods = (methods,)
    try:
        if isinstance(methods, str):  # an iterable too, of letters
            raise TypeError
        methods = [as_method(name, method) for method in methods]
    except TypeError:
        raise ValueError(
            f"{name} must be a function such as PGD(), several, or a mapping from names to them; "
            f"got {methods!r}"
        ) from None
    names = [method_name(method) for method in methods]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"give a mapping with names of your own: several are {repeated}")
    return dict(zip(names, methods, strict=True))


def method_name(method: Callable) -> str:
    """The name of a function, or of an object's class."""
    return getattr(method, "__name__", type(method).__name__)


def warn_of_whole_box(ball: AbstractBall, size: int):
    """Warn of a ball larger than the box of all images: its eps is hardly meant so."""
    largest = float(ball.covering_radius(LinfBall(1.0), size))
    if np.max(ball.eps) > largest * (1 + 1e-6):
        warn(
            f"{type(ball).__name__}({float(np.max(ball.eps)):.7g}) holds every image: pixels lie "
            f"in [0, 1], so 8 grey levels of 255 are an eps of 8 / 255",
        )
