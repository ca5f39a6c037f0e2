"""Augmentation of one image on the device: `augment(x, key) -> x`, batched and jitted by `fit`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._types import Image, Key

Augmentation = Callable[[Image, Key], Image]


def random_crop(x: Image, key: Key, *, padding: int = 4) -> Image:
    """Pad by `padding` black pixels on every side and cut a window of the old size at random."""
    h, w, c = x.shape
    padded = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), (h, w, c))


def random_flip(x: Image, key: Key) -> Image:
    """Mirror left and right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def crop_and_flip(x: Image, key: Key) -> Image:
    """Random crop with padding 4, then a random flip: the papers' CIFAR-10 augmentation."""
    crop_key, flip_key = jax.random.split(key)
    return random_flip(random_crop(x, crop_key), flip_key)
