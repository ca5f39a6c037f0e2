"""Auto-PGD: projected gradient descent that sets its own step (Croce and Hein 2020)."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_callable, check_count, check_fraction
from .._types import BoolScalar, Image, Key, Scalar
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Loss
from .losses import cross_entropy


class APGDState(eqx.Module):
    x_adv: Image  # to be evaluated next
    previous: Image  # the iterate before it
    value: Scalar  # the loss at `previous`
    best: Image  # the iterate with the largest loss, its loss and its gradient
    best_value: Scalar
    best_gradient: Image
    step_size: Scalar
    increases: Int[Array, ""]  # steps since the last checkpoint that raised the loss
    best_at_checkpoint: Scalar
    reduced: BoolScalar  # whether the step was halved at the last checkpoint
    adversarial: BestAdversarial


class APGD(AbstractIterativeAttack):
    """Auto-PGD: momentum steps of 2 eps, halved at checkpoints where the loss has stopped to grow.

        z = project(x_k + eta * steepest(grad)),  x_{k+1} = project(x_k + a (z - x_k)
            + (1 - a) (x_k - x_{k-1})),  a = 0.75 (1 in the first step)

    At checkpoints (after 0.22 n steps, then at intervals 0.03 n shorter each time, but at least
    0.06 n) eta is halved and the run goes back to its best point, if at most `rho` of the steps
    since the last checkpoint raised the loss, or eta was not halved then and the best loss has not
    risen since. Starts at a random point of the ball's surface, as the authors' code does.

    Costs `steps` + 1 gradients.

    - `steps`: n, 100 by default.
    - `loss`: `cross_entropy` (the default, APGD-CE) or `dlr` (APGD-DLR); `Targeted(APGD(loss=dlr))`
      is APGD-T.
    - `rho`: a fraction, 0.75 by default.

    Raises `ValueError` for fewer than one step or a `rho` outside [0, 1].

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> result = odejax.attacks.APGD(steps=10)(logits_fn, x, 0, ball, key=key)
    >>> bool(result.success), round(float(result.margin), 2)
    (True, -0.15)

    Croce and Hein 2020, arXiv:2003.01690.
    """

    steps: int = eqx.field(static=True, default=100)
    loss: Loss = eqx.field(static=True, default=cross_entropy)
    rho: float = 0.75
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_count(steps=self.steps)
        check_fraction(rho=self.rho)
        check_callable(loss=self.loss)

    @property
    def n_steps(self) -> int:
        return self.steps + 1

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of steps after which the step size is looked at."""
        first, shorter, shortest = (max(int(f * self.steps), 1) for f in (0.22, 0.03, 0.06))
        step, length, steps = 0, first, []
        while (step := step + length) <= self.steps:
            steps.append(step)
            length = max(length - shorter, shortest)
        return tuple(steps)

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> APGDState:
        x, ball = problem.x, problem.ball
        x_adv = ball.project(x + ball.eps * ball.random_direction(x.shape, key=key), x)
        lowest = jnp.asarray(-jnp.inf, x.dtype)
        return APGDState(
            x_adv=x_adv,
            previous=x_adv,
            value=lowest,
            best=x_adv,
            best_value=lowest,
            best_gradient=jnp.zeros_like(x),
            step_size=2 * ball.eps,
            increases=jnp.asarray(0),
            best_at_checkpoint=lowest,
            reduced=jnp.asarray(True),
            adversarial=adversarial,
        )

    def step(
        self, problem: AttackProblem, state: APGDState, i: Int[Array, ""], *, key: Key
    ) -> APGDState:
        ball, x, x_adv = problem.ball, problem.x, state.x_adv
        value, gradient, logits = problem.value_and_gradient(self.loss, x_adv, key)
        first = i == 0

        improved = (value > state.best_value) | first
        best = jnp.where(improved, x_adv, state.best)
        best_value = jnp.where(improved, value, state.best_value)
        best_gradient = jnp.where(improved, gradient, state.best_gradient)
        increases = state.increases + ((value > state.value) & ~first)

        # At a checkpoint: was the last stretch worth its step size?
        checkpoints = self.checkpoints
        starts = jnp.asarray((0, *checkpoints))
        length = i - jnp.max(jnp.where(starts < i, starts, 0))
        check = jnp.any(starts[1:] == i)
        oscillates = increases <= self.rho * length
        stuck = ~state.reduced & (state.best_at_checkpoint >= best_value)
        reduce = check & (oscillates | stuck)

        step_size = jnp.where(reduce, state.step_size / 2, state.step_size)
        # The step starts from the best point if it was reduced; the momentum is that of the path.
        origin = jnp.where(reduce, best, x_adv)
        uphill = jnp.where(reduce, best_gradient, gradient)
        inertia = jnp.where(first, 1.0, 0.75)
        z = ball.project(origin + step_size * ball.steepest(uphill), x)
        momentum = origin - state.previous
        x_next = ball.project(origin + inertia * (z - origin) + (1 - inertia) * momentum, x)
        return APGDState(
            x_adv=x_next,
            previous=origin,
            value=value,
            best=best,
            best_value=best_value,
            best_gradient=best_gradient,
            step_size=step_size,
            increases=jnp.where(check, 0, increases),
            best_at_checkpoint=jnp.where(check | first, best_value, state.best_at_checkpoint),
            reduced=jnp.where(check, reduce, state.reduced),
            adversarial=state.adversarial.seen(problem, x_adv, logits),
        )
