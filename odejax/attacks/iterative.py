"""Attacks as state machines, one evaluation of the network a step.

`start` gives the state of a run and `step` advances it by exactly one evaluation, so a loop may
stop, save, resume or repack examples anywhere: `evaluation.robust_accuracy` keeps a batch full of
examples that are still classified correctly, each at a step of its own, and a query budget is a
number of steps.
"""

import abc
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._logits import finite_logits
from .._threat_model import AbstractBall
from .._types import BoolScalar, Image, Key, Label, Logits, LogitsFn, Scalar
from .base import AbstractAttack, logit_margin

_SURELY = 1e-5  # of the largest logit

Loss = Callable[[Logits, Label, Label | None], Scalar]


class Draws(eqx.Module):
    """A randomised network seen through `draws` evaluations: its mean logits under fresh noise."""

    logits_fn: LogitsFn
    draws: int = eqx.field(static=True)

    def __call__(self, x: Image, *, key: Key) -> Logits:
        return jnp.mean(self.each(x, key=key), axis=0)

    def each(self, x: Image, *, key: Key):
        """The logits of every draw, (draws, k)."""
        each = jax.vmap(lambda k: self.logits_fn(x, key=k))(jax.random.split(key, self.draws))
        return each.astype(x.dtype)


class AttackProblem(eqx.Module):
    """What an attack is asked: to make `logits_fn` predict another class than `y` within `ball`.

    All that it returns is in the dtype of `x`, whatever the network computes in.

    - `logits_fn(x, key=key)`: the network, or `Draws` of a randomised one.
    - `x`: the image (h, w, c), pixels in [0, 1].
    - `y`: its class.
    - `ball`: the threat model.
    - `target`: the class to aim at, or None (the default) for any other than `y`.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> problem = odejax.attacks.AttackProblem(logits_fn, x, jnp.asarray(0), ball)
    >>> loss, gradient, logits = problem.value_and_gradient(odejax.attacks.margin_loss, x, key)
    >>> round(float(loss), 3), gradient.shape, bool(problem.reached(x + 0.2))
    (-0.05, (4, 4, 1), False)
    """

    logits_fn: LogitsFn
    x: Image
    y: Label
    ball: AbstractBall
    target: Label | None = None

    def reached(self, x_adv: Image) -> BoolScalar:
        """Whether `x_adv` lies in the ball."""
        return self.ball.reaches(self.ball.norm(x_adv - self.x), self.x.size)

    def logits(self, x_adv: Image, key: Key) -> Logits:
        return self.logits_fn(x_adv, key=key).astype(x_adv.dtype)

    def value_and_gradient(
        self, loss: Loss, x_adv: Image, key: Key
    ) -> tuple[Scalar, Image, Logits]:
        """loss(logits(x'), y, target), its gradient and the logits; the means over `Draws`."""

        def value(x_adv):
            if isinstance(self.logits_fn, Draws):
                logits_of_draws = self.logits_fn.each(x_adv, key=key)
                losses = jax.vmap(lambda logits: loss(logits, self.y, self.target))(logits_of_draws)
                return jnp.mean(losses), jnp.mean(logits_of_draws, axis=0)
            logits = self.logits(x_adv, key)
            return loss(logits, self.y, self.target), logits

        (value_at, logits), gradient = jax.value_and_grad(value, has_aux=True)(x_adv)
        return value_at, _finite(gradient), logits

    def pull_back(self, x_adv: Image, key: Key):
        """The logits, and a function from n cotangents (n, k) to n gradients (n, h, w, c)."""
        logits, pull_back = jax.vjp(lambda x_adv: self.logits(x_adv, key), x_adv)
        return logits, jax.vmap(lambda cotangent: _finite(pull_back(cotangent)[0]))

    @property
    def cost(self) -> int:
        """Evaluations of the network that one evaluation of `logits_fn` takes."""
        return _cost(self.logits_fn)


