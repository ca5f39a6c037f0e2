"""Norm bounds are never below the norm, and little above it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits
from numpy.lib.stride_tricks import sliding_window_view
from scipy.linalg import eigh

from odejax.data import ArrayDataset
from odejax.models import (
    ConvOperator,
    LipschitzNet,
    circular_conv_smallest_square,
    conv_norm_bound,
    matrix_norm_bound,
    matrix_smallest_square,
    spectral,
)
from odejax.training import CrossEntropy, fit


def kernels_of(seeds, size=3, inputs=2, outputs=3):
    shape = (size, size, inputs, outputs)
    drawn = [np.random.default_rng(seed).normal(size=shape) for seed in range(seeds)]
    return np.stack(drawn).astype(np.float32)


def smooth_kernel(width):
    taps = np.exp(-((np.arange(3) - 1.0) ** 2) / (2 * width**2))
    kernel = np.multiply.outer(np.multiply.outer(taps, taps), np.eye(2))
    return kernel.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("image_size", "stride", "circular", "paddings"))
def conv_bounds(kernels, image_size, *, stride=1, circular=False, paddings=(None,)):
    """A row of bounds for each padding, with one of each kernel: all in one program."""
    rows = []
    for padding in paddings:
        how = dict(stride=stride, circular=circular, padding=padding)
        rows.append(jax.vmap(lambda k, how=how: conv_norm_bound(k, image_size, **how))(kernels))
    return jnp.stack(rows)


matrix_bounds = jax.jit(jax.vmap(matrix_norm_bound))


def conv_bound(kernel, image_size, **how):
    if "padding" in how:
        how["paddings"] = (how.pop("padding"),)
    return float(conv_bounds(np.asarray(kernel)[None], image_size, **how)[0, 0])


def largest_singular_value(matrix):
    """From the smaller Gram matrix: in float64 precise enough, and much faster than an SVD."""
    matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    last = len(matrix) - 1
    return np.sqrt(eigh(matrix @ matrix.T, eigvals_only=True, subset_by_index=(last, last))[0])


def zero_padded_norm(kernel, image_size, padding, stride=1):
    """The largest singular value of the dense matrix, in float64."""
    kernel = np.asarray(kernel, np.float64)
    basis = np.eye(image_size[0] * image_size[1] * kernel.shape[2])
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    images = np.pad(basis.reshape(-1, *image_size, kernel.shape[2]), around)
    seen = sliding_window_view(images, kernel.shape[:2], axis=(1, 2))[:, ::stride, ::stride]
    out = np.tensordot(seen, kernel, axes=((4, 5, 3), (0, 1, 2)))
    return largest_singular_value(out.reshape(len(basis), -1))


def circular_norm(kernel, image_size):
    blocks = np.fft.fft2(np.asarray(kernel, np.float64), image_size, axes=(0, 1))
    return np.linalg.svd(blocks, compute_uv=False).max()


@pytest.mark.parametrize(
    ("inputs", "outputs", "image_size"), [(1, 1, (6, 4)), (2, 3, (5, 5)), (4, 2, (6, 4))], ids=str
)
def test_no_zero_padded_convolution_exceeds_the_bound(inputs, outputs, image_size):
    kernels = kernels_of(3, 3, inputs, outputs)
    # No number of zeros, and so none above 2, exceeds what is said without one.
    *known, unknown = np.asarray(conv_bounds(kernels, image_size, paddings=(0, 1, None)))
    for padding in (0, 1, 2, 3):
        true = np.asarray([zero_padded_norm(kernel, image_size, padding) for kernel in kernels])
        assert (true <= unknown).all()
        if padding < len(known):
            assert (true <= known[padding]).all()


@pytest.mark.parametrize(
    ("image_size", "padding"), [((1, 1), 1), ((2, 1), 2), ((1, 1), 5), ((2, 3), 5)], ids=str
)
def test_no_kernel_larger_than_the_image_exceeds_the_bound(image_size, padding):
    kernels = kernels_of(3, 5 if padding > 1 else 3)
    (bounds,) = conv_bounds(kernels, image_size, paddings=(padding,))
    for kernel, bound in zip(kernels, np.asarray(bounds), strict=True):
        assert zero_padded_norm(kernel, image_size, padding) <= bound


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_tridiagonal_matrix_has_its_norm(n):
    """1 + 2 cos(pi / (n + 1)), whichever end of the spectrum it is at."""
    kernels = np.float32([[1, 1, 1], [1, -1, 1]]).reshape(2, 3, 1, 1, 1)
    bounds = np.asarray(conv_bounds(kernels, (n, 1), paddings=(1,)))
    true = 1 + 2 * np.cos(np.pi / (n + 1))
    assert (true <= bounds).all()
    assert (bounds <= 1.001 * true).all()


@pytest.mark.parametrize(("size", "padding", "n"), [(3, 1, 1), (4, 1, 2), (5, 2, 1), (5, 2, 2)])
def test_taps_that_never_meet_the_image_do_not_count(size, padding, n):
    """However large they are: nothing of them has to cancel."""
    kernel = np.full((size, size, 1, 1), 1e9, np.float32)
    seen = slice(size - n - padding, n + padding)
    kernel[seen, seen] = np.random.default_rng(n).normal(size=kernel[seen, seen].shape)
    assert kernel.max() == 1e9  # some taps are out of reach
    true = zero_padded_norm(kernel, (n, n), padding)
    assert true < 100
    assert true <= conv_bound(kernel, (n, n), padding=padding) <= 2 * true


def test_a_kernel_with_peaks_at_both_ends_of_the_spectrum_is_the_worst_case():
    kernel = np.outer([1, 0, 1], [1, 0, 1]).astype(np.float32)[..., None, None]
    true = zero_padded_norm(kernel, (8, 8), 1)
    assert 1.1 * true < conv_bound(kernel, (8, 8), padding=1) <= 1.14 * true


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (4, 1)])
def test_no_kernel_that_is_even_or_not_square_exceeds_the_bound(rows, columns):
    kernels = np.random.default_rng(0).normal(size=(2, rows, columns, 2, 3)).astype(np.float32)
    bounds = np.asarray(conv_bounds(kernels, (5, 4), paddings=(0, 1, 2)))
    for padding, row in enumerate(bounds):
        for kernel, bound in zip(kernels, row, strict=True):
            assert zero_padded_norm(kernel, (5, 4), padding) <= bound


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be None, or not negative; got -1"):
        conv_norm_bound(jnp.ones((3, 3, 2, 3)), (5, 6), padding=-1)


@pytest.mark.parametrize(
    ("image_size", "size", "stride"),
    [
        ((6, 6), 1, 3),
        ((6, 6), 3, 2),
        ((6, 6), 4, 3),
        ((7, 5), 1, 2),
        ((7, 5), 3, 3),
        ((7, 5), 4, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("small", [spectral.SMALL, 0], ids=["matrix", "torus"])
def test_no_strided_convolution_exceeds_the_bound(image_size, size, stride, small, monkeypatch):
    monkeypatch.setattr(spectral, "SMALL", small)
    conv_bounds.clear_cache()
    kernels = kernels_of(3, size)
    unknown, *known = np.asarray(
        conv_bounds(kernels, image_size, stride=stride, paddings=(None, 0, 1, 2))
    )
    for padding, bounds in enumerate(known):
        true = [zero_padded_norm(kernel, image_size, padding, stride) for kernel in kernels]
        assert (true <= unknown).all()
        assert (true <= bounds).all()
        if small:
            assert (bounds <= np.multiply(1.02, true)).all()


@pytest.mark.parametrize("case", range(4))
def test_no_torus_is_too_small_for_its_stride(case, monkeypatch):
    """Kernels larger than the image, taps that never meet it, pixels that no output depends on."""
    monkeypatch.setattr(spectral, "SMALL", 0)
    rng = np.random.default_rng(case)
    for _ in range(6):
        h, w, k, stride, padding = rng.integers([1, 1, 1, 1, 0], [7, 7, 6, 5, 5]).tolist()
        if min(h, w) + 2 * padding < k:
            continue
        kernel = rng.normal(size=(k, k, 1, 2)).astype(np.float32)
        bound = conv_norm_bound(kernel, (h, w), stride=stride, padding=padding)
        assert zero_padded_norm(kernel, (h, w), padding, stride) <= float(bound)


def test_a_convolution_without_an_output_has_norm_zero():
    assert float(conv_norm_bound(jnp.ones((5, 5, 1, 1)), (2, 2), stride=2, padding=0)) == 0


def test_strides_cost_five_percent_on_large_images():
    (kernel,) = kernels_of(1, 4, 3, 4)
    true = zero_padded_norm(kernel, (16, 16), 1, stride=2)
    anywhere, known = np.asarray(conv_bounds(kernel[None], (16, 16), stride=2, paddings=(None, 1)))
    assert true <= known[0] <= 1.02 * true
    assert true <= anywhere[0] <= 1.05 * true
    assert conv_bound(kernel, (16, 16)) > 1.2 * true  # what stride 1 would say


smallest_squares = jax.jit(jax.vmap(matrix_smallest_square))


@pytest.mark.parametrize("outputs", [3, 5])
def test_no_singular_value_lies_below_the_smallest(outputs):
    rng = np.random.default_rng(1)
    kernels = np.asarray([[[[0.0]]], [[[0.03]]], [[[0.3]]]])[..., None] * rng.normal(
        size=(3, 3, 3, 3, outputs)
    )
    kernels[:, 1, 1] += np.linalg.qr(rng.normal(size=(5, 5)))[0][:3, :outputs]
    blocks = np.fft.fft2(kernels, (7, 8), axes=(1, 2)).swapaxes(3, 4)
    values = np.linalg.svd(blocks, compute_uv=False).reshape(3, -1) ** 2
    high = np.float32(values.max(axis=1) * 1.0001)

    @jax.jit
    @jax.vmap
    def smallest(kernel, high):
        return circular_conv_smallest_square(kernel, (7, 8), high)

    bound = np.asarray(smallest(kernels.astype(np.float32), high))
    assert (values.min(axis=1) - 0.02 * high <= bound).all()
    assert (bound <= values.min(axis=1)).all()


def test_a_map_to_fewer_dimensions_has_smallest_value_zero():
    wide = jax.jit(lambda high: circular_conv_smallest_square(jnp.ones((3, 3, 3, 2)), (5, 5), high))
    assert float(matrix_smallest_square(jnp.ones((2, 3)), 6.0)) == 0
    assert float(wide(500.0)) == 0


def test_smallest_singular_values_of_matrices():
    rng = np.random.default_rng(2)
    noise = np.asarray([0.0, 0.1])[:, None, None] * rng.normal(size=(2, 12, 7))
    matrices = np.linalg.qr(rng.normal(size=(12, 12)))[0][:, :7] + noise
    values = np.linalg.svd(matrices, compute_uv=False) ** 2
    high = np.float32(values.max(axis=1) * 1.0001)
    bound = np.asarray(smallest_squares(matrices.astype(np.float32), high))
    assert (values.min(axis=1) - 0.02 * high <= bound).all()
    assert (bound <= values.min(axis=1)).all()


def test_rounding_lifts_no_smallest_value_above_the_true_one():
    # Orthogonal to float32: all singular values are within its rounding of each other.
    rng = np.random.default_rng(1)
    matrices = np.stack([np.linalg.qr(rng.normal(size=(5, 3)))[0] for _ in range(20)])
    matrices = matrices.astype(np.float32)
    values = np.linalg.svd(matrices.astype(np.float64), compute_uv=False) ** 2
    high = np.nextafter(np.float32(values.max(axis=1)), np.float32(2))
    bound = np.asarray(smallest_squares(matrices, high))
    assert (bound <= values.min(axis=1)).all()
    assert (bound >= 0.999 * values.min(axis=1)).all()


@pytest.mark.parametrize(("stride", "circular"), [(0, False), (2, True)])
def test_strides_that_cannot_be_are_refused(stride, circular):
    with pytest.raises(ValueError, match=f"stride {stride}|stride must be at least 1; got 0"):
        conv_norm_bound(jnp.ones((3, 3, 2, 3)), (5, 6), stride=stride, circular=circular)


def test_taps_that_come_round_to_one_pixel_count_as_their_sum():
    """Transformed apart, their difference of 1 would be lost in the rounding of 30,000."""
    drawn = [np.random.default_rng(seed).uniform(0.5, 1, 3) for seed in range(20)]
    a, b, c = np.transpose(drawn) * [[3e4], [1], [1]]
    kernels = np.stack([a, b, c - a], axis=1).astype(np.float32)
    first, middle, last = np.float64(kernels).T
    true = np.abs(first + last) + np.abs(middle)
    bounds = np.asarray(conv_bounds(kernels.reshape(20, 3, 1, 1, 1), (2, 1), circular=True))
    assert (true <= bounds).all()
    assert (bounds <= 1.01 * true).all()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_circular_convolution_exceeds_the_bound_and_it_is_tight(size):
    kernels = kernels_of(5, size, 4, 4)
    (bounds,) = np.asarray(conv_bounds(kernels, (7, 8), circular=True))
    for kernel, bound in zip(kernels, bounds, strict=True):
        true = circular_norm(kernel, (7, 8))
        assert true <= bound <= 1.01 * true


@pytest.mark.parametrize(
    "kernels",
    [kernels_of(2, 3, 4, 4), np.stack([smooth_kernel(width) for width in (0.5, 1.0, 100.0)])],
    ids=["random", "smooth"],
)
def test_zero_padding_costs_one_percent(kernels):
    (bounds,) = np.asarray(conv_bounds(kernels, (14, 14), paddings=(1,)))
    for kernel, bound in zip(kernels, bounds, strict=True):
        true = zero_padded_norm(kernel, (14, 14), 1)
        assert true <= bound <= 1.01 * true


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (40, 40), (200, 300)], ids=str)
def test_no_matrix_exceeds_the_bound_and_it_is_tight(shape):
    drawn = [np.random.default_rng(seed).normal(size=shape) for seed in range(3)]
    matrices = np.stack(drawn).astype(np.float32)
    true = np.asarray([largest_singular_value(matrix) for matrix in np.float64(matrices)])
    bounds = np.asarray(matrix_bounds(matrices))
    assert (true <= bounds).all()
    assert (bounds <= 1.01 * true).all()


@pytest.mark.parametrize("n", [1, 10, 256])
def test_orthogonal_matrices_cost_the_most_and_as_documented(n):
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    (bound,) = np.asarray(matrix_bounds(q[None].astype(np.float32)))
    assert 1 <= bound <= n ** (1 / 256) * (1 + 1e-3)


def test_the_bound_scales_with_the_weights():
    (kernel,), scales = kernels_of(1), np.float32([1e-30, 1e-12, 1e12, 1e30])
    true = scales * circular_norm(kernel, (6, 6))
    kernels = kernel * scales[:, None, None, None, None]
    bounds = np.asarray(conv_bounds(kernels, (6, 6), circular=True), np.float64)
    assert (true * (1 - 1e-6) <= bounds).all()
    assert (bounds <= 1.01 * true).all()


@pytest.mark.parametrize(
    "bound",
    [lambda k: conv_norm_bound(k, (5, 6)), lambda k: matrix_norm_bound(k.reshape(9, 6))],
    ids=["convolution", "matrix"],
)
def test_gradients_are_finite_differences(bound):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 3))
    v = np.random.default_rng(2).normal(size=kernel.shape)
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(bound))
        (up, _), (down, _) = both(kernel + 1e-6 * v), both(kernel - 1e-6 * v)
        gradient = np.asarray(both(kernel)[1])
        numeric = (float(up) - float(down)) / 2e-6
    np.testing.assert_allclose(np.vdot(gradient, v), numeric, rtol=1e-6)


@pytest.mark.parametrize(
    ("bound", "shape"),
    [(lambda k: conv_norm_bound(k, (5, 5)), (3, 3, 2, 2)), (matrix_norm_bound, (4, 3))],
    ids=["convolution", "matrix"],
)
def test_zero_weights_have_norm_zero_and_finite_gradients(bound, shape):
    value, gradient = jax.jit(jax.value_and_grad(bound))(np.zeros(shape, np.float32))
    assert float(value) == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_compiled_gradients_are_finite_whatever_xla_fuses(channels):
    # The gradient through the largest |z| was 0 / 0 where XLA rounded |z| in two ways.
    kernel = np.asarray(jax.random.normal(jax.random.key(channels), (3, 3, channels, channels)))
    gradient = jax.jit(jax.grad(lambda kernel: conv_norm_bound(kernel, (8, 8))))(kernel)
    assert np.isfinite(gradient).all()


@pytest.mark.slow  # it trains; what a bound costs on other kernels is tested above
@pytest.mark.parametrize("seed", range(2))
def test_the_bound_of_trained_kernels_is_within_a_few_percent(seed):
    """Zero-padded 3x3 convolutions of a network that was trained with the bound in every step."""
    small = digits()
    images = np.kron(small.images, np.ones((1, 2, 2, 1), np.uint8))
    dataset = ArrayDataset(images, small.labels, 10, small.name, small.split)
    make = eqx.nn.make_with_state(LipschitzNet)
    model, state = make((16, 16, 1), 10, width=8, depth=1, features=16, key=jax.random.key(seed))
    trained = fit(
        model,
        state,
        dataset,
        CrossEntropy(temperature=0.2),
        optax.adam(5e-3),
        epochs=8,
        batch_size=64,
        key=jax.random.key(seed + 1),
        progress=False,
    )
    assert trained.history[-1]["train_accuracy"] > 0.9
    operators = [
        leaf
        for leaf in jax.tree.leaves(
            trained.model, is_leaf=lambda leaf: isinstance(leaf, ConvOperator)
        )
        if isinstance(leaf, ConvOperator)
    ]
    assert [operator.image_size for operator in operators] == [(8, 8), (8, 8), (4, 4)]
    for operator in operators:
        assert not operator.circular
        true = zero_padded_norm(operator.kernel, operator.image_size, 1)
        bound = conv_bound(operator.kernel, operator.image_size, padding=1)
        # The fewer pixels, the more of them lie at the edge, which the bound does not use.
        assert true <= bound <= {8: 1.05, 4: 1.1}[operator.image_size[0]] * true
