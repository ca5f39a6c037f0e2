"""What gradient attacks climb: `loss(logits, y, target=None) -> scalar`, larger is worse.

Without `target` a loss leaves class y; with one it moves from y to the class `target`.
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
    """
    c = y if target is None else target
    others = jnp.where(jnp.arange(len(logits)) == c, -jnp.inf, logits - logits[c])
    loss = jax.nn.softplus(jax.nn.logsumexp(others))
    return loss if target is None else -loss


def margin_loss(logits: Logits, y: Label, target: Label | None = None) -> Scalar:
    """max_{j != y} z_j - z_y; targeted: z_t - z_y."""
    if target is None:
        return -logit_margin(logits, y)
    return logits[target] - logits[y]


def dlr(logits: Logits, y: Label, target: Label | None = None) -> Scalar:
    """Difference of logits ratio (Croce and Hein 2020), blind to the scale and shift of the logits.

    (max_{j != y} z_j - z_y) / (z_(1) - z_(3)), where z_(1) >= z_(2) >= ... are the sorted logits;
    targeted: (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2). Raises `ValueError` for fewer than 3
    classes (targeted: 4), where the denominator does not exist.
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
