"""Augmentation of one image on the device: `augment(x, key) -> x`, batched and jitted by `fit`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._types import Image, Key

Augmentation = Callable[[Image, Key], Image]


def random_crop(x: Image, key: Key, *, padding: int = 4) -> Image:
    """The image padded by black on every side, and a random window of the old size cut from it.

    - `x`: an image (h, w, c).
    - `key`: of the window.
    - `padding`: pixels on every side, 4 by default.

    >>> odejax.data.random_crop(jnp.ones((8, 8, 3)), jax.random.key(0)).shape
    (8, 8, 3)
    """
    h, w, c = x.shape
    padded = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (h, w, c))


def random_flip(x: Image, key: Key) -> Image:
    """The image, mirrored left and right with probability 1/2.

    - `x`: an image (h, w, c).
    - `key`: of the choice.

    >>> image = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    >>> flipped = [odejax.data.random_flip(image, jax.random.key(i))[0, 0, 0] for i in range(20)]
    >>> sorted({float(pixel) for pixel in flipped})
    [0.0, 1.0]
    """
    return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def crop_and_flip(x: Image, key: Key) -> Image:
    """A random crop with padding 4, then a random flip: the papers' CIFAR-10 augmentation.

    - `x`: an image (h, w, c).
    - `key`: of both.

    >>> odejax.data.crop_and_flip(jnp.ones((8, 8, 3)), jax.random.key(0)).shape
    (8, 8, 3)
    """
    crop_key, flip_key = jax.random.split(key)
    return random_flip(random_crop(x, crop_key), flip_key)
