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
    """Adam up g = mean_s (loss(x + delta v_s) - loss(x - delta v_s)) / (2 delta) * v_s.

    v_s are `samples` random signs; each iteration is one evaluation of the iterate and 2 `samples`
    around it, where x is moved into the box by up to `delta` (at most 0.5) so that no query leaves
    it, and ends in the ball. Exactly `n_queries` evaluations without gradients, fewer only after a
    success; the default is 100 iterations and a look at the last iterate.
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
        end = place == 2 * self.samples
        update, adam = optax.adam(self.learning_rate).update(-gradient / self.samples, state.adam)
        moved = jnp.asarray(optax.apply_updates(state.x_adv, update))
        climbed = problem.ball.project(moved, problem.x)
        x_adv, adam, gradient = jax.tree.map(
            lambda a, b: jnp.where(end, a, b),
            (climbed, adam, jnp.zeros_like(gradient)),
            (state.x_adv, state.adam, gradient),
        )
        return SPSAState(x_adv, value, signs, gradient, adam, adversarial)
