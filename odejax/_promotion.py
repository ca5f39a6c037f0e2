"""JAX's own rules for shapes and dtypes, whatever the process has set."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax

F = TypeVar("F", bound=Callable)


def own_promotion(function: F) -> F:
    """`function`, under JAX's defaults for rank and dtype promotion.

    A user may ask JAX to raise where ranks or dtypes differ, which is about the user's own code.
    This library adds a bias to an image, and float32 to the dtype that a network computes in.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]
