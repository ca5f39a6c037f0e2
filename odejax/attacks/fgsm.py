"""The fast gradient sign method (Goodfellow et al. 2015), for any ball."""

from collections.abc import Callable

import equinox as eqx
import jax

from .._threat_model import AbstractBall
from .._types import Image, Key, Label, Logits, LogitsFn, Scalar
from .base import AbstractAttack
from .losses import cross_entropy


class FGSM(AbstractAttack):
    """x' = x + eps * steepest(grad_x loss(x)): sign(grad) in the L-infinity ball.

    The exact optimum when logits are linear, there are two classes and the box does not bind.
    """

    loss: Callable[[Logits, Label], Scalar] = eqx.field(static=True, default=cross_entropy)

    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, int]:
        gradient = jax.grad(lambda x: self.loss(logits_fn(x, key=key), y))(x)
        return x + ball.eps * ball.steepest(gradient), 1
