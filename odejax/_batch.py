"""A batch as a vmapped axis, which may be differentiated as a whole."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
from jax import lax
from jaxtyping import PyTree

from ._types import BATCH_AXIS

_is_whole = ContextVar("_is_whole", default=False)


def vmap_batch(f: Callable, *, out_axes: Any = 0) -> Callable:
    """`jax.vmap(f, axis_name=BATCH_AXIS)` of an f that takes no gradients itself.

    Gradients are then taken of the batch as a whole, and a layer with a gradient of its own may
    gather the batch (`gather_batch`) to have one for all examples together. Where a gradient is
    taken of each example within, as attacks do, that would compute each of them n times.
    """

    def marked(*args):
        token = _is_whole.set(True)
        try:
            return f(*args)
        finally:
            _is_whole.reset(token)

    return jax.vmap(marked, out_axes=out_axes, axis_name=BATCH_AXIS)


def gather_batch(tree: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """`tree` of all examples, on a leading axis, and a function that selects this example's part.

    Outside a `vmap_batch` this is a batch of one.
    """
    whole = _is_whole.get()
    index = lax.axis_index(BATCH_AXIS) if whole else 0
    gathered = jax.tree.map(lambda a: lax.all_gather(a, BATCH_AXIS) if whole else a[None], tree)
    return gathered, lambda of_all: jax.tree.map(lambda a: a[index], of_all)
