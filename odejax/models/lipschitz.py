"""Networks with a proven Lipschitz constant, from gradient flows (*structured*).

The Euler step  x+ = x - h A^T sigma(A x + b),  sigma the ReLU, of the flow down a convex potential
expands no pair of points in l2 when 0 <= h <= 2 / ||A||^2: its Jacobian I - h A^T D A, with D
diagonal in [0, 1], has eigenvalues in [1 - h ||A||^2, 1]. Here h = 1 and A is scaled to a
*certified* norm of at most sqrt(2), never an estimate from below.
"""

import abc
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._frozen import AbstractReparametrised
from .._types import Features, Image, Key, Logits, Scalar
from .blocks import ImageShape, check_image, check_image_shape, check_sizes
from .convolution import conv2d
from .spectral import conv_norm_bound, matrix_norm_bound


class AbstractOperator(AbstractReparametrised):
    """A linear map A, its weights scaled in every call so that its norm is at most `gain`."""

    gain: eqx.AbstractVar[float]
    frozen: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """A x."""

    @abc.abstractmethod
    def adjoint(self, y: Array) -> Array:
        """A^T y."""

    @abc.abstractmethod
    def norm_bound(self) -> Scalar:
        """A proven upper bound on the operator norm of A as applied."""


class ConvOperator(AbstractOperator):
    """A zero-padded 3x3 convolution."""

    kernel: Float[Array, "3 3 i o"]
    image_size: tuple[int, int] = eqx.field(static=True)
    gain: float = eqx.field(static=True)
    frozen: bool = eqx.field(static=True, default=False)

    def freeze(self) -> "ConvOperator":
        if self.frozen:
            return self
        kernel = self.kernel * _scale(self.gain, conv_norm_bound(self.kernel, self.image_size))
        return ConvOperator(kernel=kernel, image_size=self.image_size, gain=self.gain, frozen=True)

    def __call__(self, x: Image) -> Features:
        return conv2d(x, self.freeze().kernel, padding=1)

    def adjoint(self, y: Image) -> Features:
        return conv2d(y, jnp.swapaxes(self.freeze().kernel[::-1, ::-1], 2, 3), padding=1)

    def norm_bound(self) -> Scalar:
        return conv_norm_bound(self.freeze().kernel, self.image_size)


class DenseOperator(AbstractOperator):
    """A matrix."""

    matrix: Float[Array, "o i"]
    gain: float = eqx.field(static=True)
    frozen: bool = eqx.field(static=True, default=False)

    def freeze(self) -> "DenseOperator":
        if self.frozen:
            return self
        matrix = self.matrix * _scale(self.gain, matrix_norm_bound(self.matrix))
        return DenseOperator(matrix=matrix, gain=self.gain, frozen=True)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return self.freeze().matrix @ x

    def adjoint(self, y: Float[Array, " o"]) -> Float[Array, " i"]:
        return self.freeze().matrix.T @ y

    def norm_bound(self) -> Scalar:
        return matrix_norm_bound(self.freeze().matrix)


def _scale(gain, norm):
    return jnp.where(norm > 0, gain / jnp.where(norm > 0, norm, 1.0), 1.0)  # zero stays zero


class Affine(eqx.Module):
    """x -> A x + b."""

    operator: AbstractOperator
    bias: Float[Array, " o"]

    def __call__(self, x: Array) -> Array:
        return self.operator(x) + self.bias

    def lipschitz_bound(self) -> Scalar:
        return self.operator.norm_bound()


class GradientFlow(eqx.Module):
    """The non-expansive layer x -> x - A^T relu(A x + b), ||A|| <= sqrt(2)."""

    operator: AbstractOperator
    bias: Float[Array, " o"]

    def __call__(self, x: Array) -> Array:
        operator = self.operator.freeze()
        return x - operator.adjoint(jax.nn.relu(operator(x) + self.bias))  # pyright: ignore

    def lipschitz_bound(self) -> Scalar:
        return jnp.maximum(1.0, self.operator.norm_bound() ** 2 - 1)


