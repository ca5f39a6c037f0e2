"""Training in a ball that grows."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import PyTree

from .._checks import check_count
from .._threat_model import AbstractBall
from .._types import Images, Key, Labels, Scalar
from .certified import CertifiedTraining
from .gradients import AbstractGradientRule, Derivative, Gradient
from .objectives import Objective


class RisingEps(AbstractGradientRule):
    """The derivative of an objective about a ball, whose eps rises to its own.

    Linearly, in `steps` steps. In a large ball (MNIST's 0.3) a fresh network may learn nothing
    against an attack or a bound, and settle on the same logits for every image.

    - `objective`: one with a `ball` of its own: `Adversarial`, `TRADES`, `CertifiedTraining` (whose
      whole warm-up it is).
    - `steps`: of the optimizer, in which eps rises.
    - `wait`: how many steps at eps 0 come first (0).

    Raises `ValueError` for an objective that has no `ball`, fewer than one step, or a negative
    `wait`.

    >>> from odejax.training import Adversarial, RisingEps
    >>> adversarial = Adversarial(odejax.attacks.PGD(steps=10, last=True), odejax.LinfBall(0.3))
    >>> rule = RisingEps(adversarial, steps=1000)
    >>> int(rule.init((32, 28, 28, 1)))  # steps taken
    0
    """

    objective: Objective
    steps: int = eqx.field(static=True)
    wait: int = eqx.field(static=True, default=0)
    replays: ClassVar[int] = 1

    def __check_init__(self):
        check_count(steps=self.steps)
        check_count(0, wait=self.wait)
        if not isinstance(getattr(self.objective, "ball", None), AbstractBall):
            name = type(self.objective).__name__
            raise ValueError(
                f"the objective needs a ball, as Adversarial and TRADES have; got {name}"
            )

    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        return jnp.zeros((), jnp.int32)

    def __call__(
        self, params, static, state: State, carry, images: Images, labels: Labels, *, key: Key
    ) -> Gradient:
        step = carry + 1
        share = jnp.clip((step - self.wait) / self.steps, 0, 1)
        rule = Derivative(_risen(self.objective, share))
        loss, gradient, _ = rule(params, static, state, None, images, labels, key=key)
        return loss, gradient, step


def _risen(objective: Any, share: Scalar) -> Any:
    if isinstance(objective, CertifiedTraining):
        return eqx.tree_at(lambda o: o.progress, objective, share)
    return eqx.tree_at(lambda o: o.ball.eps, objective, replace_fn=lambda eps: share * eps)
