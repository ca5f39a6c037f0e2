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

The image does not see how the torus is closed: it may be antiperiodic, x_{j + n} = -x_j, along
either axis, which shifts the frequencies by half a step. Each of the four tori gives a bound, and
the least is the tighter where one of them has a frequency that the image is too small for: of the
kernel (1, 1, 1) on n pixels the antiperiodic torus gives 1 + 2 cos(pi / (n + 1)), the norm itself,
the periodic one 3. A kernel with peaks at 0 and at pi, as (1, 0, 1), has nothing of it.

The smallest singular value m of A comes from the same bound: with M >= ||A||_2,
m^2 = M^2 - ||M^2 I - A^* A||_2.

The bounds are computed in float32 and raised by `ROUNDING`, which covers their own rounding
error: a Frobenius norm and k products of n x n matrices are each right to about n 2^-24, and the
2^-k-th roots shrink the sum of those to about 2 n 2^-24, 1e-5 at n = 64 and 1e-4 at n = 800.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._promotion import own_promotion
from .._types import Scalar

ITERATIONS = 7
ROUNDING = 2e-4


@own_promotion
def matrix_norm_bound(matrix: Float[Array, "o i"], iterations: int = ITERATIONS) -> Scalar:
    """An upper bound on the largest singular value of `matrix`."""
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
    """An upper bound on the norm of the convolution of (h, w, i) images with `kernel`.

    - `image_size`: (h, w) of the input.
    - `circular`: the image is continued periodically; exact but for the Gram iteration's slack.
    - `padding`: zeros on each side, else; by default the bound holds for any number of them. With
      stride 1 it is the tighter for being known. For 3x3 kernels on 8 x 8 pixels it is at most
      5 % above after training (4 to 8 % on 4 x 4), as a rule 3 % for random ones, and 13 % for
      (1, 0, 1) along both axes.

    Raises `ValueError` for a stride below 1, or one that does not divide a circular image, and for
    a negative padding.
    """
    if padding is not None and padding < 0:
        raise ValueError(f"padding must be None, or not negative; got {padding}")
    kernel, sizes = _on_a_torus(kernel, image_size, stride, circular, padding)
    if circular:
        return _gram_bound(_blocks(_waves(sizes, kernel.shape), kernel), iterations)
    # Any torus will do: two iterations tell which to take, and a derivative of that there is not.
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

    `high`: a number with |A x|^2 <= high |x|^2.
    """
    kernel, sizes = _on_a_torus(kernel, image_size, 1, True, None)
    return _smallest_square(_blocks(_waves(sizes, kernel.shape), kernel), high)


@own_promotion
def matrix_smallest_square(matrix: Float[Array, "o i"], high: float | Scalar) -> Scalar:
    """A lower bound m >= 0 with m |x|^2 <= |A x|^2; `high` with |A x|^2 <= high |x|^2."""
    return _smallest_square(matrix[None], high)


def _smallest_square(matrices, high):
    if matrices.shape[1] < matrices.shape[2]:
        return jnp.zeros(())  # more columns than rows: some x has A x = 0
    rest = high * jnp.eye(matrices.shape[2]) - _gram(matrices)
    # The difference of two numbers near `high` is right to ROUNDING of those, not of itself.
    return jnp.maximum(0.0, high * (1 - ROUNDING) - _gram_bound(rest, ITERATIONS))


def _on_a_torus(kernel, image_size, stride, circular, padding):
    """The kernel of the stride-1 convolution, and the sides of a torus on which it is at home."""
    check_count(stride=stride)
    if circular and any(n % stride for n in image_size):
        raise ValueError(f"stride {stride} does not divide the circular image {image_size}")
    kernel = _phases(kernel, stride)
    if circular:
        sizes = [n // stride for n in image_size]
        return _wrap(kernel, sizes), sizes
    # What an output sees beyond the image must not come round to it on the other side; an output
    # that sees nothing of the image is 0, so more zeros than k - 1 change nothing.
    around = [k - 1 for k in kernel.shape[:2]]
    if padding is not None and stride == 1:
        around = [min(padding, k) for k in around]
        # Taps that never meet the image must not come round either: they would cancel, rounded.
        seen = [
            slice(max(0, k - n - p), min(k, n + p))
            for k, n, p in zip(kernel.shape, image_size, around, strict=False)
        ]
        kernel = kernel[seen[0], seen[1]]
    # Wherever the image lies in its zero padding, it touches at most this many pixels of a phase.
    touched = [-(-(n + stride - 1) // stride) for n in image_size]
    return kernel, [n + k for n, k in zip(touched, around, strict=True)]


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
    taps = kernel.reshape(-1, *kernel.shape[2:])
    return jnp.einsum("ft,tio->foi", waves, taps, precision="highest")


def _phases(kernel, stride):
    """The kernel on the image's stride x stride phases as channels, to be taken with stride 1."""
    if stride == 1:
        return kernel
    kh, kw, i, o = kernel.shape
    rows, columns = -(-kh // stride), -(-kw // stride)
    taps = jnp.pad(kernel, ((0, rows * stride - kh), (0, columns * stride - kw), (0, 0), (0, 0)))
    taps = taps.reshape(rows, stride, columns, stride, i, o).transpose(0, 2, 1, 3, 4, 5)
    return taps.reshape(rows, columns, stride * stride * i, o)


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
    return jnp.max(jnp.where(zero, 0.0, jnp.exp(log_norm))) * (1 + ROUNDING)


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