class SpaceToDepth(eqx.Module):
    """2 x 2 pixels to 4 channels: halves the image without losing anything, an isometry."""

    def __call__(self, x: Image) -> Features:
        h, w, c = x.shape
        x = x.reshape(h // 2, 2, w // 2, 2, c)
        return jnp.transpose(x, (0, 2, 1, 3, 4)).reshape(h // 2, w // 2, 4 * c)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class Flatten(eqx.Module):
    """All entries in one vector, an isometry."""

    def __call__(self, x: Image) -> Float[Array, " n"]:
        return jnp.ravel(x)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class LipschitzNet(eqx.Module):
    """A network of non-expansive gradient-flow layers whose l2 Lipschitz constant is proven.

    space-to-depth, then a lifting convolution to `width` channels; `depth` convolutional
    gradient-flow layers at each resolution (halved by space-to-depth while that leaves at least
    4 pixels); a projection to `features`, `depth` dense gradient-flow layers, and a linear head.
    Lifting, projection and head have norm at most 1. All is counted in `lipschitz_bound`.

    The logits of a 1-Lipschitz network move little: train it with a small temperature,
    `CrossEntropy(temperature=...)`.
    """

    layers: list[eqx.Module]
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 16,
        depth: int = 2,
        features: int = 256,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_sizes(width=width, depth=depth, features=features)
        h, w, c = image_shape
        if h % 2 or w % 2:
            raise ValueError(
                f"LipschitzNet halves the image: sides must be even; got {image_shape}"
            )
        keys = (jax.random.fold_in(key, i) for i in itertools.count())
        h, w, c = h // 2, w // 2, 4 * c
        self.layers = [SpaceToDepth(), _lift(c, width, (h, w), next(keys))]
        c = width
        while True:
            self.layers += [_conv_flow(c, (h, w), next(keys)) for _ in range(depth)]
            if h % 2 or w % 2 or min(h, w) < 8:
                break
            self.layers.append(SpaceToDepth())
            h, w, c = h // 2, w // 2, 4 * c
        self.layers += [Flatten(), _dense(h * w * c, features, next(keys))]
        self.layers += [_dense_flow(features, next(keys)) for _ in range(depth)]
        self.layers.append(_dense(features, n_classes, next(keys)))

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        for layer in self.layers:
            x = layer(x)  # pyright: ignore[reportCallIssue]
        return x, state

    def lipschitz_bound(self) -> Scalar:
        """A proven bound on ||f(x) - f(x')||_2 / ||x - x'||_2, from pixels to logits."""
        bound = jnp.ones(())
        for layer in self.layers:
            bound = bound * layer.lipschitz_bound()  # pyright: ignore
        return bound


def _orthogonal(key: Key, rows: int, columns: int):
    return jax.nn.initializers.orthogonal()(key, (rows, columns))


def _lift(inputs, outputs, image_size, key):
    # Delta-orthogonal: all of the kernel in its centre, so nothing is lost at the start.
    kernel = jnp.zeros((3, 3, inputs, outputs)).at[1, 1].set(_orthogonal(key, inputs, outputs))
    operator = ConvOperator(kernel=kernel, image_size=image_size, gain=1.0)
    return Affine(operator, jnp.zeros(outputs))


def _conv_flow(channels, image_size, key):
    kernel = jax.random.normal(key, (3, 3, channels, channels)) / (3 * channels**0.5)
    operator = ConvOperator(kernel=kernel, image_size=image_size, gain=math.sqrt(2))
    return GradientFlow(operator, jnp.zeros(channels))


def _dense(inputs, outputs, key):
    operator = DenseOperator(matrix=_orthogonal(key, outputs, inputs), gain=1.0)
    return Affine(operator, jnp.zeros(outputs))


def _dense_flow(features, key):
    matrix = jax.random.normal(key, (features, features)) / features**0.5
    return GradientFlow(DenseOperator(matrix=matrix, gain=math.sqrt(2)), jnp.zeros(features))
