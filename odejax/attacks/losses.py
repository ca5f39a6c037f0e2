"""What gradient attacks climb: `loss(logits, y, target=None) -> scalar`, larger is worse.

Without `target` a larger loss is further from class y; with one it is nearer to class `target`.
"""

import jax
import jax.numpy as jnp

from .._types import Label, Logits, Scalar
from .base import logit_margin


def cross_entropy(logits: Logits, y: Label, target: Label | None = None) -> Scalar:
    """-log softmax(z)_y; targeted: log softmax(z)_t.

    As log(1 + sum_{j != y} exp(z_j - z_y)), whose gradient keeps its digits until the other
    classes' probabilities underflow at 1e-38; as logsumexp(z) - z_y it is noise below 1e-7, and a
    confident network would hide behind the rounding.

    - `logits`: z, of shape (k,).
    - `y`, `target`: classes; without a target (None, the default) the loss is large away from `y`.

    >>> round(float(odejax.attacks.cross_entropy(jnp.array([1.0, 1.0]), 0)), 4)  # log 2
    0.6931
    """
    label = y if target is None else target
    others = jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits - logits[label])
    loss = jax.nn.softplus(jax.nn.logsumexp(others))
    return loss if target is None else -loss


def margin_loss(logits: Logits, y: Label, target: Label | None = None) -> Scalar:
    """max_{j != y} z_j - z_y; targeted: z_t - z_y.

    - `logits`: z, of shape (k,).
    - `y`, `target`: classes; without a target (None, the default) the largest other logit is taken.

    >>> float(odejax.attacks.margin_loss(jnp.array([2.0, 0.5, -1.0]), 0))
    -1.5
    """
    if target is None:
        return -logit_margin(logits, y)
    return logits[target] - logits[y]


def dlr(logits: Logits, y: Label, target: Label | None = None) -> Scalar:
    """Difference of logits ratio: a loss that ignores the scale and shift of the logits.

        (max_{j != y} z_j - z_y) / (z_(1) - z_(3))
        targeted: (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)

    where z_(1) >= z_(2) >= ... are the sorted logits.

    - `logits`: z, of shape (k,).
    - `y`, `target`: classes; None, the default, is the untargeted loss.

    Raises `ValueError` for fewer than 3 classes (targeted: 4), where the denominator does not
    exist.

    >>> float(odejax.attacks.dlr(jnp.array([4.0, 3.0, 2.0, 0.0]), 0))
    -0.5

    Croce and Hein 2020, arXiv:2003.01690.
    """
    needed = 3 if target is None else 4
    if len(logits) < needed:
        kind = "" if target is None else "targeted "
        raise ValueError(
            f"the {kind}DLR loss needs {needed} classes; got {len(logits)}: take margin_loss"
        )
    top = jax.lax.top_k(logits, needed)[0]
    lower = top[2] if target is None else (top[2] + top[3]) / 2
    return margin_loss(logits, y, target) / (top[0] - lower + 1e-12)
