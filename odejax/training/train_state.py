"""The arrays that a training step changes, and where a mesh wants them."""

from collections.abc import Callable

import equinox as eqx
import jax
import optax
from equinox.nn import State
from jaxtyping import Array, Float, Int, PyTree

from .._mesh import replicate, spread

Sums = tuple[Float[Array, ""], Int[Array, ""]]  # of the losses, and of the correct predictions
Metrics = dict[str, float]  # of one epoch


class TrainState(eqx.Module):
    """All arrays of a run. `params` are the weights, `state` holds the batch statistics."""

    params: PyTree
    state: State
    opt_state: optax.OptState
    carry: PyTree  # of the gradient rule
    average: PyTree  # (steps, (weights, statistics)), or None

    def validated(self) -> tuple[PyTree, State]:
        """The weights and batch statistics to validate: the averaged ones, where there are any."""
        return (self.params, self.state) if self.average is None else self.average[1]


def lay_out(weights: Callable, batch_size: int, train: TrainState) -> TrainState:
    """Everything where the mesh wants it; `weights` is `shard` or `replicate`."""

    def of_the_batch(leaf):
        return spread(leaf) if leaf.shape[:1] == (batch_size,) else replicate(leaf)

    return TrainState(
        weights(train.params),
        replicate(train.state),
        weights(train.opt_state),
        jax.tree.map(of_the_batch, train.carry),
        weights(train.average),
    )
