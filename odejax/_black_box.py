"""A network that is known by its scores alone, whatever it is written in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._checks import check_callable, check_count
from ._types import Image, Key, Logits


class BlackBox(eqx.Module):
    """A network outside JAX, known by its scores: of PyTorch, ONNX, scikit-learn, or a service.

        z(x) = scores(x[None])[0]

    Under `jax.vmap` and `jit` whole batches are handed to `scores` in one call
    (`jax.pure_callback`), so an attack step on a batch is one call. It has no gradient: attack it
    with `Square`, `SPSA` or `Boundary`, or with images crafted on a network of your own
    (`bracket(oracles=...)`). A vote under noise, `Smoothed`, has a certificate
    (`RandomizedSmoothing`).

    - `scores(images)`: images, NumPy's float32 (n, h, w, c) in [0, 1], to their logits (n, k). An
      image must always have the same ones.
    - `n_classes`: k.

    Raises `ValueError` where a gradient is taken, and for scores of another shape: those of one
    image are looked at before an evaluation begins.

    >>> weight = np.random.default_rng(0).normal(size=(16, 3))
    >>> network = odejax.BlackBox(lambda images: images.reshape(len(images), -1) @ weight, 3)
    >>> odejax.predict(network, np.full((2, 4, 4, 1), 0.5, np.float32), key=0).shape
    (2, 3)

    Papernot et al. (2017), arXiv:1602.02697, for the threat.
    """

    scores: Callable[[np.ndarray], Any] = eqx.field(static=True)
    n_classes: int = eqx.field(static=True)

    def __check_init__(self):
        check_callable(scores=self.scores)
        check_count(2, n_classes=self.n_classes)

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        shape = jax.ShapeDtypeStruct((self.n_classes,), jnp.float32)

        @jax.custom_jvp
        def logits(x):
            return jax.pure_callback(self._scores, shape, x, vmap_method="expand_dims")

        @logits.defjvp
        def _(primals, tangents):
            raise ValueError(NO_GRADIENT)

        return logits(x)

    def _scores(self, images) -> np.ndarray:
        """The scores of images (..., h, w, c): one for each `vmap`, and none."""
        images = np.array(images, np.float32)  # a copy, which PyTorch may write to
        batch = images.reshape(-1, *images.shape[-3:])
        scores, shape = np.asarray(self.scores(batch)), (len(batch), self.n_classes)
        if scores.shape != shape or not np.issubdtype(scores.dtype, np.floating):
            raise ValueError(
                f"scores must return floats of shape {shape}; got {scores.dtype} of shape "
                f"{scores.shape}"
            )
        return scores.astype(np.float32).reshape(*images.shape[:-3], self.n_classes)

    def hoisted(self, x, key: Key) -> "BlackBox":
        """Itself, once `scores` has been tried on an image: within a program its error is long."""
        if not isinstance(x, Tracer):
            self._scores(x)
        return self


NO_GRADIENT = (
    "a BlackBox has no gradient: attack it with Square, SPSA or Boundary, or with images crafted "
    "on another network"
)


def has_black_box(network: Any) -> bool:
    """Whether a `BlackBox` is in a network, such as in an average or a vote of one."""

    def is_black_box(node):
        return isinstance(node, BlackBox)

    return any(map(is_black_box, jax.tree.leaves(network, is_leaf=is_black_box)))
