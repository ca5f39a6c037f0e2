"""A batch as a vmapped axis, which may be differentiated as a whole."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import equinox as eqx
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


class AbstractBatchNorm(eqx.Module):
    """A norm whose running statistics move by `momentum` towards those of every batch."""

    statistics: eqx.AbstractVar[eqx.nn.StateIndex]
    momentum: eqx.AbstractVar[float]


def of_last_batch(model: PyTree, before: eqx.nn.State, after: eqx.nn.State) -> eqx.nn.State:
    """The state whose running statistics, for every `AbstractBatchNorm`, are the last batch's.

    after = before + momentum (batch - before)
    """
    state = copied(after)
    for norm in jax.tree.leaves(model, is_leaf=_is_batch_norm):
        if _is_batch_norm(norm) and norm.momentum:
            old, new = before.get(norm.statistics), after.get(norm.statistics)
            batch = jax.tree.map(lambda o, n, m=norm.momentum: o + (n - o) / m, old, new)
            state = state.set(norm.statistics, batch)
    return state


def copied(state: eqx.nn.State) -> eqx.nn.State:
    """A state that can be used although `state` was, or will be."""
    return jax.tree.map(lambda leaf: leaf, state)


def _is_batch_norm(node: Any) -> bool:
    return isinstance(node, AbstractBatchNorm)
