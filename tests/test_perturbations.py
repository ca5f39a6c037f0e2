"""Natural perturbations against SciPy, JAX's own resize, and what must not change an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from odejax.data import brightness, gaussian_blur, gaussian_noise, resize

KEY = jax.random.key(3)
SHAPES = [(8, 8, 1), (28, 28, 1), (9, 14, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def image(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@jax.jit
def without_strength(x):
    return (
        gaussian_noise(x, 0.0, key=KEY),
        brightness(x, 0.0),
        gaussian_blur(x, 1),
        resize(x, max(x.shape)),
    )


@each_shape
def test_no_strength_is_no_change(shape):
    x = image(shape)
    noisy, bright, blurred, resized = without_strength(x)
    np.testing.assert_array_equal(noisy, x)
    np.testing.assert_array_equal(bright, x)
    np.testing.assert_allclose(blurred, x, atol=1e-6)
    np.testing.assert_allclose(resized, x, atol=1e-5)


@each_shape
@pytest.mark.parametrize("size", [3, 5, 9])
def test_blur_is_scipys_with_the_kernel_of_opencv(shape, size):
    half = size // 2
    sigma = 0.3 * (half - 1) + 0.8
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    x = image(shape)
    expected = np.asarray(x, np.float64)
    for axis in (0, 1):
        expected = correlate1d(expected, kernel, axis=axis, mode="nearest")
    # Compiled once for a shape; what is called outside is below.
    np.testing.assert_allclose(jax.jit(gaussian_blur)(x, float(size)), expected, atol=1e-6)


FAST_SIZES = {(8, 8, 1): (5,), (28, 28, 1): (8,), (9, 14, 3): (1, 2)}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        pytest.param(shape, size, marks=[pytest.mark.slow] * (size not in FAST_SIZES[shape]))
        for shape in SHAPES
        for size in (1, 2, 5, 8)
    ],
    ids=str,
)
def test_resize_is_jaxs_there_and_back(shape, size):
    x = image(shape)
    small = (min(size, shape[0]), min(size, shape[1]), shape[2])

    @jax.jit
    def expected(x):
        there = jax.image.resize(x, small, "linear", antialias=False)
        return jax.image.resize(there, shape, "linear", antialias=False)

    np.testing.assert_allclose(jax.jit(resize)(x, float(size)), expected(x), atol=1e-5)


def test_noise_has_its_strength_and_is_cut_to_the_box():
    x = jnp.full((100, 100, 1), 0.5)
    noise = np.asarray(gaussian_noise(x, 0.1, key=KEY)) - 0.5
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 0.1) < 0.005
    strong = gaussian_noise(x, 3.0, key=KEY)
    assert (strong.min(), strong.max()) == (0.0, 1.0)


def test_brightness_shifts_and_cuts():
    x = jnp.asarray([0.0, 0.4, 0.9]).reshape(1, 3, 1)
    np.testing.assert_allclose(brightness(x, 0.3).ravel(), [0.3, 0.7, 1.0], atol=1e-7)
    np.testing.assert_allclose(brightness(x, -0.5).ravel(), [0.0, 0.0, 0.4], atol=1e-7)


@pytest.mark.parametrize("perturb", [brightness, gaussian_blur, resize])
def test_a_sweep_over_strengths_compiles_once_and_equals_single_calls(perturb):
    x, traces = image((8, 8, 1)), []

    @jax.jit
    def swept(x, strength):
        traces.append(None)
        return perturb(x, strength)

    @jax.jit
    def single(x):
        """With each strength as a number of Python."""
        return [perturb(x, strength) for strength in (1, 3, 5)]

    one_by_one = single(x)
    for strength, expected in zip((1.0, 3.0, 5.0), one_by_one, strict=True):
        np.testing.assert_allclose(swept(x, strength), expected, atol=1e-6)
    assert len(traces) == 1
    strengths = jnp.asarray([1.0, 3.0, 5.0])
    batch = np.asarray(jax.jit(jax.vmap(perturb, (None, 0)))(x, strengths))
    np.testing.assert_allclose(batch[1], one_by_one[1], atol=1e-6)
    assert (batch.min() >= 0) & (batch.max() <= 1)
