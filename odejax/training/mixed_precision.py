"""Low-precision arithmetic with float32 weights."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State

from .._frozen import freeze
from .._types import Image, Images, Key, Labels, Logits
from .objectives import CrossEntropy, Loss, Objective


class MixedPrecision(eqx.Module):
    """`objective` on the network computed in bfloat16; its weights, logits and loss stay float32.

    Weights and images are rounded to `dtype` whenever the network is evaluated, attacks within the
    objective included; gradients, optimizer and batch statistics are float32. Evaluate what was
    trained in float32, or as it was trained by `in_precision(model)`. Penalties of the
    weights are put around it: `Penalised(MixedPrecision(...), penalty=...)`.

    - `objective`: `CrossEntropy()` by default.
    - `dtype`: `jnp.bfloat16` by default.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, labels, key = jnp.ones((1, 1, 2, 1)), jnp.array([0]), jax.random.key(0)
    >>> objective = odejax.training.MixedPrecision()
    >>> loss, _ = objective(model, eqx.nn.State(None), images, labels, key=key)
    >>> round(float(loss), 4), str(loss.dtype)
    (0.6931, 'float32')
    """

    objective: Objective = CrossEntropy()
    dtype: Any = eqx.field(static=True, default=jnp.bfloat16)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        return self.objective(in_precision(model, self.dtype), state, images, labels, key=key)


def in_precision(model: Any, dtype: Any = jnp.bfloat16) -> "_Cast":
    """The model computed in another precision; its weights stay as they are.

    - `model(x, state, key=key)`: any network.
    - `dtype`: `jnp.bfloat16` by default.

    >>> rounded = odejax.training.in_precision(lambda x, state, *, key: (x.ravel(), state))
    >>> logits, _ = rounded(jnp.full((1, 2, 1), 0.1), eqx.nn.State(None), key=jax.random.key(0))
    >>> logits[0] == jnp.bfloat16(0.1), str(logits.dtype)
    (Array(True, dtype=bool), 'float32')
    """
    return _Cast(model, dtype)


class _Cast(eqx.Module):
    model: Any
    dtype: Any = eqx.field(static=True)

    def __call__(self, x: Image, state: State, *, key: Key | None = None) -> tuple[Logits, State]:
        def cast(leaf):
            return leaf.astype(self.dtype) if eqx.is_inexact_array(leaf) else leaf

        # Norms are computed before rounding: in 16 bits they would be neither proven nor accurate.
        model = jax.tree.map(cast, freeze(self.model))
        logits, state = model(x.astype(self.dtype), state, key=key)
        return logits.astype(x.dtype), state
