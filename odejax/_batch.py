"""A batch as a vmapped axis, and whether it may be differentiated as a whole."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax

from ._types import BATCH_AXIS

_is_whole = ContextVar("_is_whole", default=False)


def vmap_batch(f: Callable, *, out_axes: Any = 0) -> Callable:
    """`jax.vmap(f, axis_name=BATCH_AXIS)` of an f that takes no gradients itself.

    Gradients are then taken of the batch as a whole, and a layer with a gradient of its own may
    gather the batch (`batch_is_whole`) to have one for all examples together. Where a gradient is
    taken of each example within, as attacks do, that would compute each of them n times.
    """

    def marked(*args):
        token = _is_whole.set(True)
        try:
            return f(*args)
        finally:
            _is_whole.reset(token)

    return jax.vmap(marked, out_axes=out_axes, axis_name=BATCH_AXIS)


def batch_is_whole() -> bool:
    """Whether this is traced inside a `vmap_batch`."""
    return _is_whole.get()
