"""Linear maps whose l2 norm is a proven number: scaled to it in every call.

Scaled as a whole, A -> g A / ||A||, by a certified bound on the norm, never an estimate from
below: the exact form of the convex potential layer (CPL) of Meunier et al. (2022,
arXiv:2110.12690). Or row by row, A -> g T^{-1/2} A with the diagonal
T_a = sum_b |A A^T|_ab q_b / q_a, which dominates A A^T whatever the q > 0 are, so that g T^{-1/2} A
has norm at most g without any norm computed: the SDP-based Lipschitz layer (SLL) of Araujo et al.
(2023, arXiv:2303.03169). The weights q of the rows are learned, as their logarithms.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_positive
from .._frozen import AbstractReparametrised
from .._rounding import NORM_BOUND_ROUNDING
from .._types import Features, Image, Scalar
from .convolution import conv2d
from .spectral import (
    circular_conv_smallest_square,
    conv_norm_bound,
    matrix_norm_bound,
    matrix_smallest_square,
)

_ORTHOGONAL_EPS = 1e-6  # of the mean squared length of a row


class AbstractOperator(AbstractReparametrised):
    """A linear map A whose norm is at most `gain`; with None, its weights as they are.

    What is proven of a frozen one is computed of its weights alone, whatever becomes of them.
    """

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

    @abc.abstractmethod
    def orthogonality(self) -> Scalar:
        """|A^T A - I|_F^2 divided by the entries of x: 0 where A keeps all lengths."""


class ConvOperator(AbstractOperator):
    """A convolution whose l2 norm is at most `gain`, with padding that keeps the image's size.

        (h, w, i) -> (h, w, o)

    - `kernel`: (k, k, i, o), k odd.
    - `image_size`: (h, w), the only one it is for.
    - `gain`: the norm; None: the kernel as it is.
    - `sll_log_q`: row by row, as in an SDP-based Lipschitz layer (SLL), log q of each row, (o,);
      None (the default): as a whole, as in a convex potential layer (CPL).
    - `circular`: the image is continued periodically; else by zeros (False).
    - `frozen`: the kernel is scaled already, as `freeze` leaves it (False).

    Raises `ValueError` for a kernel that is not square with odd sides, a gain that is not positive,
    and images of another size.

        >>> import jax.numpy as jnp, odejax
        >>> kernel = jnp.ones((1, 1, 1, 1))
        >>> operator = odejax.models.ConvOperator(kernel, (2, 2), 0.5, circular=True)
        >>> round(float(operator(jnp.ones((2, 2, 1)))[0, 0, 0]), 2)
        0.5

    Meunier et al. (2022), arXiv:2110.12690; Araujo et al. (2023), arXiv:2303.03169.
    """

    kernel: Float[Array, "k k i o"]
    image_size: tuple[int, int] = eqx.field(static=True)
    gain: float | None = eqx.field(static=True)
    sll_log_q: Float[Array, " o"] | None = None
    circular: bool = eqx.field(static=True, default=False, kw_only=True)
    frozen: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        height, width = self.kernel.shape[:2]
        if height != width or height % 2 == 0:
            raise ValueError(f"the kernel must be square with odd sides; got {(height, width)}")
        check_positive(gain=self.gain)

    def freeze(self) -> "ConvOperator":
        if self.frozen or self.gain is None:
            return self
        if self.sll_log_q is None:
            kernel = self.kernel * _scale(self.gain, self._bound(self.kernel))
            log_q = None
        else:
            rows, log_q = _scaled_rows(self.gain, self._rows(), self.sll_log_q, _conv_products)
            kernel = jnp.moveaxis(rows, 0, 3)
        return ConvOperator(
            kernel, self.image_size, self.gain, log_q, circular=self.circular, frozen=True
        )

    def __call__(self, x: Image) -> Features:
        return self._convolve(x, self.freeze().kernel)

    def adjoint(self, y: Image) -> Features:
        return self._convolve(y, jnp.swapaxes(self.freeze().kernel[::-1, ::-1], 2, 3))

    def norm_bound(self) -> Scalar:
        return _norm_bound(
            self,
            lambda: self._bound(self.kernel),
            lambda log_q: _dominated_norm(self._rows(), log_q, _conv_products),
        )

    def smallest_square(self) -> Scalar:
        if not self.circular:
            return jnp.zeros(())  # an image's edge may hide what the kernel maps beyond it
        high = self.norm_bound() ** 2
        return circular_conv_smallest_square(self.freeze().kernel, self.image_size, high)

    def orthogonality(self) -> Scalar:
        # Of a circular convolution, exact on images with sides of at least 2k - 1; on smaller ones,
        # too, it is 0 for orthogonal kernels alone.
        gram = _correlation(jnp.moveaxis(self.freeze().kernel, 2, 0))
        centre, channels = self.kernel.shape[0] - 1, self.kernel.shape[2]
        gram = gram.at[:, centre, centre].add(-jnp.eye(channels))
        return jnp.sum(gram**2) / channels

    def _bound(self, kernel):
        pad = kernel.shape[0] // 2
        return conv_norm_bound(kernel, self.image_size, circular=self.circular, padding=pad)

    def _rows(self):
        return jnp.moveaxis(self.kernel, 3, 0)

    def _convolve(self, x, kernel):
        if x.shape[:2] != self.image_size:  # larger ones may be stretched by more than the bound
            raise ValueError(f"this operator is for images of {self.image_size}; got {x.shape[:2]}")
        pad = kernel.shape[0] // 2
        if not self.circular:
            return conv2d(x, kernel, padding=pad)
        return conv2d(jnp.pad(x, ((pad, pad), (pad, pad), (0, 0)), mode="wrap"), kernel)


class DenseOperator(AbstractOperator):
    """A matrix whose l2 norm is at most `gain`.

        (i,) -> (o,)

    - `matrix`: (o, i).
    - `gain`: the norm; None: the matrix as it is.
    - `sll_log_q`, `frozen`: as in `ConvOperator` (None, False).

    Raises `ValueError` for a gain that is not positive.

        >>> import jax.numpy as jnp, odejax
        >>> operator = odejax.models.DenseOperator(jnp.diag(jnp.array([1.0, 4.0])), 1.0)
        >>> [round(v, 2) for v in operator(jnp.ones(2)).tolist()]
        [0.25, 1.0]

    Meunier et al. (2022), arXiv:2110.12690; Araujo et al. (2023), arXiv:2303.03169.
    """

    matrix: Float[Array, "o i"]
    gain: float | None = eqx.field(static=True)
    sll_log_q: Float[Array, " o"] | None = None
    frozen: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        check_positive(gain=self.gain)

    def freeze(self) -> "DenseOperator":
        if self.frozen or self.gain is None:
            return self
        if self.sll_log_q is None:
            matrix = self.matrix * _scale(self.gain, matrix_norm_bound(self.matrix))
            log_q = None
        else:
            matrix, log_q = _scaled_rows(self.gain, self.matrix, self.sll_log_q, _matrix_products)
        return DenseOperator(matrix, self.gain, log_q, frozen=True)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return self.freeze().matrix @ x

    def adjoint(self, y: Float[Array, " o"]) -> Float[Array, " i"]:
        return self.freeze().matrix.T @ y

    def norm_bound(self) -> Scalar:
        return _norm_bound(
            self,
            lambda: matrix_norm_bound(self.matrix),
            lambda log_q: _dominated_norm(self.matrix, log_q, _matrix_products),
        )

    def smallest_square(self) -> Scalar:
        return matrix_smallest_square(self.freeze().matrix, self.norm_bound() ** 2)

    def orthogonality(self) -> Scalar:
        matrix = self.freeze().matrix
        columns = matrix.shape[1]
        return jnp.sum((matrix.T @ matrix - jnp.eye(columns)) ** 2) / columns


class OrthogonalOperator(AbstractOperator):
    """A matrix with orthonormal rows (or columns, where these are fewer), of norm 1.

        W = L^{-1} X,  L L^T = X X^T + eps I    (Cholesky; of X^T for more rows than columns)

    eps is 1e-6 of the mean diagonal entry, so that singular values are s / sqrt(s^2 + eps) <= 1.
    What is proven of a frozen one is about W in float32, as it is multiplied with:

        |W|^2 = |W W^T| <= 1 + |W W^T - I|

    - `matrix`: X, (o, i), of full rank.
    - `frozen`: it is W already, as `freeze` leaves it (False).

    A matrix of lower rank gives what is not finite, which training notices.

        >>> import jax.numpy as jnp, odejax
        >>> operator = odejax.models.OrthogonalOperator(jnp.array([[3.0, 4.0]]))
        >>> [round(v, 3) for v in operator(jnp.array([1.0, 0.0])).tolist()]
        [0.6]

    Hu et al. (2024), arXiv:2310.02513, for the layer.
    """

    matrix: Float[Array, "o i"]
    frozen: bool = eqx.field(static=True, default=False, kw_only=True)

    def freeze(self) -> "OrthogonalOperator":
        if self.frozen:
            return self
        wide = self.matrix.shape[0] <= self.matrix.shape[1]
        x = self.matrix if wide else self.matrix.T
        gram = jnp.matmul(x, x.T, precision="highest")
        small = _ORTHOGONAL_EPS * jax.lax.stop_gradient(jnp.trace(gram)) / len(x)
        factor = jnp.linalg.cholesky(gram + small * jnp.eye(len(x)))
        rows = jax.scipy.linalg.solve_triangular(factor, x, lower=True)
        return OrthogonalOperator(rows if wide else rows.T, frozen=True)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return self.freeze().matrix @ x

    def adjoint(self, y: Float[Array, " o"]) -> Float[Array, " i"]:
        return self.freeze().matrix.T @ y

    def norm_bound(self) -> Scalar:
        if not self.frozen:
            return jnp.ones(())
        return jnp.sqrt(1 + self._off()) * (1 + NORM_BOUND_ROUNDING)

    def smallest_square(self) -> Scalar:
        if self.matrix.shape[0] < self.matrix.shape[1]:
            return jnp.zeros(())
        return jnp.maximum(1 - self.freeze()._off() - 2 * NORM_BOUND_ROUNDING, 0.0)

    def orthogonality(self) -> Scalar:
        matrix = self.freeze().matrix
        columns = matrix.shape[1]
        return jnp.sum((matrix.T @ matrix - jnp.eye(columns)) ** 2) / columns

    def _off(self) -> Scalar:
        """|W W^T - I|, or |W^T W - I| for more rows than columns."""
        w = self.matrix if self.matrix.shape[0] <= self.matrix.shape[1] else self.matrix.T
        return matrix_norm_bound(jnp.matmul(w, w.T, precision="highest") - jnp.eye(len(w)))


class UnitRows(AbstractOperator):
    """A matrix whose rows have length 1: as a head, it makes all classes' logits as steep.

        a_j -> a_j / |a_j|

    - `matrix`: (o, i).

        >>> import jax.numpy as jnp, odejax
        >>> operator = odejax.models.UnitRows(jnp.array([[3.0, 4.0], [0.0, 2.0]]))
        >>> [round(v, 3) for v in operator(jnp.array([1.0, 1.0])).tolist()]
        [1.4, 1.0]

    Singla et al. (2022), arXiv:2108.04062.
    """

    matrix: Float[Array, "o i"]

    def freeze(self) -> DenseOperator:
        squares = jnp.sum(self.matrix**2, axis=1, keepdims=True)
        lengths = jnp.sqrt(jnp.where(squares == 0, 1.0, squares))  # a row of zeros stays
        return DenseOperator(self.matrix / lengths, None)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        return self.freeze()(x)

    def adjoint(self, y: Float[Array, " o"]) -> Float[Array, " i"]:
        return self.freeze().adjoint(y)

    def norm_bound(self) -> Scalar:
        return self.freeze().norm_bound()

    def smallest_square(self) -> Scalar:
        return self.freeze().smallest_square()

    def orthogonality(self) -> Scalar:
        return self.freeze().orthogonality()


def _norm_bound(operator, gram, dominated):
    """The gain, where every call scales to it; else what is computed of the weights themselves."""
    if operator.gain is not None and not operator.frozen:
        return jnp.asarray(operator.gain, jnp.float32)
    if operator.sll_log_q is None:
        return gram()
    return jnp.minimum(gram(), dominated(operator.sll_log_q))


def _scale(gain, norm):
    return jnp.where(norm == 0, 1.0, gain / jnp.where(norm == 0, 1.0, norm))  # zero stays zero


def _unit_rows(rows):
    """Rows with a largest entry of 1, and what they were divided by: squares must not underflow."""
    sizes = jnp.max(jnp.abs(rows), axis=range(1, rows.ndim), keepdims=True)
    # What is made of the rows does not depend on it, and so no gradient either.
    sizes = jax.lax.stop_gradient(jnp.where(sizes == 0, 1.0, sizes))
    return rows / sizes, jnp.ravel(sizes)


def _scaled_rows(gain, rows, log_q, products):
    """g T^{-1/2} A of the rows of A, and the log_q' for which its own T is g^2.

    T_a = sum_b |A A^T|_ab q_b / q_a dominates A A^T, and q' = T^{1/2} q has
    T'_a = sum_b g^2 |A A^T|_ab q_b / (T_a q_a) = g^2. So the norm of the scaled rows can be bounded
    from them and log_q' alone.
    """
    unit, sizes = _unit_rows(rows)
    dominant = _dominant(products(unit), log_q + jnp.log(sizes))
    dominant = jnp.where(dominant == 0, 1.0, dominant)  # a row of zeros stays
    scale = gain / ((1 + NORM_BOUND_ROUNDING) * jnp.sqrt(dominant))
    scaled = unit * scale.reshape(-1, *(1,) * (rows.ndim - 1))
    return scaled, log_q + jnp.log(sizes) + 0.5 * jnp.log(dominant)


def _dominated_norm(rows, log_q, products):
    """max_a T_a^{1/2}, no less than the norm."""
    unit, sizes = _unit_rows(rows)
    dominant = _dominant(products(unit), log_q + jnp.log(sizes))
    return (1 + NORM_BOUND_ROUNDING) * jnp.max(sizes * jnp.sqrt(dominant))


def _dominant(products, log_q):
    """T_a = sum_b |A A^T|_ab q_b / q_a.

    It dominates for any ratios r_ab > 0 with r_ab r_ba = 1, so also for those cut off here, which
    float32 could not hold. Summed by element, since a matrix product may round to TF32.
    """
    ratios = jnp.exp(jnp.clip(log_q - log_q[:, None], -40.0, 40.0))
    return jnp.sum(products * ratios, axis=1)


def _matrix_products(rows):
    return jnp.abs(jnp.matmul(rows, rows.T, precision="highest"))


def _conv_products(rows):
    """|A A^T| of a convolution: its kernel's correlation with itself, summed over all shifts.

    Proven with zero padding too: A is then E^T C E with C circular on a larger torus and E the
    embedding, and A A^T = E^T C E E^T C^T E <= E^T C C^T E <= E^T T E. `rows` (o, k, k, i).
    """
    return jnp.sum(jnp.abs(_correlation(rows)), axis=(1, 2))


def _correlation(rows):
    """The kernel (o, 2k - 1, 2k - 1, o) of A A^T, A a circular convolution with `rows`."""
    shifts = rows.shape[1] - 1
    kernel = jnp.moveaxis(rows, 0, 3)
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda image: conv2d(image, kernel, padding=shifts))(rows)
