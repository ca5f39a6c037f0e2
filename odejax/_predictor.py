"""What is attacked and certified: a frozen model as a function of one image, and its logits."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_count, check_images
from ._frozen import freeze
from ._inputs import as_key
from ._logits import Checked, hoist
from ._mesh import on_mesh, spread, to_host, whole_batch
from ._promotion import own_promotion
from ._types import Image, Key, Logits, LogitsFn
from ._words import counted


class Predictor(eqx.Module):
    """A model in inference mode with derived weights computed once, as a function of one image.

    `predictor(x, key=key) -> logits` for `x` of shape (h, w, c) in [0, 1]. A Module rather than a
    closure: its weights are leaves, so a whole evaluation, and every checkpoint of one
    architecture, shares one trace. `key` drives what is random in the model (the noise of an
    `EnResNet`) and may be left out for deterministic models.

    - `model(x, state, key=key) -> (logits, state)`: any Equinox module called so.
    - `state`: its batch statistics, from `eqx.nn.make_with_state` or `fit`.

    >>> make = eqx.nn.make_with_state(odejax.models.MLP)
    >>> predictor = odejax.Predictor(*make((4, 4, 1), 3, key=jax.random.key(0)))
    >>> predictor(jnp.zeros((4, 4, 1))).shape
    (3,)
    """

    model: Callable[..., tuple[Logits, eqx.nn.State]]
    state: eqx.nn.State

    def __init__(self, model: Callable[..., Any], state: eqx.nn.State):
        self.model = freeze(eqx.nn.inference_mode(model))
        self.state = state

    @own_promotion
    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        return stateless_logits(self.model, self.state, x, key)


def stateless_logits(model, state: eqx.nn.State, x: Image, key: Key | None) -> Logits:
    """The logits alone: `state` can be used again, and what the model does to it is forgotten."""
    logits, _ = model(x, jax.tree.map(lambda leaf: leaf, state), key=key)
    return logits


@eqx.filter_jit
def _batch_logits(logits_fn: LogitsFn, images, key, first):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(len(images)))
    checked = Checked(logits_fn)
    return jax.vmap(lambda x, key: checked(as_pixels(x), key=key))(images, spread(keys))


def as_pixels(images):
    """uint8 images to float32 in [0, 1]; float images unchanged."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


@own_promotion
def predict(logits_fn: LogitsFn, images, *, key: Key | int, batch_size: int = 512) -> np.ndarray:
    """The logits of images, as a NumPy array (n, k).

    Example i draws its noise from `fold_in(key, i)`, so the result does not depend on
    `batch_size`. The last batch is filled up, so there is one trace.

    - `logits_fn(x, key=key)` or `logits_fn(x)`: a network, such as a `Predictor`.
    - `images`: (n, h, w, c), uint8 or float in [0, 1].
    - `key`: of the noise, or an integer seed.
    - `batch_size`: images at a time, 512 by default.

    Raises `ValueError` for images or logits of another form, and `FloatingPointError` on a logit
    that is not finite (minus infinity, for a class that is never predicted, may be).

    >>> images = np.zeros((5, 1, 2, 1), np.uint8)
    >>> odejax.predict(lambda x, *, key: x.ravel(), images, key=jax.random.key(0)).shape
    (5, 2)
    """
    key = as_key(key)
    check_images(images)
    check_count(batch_size=batch_size)
    logits_fn = hoist(logits_fn, as_pixels(images[:1])[0], key)
    logits_fn, out = on_mesh(logits_fn), []
    for first, batch, n in batches(len(images), min(batch_size, len(images))):
        # An array, since filter_jit compiles anew for every Python number.
        first = jnp.asarray(first)
        out.append(to_host(_batch_logits(logits_fn, spread(images[batch]), key, first))[:n])
    logits = np.concatenate(out)
    finite = (logits < np.inf).all(axis=1) & (logits > -np.inf).any(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise FloatingPointError(
            f"{len(bad)} of {counted(len(logits), 'image')} have logits that are not finite, "
            f"the first at index {bad[0]}: the network diverged, or an ODE solve hit its step limit"
        )
    return logits


def batches(n: int, batch_size: int):
    """(first, indices, count) of equal-sized batches; the last repeats its final index.

    Their size is rounded up to what the devices of the mesh divide.
    """
    check_count(batch_size=batch_size)
    batch_size = whole_batch(batch_size)
    for first in range(0, n, batch_size):
        count = min(batch_size, n - first)
        yield first, np.minimum(np.arange(first, first + batch_size), first + count - 1), count
