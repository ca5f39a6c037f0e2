"""Signs that the attacked end of an interval is still too high (Athalye et al. 2018)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._predictor import predict
from .._types import Key, LogitsFn
from ..attacks import cross_entropy

RANDOMISED = "randomised output"
VANISHING = "vanishing gradients"


def masking_flags(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, *, key: Key
) -> tuple[str, ...]:
    """The flags raised on these images.

    - "randomised output", raised if the same image gets other logits under another key. A single
      gradient or evaluation is then a draw: average over draws (EOT) and judge over many.
    - "vanishing gradients", raised if for more than a tenth of the images the input gradient of
      the cross-entropy is below 1e-12 everywhere. Gradient attacks then stand still: rescale the
      logits, or attack without gradients.
    """
    first_key, second_key, gradient_key = jax.random.split(key, 3)
    flags = []
    first = predict(logits_fn, images, key=first_key)
    if not np.array_equal(first, predict(logits_fn, images, key=second_key)):
        flags.append(RANDOMISED)
    largest = np.asarray(_gradient_sizes(logits_fn, images, labels, gradient_key))
    if np.mean(largest < 1e-12) > 0.1:
        flags.append(VANISHING)
    return tuple(flags)


@eqx.filter_jit
def _gradient_sizes(logits_fn, images, labels, key):
    def largest(x, y, key):
        gradient = jax.grad(lambda x: cross_entropy(logits_fn(x, key=key), y))(x)
        return jnp.max(jnp.abs(gradient))

    return jax.vmap(largest)(images, labels, jax.random.split(key, len(images)))
