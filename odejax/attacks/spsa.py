"""SPSA: gradients from two evaluations (Spall 1992; as an attack, Uesato et al. 2018)."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._checks import check_callable, check_count, check_positive
from .._types import Image, Key, Scalar
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Loss
from .losses import margin_loss


class SPSAState(eqx.Module):
    x_adv: Image
    value: Scalar  # at the last query
    signs: Image  # of the pair in hand
    gradient: Image  # the sum of the estimates so far
    adam: PyTree
    adversarial: BestAdversarial


class SPSA(AbstractIterativeAttack):
    """Adam along gradients that are estimated from pairs of evaluations.

        g = mean_s (loss(x + delta v_s) - loss(x - delta v_s)) / (2 delta) * v_s

    v_s are `samples` random signs; each iteration is one evaluation of the iterate and 2 `samples`
    around it, where x is moved into the box by up to `delta` so that all queries lie in
    it, and ends in the ball. Exactly `n_queries` evaluations without gradients, fewer only after a
    success.

    - `n_queries`: 25,701 by default: 100 iterations and a look at the last iterate.
    - `samples`: pairs in an iteration, 128 by default.
    - `delta`: in pixels of [0, 1], at most 0.5, by default 0.01.
    - `learning_rate`: of Adam, in pixels, 0.01 by default.
    - `loss(logits, y, target)`: what is climbed, `margin_loss` by default.

    Raises `ValueError` for counts below 1, a `delta` or `learning_rate` that is not positive, or a
    `delta` above 0.5.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> attack = odejax.attacks.SPSA(n_queries=500, samples=16)
    >>> bool(attack(logits_fn, x, 0, ball, key=key).success)
    True

    Spall 1992; as an attack Uesato et al. 2018, arXiv:1802.05666.
    """

    n_queries: int = eqx.field(static=True, default=25_701)
    samples: int = eqx.field(static=True, default=128)
    delta: float = 0.01
    learning_rate: float = 0.01
    loss: Loss = eqx.field(static=True, default=margin_loss)
    black_box: ClassVar[bool] = True
    n_runs: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_count(n_queries=self.n_queries, samples=self.samples)
        check_positive(delta=self.delta, learning_rate=self.learning_rate)
        check_callable(loss=self.loss)
        if self.delta > 0.5:  # both queries of a pair must find room in the box
            raise ValueError(f"delta must be at most 0.5; got {self.delta}")

    @property
    def n_steps(self) -> int:
        return self.n_queries

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> SPSAState:
        x = problem.ball.sample(problem.x, key=key)
        zero = jnp.zeros_like(x)
        adam = optax.adam(self.learning_rate).init(x)
        return SPSAState(x, jnp.asarray(0.0, x.dtype), zero, zero, adam, adversarial)

    def step(
        self, problem: AttackProblem, state: SPSAState, i: Int[Array, ""], *, key: Key
    ) -> SPSAState:
        # The iterate itself at place 0, then pairs: + in odd places, - in even ones.
        place = i % (2 * self.samples + 1)
        itself, second = place == 0, (place > 0) & (place % 2 == 0)
        sign_key, key = jax.random.split(key)
        fresh = jax.random.rademacher(sign_key, state.x_adv.shape, state.x_adv.dtype)
        signs = jnp.where(second, state.signs, fresh)
        offset = self.delta * jnp.where(itself, 0.0, jnp.where(second, -signs, signs))
        lower, upper = problem.ball.lower + self.delta, problem.ball.upper - self.delta
        centre = jnp.where(itself, state.x_adv, jnp.clip(state.x_adv, lower, upper))
        query = centre + offset

        logits = problem.logits(query, key)
        value = self.loss(logits, problem.y, problem.target)
        adversarial = state.adversarial.seen(problem, query, logits, itself)
        slope = (state.value - value) / (2 * self.delta)
        # A pair that steps out of the ball may meet logits that are not finite: it says nothing.
        estimate = jnp.where(jnp.isfinite(slope), slope, 0.0) * signs
        gradient = state.gradient + jnp.where(second, estimate, 0.0)

        # The last pair is in: a step, and the next iterate's gradient from nothing.
        end_of_iteration = place == 2 * self.samples
        update, adam = optax.adam(self.learning_rate).update(-gradient / self.samples, state.adam)
        moved = jnp.asarray(optax.apply_updates(state.x_adv, update))
        climbed = problem.ball.project(moved, problem.x)
        x_adv, adam, gradient = jax.tree.map(
            lambda a, b: jnp.where(end_of_iteration, a, b),
            (climbed, adam, jnp.zeros_like(gradient)),
            (state.x_adv, state.adam, gradient),
        )
        return SPSAState(x_adv, value, signs, gradient, adam, adversarial)
