"""Projected gradient descent (Madry et al. 2018), for any ball."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_callable, check_count, check_positive
from .._threat_model import AbstractBall
from .._types import BoolScalar, Image, Key, Scalar
from .base import RelativeStep, StepSize, default_step
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Loss
from .losses import cross_entropy


class ClimbState(eqx.Module):
    x_adv: Image  # to be evaluated next
    momentum: Image
    adversarial: BestAdversarial


class AbstractClimb(AbstractIterativeAttack):
    """x_{k+1} = project(x_k + step * steepest(m_k)), where m_k gathers gradients of the loss.

    The iterate with the smallest logit margin is kept, not the last one; memory does not grow with
    the steps. Costs `steps` gradients and one evaluation, of the last iterate; with `last` the last
    iterate is what is returned, and not evaluated.

    A `step_size` of None is `default_step`, 2.5 eps / steps; `RelativeStep(c)` is c eps, in a ball
    of any size. Steps that add up to less than eps never reach the ball's surface;
    `evaluation.bracket` flags them. Raises `ValueError` for fewer than one step, or a step size
    that is not finite and positive.
    """

    steps: eqx.AbstractVar[int]
    step_size: eqx.AbstractVar[StepSize]
    loss: eqx.AbstractVar[Loss]
    random_start: eqx.AbstractVar[bool]
    last: eqx.AbstractVar[bool]
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False

    def __check_init__(self):
        check_count(steps=self.steps)
        if not isinstance(self.step_size, RelativeStep):
            check_positive(step_size=self.step_size)
        check_callable(loss=self.loss)

    @property
    def n_steps(self) -> int:
        return self.steps if self.last else self.steps + 1

    def size(self, ball: AbstractBall) -> float | Scalar:
        """The length of a step in the ball's norm."""
        if isinstance(self.step_size, RelativeStep):
            return self.step_size(ball)
        return default_step(ball, self.steps) if self.step_size is None else self.step_size

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> ClimbState:
        x = problem.x
        x_adv = problem.ball.sample(x, key=key) if self.random_start else x
        return ClimbState(x_adv, jnp.zeros_like(x), adversarial)

    def climb(
        self,
        problem: AttackProblem,
        state: ClimbState,
        key: Key,
        *,
        view: Callable[[Image], Image] = lambda x_adv: x_adv,
        whole: BoolScalar | bool = True,
        gather: Callable[[Image, Image], Image] = lambda momentum, gradient: gradient,
    ) -> ClimbState:
        """One step, by the gradient at `view(x_adv)`, which is the iterate itself if `whole`."""
        ball, x_adv = problem.ball, state.x_adv
        seen, pull_back = jax.vjp(view, x_adv)
        _, gradient, logits = problem.value_and_gradient(self.loss, seen, key)
        momentum = gather(state.momentum, pull_back(gradient)[0])
        moved = ball.project(x_adv + self.size(ball) * ball.steepest(momentum), problem.x)
        adversarial = state.adversarial.seen(problem, x_adv, logits, whole)
        if self.last:  # not evaluated: nothing is known of it
            infinity = jnp.full_like(adversarial.margin, jnp.inf)
            adversarial = dataclasses.replace(adversarial, x_adv=moved, margin=infinity)
        return ClimbState(moved, momentum, adversarial)


class PGD(AbstractClimb):
    """Projected gradient descent from a random point of the ball; the x_k with the smallest margin.

        x_{k+1} = project(x_k + step * steepest(grad_x loss(x_k)))

    - `steps`: 40 by default.
    - `step_size`: in the ball's norm. None, the default, is `default_step`; *natural* and *nmode*
      take 0.01, in the L-infinity ball.
    - `random_start`: from a uniform draw in the ball (the default) rather than from x; several with
      `Restarts`.
    - `loss(logits, y, target)`: what is climbed, `cross_entropy` by default.
    - `last`: return the last iterate, for adversarial training alone (*enresnet* Algorithm 1):
      iterates on the way that were misclassified are forgotten. False by default.

    Raises `ValueError` for fewer than one step, or a step size that is not finite and positive.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> result = odejax.attacks.PGD(steps=5)(logits_fn, x, 0, ball, key=key)
    >>> bool(result.success), round(float(result.margin), 2)
    (True, -0.15)

    Madry et al. 2018, arXiv:1706.06083.
    """

    steps: int = eqx.field(static=True, default=40)
    step_size: StepSize = None
    random_start: bool = eqx.field(static=True, default=True)
    loss: Loss = eqx.field(static=True, default=cross_entropy)
    last: bool = eqx.field(static=True, default=False)

    @property
    def random(self) -> bool:
        return self.random_start

    def step(
        self, problem: AttackProblem, state: ClimbState, i: Int[Array, ""], *, key: Key
    ) -> ClimbState:
        return self.climb(problem, state, key)


class IFGSM(AbstractClimb):
    """Iterated FGSM: PGD from the image itself.

        x_0 = x,  x_{k+1} = project(x_k + step * steepest(grad_x loss(x_k)))

    - `steps`: 20 by default, as in *enresnet*.
    - `step_size`: in the ball's norm. None, the default, is `default_step`; *enresnet* takes 2/255.
    - `loss(logits, y, target)`: what is climbed, `cross_entropy` by default.

    Raises `ValueError` for fewer than one step, or a step size that is not finite and positive.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> bool(odejax.attacks.IFGSM(steps=5)(logits_fn, x, 0, ball, key=key).success)
    True

    Kurakin et al. 2017, arXiv:1607.02533.
    """

    steps: int = eqx.field(static=True, default=20)
    step_size: StepSize = None
    loss: Loss = eqx.field(static=True, default=cross_entropy)
    random_start: ClassVar[bool] = False
    random: ClassVar[bool] = False
    last: ClassVar[bool] = False

    def step(
        self, problem: AttackProblem, state: ClimbState, i: Int[Array, ""], *, key: Key
    ) -> ClimbState:
        return self.climb(problem, state, key)
