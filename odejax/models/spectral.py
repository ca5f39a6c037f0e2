"""Certified bounds on the singular values of matrices and convolutions: of the largest from above,
of the smallest from below.

Gram iteration (Delattre et al. 2023): with G_0 = A and G_{i+1} = G_i^* G_i,
||A||_2 = ||G_k||_2^{2^-k} <= ||G_k||_F^{2^-k}, above the norm by a factor of at most
rank^{2^{-(k+1)}}: differentiable matrix products instead of an SVD, and never below the norm,
which power iteration always is.

A stride-1 convolution on h x w pixels with p zeros around them is the circular one on the torus of
(h + p) x (w + p) pixels, preceded by an embedding and followed by a restriction, both of norm 1.
The circular one is block diagonal in the Fourier basis, one (o, i) matrix for each frequency. So
the largest norm of those matrices is a proven bound for the zero-padded one. With a stride s it is
a stride-1 convolution of the image's s x s phases, each a channel of its own.

How the torus is closed does not matter on the image: it may be antiperiodic, x_{j + n} = -x_j,
along either axis, which shifts the frequencies by half a step. Each of the four tori gives a bound.
The smallest is tighter where one of them has a frequency that the image is too small for: of the
kernel (1, 1, 1) on n pixels the antiperiodic torus gives 1 + 2 cos(pi / (n + 1)), the norm itself,
the periodic one 3. A kernel with peaks at 0 and at pi, as (1, 0, 1), gains nothing.

The smallest singular value m of A comes from the same bound: with M >= ||A||_2,
m^2 = M^2 - ||M^2 I - A^* A||_2.

The bounds are computed in float32 and raised by `NORM_BOUND_ROUNDING`, which covers their own
rounding error (`_rounding`).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._promotion import own_promotion
from .._rounding import NORM_BOUND_ROUNDING
from .._types import Scalar

ITERATIONS = 7
SMALL = 2**16  # entries of a matrix that is no slower than its torus


@own_promotion
def matrix_norm_bound(matrix: Float[Array, "o i"], iterations: int = ITERATIONS) -> Scalar:
    """An upper bound on the largest singular value of `matrix`, by Gram iteration.

        |A|_2 <= |G_k|_F^{2^-k},  G_0 = A,  G_{i+1} = G_i^* G_i

    - `matrix`: (o, i).
    - `iterations`: k (7).

        >>> import jax.numpy as jnp, odejax
        >>> round(float(odejax.models.matrix_norm_bound(jnp.diag(jnp.array([1.0, 3.0])))), 2)
        3.0

    Delattre et al. (2023), arXiv:2305.16173.
    """
    return _gram_bound(matrix[None], iterations)


@own_promotion
def conv_norm_bound(
    kernel: Float[Array, "kh kw i o"],
    image_size: tuple[int, int],
    iterations: int = ITERATIONS,
    *,
    stride: int = 1,
    circular: bool = False,
    padding: int | None = None,
) -> Scalar:
    """An upper bound on the l2 norm of the convolution of (h, w, i) images with `kernel`.

    - `kernel`: (kh, kw, i, o).
    - `image_size`: (h, w) of the input.
    - `iterations`: of Gram iteration (7).
    - `stride`: in pixels (1).
    - `circular`: the image is continued periodically; exact but for the Gram iteration's slack
      (False).
    - `padding`: zeros on each side, else; by default the bound holds for any number of them. It is
      the tighter for being known. For 3x3 kernels on 8 x 8 pixels it is at most 5 % above after
      training (4 to 8 % on 4 x 4), as a rule 3 % for random ones, and 13 % for (1, 0, 1) along both
      axes. With a stride, operators of at most `SMALL` entries are taken as the one matrix that
      they are, exact but for the iteration's slack: on few pixels their edges are most of them.

    Raises `ValueError` for a stride below 1, or one that does not divide a circular image, and for
    a negative padding.

        >>> import jax.numpy as jnp, odejax
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> round(float(odejax.models.conv_norm_bound(kernel, (4, 4), circular=True)), 1)
        9.0

    Delattre et al. (2023), arXiv:2305.16173; Sedghi et al. (2019), arXiv:1805.10408.
    """
    if padding is not None and padding < 0:
        raise ValueError(f"padding must be None, or not negative; got {padding}")
    if stride > 1 and padding is not None and not circular:
        matrix = _matrix_of(kernel, image_size, stride, padding)
        if matrix is not None:
            return _gram_bound(matrix[None], iterations)
    kernel, sizes = _on_a_torus(kernel, image_size, stride, circular, padding)
    if circular:
        return _gram_bound(_blocks(_waves(sizes, kernel.shape), kernel), iterations)
    # Every torus gives a bound: two iterations choose one, and the choice has no derivative.
    waves = np.stack([_waves(sizes, kernel.shape, twist) for twist in _TWISTS])
    fixed = jax.lax.stop_gradient(kernel)
    rough = jax.lax.map(lambda waves: _gram_bound(_blocks(waves, fixed), 2), jnp.asarray(waves))
    best = jnp.argmin(rough)
    return _gram_bound(_blocks(jnp.asarray(waves)[best], kernel), iterations)


@own_promotion
def circular_conv_smallest_square(
    kernel: Float[Array, "k k i o"], image_size: tuple[int, int], high: float | Scalar
) -> Scalar:
    """A lower bound m >= 0 with m |x|^2 <= |A x|^2, A the circular convolution of (h, w, i) images.

        m = M^2 - |M^2 I - A^* A|_2,  M^2 = `high`

    - `kernel`: (k, k, i, o).
    - `image_size`: (h, w).
    - `high`: a number with |A x|^2 <= high |x|^2.

        >>> import jax.numpy as jnp, odejax
        >>> kernel = jnp.full((1, 1, 1, 1), 2.0)
        >>> round(float(odejax.models.circular_conv_smallest_square(kernel, (4, 4), 4.0)), 1)
        4.0

    Celledoni et al. (2022), arXiv:2210.02373; the norm by Delattre et al. (2023), arXiv:2305.16173.
    """
    kernel, sizes = _on_a_torus(kernel, image_size, 1, True, None)
    return _smallest_square(_blocks(_waves(sizes, kernel.shape), kernel), high)


@own_promotion
def matrix_smallest_square(matrix: Float[Array, "o i"], high: float | Scalar) -> Scalar:
    """A lower bound m >= 0 with m |x|^2 <= |A x|^2.

        m = M^2 - |M^2 I - A^T A|_2,  M^2 = `high`

    - `matrix`: A, (o, i).
    - `high`: a number with |A x|^2 <= high |x|^2.

        >>> import jax.numpy as jnp, odejax
        >>> matrix = jnp.diag(jnp.array([1.0, 3.0]))
        >>> round(float(odejax.models.matrix_smallest_square(matrix, 9.0)), 1)
        1.0

    Celledoni et al. (2022), arXiv:2210.02373; the norm by Delattre et al. (2023), arXiv:2305.16173.
    """
    return _smallest_square(matrix[None], high)


def _smallest_square(matrices, high):
    if matrices.shape[1] < matrices.shape[2]:
        return jnp.zeros(())  # more columns than rows: some x has A x = 0
    rest = high * jnp.eye(matrices.shape[2]) - _gram(matrices)
    # The difference of two numbers near `high` is right to that fraction of them, not of itself.
    return jnp.maximum(0.0, high * (1 - NORM_BOUND_ROUNDING) - _gram_bound(rest, ITERATIONS))


def _matrix_of(kernel, image_size, stride, padding):
    """The zero-padded convolution as a matrix, or None where it is large or has no output."""
    taps = []
    for n, k in zip(image_size, kernel.shape[:2], strict=True):
        tap = np.arange(n) + padding - stride * _outputs(n, k, stride, padding)[:, None]
        taps.append(np.where((tap >= 0) & (tap < k), tap, -1))
    pairs = taps[0].size * taps[1].size
    if not 0 < pairs * kernel.shape[2] * kernel.shape[3] <= SMALL:
        return None
    zero = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))  # at -1
    entries = zero[taps[0][:, None, :, None], taps[1][None, :, None, :]]
    rows = taps[0].shape[0] * taps[1].shape[0] * kernel.shape[3]
    return jnp.moveaxis(entries, 5, 2).reshape(rows, -1)


def _on_a_torus(kernel, image_size, stride, circular, padding):
    """The kernel of the stride-1 convolution, and the sides of a torus on which it is at home."""
    check_count(stride=stride)
    if circular:
        if any(n % stride for n in image_size):
            raise ValueError(f"stride {stride} does not divide the circular image {image_size}")
        sizes = [n // stride for n in image_size]
        taps = [_all_taps(k, stride) for k in kernel.shape[:2]]
        return _wrap(_phases(kernel, taps), sizes), sizes
    axes = zip(image_size, kernel.shape[:2], strict=True)
    if padding is None:
        taps, sizes = zip(*(_anywhere(n, k, stride) for n, k in axes), strict=True)
    else:
        taps, sizes = zip(*(_padded(n, k, stride, padding) for n, k in axes), strict=True)
    return _phases(kernel, taps), sizes


def _outputs(n, k, stride, padding):
    """The places of the outputs along an axis of n pixels."""
    return np.arange((n + 2 * padding - k) // stride + 1)


def _all_taps(k, stride):
    """The taps in rows of one for each phase; -1 where there is none."""
    taps = np.arange(-(-k // stride) * stride)
    return np.where(taps < k, taps, -1).reshape(-1, stride)


def _anywhere(n, k, stride):
    """One axis of n pixels, with any number of zeros around: taps, and the side of the torus."""
    taps = _all_taps(k, stride)
    # Wherever the image lies in its zeros, it touches at most this many pixels of a phase. The
    # pixels beyond the image that an output depends on must not lie on its other side.
    return taps, -(-(n + stride - 1) // stride) + len(taps) - 1


def _padded(n, k, stride, padding):
    """One axis of n pixels between `padding` zeros: taps, and the side of the torus.

    Output j depends on pixel stride j - padding + t through tap t. Cut into rows of `stride` from
    any `shift` on, that is row j + a of phase b, t - padding + shift = stride a + b. The cut that
    needs the smallest torus is used.
    """
    outputs = _outputs(n, k, stride, padding)
    pixels = stride * outputs[:, None] - padding + np.arange(k)
    meet = (pixels >= 0) & (pixels < n)
    outputs = outputs[meet.any(axis=1)]  # the others are zero
    # Taps that never meet the image must not come round to it: they would cancel, rounded.
    seen = np.flatnonzero(meet.any(axis=0))
    if not len(seen):
        return np.full((1, stride), -1), 1

    def cut(shift):
        a, b = np.divmod(seen - padding + shift, stride)
        taps = np.full((a.max() - a.min() + 1, stride), -1)
        taps[a - a.min(), b] = seen
        first, last = outputs[0] + a.min(), outputs[-1] + a.max()  # rows that outputs look at
        end = (n - 1 + shift) // stride  # the last row of the image
        touched = min(last, end) - max(first, 0) + 1
        return taps, touched + max(0, -first, last - end)

    return min(map(cut, range(stride)), key=lambda torus: (torus[1], len(torus[0])))


def _wrap(kernel, sizes):
    """Taps that come round to the same pixel as one: apart, they would cancel, rounded."""
    for axis, n in enumerate(sizes):
        if (k := kernel.shape[axis]) > n:
            kernel = jnp.moveaxis(kernel, axis, 0)
            kernel = jnp.pad(kernel, ((0, -k % n), *((0, 0),) * (kernel.ndim - 1)))
            kernel = kernel.reshape(-1, n, *kernel.shape[1:]).sum(0)
            kernel = jnp.moveaxis(kernel, 0, axis)
    return kernel


_TWISTS = tuple(itertools.product((0.0, np.pi), repeat=2))


def _waves(sizes, shape, twist=(0.0, 0.0)):
    """exp(-i omega t) at each frequency of the torus (rows) and each tap t of the kernel (columns).

    A real kernel's frequencies come in conjugate pairs of equal norm: half of them suffice.
    """
    rows, columns = (
        np.exp(-1j * np.outer((2 * np.pi * np.arange(m) + angle) / n, np.arange(k)))
        for m, n, angle, k in zip(
            (sizes[0], sizes[1] // 2 + 1), sizes, twist, shape[:2], strict=True
        )
    )
    waves = rows[:, None, :, None] * columns[None, :, None, :]
    return waves.reshape(len(rows) * len(columns), -1).astype(np.complex64)


def _blocks(waves, kernel):
    """The (o, i) matrix of each frequency."""
    # Cast here: before 0.9 JAX warns of the gradient's imaginary part, which is rightly dropped.
    taps = kernel.reshape(-1, *kernel.shape[2:]).astype(jnp.result_type(waves, kernel))
    return jnp.einsum("ft,tio->foi", waves, taps, precision="highest")


def _phases(kernel, taps):
    """The kernel on the image's phases as channels: `taps` (rows, stride) along either axis."""
    (rows, stride), (columns, _) = (t.shape for t in taps)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))  # the last, -1, is zero
    kernel = kernel[np.ravel(taps[0])][:, np.ravel(taps[1])]
    kernel = kernel.reshape(rows, stride, columns, stride, *kernel.shape[2:])
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, -1, kernel.shape[-1])


