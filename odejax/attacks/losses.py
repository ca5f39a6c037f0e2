"""What gradient attacks climb: `loss(logits, y) -> scalar`, larger is worse for the defender."""

import jax

from .._types import Label, Logits, Scalar


def cross_entropy(logits: Logits, y: Label) -> Scalar:
    """-log softmax(z)_y."""
    return jax.nn.logsumexp(logits) - logits[y]
