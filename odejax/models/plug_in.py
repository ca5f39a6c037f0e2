"""A layer in front of the classifier of a finished architecture (*nmode* 5.3, Fig. 5)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float


class BeforeClassifier(eqx.Module):
    """linear(layer(features)): what `insert_before_classifier` puts in the place of `linear`.

    - `layer`: such as `NmODE(3.0, 5.0)`, on (width,).
    - `linear`: (width,) to (k,) logits.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> linear = eqx.nn.Linear(4, 10, key=jax.random.key(0))
        >>> odejax.models.BeforeClassifier(jnp.tanh, linear)(jnp.zeros(4)).shape
        (10,)

    Luo, He and Yi (2024), *A stable mapping of nmODE*, Section 5.3.
    """

    layer: Callable[[Array], Array]
    linear: eqx.nn.Linear

    def __call__(self, features: Float[Array, " width"]) -> Float[Array, " k"]:
        return self.linear(self.layer(features))


def insert_before_classifier(
    model: Any, layer: Callable[[Array], Array], where: Callable[[Any], eqx.nn.Linear] | None = None
) -> Any:
    """`model` with `layer` in front of its last linear layer.

        logits = linear(features) becomes logits = linear(layer(features))

    The features are the layer's gamma, and all weights stay, so a trained network keeps what it
    has learned.

    - `model`: any network.
    - `layer`: such as `NmODE(3.0, 5.0)`, elementwise on the features.
    - `where`: `where(model)` is the classifier; by default the last `eqx.nn.Linear` of the model.

    Raises `ValueError` where there is none, or `where` names something else.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> net = eqx.nn.MLP(4, 10, width_size=8, depth=1, key=jax.random.key(0))
        >>> type(odejax.models.insert_before_classifier(net, jnp.tanh).layers[-1]).__name__
        'BeforeClassifier'

    Luo, He and Yi (2024), *A stable mapping of nmODE*, Section 5.3.
    """
    chosen = _last_linear if where is None else where
    linear = chosen(model)
    if not isinstance(linear, eqx.nn.Linear):
        raise ValueError(f"where must name an eqx.nn.Linear; got {type(linear).__name__}")
    return eqx.tree_at(chosen, model, BeforeClassifier(layer, linear))


def _last_linear(model) -> eqx.nn.Linear:
    parts = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, eqx.nn.Linear))
    linears = [part for part in parts if isinstance(part, eqx.nn.Linear)]
    if not linears:
        raise ValueError(
            f"{type(model).__name__} has no eqx.nn.Linear: say where its classifier is"
        )
    return linears[-1]
