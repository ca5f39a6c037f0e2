"""Natural perturbations of one image, by strength (*nmode* 5.2.1, Figs. 6 and 7).

Pure functions of an image in [0, 1] and a strength, which may be traced: a sweep over strengths
compiles once. Strength 0 (for `resize` and `gaussian_blur`: 1) is the image itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._inputs import as_key
from .._types import Image, Key, Scalar


def gaussian_noise(x: Image, strength: float | Scalar, *, key: Key | int) -> Image:
    """x + strength * N(0, I), cut to [0, 1].

    - `x`: an image (h, w, c) in [0, 1].
    - `strength`: the standard deviation, in pixels of [0, 1].
    - `key`: of the noise, or an integer seed.

    >>> noisy = odejax.data.gaussian_noise(jnp.full((50, 50, 1), 0.5), 0.1, key=jax.random.key(0))
    >>> round(float(jnp.std(noisy)), 2)
    0.1

    *nmode* 5.2.1.
    """
    return jnp.clip(x + strength * jax.random.normal(as_key(key), x.shape, x.dtype), 0.0, 1.0)


def brightness(x: Image, strength: float | Scalar) -> Image:
    """x + strength, cut to [0, 1].

    - `x`: an image (h, w, c) in [0, 1].
    - `strength`: in pixels of [0, 1]; negative is darker.

    >>> odejax.data.brightness(jnp.array([0.25, 0.75]).reshape(1, 2, 1), 0.5).ravel().tolist()
    [0.75, 1.0]

    *nmode* 5.2.1.
    """
    return jnp.clip(x + strength, 0.0, 1.0)


def gaussian_blur(x: Image, size: float | Scalar) -> Image:
    """The image blurred by a Gaussian kernel of `size` x `size` pixels, edges repeated.

    The standard deviation is 0.3 ((size - 1) / 2 - 1) + 0.8, OpenCV's formula where only a size is
    given.

    - `x`: an image (h, w, c) in [0, 1].
    - `size`: odd, in pixels; for 1 or less the image is unchanged, sizes beyond 31 are cut to 31.

    >>> dot = jnp.zeros((5, 5, 1)).at[2, 2].set(1.0)
    >>> blurred = odejax.data.gaussian_blur(dot, 3)
    >>> int(jnp.sum(blurred > 0)), round(float(jnp.sum(blurred)), 3)
    (9, 1.0)

    *nmode* 5.2.1.
    """
    half = jnp.clip((size - 1) / 2, 0.0, 15.0)
    sigma = 0.3 * (half - 1) + 0.8
    offsets = jnp.arange(-15, 16)
    weights = jnp.where(jnp.abs(offsets) <= half, jnp.exp(-0.5 * (offsets / sigma) ** 2), 0.0)
    weights = (weights / jnp.sum(weights)).astype(x.dtype)
    for axis in (0, 1):
        n = x.shape[axis]
        rows = jnp.arange(n)[:, None]
        sources = jnp.clip(rows + offsets, 0, n - 1)
        blur = jnp.zeros((n, n), x.dtype).at[rows, sources].add(weights)
        x = jnp.moveaxis(jnp.tensordot(blur, x, (1, axis)), 0, axis)
    return jnp.clip(x, 0.0, 1.0)


def resize(x: Image, size: float | Scalar) -> Image:
    """The image interpolated (bilinear) to `size` x `size` pixels and back to its own size.

    - `x`: an image (h, w, c) in [0, 1].
    - `size`: at least 1, in pixels; sizes beyond the image's are the image's own.

    >>> image = jnp.eye(4)[..., None]
    >>> odejax.data.resize(image, 1)[0, :, 0].tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> bool(jnp.array_equal(odejax.data.resize(image, 4), image))
    True

    *nmode* 5.2.1.
    """
    for axis in (0, 1):
        n = x.shape[axis]
        small = jnp.clip(jnp.round(jnp.asarray(size, x.dtype)), 1.0, n)
        x = jnp.moveaxis(jnp.tensordot(_there_and_back(n, small), x, (1, axis)), 0, axis)
    return jnp.clip(x, 0.0, 1.0)


def _there_and_back(n: int, small: Scalar) -> Float[Array, "n n"]:
    """The matrix that interpolates n pixels to the first `small` of n, and those to n again."""
    places = jnp.arange(n, dtype=small.dtype)
    down = _interpolation((places + 0.5) * n / small - 0.5, n - 1.0, n)
    up = _interpolation((places + 0.5) * small / n - 0.5, small - 1.0, n)
    return up @ down


def _interpolation(at: Float[Array, " m"], last: Scalar | float, n: int) -> Float[Array, "m n"]:
    """Row i holds the weights with which `at[i]` lies between its neighbours among 0 ... last."""
    at = jnp.clip(at, 0.0, last)
    return jnp.maximum(0.0, 1.0 - jnp.abs(at[:, None] - jnp.arange(n)))