def _gram_bound(matrices, iterations):
    """The largest Gram bound in a batch of real or complex matrices."""
    if matrices.shape[1] < matrices.shape[2]:  # of A^* A and A A^*, the smaller
        matrices = jnp.conj(jnp.swapaxes(matrices, 1, 2))
    # First, so that no square under- or overflows. The bound does not depend on it, so neither does
    # its gradient; and the one of max is NaN where two fusions of XLA round |z| differently.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrices), axis=(1, 2)))
    zero = largest == 0
    largest = jnp.where(zero, 1.0, largest)
    matrices = matrices / largest[:, None, None]
    log_norm = jnp.log(largest)
    square = _square(matrices)
    for i in range(iterations):
        norm = jnp.sqrt(jnp.where(zero, 1.0, square))
        log_norm = log_norm + jnp.log(norm) / 2**i
        matrices = _gram(matrices / norm[:, None, None])
        square = _square(matrices)
    log_norm = log_norm + jnp.log(jnp.where(zero, 1.0, square)) / 2 ** (iterations + 1)
    return jnp.max(jnp.where(zero, 0.0, jnp.exp(log_norm))) * (1 + NORM_BOUND_ROUNDING)


def _square(matrices):
    return jnp.sum(jnp.real(matrices) ** 2 + jnp.imag(matrices) ** 2, axis=(1, 2))


def _gram(a):
    """A^* A. XLA's CPU backend multiplies complex matrices slowly, so by three real products."""

    def product(x, y):
        return jnp.matmul(jnp.swapaxes(x, 1, 2), y, precision="highest")

    if not jnp.iscomplexobj(a):
        return product(a, a)
    real, imag = jnp.real(a), jnp.imag(a)
    cross = product(real, imag)
    return jax.lax.complex(
        product(real, real) + product(imag, imag), cross - jnp.swapaxes(cross, 1, 2)
    )
