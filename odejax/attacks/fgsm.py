"""The fast gradient sign method (Goodfellow et al. 2015), for any ball."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Int

from .._checks import check_callable
from .._types import Image, Key
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Loss
from .losses import cross_entropy


class FGSMState(eqx.Module):
    x_adv: Image  # to be evaluated next
    adversarial: BestAdversarial


class FGSM(AbstractIterativeAttack):
    """The fast gradient sign method: one step of length eps.

        x' = x + eps * steepest(grad_x loss(x)): sign(grad) in the L-infinity ball

    The exact optimum when logits are linear, there are two classes and the box does not bind.
    Costs one gradient, and one evaluation of x'.

    - `loss(logits, y, target)`: what is climbed, `cross_entropy` by default.

    Raises `ValueError` for a loss that is not callable.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> result = odejax.attacks.FGSM()(logits_fn, x, 0, ball, key=key)
    >>> bool(result.success), round(float(result.x_adv[0, 0, 0]), 2)
    (True, 0.4)

    Goodfellow et al. 2015, arXiv:1412.6572.
    """

    loss: Loss = eqx.field(static=True, default=cross_entropy)
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    n_steps: ClassVar[int] = 2
    random: ClassVar[bool] = False

    def __check_init__(self):
        check_callable(loss=self.loss)

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> FGSMState:
        return FGSMState(problem.x, adversarial)

    def step(
        self, problem: AttackProblem, state: FGSMState, i: Int[Array, ""], *, key: Key
    ) -> FGSMState:
        ball, x = problem.ball, problem.x
        _, gradient, logits = problem.value_and_gradient(self.loss, state.x_adv, key)
        x_adv = ball.project(x + ball.eps * ball.steepest(gradient), x)
        return FGSMState(x_adv, state.adversarial.seen(problem, state.x_adv, logits, i == 1))
