"""The fast gradient sign method (Goodfellow et al. 2015), for any ball."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._types import Key
from .iterative import AbstractIterativeAttack, Loss, Problem, Worst
from .losses import cross_entropy


class _State(eqx.Module):
    worst: Worst


class FGSM(AbstractIterativeAttack):
    """x' = x + eps * steepest(grad_x loss(x)): sign(grad) in the L-infinity ball.

    The exact optimum when logits are linear, there are two classes and the box does not bind.
    """

    loss: Loss = eqx.field(static=True, default=cross_entropy)
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    n_steps: ClassVar[int] = 1
    random: ClassVar[bool] = False

    def start(self, problem: Problem, worst: Worst, run: Int[Array, ""], *, key: Key) -> _State:
        return _State(worst)

    def step(self, problem: Problem, state: _State, i, *, key: Key) -> _State:
        ball, x = problem.ball, problem.x
        _, gradient, _ = problem.value_and_gradient(self.loss, x, key)
        x_adv = ball.project(x + ball.eps * ball.steepest(gradient), x)
        # Its margin is not known: one step is all, and whoever asked judges the image.
        unknown = jnp.asarray(jnp.inf, x.dtype)
        return _State(Worst(x_adv, unknown, state.worst.queries + problem.cost))
