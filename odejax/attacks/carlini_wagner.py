"""Carlini and Wagner's attacks (2017): a distance and a hinge on the logits, in tanh space."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._checks import check_count, check_not_negative, check_positive
from .._types import BoolScalar, Image, Key, Logits, Scalar
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial
from .losses import margin_loss


class CarliniWagnerLinf(AbstractIterativeAttack):
    """Carlini and Wagner's attack on the largest change of a pixel, with a constant c.

        min_u max|x'(u) - x| + c * max(z_y - max_{j != y} z_j, -kappa),  x'(u) = (tanh(u) + 1) / 2

    *enresnet* Eqs. 17-18 with its constants, which are the defaults. So few and small steps move a
    pixel by at most 0.015; the ball, 8/255 there, does not bind. Where a smaller one does, the
    network is evaluated at the iterate projected to it. Costs `steps` + 1 gradients.

    - `steps`: of Adam, 50 by default.
    - `learning_rate`: 6e-4 by default, in u.
    - `c`: the weight of the logits, 10 by default.
    - `kappa`: the margin, in logits, at which the hinge is satisfied, 0 by default.

    Raises `ValueError` for fewer than one step, a `learning_rate` or `c` that is not positive, or a
    negative `kappa`.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> attack = odejax.attacks.CarliniWagnerLinf(steps=20, learning_rate=0.1, c=100.0)
    >>> bool(attack(logits_fn, x, 0, ball, key=key).success)
    True

    Carlini and Wagner 2017, arXiv:1608.04644.
    """

    steps: int = eqx.field(static=True, default=50)
    learning_rate: float = 6e-4
    c: float = 10.0
    kappa: float = 0.0
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def __check_init__(self):
        _check(self)

    @property
    def n_steps(self) -> int:
        return self.steps + 1

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> "LinfState":
        u = _to_tanh_space(problem.x)
        return LinfState(u, optax.adam(self.learning_rate).init(u), adversarial)

    def step(
        self, problem: AttackProblem, state: "LinfState", i: Int[Array, ""], *, key: Key
    ) -> "LinfState":
        x = problem.x
        x_adv = _to_pixels(state.u)
        inside = problem.ball.project(x_adv, x)  # the iterate itself, unless the ball binds
        _, uphill, logits = problem.value_and_gradient(_hinge(self.kappa), inside, key)
        away = jax.grad(lambda x_adv: jnp.max(jnp.abs(x_adv - x)))(x_adv)
        u, adam = _adam(state.u, state.adam, away - self.c * uphill, x_adv, self.learning_rate)
        return LinfState(u, adam, state.adversarial.seen(problem, inside, logits))


class LinfState(eqx.Module):
    u: Image
    adam: PyTree
    adversarial: BestAdversarial


class CarliniWagner(AbstractIterativeAttack):
    """Carlini and Wagner's l2 attack, with c as small as succeeds.

        min_u |x'(u) - x|_2^2 + c * max(z_y - max_{j != y} z_j, -kappa),  x'(u) = (tanh(u) + 1) / 2

    `search_steps` rounds of `steps` steps of Adam: c is divided by bisection after a success (once
    a failure is known) and multiplied by 10 after a failure. The nearest adversarial image inside
    the ball is kept. Costs `search_steps * steps` gradients.

    - `steps`: of Adam in each round, 1,000 by default.
    - `search_steps`: rounds, 9 by default.
    - `learning_rate`: 0.01 by default, in u.
    - `c`: the weight of the logits in the first round, 0.01 by default.
    - `kappa`: the margin, in logits, at which the hinge is satisfied, 0 by default.

    Raises `ValueError` for fewer than one step or round, a `learning_rate` or `c` that is not
    positive, or a negative `kappa`.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.L2Ball(0.5), jax.random.key(0)
    >>> attack = odejax.attacks.CarliniWagner(steps=20, search_steps=5, learning_rate=0.1)
    >>> bool(attack(logits_fn, x, 0, ball, key=key).success)
    True

    Carlini and Wagner 2017, arXiv:1608.04644.
    """

    steps: int = eqx.field(static=True, default=1000)
    search_steps: int = eqx.field(static=True, default=9)
    learning_rate: float = 0.01
    c: float = 0.01  # of the first round
    kappa: float = 0.0
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def __check_init__(self):
        _check(self)
        check_count(search_steps=self.search_steps)

    @property
    def n_steps(self) -> int:
        return self.search_steps * self.steps

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> "L2State":
        u = _to_tanh_space(problem.x)
        c = jnp.asarray(self.c, u.dtype)
        return L2State(
            u,
            optax.adam(self.learning_rate).init(u),
            c,
            0 * c,
            jnp.inf + c,
            jnp.asarray(False),
            adversarial,
        )

    def step(
        self, problem: AttackProblem, state: "L2State", i: Int[Array, ""], *, key: Key
    ) -> "L2State":
        x = problem.x
        x_adv = _to_pixels(state.u)
        _, uphill, logits = problem.value_and_gradient(_hinge(self.kappa), x_adv, key)
        descent = 2 * (x_adv - x) - state.c * uphill
        u, adam = _adam(state.u, state.adam, descent, x_adv, self.learning_rate)
        success = state.success | (margin_loss(logits, problem.y) > self.kappa)

        # The end of a round: another c, from the image again.
        end_of_round = (i + 1) % self.steps == 0
        enough = jnp.where(success & end_of_round, jnp.minimum(state.enough, state.c), state.enough)
        too_small = jnp.where(
            ~success & end_of_round, jnp.maximum(state.too_small, state.c), state.too_small
        )
        has_succeeded = jnp.isfinite(enough)
        middle = (too_small + jnp.where(has_succeeded, enough, 0.0)) / 2
        c = jnp.where(has_succeeded, middle, 10 * state.c)
        u_start = _to_tanh_space(x)
        restart = (u_start, optax.adam(self.learning_rate).init(u_start), c)
        u, adam, c = jax.tree.map(
            lambda a, b: jnp.where(end_of_round, a, b), restart, (u, adam, state.c)
        )
        adversarial = state.adversarial.nearest(problem, x_adv, logits)
        return L2State(u, adam, c, too_small, enough, success & ~end_of_round, adversarial)


class L2State(eqx.Module):
    u: Image
    adam: PyTree
    c: Scalar
    too_small: Scalar  # the largest c that failed, the smallest that succeeded
    enough: Scalar
    success: BoolScalar  # in this round
    adversarial: BestAdversarial


def _check(attack):
    check_count(steps=attack.steps)
    check_positive(learning_rate=attack.learning_rate, c=attack.c)
    check_not_negative(kappa=attack.kappa)


def _hinge(kappa: float):
    """-max(z_y - max_{j != y} z_j, -kappa), to climb."""

    def loss(logits: Logits, y, target=None) -> Scalar:
        return jnp.minimum(margin_loss(logits, y, target), kappa)

    return loss


def _to_tanh_space(x: Image) -> Image:
    # Slightly inside, since black and white lie at infinity.
    return jnp.arctanh((2 * x - 1) * 0.999999)


def _to_pixels(u: Image) -> Image:
    return (jnp.tanh(u) + 1) / 2


def _adam(u: Image, adam, gradient: Image, x_adv: Image, learning_rate):
    """One step of Adam down `gradient`, which is with respect to x'(u)."""
    along_u = gradient * 2 * x_adv * (1 - x_adv)  # dx'/du = (1 - tanh(u)^2) / 2
    update, adam = optax.adam(learning_rate).update(along_u, adam)
    return jnp.asarray(optax.apply_updates(u, update)), adam
