"""Classifiers made of others: mean logits over draws of noise, or over trained networks."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._logits import Checked, hoist
from ._types import Image, Key, Logits, LogitsFn


class MeanLogits(eqx.Module):
    """Mean logits over fixed draws of noise: one deterministic classifier from a random one.

        z(x) = mean_d logits_fn(x, key=keys[d])

    Its own `key` is ignored. A randomised network is evaluated by it, so that no image counts as
    correct, or as wrong, because of a single draw.

    - `logits_fn(x, key=key)`: a network that draws noise.
    - `keys`: an array of keys, of shape (draws,).

    >>> noisy = lambda x, *, key: x.ravel() + jax.random.normal(key, (2,))
    >>> mean = odejax.MeanLogits(noisy, jax.random.split(jax.random.key(0), 10_000))
    >>> mean(jnp.array([0.0, 1.0]).reshape(1, 2, 1)).round(1).tolist()
    [0.0, 1.0]
    """

    logits_fn: LogitsFn
    keys: Array  # (draws,) keys

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        each = jax.vmap(lambda k: Checked(self.logits_fn)(x, key=k))(self.keys)
        return jnp.mean(each, axis=0)

    def hoisted(self, x, key: Key) -> "MeanLogits":
        return MeanLogits(hoist(self.logits_fn, x, self.keys[0]), self.keys)


class EnsembleLogits(eqx.Module):
    """The weighted sum of the logits of separately trained networks (*enresnet* 4.2, Table 7).

        z(x) = sum_m w_m z_m(x)

    A gradient recomputes the activations of one member after the other, so its memory does not grow
    with their number.

    - `members`: functions of (x, key=key), such as `Predictor`s.
    - `weights`: w, one for each member; None, the default, is 1 / n.

    Raises `ValueError` for no members, or another number of weights.

    >>> members = [lambda x, *, key: x.ravel(), lambda x, *, key: 3 * x.ravel()]
    >>> odejax.EnsembleLogits(members)(jnp.array([0.0, 1.0]).reshape(1, 2, 1)).tolist()
    [0.0, 2.0]
    """

    members: tuple[LogitsFn, ...]
    weights: Float[Array, " n"]

    def __init__(self, members: Sequence[LogitsFn], weights: Sequence[float] | None = None):
        if not members:
            raise ValueError("an ensemble needs at least one member; got none")
        if weights is not None and len(weights) != len(members):
            raise ValueError(f"{len(members)} members need as many weights; got {len(weights)}")
        self.members = tuple(members)
        self.weights = jnp.asarray(
            [1 / len(members)] * len(members) if weights is None else weights, jnp.float32
        )

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        n = len(self.members)
        keys = jnp.zeros(n) if key is None else jax.random.split(key, n)

        def branch(member: Any):
            return lambda x, k: member(x, key=None if key is None else k)

        checked = [branch(Checked(member)) for member in self.members]
        shapes = [jax.eval_shape(one, x, keys[0]) for one in checked]
        # Added up in float32 at least, whatever the members compute in.
        dtype = jnp.result_type(jnp.float32, *(shape.dtype for shape in shapes))

        def alike(one):
            return lambda x, k: one(x, k).astype(dtype)

        branches = [alike(one) for one in checked]

        # A loop, whose turns cannot overlap: left to itself the compiler runs all members at once.
        @jax.checkpoint
        def add(total, turn):
            i, weight, key = turn
            return total + weight.astype(dtype) * jax.lax.switch(i, branches, x, key), None

        zero = jnp.zeros(shapes[0].shape, dtype)
        return jax.lax.scan(add, zero, (jnp.arange(n), self.weights, keys))[0]

    def hoisted(self, x, key: Key) -> "EnsembleLogits":
        members = tuple(hoist(member, x, key) for member in self.members)
        return eqx.tree_at(lambda e: e.members, self, members)
