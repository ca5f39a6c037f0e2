"""The fully connected network: the family without a differential equation, for comparison."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_count
from .._types import Image, Key, Logits
from .blocks import ImageShape, check_image, check_image_shape


class MLP(eqx.Module):
    """y_{i+1} = activation(W_i y_i + b_i), `depth` hidden layers of `width`, then a linear one."""

    layers: list[eqx.nn.Linear]
    activation: Callable[[Array], Array]
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 256,
        depth: int = 2,
        activation: Callable[[Array], Array] = jax.nn.relu,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth)
        sizes = [math.prod(image_shape), *[width] * depth, n_classes]
        keys = jax.random.split(key, depth + 1)
        self.layers = [
            eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes, sizes[1:], keys, strict=False)
        ]
        self.activation = activation

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        y = jnp.ravel(x)
        for layer in self.layers[:-1]:
            y = self.activation(layer(y))
        return self.layers[-1](y), state