def _finite(gradient: Image) -> Image:
    """A pixel whose derivative does not exist (a square root at zero) must not stop the others."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def _cost(logits_fn: LogitsFn) -> int:
    return logits_fn.draws * _cost(logits_fn.logits_fn) if isinstance(logits_fn, Draws) else 1


class BestAdversarial(eqx.Module):
    """The worst image seen inside ball and box, its logit margin, and the queries spent so far.

    - `x_adv`, `margin`: the image (h, w, c), and z_y - max_{j != y} z_j there, in logits.
    - `queries`: evaluations of the network.
    - `finite`: whether all logits seen within the ball were (`finite_logits`); one that is not
      would count for nothing, silently. What an attack tries outside the ball may have none.
    - `sure`: whether `margin` is so far below zero that rounding, another in each batch, cannot
      turn it back.
    - `attacked`: whether there was a point to attack from; an attack that walks along the boundary
      must find one first.

    >>> from odejax.attacks import AttackProblem, BestAdversarial
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, x_adv, key = jnp.full((4, 4, 1), 0.5), jnp.full((4, 4, 1), 0.4), jax.random.key(0)
    >>> problem = AttackProblem(logits_fn, x, jnp.asarray(0), odejax.LinfBall(0.11))
    >>> best = BestAdversarial.none(x).seen(problem, x_adv, problem.logits(x_adv, key))
    >>> round(float(best.margin), 2), int(best.queries)
    (-0.15, 1)
    """

    x_adv: Image
    margin: Scalar
    queries: Int[Array, ""]
    finite: BoolScalar
    sure: BoolScalar
    attacked: BoolScalar

    @staticmethod
    def none(x: Image) -> "BestAdversarial":
        """Before the first evaluation."""
        margin = jnp.asarray(jnp.inf, x.dtype)
        no = jnp.asarray(False)
        return BestAdversarial(x, margin, jnp.asarray(0, jnp.int32), jnp.asarray(True), no, no)

    def seen(
        self, problem: AttackProblem, x_adv: Image, logits: Logits, inside: BoolScalar | bool = True
    ) -> "BestAdversarial":
        """After one more evaluation, at `x_adv`, which only counts if it is `inside`."""
        margin = logit_margin(logits, problem.y)
        reached = problem.reached(x_adv)
        return self._after(problem, x_adv, logits, margin, (margin < self.margin) & inside, reached)

    def nearest(
        self,
        problem: AttackProblem,
        x_adv: Image,
        logits: Logits,
        attacked: BoolScalar | bool = True,
    ) -> "BestAdversarial":
        """After one more evaluation: the nearest misclassified image rather than the worst."""
        margin, ball = logit_margin(logits, problem.y), problem.ball
        distance, reached = ball.norm(x_adv - problem.x), problem.reached(x_adv)
        best_distance = jnp.where(self.margin < 0, ball.norm(self.x_adv - problem.x), jnp.inf)
        nearer = (margin < 0) & reached & (distance < best_distance)
        return self._after(problem, x_adv, logits, margin, nearer, reached, attacked)

    def _after(
        self,
        problem: AttackProblem,
        x_adv: Image,
        logits: Logits,
        margin: Scalar,
        better: BoolScalar,
        reached: BoolScalar,
        attacked: BoolScalar | bool = True,
    ) -> "BestAdversarial":
        size = jnp.max(jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0.0))
        return BestAdversarial(
            jnp.where(better, x_adv, self.x_adv),
            jnp.where(better, margin, self.margin),
            self.queries + problem.cost,
            self.finite & (finite_logits(logits) | ~reached),
            jnp.where(better, margin < -_SURELY * size, self.sure),
            self.attacked | attacked,
        )


class AbstractIterativeAttack(AbstractAttack):
    """An attack of `n_runs` runs (restarts, target classes) of `n_steps` evaluations each."""

    @property
    @abc.abstractmethod
    def n_runs(self) -> int:
        """How many runs."""

    @property
    @abc.abstractmethod
    def n_steps(self) -> int:
        """How many steps, each one evaluation, a run takes."""

    @property
    @abc.abstractmethod
    def random(self) -> bool:
        """Whether another key gives another run."""

    @property
    @abc.abstractmethod
    def black_box(self) -> bool:
        """Whether it uses outputs alone, no gradients.

        A single call then ends with its first success, so that `queries` say what it took; the
        others go on to the smallest margin.
        """

    @abc.abstractmethod
    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> Any:
        """The state before step 0 of run number `run`; its `adversarial` is the one given."""

    @abc.abstractmethod
    def step(self, problem: AttackProblem, state: Any, i: Int[Array, ""], *, key: Key) -> Any:
        """The state after step `i`, which evaluates the network once."""

    @final
    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, Int[Array, ""]]:
        problem = AttackProblem(logits_fn, x, y, ball)

        def run(before, r):
            state, run_key = start(self, problem, before, r, key)

            def advance(i, state):
                return step(self, problem, run_key, i, state)

            if self.black_box:

                def unfinished(carry):
                    i, state = carry
                    return (i < self.n_steps) & ~(state.adversarial.margin < 0)

                first = (jnp.asarray(0), state)
                _, state = jax.lax.while_loop(
                    unfinished, lambda carry: (carry[0] + 1, advance(*carry)), first
                )
                # A run after a success is none.
                adversarial = jax.tree.map(
                    lambda a, b: jnp.where(before.margin < 0, a, b), before, state.adversarial
                )
                return adversarial, None
            state = jax.lax.fori_loop(0, self.n_steps - 1, advance, state)
            # Outside the loop, where the gradient, which nothing needs, is not computed.
            return advance(self.n_steps - 1, state).adversarial, None

        adversarial, _ = jax.lax.scan(run, BestAdversarial.none(x), jnp.arange(self.n_runs))
        return adversarial.x_adv, adversarial.queries


def start(
    attack: AbstractIterativeAttack,
    problem: AttackProblem,
    adversarial: BestAdversarial,
    run,
    key: Key,
):
    """The state before run `run`, and the key of its steps.

    - `attack`, `problem`: what runs, and on what.
    - `adversarial`: the best image of the runs before; `BestAdversarial.none(x)` for the first.
    - `run`: the number of the run, from 0.
    - `key`: of the whole attack; each run has a key of its own.

    >>> from odejax import attacks
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, key = jnp.full((4, 4, 1), 0.5), jax.random.key(0)
    >>> problem = attacks.AttackProblem(logits_fn, x, jnp.asarray(0), odejax.LinfBall(0.1))
    >>> state, run_key = attacks.start(
    ...     attacks.FGSM(), problem, attacks.BestAdversarial.none(x), 0, key)
    >>> int(state.adversarial.queries)
    0
    """
    start_key, run_key = jax.random.split(jax.random.fold_in(key, run))
    return attack.start(problem, adversarial, run, key=start_key), run_key


def step(attack: AbstractIterativeAttack, problem: AttackProblem, run_key: Key, i, state):
    """The state after step `i`, with the key of that step, in whatever loop.

    - `attack`, `problem`: what runs, and on what.
    - `run_key`, `state`: from `start`, or the state of the step before.
    - `i`: the number of the step, from 0.

    >>> from odejax import attacks
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, attack = jnp.full((4, 4, 1), 0.5), attacks.FGSM()
    >>> problem = attacks.AttackProblem(logits_fn, x, jnp.asarray(0), odejax.LinfBall(0.1))
    >>> best = attacks.BestAdversarial.none(x)
    >>> state, run_key = attacks.start(attack, problem, best, 0, jax.random.key(0))
    >>> int(attacks.step(attack, problem, run_key, 0, state).adversarial.queries)
    1
    """
    i = jnp.asarray(i)
    return attack.step(problem, state, i, key=jax.random.fold_in(run_key, i))
