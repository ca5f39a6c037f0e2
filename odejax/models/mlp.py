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
    """The fully connected network.

        y_{i+1} = activation(W_i y_i + b_i), `depth` hidden layers of `width`, then a linear one

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`, `depth`: units in each hidden layer (256), and hidden layers (2).
    - `activation`: elementwise (`jax.nn.relu`).

    Raises `ValueError` for sizes that are no counts.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.MLP)
        ...     model, state = make((8, 8, 1), width=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Goodfellow, Bengio and Courville (2016), *Deep Learning*, Chapter 6.
    """

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
