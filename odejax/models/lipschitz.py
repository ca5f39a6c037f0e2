"""A network of gradient-flow layers whose Lipschitz constant is proven (*structured*).

The Euler step  x+ = x - A^T sigma(A x + b),  sigma the ReLU, of the flow down a convex potential
expands no pair of points in l2 where |A| <= sqrt(2). How A is brought there is the difference
between the convex potential layer (CPL) of Meunier et al. (2022, arXiv:2110.12690),
x - 2 A^T sigma(A x + b) / |A|^2, and the SDP-based Lipschitz layer (SLL) of Araujo et al. (2023,
arXiv:2303.03169), x - 2 A^T T^{-1} sigma(A x + b) with a diagonal T: see `operators`.
"""

import itertools
import math
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_count
from .._types import Image, Key, Label, Logits, Scalar
from .blocks import ImageShape, check_image, check_image_shape
from .lipschitz_layers import (
    AbstractLipschitzLayer,
    Flatten,
    GradientFlow,
    Sequential,
    SpaceToDepth,
    dense,
    lift,
)
from .operators import ConvOperator, DenseOperator


class AbstractLipschitzNet(eqx.Module):
    """A sequence of layers that bound their Lipschitz constants: image to logits.

    A subclass has `layers`, and `image_shape`. Raises `ValueError` for an image of another shape.
    """

    layers: eqx.AbstractVar[Sequential]
    image_shape: eqx.AbstractVar[ImageShape]

    @final
    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        return self.layers(x), state

    @final
    def lipschitz_bound(self) -> Scalar:
        """A proven bound on |f(x) - f(x')|_2 / |x - x'|_2, from pixels to logits."""
        return self.layers.lipschitz_bound()

    @final
    def margin_bounds(self, label: Label) -> Float[Array, " k"]:
        """How fast z_label - z_j can change at most per unit of l2, (k,)."""
        return self.layers.margin_bounds(label)

    @final
    def float32_error(self, x: Image, radius: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """How far float32 may take the logits off, in l2, within the l2 `radius` of x."""
        return self.layers.float32_error(x, radius)


class LipschitzNet(AbstractLipschitzNet):
    """A network of non-expansive gradient-flow layers whose l2 Lipschitz constant is proven.

        x+ = x - A^T sigma(A x + b),  |A| <= sqrt(2),  sigma the ReLU

    space-to-depth, then a lifting convolution to `width` channels; `depth` convolutional
    gradient-flow layers at each resolution (halved by space-to-depth while that leaves at least
    4 pixels); a projection to `features`, `depth` dense gradient-flow layers, and a linear head.
    Lifting, projection and head have norm at most 1. All is counted in `lipschitz_bound`.

    - `image_shape`, `n_classes`: (h, w, c) of an image, both sides even, and the number of logits
      (10).
    - `width`, `depth`, `features`: channels (16), layers (2), and entries before the head (256).
    - `layer`: the gradient-flow layers, "CPL" (convex potential layers, the default) or "SLL"
      (SDP-based Lipschitz layers).

    The logits of a 1-Lipschitz network move little: train it with a small temperature,
    `CrossEntropy(temperature=...)`.

    Raises `ValueError` for another `layer`, odd sides, and sizes that are no counts.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.LipschitzNet)
        ...     model, state = make((8, 8, 1), layer="SLL", key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Meunier et al. (2022), arXiv:2110.12690; Araujo et al. (2023), arXiv:2303.03169.
    """

    layers: Sequential
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 16,
        depth: int = 2,
        features: int = 256,
        layer: str = "CPL",
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth, features=features)
        if layer not in ("CPL", "SLL"):
            raise ValueError(f'layer must be "CPL" or "SLL"; got {layer!r}')
        h, w, c = image_shape
        if h % 2 or w % 2:
            raise ValueError(
                f"LipschitzNet halves the image: sides must be even; got {image_shape}"
            )
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        h, w, c = h // 2, w // 2, 4 * c
        layers: list[AbstractLipschitzLayer] = [SpaceToDepth(), lift(c, width, (h, w), next(keys))]
        c = width
        while True:
            layers += [_conv_flow(c, (h, w), layer, next(keys)) for _ in range(depth)]
            if h % 2 or w % 2 or min(h, w) < 8:
                break
            layers.append(SpaceToDepth())
            h, w, c = h // 2, w // 2, 4 * c
        layers += [Flatten(), dense(h * w * c, features, next(keys))]
        layers += [_dense_flow(features, layer, next(keys)) for _ in range(depth)]
        layers.append(dense(features, n_classes, next(keys)))
        self.layers = Sequential(tuple(layers))


def _conv_flow(channels, image_size, layer, key):
    kernel = jax.random.normal(key, (3, 3, channels, channels)) / (3 * channels**0.5)
    log_q = jnp.zeros(channels) if layer == "SLL" else None
    operator = ConvOperator(kernel, image_size, math.sqrt(2), log_q)
    return GradientFlow(operator, jnp.zeros(channels))


def _dense_flow(features, layer, key):
    matrix = jax.random.normal(key, (features, features)) / features**0.5
    log_q = jnp.zeros(features) if layer == "SLL" else None
    return GradientFlow(DenseOperator(matrix, math.sqrt(2), log_q), jnp.zeros(features))
