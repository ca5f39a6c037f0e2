"""Linear maps whose l2 norm is a proven number: scaled to it in every call.

Scaled as a whole, A -> g A / ||A||, by a certified bound on the norm, never an estimate from
below: the exact form of the convex potential layers of Meunier et al. (2022). Or row by row, A ->
g T^{-1/2} A with the diagonal T_a = sum_b |A A^T|_ab q_b / q_a, which dominates A A^T whatever the
q > 0 are, so that g T^{-1/2} A has norm at most g without any norm computed: the SDP-based layers
of Araujo et al. (2023).
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._frozen import AbstractReparametrised
from .._types import Features, Image, Scalar
from .convolution import conv2d
from .spectral import (
    ROUNDING,
    circular_conv_smallest_square,
    conv_norm_bound,
    matrix_norm_bound,
    matrix_smallest_square,
)


class AbstractOperator(AbstractReparametrised):
    """A linear map A whose norm is at most `gain`; with None, its weights as they are."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """A x."""

    @abc.abstractmethod
    def adjoint(self, y: Array) -> Array:
        """A^T y."""

    @abc.abstractmethod
    def norm_bound(self) -> Scalar:
        """A proven upper bound on the operator norm of A as applied."""

    @abc.abstractmethod
    def smallest_square(self) -> Scalar:
        """A proven m >= 0 with m |x|^2 <= |A x|^2 for all x."""


class ConvOperator(AbstractOperator):
    """A convolution with padding that keeps the image's size: zeros, or circular.

    `log_q`: row by row (see above), q its exponential; None: as a whole.
    """

    kernel: Float[Array, "k k i o"]
    image_size: tuple[int, int] = eqx.field(static=True)
    gain: float | None = eqx.field(static=True)
    log_q: Float[Array, " o"] | None = None
    circular: bool = eqx.field(static=True, default=False, kw_only=True)
    frozen: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        height, width = self.kernel.shape[:2]
        if height != width or height % 2 == 0:
            raise ValueError(f"the kernel must be square with odd sides; got {(height, width)}")
        _check_gain(self.gain)

    def freeze(self) -> "ConvOperator":
        if self.frozen or self.gain is None:
            return self
        if self.log_q is None:
            kernel = self.kernel * _scale(self.gain, self._bound(self.kernel))
        else:
            kernel = self.kernel * _row_scales(self.gain, _conv_rows(self.kernel, self.log_q))
        return ConvOperator(kernel, self.image_size, self.gain, circular=self.circular, frozen=True)

    def __call__(self, x: Image) -> Features:
        return self._convolve(x, self.freeze().kernel)

    def adjoint(self, y: Image) -> Features:
        return self._convolve(y, jnp.swapaxes(self.freeze().kernel[::-1, ::-1], 2, 3))

    def norm_bound(self) -> Scalar:
        return _norm_bound(self, lambda: self._bound(self.kernel))

    def smallest_square(self) -> Scalar:
        if not self.circular:
            return jnp.zeros(())  # an image's edge may hide what the kernel maps beyond it
        high = self.norm_bound() ** 2
        return circular_conv_smallest_square(self.freeze().kernel, self.image_size, high)

    def _bound(self, kernel):
        pad = kernel.shape[0] // 2
        return conv_norm_bound(kernel, self.image_size, circular=self.circular, padding=pad)

    def _convolve(self, x, kernel):
        if x.shape[:2] != self.image_size:  # larger ones may be stretched by more than the bound
            raise ValueError(f"this operator is for images of {self.image_size}; got {x.shape[:2]}")
        pad = kernel.shape[0] // 2
        if not self.circular:
            return conv2d(x, kernel, padding=pad)
        return conv2d(jnp.pad(x, ((pad, pad), (pad, pad), (0, 0)), mode="wrap"), kernel)


class DenseOperator(AbstractOperator):
    """A matrix; `log_q` as in `ConvOperator`."""

    matrix: Float[Array, "o i"]
    gain: float | None = eqx.field(static=True)
    log_q: Float[Array, " o"] | None = None
    frozen: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        _check_gain(self.gain)

    def freeze(self) -> "DenseOperator":
        if self.frozen or self.gain is None:
            return self
        if self.log_q is None:
            matrix = self.matrix * _scale(self.gain, matrix_norm_bound(self.matrix))
        else:
            products = jnp.abs(jnp.matmul(self.matrix, self.matrix.T, precision="highest"))
            rows = _dominant(products, self.log_q)
            matrix = self.matrix * _row_scales(self.gain, rows)[:, None]
        return DenseOperator(matrix, self.gain, frozen=True)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return self.freeze().matrix @ x

    def adjoint(self, y: Float[Array, " o"]) -> Float[Array, " i"]:
        return self.freeze().matrix.T @ y

    def norm_bound(self) -> Scalar:
        return _norm_bound(self, lambda: matrix_norm_bound(self.matrix))

    def smallest_square(self) -> Scalar:
        return matrix_smallest_square(self.freeze().matrix, self.norm_bound() ** 2)


def _norm_bound(operator, computed):
    """What scaling has proven, or what is computed of the frozen weights, if that is less."""
    if operator.gain is None:
        return computed()
    proven = jnp.asarray(operator.gain, jnp.float32)
    return jnp.minimum(proven, computed()) if operator.frozen else proven


def _check_gain(gain):
    if gain is not None and not 0 < gain < float("inf"):
        raise ValueError(f"gain must be None, or finite and positive; got {gain}")


def _scale(gain, norm):
    return jnp.where(norm == 0, 1.0, gain / jnp.where(norm == 0, 1.0, norm))  # zero stays zero


def _row_scales(gain, rows):
    """gain T^{-1/2}; a row of zeros stays."""
    rows = jnp.where(rows == 0, 1.0, rows)
    return gain / ((1 + ROUNDING) * jnp.sqrt(rows))


def _dominant(products, log_q):
    """T_a = sum_b |A A^T|_ab q_b / q_a.

    It dominates for any ratios r_ab > 0 with r_ab r_ba = 1, so also for those cut off here, which
    float32 could not hold. Summed by element, since a matrix product may round to TF32.
    """
    ratios = jnp.exp(jnp.clip(log_q - log_q[:, None], -40.0, 40.0))
    return jnp.sum(products * ratios, axis=1)


def _conv_rows(kernel, log_q):
    """T of a convolution: |A A^T| is the kernel's correlation with itself, over all shifts.

    Proven with zero padding too: A is then E^T C E with C circular on a larger torus and E the
    embedding, and A A^T = E^T C E E^T C^T E <= E^T C C^T E <= E^T T E.
    """
    shifts = kernel.shape[0] - 1
    images = jnp.moveaxis(kernel, 3, 0)
    with jax.default_matmul_precision("highest"):
        correlation = jax.vmap(lambda image: conv2d(image, kernel, padding=shifts))(images)
    return _dominant(jnp.sum(jnp.abs(correlation), axis=(1, 2)), log_q)
