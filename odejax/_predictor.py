"""What is attacked and certified: a model and its state, frozen."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import check_count, check_images
from ._frozen import freeze
from ._inputs import as_key
from ._logits import Checked, hoist
from ._mesh import on_mesh, spread, to_host, whole_batch
from ._promotion import own_promotion
from ._types import Image, Key, Logits, LogitsFn


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


class MeanLogits(eqx.Module):
    """Mean logits over fixed draws of noise: one deterministic classifier from a random one.

        z(x) = mean_d logits_fn(x, key=keys[d])

    Its own `key` is ignored. A randomised network is evaluated by it, so that no image counts as
    correct, or as wrong, because of a single draw.

    - `logits_fn(x, key=key)`: a network that draws noise.
    - `keys`: an array of keys, of shape (draws,).

    >>> noisy = lambda x, *, key: x.ravel() + jax.random.normal(key, (2,))
    >>> mean = odejax.MeanLogits(noisy, jax.random.split(jax.random.key(0), 10_000))
    >>> mean(jnp.array([0.0, 1.0]).reshape(1, 2, 1)).round(1).tolist()
    [0.0, 1.0]
    """

    logits_fn: LogitsFn
    keys: Array  # (draws,) keys

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        each = jax.vmap(lambda k: Checked(self.logits_fn)(x, key=k))(self.keys)
        return jnp.mean(each, axis=0)

    def hoisted(self, x, key: Key) -> "MeanLogits":
        return MeanLogits(hoist(self.logits_fn, x, self.keys[0]), self.keys)


class EnsembleLogits(eqx.Module):
    """The weighted sum of the logits of separately trained networks (*enresnet* 4.2, Table 7).

        z(x) = sum_m w_m z_m(x)

    A gradient recomputes the activations of one member after the other, so its memory does not grow
    with their number.

    - `members`: functions of (x, key=key), such as `Predictor`s.
    - `weights`: w, one for each member; None, the default, is 1 / n.

    Raises `ValueError` for no members, or another number of weights.

    >>> members = [lambda x, *, key: x.ravel(), lambda x, *, key: 3 * x.ravel()]
    >>> odejax.EnsembleLogits(members)(jnp.array([0.0, 1.0]).reshape(1, 2, 1)).tolist()
    [0.0, 2.0]
    """

    members: tuple[LogitsFn, ...]
    weights: Float[Array, " n"]

    def __init__(self, members: Sequence[LogitsFn], weights: Sequence[float] | None = None):
        if not members:
            raise ValueError("an ensemble needs at least one member; got none")
        if weights is not None and len(weights) != len(members):
            raise ValueError(f"{len(members)} members need as many weights; got {len(weights)}")
        self.members = tuple(members)
        self.weights = jnp.asarray(
            [1 / len(members)] * len(members) if weights is None else weights, jnp.float32
        )

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        n = len(self.members)
        keys = jnp.zeros(n) if key is None else jax.random.split(key, n)

        def branch(member: Any):
            return lambda x, k: member(x, key=None if key is None else k)

        checked = [branch(Checked(member)) for member in self.members]
        shapes = [jax.eval_shape(one, x, keys[0]) for one in checked]
        # Added up in float32 at least, whatever the members compute in.
        dtype = jnp.result_type(jnp.float32, *(shape.dtype for shape in shapes))

        def alike(one):
            return lambda x, k: one(x, k).astype(dtype)

        branches = [alike(one) for one in checked]

        # A loop, whose turns cannot overlap: left to itself the compiler runs all members at once.
        @jax.checkpoint
        def add(total, turn):
            i, weight, key = turn
            return total + weight.astype(dtype) * jax.lax.switch(i, branches, x, key), None

        zero = jnp.zeros(shapes[0].shape, dtype)
        return jax.lax.scan(add, zero, (jnp.arange(n), self.weights, keys))[0]

    def hoisted(self, x, key: Key) -> "EnsembleLogits":
        members = tuple(hoist(member, x, key) for member in self.members)
        return eqx.tree_at(lambda e: e.members, self, members)


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
            f"{len(bad)} of {len(logits)} images have logits that are not finite, "
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
