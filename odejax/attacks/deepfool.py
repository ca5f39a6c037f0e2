"""DeepFool (Moosavi-Dezfooli et al. 2016), for any ball."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_count, check_not_negative
from .._logits import finite_logits
from .._types import Image, Key
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial

_NUDGE = 1e-4  # as the authors' code has it


class DeepFoolState(eqx.Module):
    x_adv: Image  # to be evaluated next
    move: Image  # the sum of the steps so far
    adversarial: BestAdversarial


class DeepFool(AbstractIterativeAttack):
    """DeepFool: steps to the nearest linearised decision boundary until it is crossed.

        r_k = (|z_j - z_y| / |grad(z_j - z_y)|_dual + 1e-4) * steepest(grad(z_j - z_y))
        x_{k+1} = clip(x + (1 + overshoot) (r_0 + ... + r_k))

    for the class j that makes r_k smallest, among the `classes` most likely at x_k. Finds a near
    adversarial image, which counts if it is inside the ball. At most `steps` + 1 evaluations, each
    with `classes` gradients.

    - `steps`: 50 by default.
    - `overshoot`: by how much the boundary is crossed, as a fraction of the move, 0.02 by default.
    - `classes`: 10 by default, fewer where the network has fewer.

    Raises `ValueError` for fewer than one step or two classes, or a negative `overshoot`.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.L2Ball(0.5), jax.random.key(0)
    >>> result = odejax.attacks.DeepFool()(logits_fn, x, 0, ball, key=key)
    >>> round(float(ball.norm(result.x_adv - x)), 2)  # the boundary is 0.2 away
    0.2

    Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
    """

    steps: int = eqx.field(static=True, default=50)
    overshoot: float = 0.02
    classes: int = eqx.field(static=True, default=10)
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def __check_init__(self):
        check_count(steps=self.steps)
        check_count(2, classes=self.classes)
        check_not_negative(overshoot=self.overshoot)

    @property
    def n_steps(self) -> int:
        return self.steps + 1

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> DeepFoolState:
        return DeepFoolState(problem.x, jnp.zeros_like(problem.x), adversarial)

    def step(
        self, problem: AttackProblem, state: DeepFoolState, i: Int[Array, ""], *, key: Key
    ) -> DeepFoolState:
        ball, x_adv = problem.ball, state.x_adv
        logits, gradients_of = problem.pull_back(x_adv, key)
        n_classes = len(logits)
        if problem.target is None:
            candidates = jax.lax.top_k(logits, min(self.classes, n_classes))[1]
        else:
            candidates = problem.target[None]
        one_hot = jax.nn.one_hot(candidates, n_classes, dtype=logits.dtype)
        w = gradients_of(one_hot - jax.nn.one_hot(problem.y, n_classes, dtype=logits.dtype))
        gap = jnp.abs(logits[candidates] - logits[problem.y])
        distance = gap / (jax.vmap(ball.dual_norm)(w) + 1e-12)
        j = jnp.argmin(jnp.where(candidates == problem.y, jnp.inf, distance))
        # A vanished gradient points nowhere: the step is 0. Where the box blocks part of every
        # step, they close the gap by a fraction each and would never cross without the nudge.
        size = jnp.where(jnp.any(w[j] != 0), distance[j] + _NUDGE, 0.0)
        move = state.move + size * ball.steepest(w[j])
        finite = finite_logits(logits)
        # Outside the ball the network may diverge: half of the way there, and on from it.
        move = jnp.where(finite, move, state.move / 2)
        arrived = (jnp.argmax(logits) != problem.y) & finite
        x_next = ball.clip(problem.x + (1 + self.overshoot) * move)
        return DeepFoolState(
            jnp.where(arrived, x_adv, x_next),
            jnp.where(arrived, state.move, move),
            state.adversarial.nearest(problem, x_adv, logits),
        )
