"""Attacks made from attacks: averaged over noise, restarted, aimed at classes."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_count, check_instance, check_labels
from .._types import Key, Label
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Draws


class AbstractComposedAttack(AbstractIterativeAttack):
    """An attack made from a single other, `attack`, with as many steps."""

    attack: eqx.AbstractVar[AbstractIterativeAttack]

    @property
    @final
    def black_box(self) -> bool:
        return self.attack.black_box

    @property
    @final
    def n_steps(self) -> int:
        return self.attack.n_steps


class EOT(AbstractComposedAttack):
    """Expectation over transformation: an attack on the mean over draws of a network's noise.

    Losses and gradients are means over fresh draws of the network's noise, margins are those of the
    mean logits. Costs `draws` times as much, and `queries` say so. For deterministic networks it
    changes nothing.

    - `attack`: a single attack, such as `PGD()`.
    - `draws`: evaluations of the network in each mean, 20 by default.

    Raises `ValueError` for a sequence of attacks, or fewer than one draw.

    >>> from odejax.attacks import EOT, PGD
    >>> noisy = lambda x, *, key: jnp.array([x.mean(), 0.45 + 0.01 * jax.random.normal(key)])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> int(EOT(PGD(steps=5), draws=3)(noisy, x, 0, ball, key=key).queries)  # 6 x 3 + 1
    19

    Athalye et al. 2018, arXiv:1707.07397 and arXiv:1802.00420.
    """

    attack: AbstractIterativeAttack
    draws: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        _check_iterative(self.attack)
        check_count(draws=self.draws)

    @property
    def n_runs(self) -> int:
        return self.attack.n_runs

    @property
    def random(self) -> bool:
        return True

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> Any:
        return self.attack.start(self._averaged(problem), adversarial, run, key=key)

    def step(self, problem: AttackProblem, state: Any, i: Int[Array, ""], *, key: Key) -> Any:
        return self.attack.step(self._averaged(problem), state, i, key=key)

    def _averaged(self, problem: AttackProblem) -> AttackProblem:
        draws = Draws(problem.logits_fn, self.draws)
        return AttackProblem(draws, problem.x, problem.y, problem.ball, problem.target)


class Restarts(AbstractComposedAttack):
    """`n` independent runs of an attack, of which the image with the smallest margin is returned.

    - `attack`: a single attack with randomness, such as `PGD()`.
    - `n`: the number of runs, 5 by default.

    Raises `ValueError` for an attack without randomness, whose runs would all be the same, and for
    one that has several runs already: write `Targeted(Restarts(...))`.

    >>> from odejax.attacks import PGD, Restarts
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> int(Restarts(PGD(steps=5), n=2)(logits_fn, x, 0, ball, key=key).queries)  # 2 x 6 + 1
    13
    """

    attack: AbstractIterativeAttack
    n: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        _check_iterative(self.attack)
        check_count(n=self.n)
        name = type(self.attack).__name__
        if not self.attack.random:
            raise ValueError(f"{name} has no random start: restarts would repeat the same attack")
        if self.attack.n_runs != 1:
            raise ValueError(f"{name} has runs of its own: put the restarts inside it")

    @property
    def n_runs(self) -> int:
        return self.n

    @property
    def random(self) -> bool:
        return True

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> Any:
        return self.attack.start(problem, adversarial, run, key=key)

    def step(self, problem: AttackProblem, state: Any, i: Int[Array, ""], *, key: Key) -> Any:
        return self.attack.step(problem, state, i, key=key)


class TargetedState(eqx.Module):
    inner: Any
    target: Label

    @property
    def adversarial(self) -> BestAdversarial:
        return self.inner.adversarial


class Targeted(AbstractComposedAttack):
    """The attack aimed at one wrong class after the other, most likely first.

    `classes` runs (of each of the attack's own), each towards the next of the classes ranked by
    their logits at the image (where the network draws noise: one draw, the same for all runs),
    which costs one evaluation a run. With fewer than `classes` wrong classes they come again, from
    other starts. An image counts as adversarial when its class is wrong, whichever it became.

    - `attack`: a single attack, such as `APGD(loss=dlr)`.
    - `classes`: the number of target classes, 9 by default.
    - `target`: the only class to aim at; images of that class themselves are not attacked. None,
      the default, is the ranking.

    Raises `ValueError` for a sequence of attacks, fewer than one class, or a target that is no
    class.

    >>> from odejax.attacks import PGD, Targeted
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> result = Targeted(PGD(steps=5), classes=3)(logits_fn, x, 0, ball, key=key)
    >>> int(jnp.argmax(logits_fn(result.x_adv, key=key)))
    3

    Croce and Hein 2020, arXiv:2003.01690 (the targeted attacks of AutoAttack).
    """

    attack: AbstractIterativeAttack
    classes: int = eqx.field(static=True, default=9)
    target: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check_iterative(self.attack)
        check_count(classes=self.classes)
        if self.target is not None:
            check_count(0, target=self.target)

    @property
    def n_runs(self) -> int:
        return self.attack.n_runs * (1 if self.target is not None else self.classes)

    @property
    def random(self) -> bool:
        return self.attack.random

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> TargetedState:
        rank_key = jax.random.key(0)  # one ranking for all runs, of a network with noise too
        # The attack's own runs are repeated for every class; `Restarts` around counts further.
        inner, classes = self.attack.n_runs, self.n_runs // self.attack.n_runs
        again, rank = run // self.n_runs, run // inner % classes
        if self.target is None:
            logits = problem.logits(problem.x, rank_key)
            adversarial = eqx.tree_at(
                lambda w: w.queries, adversarial, adversarial.queries + problem.cost
            )
            wrong = jnp.where(jnp.arange(len(logits)) == problem.y, -jnp.inf, logits)
            ranking = jnp.argsort(-wrong)
            target = ranking[rank % (len(logits) - 1)]
            again = again * classes + rank // (len(logits) - 1)
        else:
            n_classes = jax.eval_shape(problem.logits, problem.x, rank_key).shape[0]
            check_labels(self.target, n_classes)
            target = jnp.asarray(self.target, problem.y.dtype)
        inner_run = run % inner + again * inner
        state = self.attack.start(_aim(problem, target), adversarial, inner_run, key=key)
        return TargetedState(state, target)

    def step(
        self, problem: AttackProblem, state: TargetedState, i: Int[Array, ""], *, key: Key
    ) -> TargetedState:
        inner = self.attack.step(_aim(problem, state.target), state.inner, i, key=key)
        return TargetedState(inner, state.target)


def _check_iterative(attack):
    # A sequence is none of these: its attacks take another number of steps each.
    check_instance(AbstractIterativeAttack, "a single attack, such as PGD()", attack=attack)


def _aim(problem: AttackProblem, target: Label) -> AttackProblem:
    return AttackProblem(problem.logits_fn, problem.x, problem.y, problem.ball, target)
