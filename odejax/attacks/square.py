"""The Square attack (Andriushchenko et al. 2020): random search in squares, by scores alone."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from .._checks import check_callable, check_count, check_positive
from .._threat_model import AbstractBall, L2Ball
from .._types import Image, Key, Scalar
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial, Loss
from .losses import margin_loss

# Of 10,000 iterations; after each of them p is halved once more.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class SquareState(eqx.Module):
    x_adv: Image  # to be evaluated next
    best: Image
    best_value: Scalar
    adversarial: BestAdversarial


class Square(AbstractIterativeAttack):
    """The Square attack: random search that keeps a change of one square if it raises the loss.

    L-infinity: starts at vertical stripes of +-eps; a change sets a square window of every channel
    to +-eps. l2: starts at a grid of bumps; a change adds a bump to one window and takes the norm
    it needs from another. The side of the window is sqrt(p h w), p falling from `p_initial` in the
    published steps (after 10, 50, 200, ... iterations).

    Exactly `n_queries` evaluations without gradients, fewer only after a success.

    - `n_queries`: 5,000 by default.
    - `p_initial`: a share of the pixels, in (0, 1], by default 0.8.
    - `rescale`: whether the steps of p are of 10,000 iterations and stretched to `n_queries`, as in
      the paper. False by default, as in AutoAttack.
    - `loss(logits, y, target)`: what is climbed, `margin_loss` by default.

    Raises `ValueError` for fewer than one query, or a `p_initial` outside (0, 1].

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> bool(odejax.attacks.Square(n_queries=100)(logits_fn, x, 0, ball, key=key).success)
    True

    Andriushchenko et al. 2020, arXiv:1912.00049.
    """

    n_queries: int = eqx.field(static=True, default=5000)
    p_initial: float = 0.8
    rescale: bool = eqx.field(static=True, default=False)
    loss: Loss = eqx.field(static=True, default=margin_loss)
    black_box: ClassVar[bool] = True
    n_runs: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_count(n_queries=self.n_queries)
        check_callable(loss=self.loss)
        check_positive(p_initial=self.p_initial)
        if self.p_initial > 1:
            raise ValueError(f"p_initial must lie in (0, 1]; got {self.p_initial}")

    @property
    def n_steps(self) -> int:
        return self.n_queries

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> SquareState:
        x, ball = problem.x, problem.ball
        if isinstance(ball, L2Ball):
            x_adv = _bumps(x, ball, key)
        else:
            stripes = jax.random.rademacher(key, (1, *x.shape[1:]), x.dtype)
            x_adv = ball.project(x + ball.eps * stripes, x)
        return SquareState(x_adv, x_adv, jnp.asarray(-jnp.inf, x.dtype), adversarial)

    def step(
        self, problem: AttackProblem, state: SquareState, i: Int[Array, ""], *, key: Key
    ) -> SquareState:
        x, ball, x_adv = problem.x, problem.ball, state.x_adv
        evaluation_key, key = jax.random.split(key)
        logits = problem.logits(x_adv, evaluation_key)
        value = self.loss(logits, problem.y, problem.target)
        better = value > state.best_value
        best = jnp.where(better, x_adv, state.best)

        scale = 10_000 / self.n_queries if self.rescale else 1.0
        stage = jnp.sum(jnp.floor(i * scale) > jnp.asarray(_HALVINGS), dtype=jnp.int32)
        change = _change_l2 if isinstance(ball, L2Ball) else _change_linf
        return SquareState(
            change(best, x, ball, self._sides(x.shape, ball), stage, key),
            best,
            jnp.where(better, value, state.best_value),
            state.adversarial.seen(problem, x_adv, logits),
        )

    def _sides(self, shape, ball) -> tuple[int, ...]:
        """The side of the window in every stage; odd and at least 3 for l2."""
        h, w, _ = shape
        p = self.p_initial / 2.0 ** np.arange(len(_HALVINGS) + 1)
        sides = np.maximum(np.round(np.sqrt(p * h * w)).astype(int), 1)
        if isinstance(ball, L2Ball):
            sides = np.maximum(sides, 3)
            sides += sides % 2 == 0
        return tuple(int(side) for side in np.minimum(sides, min(h, w)))


def _window(shape, side, key: Key):
    """A random square window: its corner, and the mask (h, w, 1)."""
    h, w, _ = shape
    corner = jax.random.uniform(key, (2,)) * (jnp.asarray([h, w]) - side + 1)
    row, column = jnp.floor(corner).astype(jnp.int32)
    rows = (jnp.arange(h) >= row) & (jnp.arange(h) < row + side)
    columns = (jnp.arange(w) >= column) & (jnp.arange(w) < column + side)
    return (row, column), (rows[:, None] & columns)[..., None]


def _change_linf(best: Image, x: Image, ball: AbstractBall, sides, stage, key: Key) -> Image:
    window_key, sign_key = jax.random.split(key)
    _, inside = _window(x.shape, jnp.asarray(sides)[stage], window_key)
    sign = jax.random.rademacher(sign_key, x.shape[-1:], x.dtype)
    return ball.project(jnp.where(inside, x + ball.eps * sign, best), x)


def _change_l2(best: Image, x: Image, ball: AbstractBall, sides, stage, key: Key) -> Image:
    window_key, other_key, turn_key, sign_key = jax.random.split(key, 4)
    h, w, channels = x.shape
    side, delta = jnp.asarray(sides)[stage], best - x
    (row, column), window = _window(x.shape, side, window_key)
    _, other_window = _window(x.shape, side, other_key)

    def norm(v):  # of each channel
        return jnp.sqrt(jnp.sum(v**2, axis=(0, 1)))

    # A bump of this side in the window: a slice of it, padded by the size of the image.
    bumps = [[_bump(s), _bump(s).T] for s in sides]
    padded = np.asarray(
        [[np.pad(b, ((h, h - len(b)), (w, w - len(b)))) for b in both] for both in bumps], x.dtype
    )
    turn = jax.random.bernoulli(turn_key).astype(jnp.int32)
    start = (stage, turn, h - row, w - column)
    bump = jax.lax.dynamic_slice(jnp.asarray(padded), start, (1, 1, h, w))[0, 0, ..., None]
    bump = bump * jax.random.rademacher(sign_key, (channels,), x.dtype)

    old = delta * window / (1e-12 + norm(delta * window))
    new = bump + old
    unused = jnp.maximum(ball.eps**2 - jnp.sum(delta**2), 0.0) / channels
    budget = jnp.sqrt(unused + norm(delta * (window | other_window)) ** 2)
    new = new / (1e-12 + norm(new)) * budget
    delta = jnp.where(window, new, jnp.where(other_window, 0.0, delta))
    return ball.project(x + ball.eps * ball.steepest(delta), x)


def _bumps(x: Image, ball: AbstractBall, key: Key) -> Image:
    """The first image of the l2 attack: a grid of bumps, five to a side, of random sign."""
    h, w, channels = x.shape
    side = max(min(h, w) // 5, 1)
    rows, columns = h // side, w // side
    bump = np.zeros((h, w))
    bump[: rows * side, : columns * side] = np.tile(_bump(side), (rows, columns))
    signs = jax.random.rademacher(key, (rows, columns, channels), x.dtype)
    signs = jnp.repeat(jnp.repeat(signs, side, axis=0), side, axis=1)
    signs = jnp.pad(signs, ((0, h - rows * side), (0, w - columns * side), (0, 0)))
    delta = jnp.asarray(bump, x.dtype)[..., None] * signs
    return ball.project(x + ball.eps * ball.steepest(delta), x)


def _bump(side: int) -> np.ndarray:
    """Two halves of opposite sign, each a pyramid of concentric rectangles, of norm 1."""
    if side < 2:
        return np.ones((side, side))
    top = side // 2
    bump = np.concatenate([_pyramid(top, side), -_pyramid(side - top, side)])
    return bump / np.linalg.norm(bump)


def _pyramid(height: int, width: int) -> np.ndarray:
    """sum_k 1[within k steps of the middle] / (k + 1)^2, of norm 1 (the paper's Eq. 3)."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    distance = np.maximum(abs(rows - height // 2), abs(columns - width // 2))
    reach = max(height // 2 + 1, width // 2 + 1)
    pyramid = np.sum([(distance <= k) / (k + 1.0) ** 2 for k in range(reach)], axis=0)
    return pyramid / np.linalg.norm(pyramid)
