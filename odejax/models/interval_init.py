"""Initial weights through which intervals stay as wide as they are."""

import math
from typing import TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._inputs import as_key
from .._types import Key
from .blocks import Conv

Model = TypeVar("Model", bound=PyTree)


def interval_init(model: Model, *, key: Key | int) -> Model:
    """`model` with new weights for certified training.

        w ~ N(0, 2 pi / n^2), n the fan-in

    An interval as wide as that of the n operands is then expected behind the layer, if a ReLU takes
    half of the width away. Under the usual weights, of variance 2 / n, intervals grow by
    sqrt(n / pi) in each layer. The weights of all convolutions (`models.Conv`, `equinox.nn.Conv`)
    and of all linear layers are drawn anew; stacked layers too. What else there is stays.

    - `model`: any module.
    - `key`: or an integer seed.

    Raises `ValueError` for a key that is none.

        >>> import equinox as eqx, jax, jax.numpy as jnp, math, odejax
        >>> linear = eqx.nn.Linear(1000, 1000, key=jax.random.key(0))
        >>> drawn = odejax.models.interval_init(linear, key=0)
        >>> round(float(1000 * jnp.std(drawn.weight)), 1), round(math.sqrt(2 * math.pi), 1)
        (2.5, 2.5)

    Shi et al. (2021), arXiv:2103.17268.
    """
    nodes, structure = jax.tree.flatten(model, is_leaf=_is_layer)
    keys = jax.random.split(as_key(key), len(nodes))
    drawn = [_drawn(n, k) if _is_layer(n) else n for n, k in zip(nodes, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _is_layer(node) -> bool:
    return isinstance(node, Conv | eqx.nn.Conv | eqx.nn.Linear)


def _drawn(layer, key: Key):
    """The axes that a stacked layer has in front are not part of the fan-in."""
    if isinstance(layer, Conv):
        name, fan_in = "kernel", math.prod(layer.kernel.shape[-4:-1])
    elif isinstance(layer, eqx.nn.Linear):
        name, fan_in = "weight", layer.weight.shape[-1]
    else:
        axes = layer.num_spatial_dims + 1
        name, fan_in = "weight", math.prod(layer.weight.shape[-axes:])
    old = getattr(layer, name)
    std = math.sqrt(2 * math.pi) / fan_in
    return eqx.tree_at(
        lambda node: getattr(node, name), layer, std * jax.random.normal(key, old.shape, old.dtype)
    )
