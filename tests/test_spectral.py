"""Norm bounds are never below the norm, and little above it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits
from jax import lax

from odejax.data import ArrayDataset
from odejax.models import (
    ConvOperator,
    LipschitzNet,
    circular_conv_smallest_square,
    conv_norm_bound,
    matrix_norm_bound,
    matrix_smallest_square,
)
from odejax.training import CrossEntropy, fit


def kernel_of(seed, size=3, inputs=2, outputs=3, scale=1.0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.normal(size=(size, size, inputs, outputs)), jnp.float32)


def smooth_kernel(width):
    taps = np.exp(-((np.arange(3) - 1.0) ** 2) / (2 * width**2))
    return jnp.asarray(np.multiply.outer(np.multiply.outer(taps, taps), np.eye(2)), jnp.float32)


def zero_padded_norm(kernel, image_size, padding, stride=1):
    """The largest singular value of the dense matrix, in float64."""
    with jax.enable_x64(True):
        kernel = jnp.asarray(np.asarray(kernel, np.float64))
        basis = jnp.eye(image_size[0] * image_size[1] * kernel.shape[2], dtype=jnp.float64)
        out = lax.conv_general_dilated(
            basis.reshape(-1, *image_size, kernel.shape[2]), kernel, (stride, stride),
            [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return np.linalg.norm(np.asarray(out).reshape(len(basis), -1), 2)


def circular_norm(kernel, image_size):
    blocks = np.fft.fft2(np.asarray(kernel, np.float64), image_size, axes=(0, 1))
    return np.linalg.svd(blocks, compute_uv=False).max()


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("image_size", [(5, 5), (6, 4)], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 3), (4, 2)])
def test_no_zero_padded_convolution_exceeds_the_bound(inputs, outputs, image_size, padding):
    for seed in range(3):
        kernel = kernel_of(seed, 3, inputs, outputs)
        true = zero_padded_norm(kernel, image_size, padding)
        known = float(conv_norm_bound(kernel, image_size, padding=padding))
        assert true <= known
        assert true <= float(conv_norm_bound(kernel, image_size))


@pytest.mark.parametrize("padding", [1, 2, 5])
@pytest.mark.parametrize("image_size", [(1, 1), (2, 1), (2, 3)], ids=str)
def test_no_kernel_larger_than_the_image_exceeds_the_bound(image_size, padding):
    for seed in range(3):
        kernel = kernel_of(seed, 5 if padding > 1 else 3, 2, 3)
        true = zero_padded_norm(kernel, image_size, padding)
        assert true <= float(conv_norm_bound(kernel, image_size, padding=padding))


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_tridiagonal_matrix_has_its_norm(n, sign):
    """1 + 2 cos(pi / (n + 1)), whichever end of the spectrum it is at."""
    kernel = jnp.asarray([1.0, sign, 1.0]).reshape(3, 1, 1, 1)
    true = 1 + 2 * np.cos(np.pi / (n + 1))
    assert true <= float(conv_norm_bound(kernel, (n, 1), padding=1)) <= 1.001 * true


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("padding", [1, 2])
def test_taps_that_never_meet_the_image_do_not_count(size, padding):
    """However large they are: nothing of them is left to cancel."""
    for n in (1, 2):
        if n + 2 * padding < size:
            continue
        kernel = np.full((size, size, 1, 1), 1e9)
        seen = slice(max(0, size - n - padding), n + padding)
        kernel[seen, seen] = np.random.default_rng(n).normal(size=kernel[seen, seen].shape)
        kernel = jnp.asarray(kernel, jnp.float32)
        true = zero_padded_norm(kernel, (n, n), padding)
        assert true < 100
        assert true <= float(conv_norm_bound(kernel, (n, n), padding=padding)) <= 2 * true


def test_a_kernel_with_peaks_at_both_ends_of_the_spectrum_is_the_worst_case():
    kernel = jnp.asarray(np.outer([1, 0, 1], [1, 0, 1]), jnp.float32)[..., None, None]
    true = zero_padded_norm(kernel, (8, 8), 1)
    assert 1.1 * true < float(conv_norm_bound(kernel, (8, 8), padding=1)) <= 1.14 * true


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (4, 1)])
def test_no_kernel_that_is_even_or_not_square_exceeds_the_bound(rows, columns):
    rng = np.random.default_rng(0)
    for padding in (0, 1, 2):
        kernel = jnp.asarray(rng.normal(size=(rows, columns, 2, 3)), jnp.float32)
        true = zero_padded_norm(kernel, (5, 4), padding)
        assert true <= float(conv_norm_bound(kernel, (5, 4), padding=padding))


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be None, or not negative; got -1"):
        conv_norm_bound(kernel_of(0), (5, 6), padding=-1)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("image_size", [(6, 6), (7, 5)], ids=str)
def test_no_strided_convolution_exceeds_the_bound(image_size, size, stride):
    for padding in (0, 1, 2):
        for seed in range(3):
            kernel = kernel_of(seed, size, 2, 3)
            true = zero_padded_norm(kernel, image_size, padding, stride)
            assert true <= float(conv_norm_bound(kernel, image_size, stride=stride))


def test_strides_cost_five_percent_on_large_images():
    kernel = kernel_of(0, 4, 3, 4)
    true = zero_padded_norm(kernel, (16, 16), 1, stride=2)
    assert true <= float(conv_norm_bound(kernel, (16, 16), stride=2)) <= 1.05 * true
    assert float(conv_norm_bound(kernel, (16, 16))) > 1.2 * true  # what stride 1 would say


@pytest.mark.parametrize("outputs", [3, 5])
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.3])
def test_no_singular_value_lies_below_the_smallest(noise, outputs):
    rng = np.random.default_rng(1)
    kernel = noise * rng.normal(size=(3, 3, 3, outputs))
    kernel[1, 1] += np.linalg.qr(rng.normal(size=(5, 5)))[0][:3, :outputs]
    blocks = np.fft.fft2(kernel, (7, 8), axes=(0, 1)).transpose(0, 1, 3, 2)
    values = np.linalg.svd(blocks, compute_uv=False) ** 2
    high = float(values.max()) * 1.0001
    found = float(circular_conv_smallest_square(jnp.asarray(kernel, jnp.float32), (7, 8), high))
    assert values.min() - 0.02 * high <= found <= values.min()


def test_a_map_to_fewer_dimensions_has_smallest_value_zero():
    assert float(matrix_smallest_square(jnp.ones((2, 3)), 6.0)) == 0
    assert float(circular_conv_smallest_square(jnp.ones((3, 3, 3, 2)), (5, 5), 500.0)) == 0


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_smallest_singular_values_of_matrices(noise):
    rng = np.random.default_rng(2)
    matrix = np.linalg.qr(rng.normal(size=(12, 12)))[0][:, :7] + noise * rng.normal(size=(12, 7))
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    high = float(values.max()) * 1.0001
    found = float(matrix_smallest_square(jnp.asarray(matrix, jnp.float32), high))
    assert values.min() - 0.02 * high <= found <= values.min()


@pytest.mark.parametrize(("stride", "circular"), [(0, False), (2, True)])
def test_strides_that_cannot_be_are_refused(stride, circular):
    with pytest.raises(ValueError, match=f"stride {stride}|stride must be at least 1; got 0"):
        conv_norm_bound(kernel_of(0), (5, 6), stride=stride, circular=circular)


def test_taps_that_come_round_to_one_pixel_count_as_their_sum():
    """Transformed apart, their difference of 1 would be lost in the rounding of 30,000."""
    for seed in range(20):
        a, b, c = np.random.default_rng(seed).uniform(0.5, 1, 3) * [3e4, 1, 1]
        kernel = jnp.asarray([a, b, c - a], jnp.float32).reshape(3, 1, 1, 1)
        first, middle, last = np.asarray(kernel, np.float64).ravel()
        true = abs(first + last) + abs(middle)
        bound = float(conv_norm_bound(kernel, (2, 1), circular=True))
        assert true <= bound <= 1.01 * true


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_no_circular_convolution_exceeds_the_bound_and_it_is_tight(size):
    for seed in range(5):
        kernel = kernel_of(seed, size, 4, 4)
        true = circular_norm(kernel, (7, 8))
        assert true <= float(conv_norm_bound(kernel, (7, 8), circular=True)) <= 1.01 * true


def test_zero_padding_costs_one_percent_on_random_kernels():
    for seed in range(2):
        kernel = kernel_of(seed, 3, 4, 4)
        true = zero_padded_norm(kernel, (14, 14), 1)
        assert true <= float(conv_norm_bound(kernel, (14, 14), padding=1)) <= 1.01 * true


@pytest.mark.parametrize("width", [0.5, 1.0, 100.0])
def test_zero_padding_costs_one_percent_on_smooth_kernels(width):
    kernel = smooth_kernel(width)
    true = zero_padded_norm(kernel, (14, 14), 1)
    assert true <= float(conv_norm_bound(kernel, (14, 14), padding=1)) <= 1.01 * true


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 7), (40, 40), (200, 300)], ids=str)
def test_no_matrix_exceeds_the_bound_and_it_is_tight(shape):
    for seed in range(5):
        matrix = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        true = np.linalg.norm(matrix.astype(np.float64), 2)
        assert true <= float(matrix_norm_bound(jnp.asarray(matrix))) <= 1.01 * true


@pytest.mark.parametrize("n", [1, 10, 256])
def test_orthogonal_matrices_cost_the_most_and_as_documented(n):
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]
    bound = float(matrix_norm_bound(jnp.asarray(q, jnp.float32)))
    assert 1 <= bound <= n ** (1 / 256) * (1 + 1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_bound_scales_with_the_weights(scale):
    kernel = kernel_of(0)
    true = scale * circular_norm(kernel, (6, 6))
    bound = float(conv_norm_bound(kernel * scale, (6, 6), circular=True))
    assert true * (1 - 1e-6) <= bound <= 1.01 * true


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 2, 3)))
        v = jnp.asarray(np.random.default_rng(2).normal(size=kernel.shape))
        for bound in (
            lambda k: conv_norm_bound(k, (5, 6)),
            lambda k: matrix_norm_bound(k.reshape(9, 6)),
        ):
            numeric = (bound(kernel + 1e-6 * v) - bound(kernel - 1e-6 * v)) / 2e-6
            np.testing.assert_allclose(jnp.vdot(jax.grad(bound)(kernel), v), numeric, rtol=1e-6)


def test_zero_weights_have_norm_zero_and_finite_gradients():
    for bound, weights in (
        (lambda k: conv_norm_bound(k, (5, 5)), jnp.zeros((3, 3, 2, 2))),
        (matrix_norm_bound, jnp.zeros((4, 3))),
    ):
        value, gradient = jax.value_and_grad(bound)(weights)
        assert float(value) == 0
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_compiled_gradients_are_finite_whatever_xla_fuses(channels):
    # The gradient through the largest |z| was 0 / 0 where XLA rounded |z| in two ways.
    kernel = jax.random.normal(jax.random.key(channels), (3, 3, channels, channels))
    gradient = jax.jit(jax.grad(lambda kernel: conv_norm_bound(kernel, (8, 8))))(kernel)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(6))
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
        bound = conv_norm_bound(operator.kernel, operator.image_size, padding=1)
        # The fewer pixels, the more of them lie at the edge, which the bound does not see.
        assert true <= float(bound) <= {8: 1.05, 4: 1.1}[operator.image_size[0]] * true
