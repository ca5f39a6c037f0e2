"""The plain convolutional network, on which certified training is measured."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count
from .._types import Features, Image, Key, Logits
from .blocks import Conv, ImageShape, Norm, check_image, check_image_shape
from .norms import NoNorm


class CNN(eqx.Module):
    """Convolutions of stride 2, then a fully connected layer.

        conv4x4 . norm . relu for each of `channels`, linear(width) . norm . relu, linear(n_classes)

    The pixels are halved by every convolution; no pooling makes features wide.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `channels`: of each convolution ((32, 64)).
    - `width`: units of the hidden linear layer (256).
    - `norm`: `NoNorm` (the default), `BatchNorm` or `GroupNorm`, built as `norm(channels)`.

    Raises `ValueError` for sizes that are no counts, and images that so many convolutions leave
    no pixel of.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.CNN)
        ...     model, state = make((8, 8, 1), channels=(4, 8), key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Gowal et al. (2018), arXiv:1810.12715, whose small network this resembles.
    """

    convs: list[Conv]
    linears: list[eqx.nn.Linear]
    norms: list[Callable]
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        channels: Sequence[int] = (32, 64),
        width: int = 256,
        norm: Norm = NoNorm,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, **{f"channels[{i}]": n for i, n in enumerate(channels)})
        height, breadth, colours = self.image_shape
        if min(height, breadth) < 2 ** len(channels):
            raise ValueError(
                f"{len(channels)} convolutions of stride 2 need at least {2 ** len(channels)} "
                f"pixels a side; got {image_shape}"
            )
        *conv_keys, hidden, last = jax.random.split(key, len(channels) + 2)
        sizes = zip([colours, *channels], channels, conv_keys, strict=False)
        self.convs = [Conv(i, o, 4, stride=2, padding=1, key=k) for i, o, k in sizes]
        for _ in channels:
            height, breadth = height // 2, breadth // 2
        n = math.prod((height, breadth, channels[-1] if channels else colours))
        self.linears = [
            eqx.nn.Linear(n, width, key=hidden),
            eqx.nn.Linear(width, n_classes, key=last),
        ]
        self.norms = [norm(n) for n in (*channels, width)]

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        y, state = self.features(x, state)
        return self.classify(y, state)

    def features(self, x: Image, state: eqx.nn.State) -> tuple[Features, eqx.nn.State]:
        """What the convolutions make of an image, (h2, w2, channels)."""
        check_image(x, self.image_shape)
        for i, conv in enumerate(self.convs):
            x, state = self._activated(i, conv(x), state)
        return x, state

    def classify(self, y: Features, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        """The logits of features."""
        hidden, last = self.linears
        y, state = self._activated(-1, hidden(jnp.ravel(y))[None, None], state)
        return last(jnp.ravel(y)), state

    def _activated(self, i: int, x: Features, state: eqx.nn.State) -> tuple[Features, eqx.nn.State]:
        x, state = self.norms[i](x, state)
        return jax.nn.relu(x), state
