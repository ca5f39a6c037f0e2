"""Certified training: what is minimised is a bound on the loss, proven over the whole ball."""

from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Float

from .._batch import copied, of_last_batch
from .._checks import check_callable, check_fraction, check_not_negative
from .._predictor import Predictor
from .._threat_model import AbstractBall, check_ball
from .._types import Image, Images, Key, Label, Labels, Scalar
from ..attacks import AbstractAttack
from ..relaxation import (
    Interval,
    Margins,
    around,
    at_kinks,
    deterministic,
    interval_margins,
    linear_margins,
    plain_bounds,
    trace,
)
from .objectives import Loss, as_attacked, attacked_images, batch_logits, loss_and_correct

TOLERANCE = 0.5  # tau of the warm-up's penalties
_TINY = 1e-12


class CertifiedTraining(eqx.Module):
    """A bound on the cross-entropy over a ball, by interval arithmetic: certified training.

        loss = (1 - a) cross-entropy(z(x'), y) + a cross-entropy(z_low, y) + w (tight + balanced)
        z_low_j = max over the ball of z_j - z_y, bounded;  x' = x, or the attacked image

    As it stands this is interval bound propagation (IBP); the arguments make of it

    - the mixture with clean images (Gowal et al. 2018): `weight=0.5`;
    - the mixture with attacks, MTL-IBP (De Palma et al. 2024): `attack=PGD(...)`, `weight=0.5`;
    - SABR (Müller et al. 2023): `attack=PGD(...)`, `box=0.1`, bounds over a box of a tenth of the
      radius around an image attacked in the rest of it;
    - CROWN-IBP (Zhang et al. 2020): `bounds="linear"`. A step takes 9 to 19 times a plain one,
      with intervals 1.1 to 2.7 times (ten classes, 2 CPU cores; `python -m benchmarks.certified`).

    It needs a ball that grows, `RisingEps(objective, steps, wait=...)`, and initial weights that
    keep intervals narrow, `models.interval_init`; without them a network may learn nothing.
    `RisingEps` moves `progress` from 0 to 1: eps grows to its own, the penalties fade out, and the
    linear bounds give way to intervals.

    The penalties of Shi et al. (2021) are about the operands of all kinks (ReLU, max), tau = 0.5:
    `tight` is the mean of relu(tau - r) / tau, r the mean width of the pixels' intervals divided by
    that of the operands'; `balanced` the same of two ratios, in [0, 1], of the active neurons to
    the inactive: of their means, and of their variances.

    `BatchNorm` has the statistics of the batch of the x', for the logits and for the bounds, and
    differentiates both; the running statistics are updated as in any training. Other layers are
    bounded as they are in inference: without dropout, `equinox.nn.BatchNorm` by its running
    statistics.

    - `ball`: the threat model. (Of an l2 ball the intervals enclose the cube around it.)
    - `weight`: a, in [0, 1] (1).
    - `attack`: what makes x', with `weight` or `box` below 1; None: x' = x.
    - `box`: the part of the radius that the bounds are about, in (0, 1] (1); below 1 it needs an
      attack.
    - `bounds`: "interval" or "linear".
    - `penalty`: w at progress 0, not negative (0.5).
    - `progress`: of the warm-up, in [0, 1] (1, at its end).

    Raises `ValueError` for other values; for a network that draws noise, that is solved in steps of
    its own choice, and for a primitive without a rule (see `certificates.IntervalBounds`).

    >>> make, key = eqx.nn.make_with_state(odejax.models.MLP), jax.random.key(0)
    >>> model, state = make((2, 2, 1), 2, width=4, depth=1, key=key)
    >>> images, labels = jnp.full((3, 2, 2, 1), 0.5), jnp.array([0, 1, 1])
    >>> objective = odejax.training.CertifiedTraining(odejax.LinfBall(0.1))
    >>> bound, _ = objective(model, state, images, labels, key=key)
    >>> loss, _ = odejax.training.CrossEntropy()(model, state, images, labels, key=key)
    >>> bool(bound > loss)
    True

    Gowal et al. (2018), arXiv:1810.12715; Shi et al. (2021), arXiv:2103.17268; Zhang et al. (2020),
    arXiv:1906.06316; Müller et al. (2023), arXiv:2210.04871; De Palma et al. (2024),
    arXiv:2305.13991.
    """

    ball: AbstractBall
    weight: float = 1.0
    attack: AbstractAttack | None = None
    box: float = 1.0
    bounds: Literal["interval", "linear"] = eqx.field(static=True, default="interval")
    penalty: float = 0.5
    progress: float | Scalar = 1.0

    def __check_init__(self):
        check_ball(self.ball)
        check_fraction(weight=self.weight, box=self.box, progress=self.progress)
        check_not_negative(penalty=self.penalty)
        if self.bounds not in ("interval", "linear"):
            raise ValueError(f"bounds must be interval or linear; got {self.bounds!r}")
        if self.attack is not None:
            check_callable(attack=self.attack)
        if not self.box:
            raise ValueError("box must be above 0: there is nothing to bound")
        if self.box < 1 and self.attack is None:
            raise ValueError(f"box={self.box} needs an attack: it is around the attacked image")
        if self.attack is not None and self.box == 1 == self.weight:
            raise ValueError("an attack is of no use with box=1 and weight=1: lower one of them")

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        ball, moved = _scaled(self.ball, self.progress), images
        if self.attack is not None:
            attack_key, key = jax.random.split(key)
            reach = ball if self.box == 1 else _scaled(ball, 1 - self.box)
            predictor = as_attacked(model, state)
            moved = attacked_images(self.attack, predictor, images, labels, reach, key=attack_key)
        before = copied(state)  # a state is used once
        logits, new_state = batch_logits(model, state, moved, key=key)
        loss, correct = loss_and_correct(logits, labels)

        predictor = Predictor(model, of_last_batch(model, before, new_state))
        centres = images if self.box == 1 else moved
        bounded = partial(self._bounded, predictor, _scaled(ball, self.box))
        lows, of_pixels, at_kinks = jax.vmap(bounded)(centres, labels)
        bound, _ = loss_and_correct(-lows, labels)
        # Without the product with 0 its derivative is not computed.
        loss = bound if self.weight == 1 else (1 - self.weight) * loss + self.weight * bound
        if self.penalty and at_kinks:
            left = self.penalty * (1 - self.progress)
            loss += jax.lax.cond(
                left > 0,
                lambda *of_batch: left * _penalties(*of_batch),
                lambda *_: jnp.zeros_like(loss),
                jnp.mean(of_pixels),
                at_kinks,
            )
        return loss, (new_state, correct)

    def _bounded(self, predictor: Predictor, ball: AbstractBall, x: Image, label: Label):
        """Lower bounds on z_label - z_j, the pixels' mean width, and the intervals at all kinks."""
        graph, box = trace(deterministic(predictor, x), x), around(x, ball)
        bounds = plain_bounds(graph, [box])
        margins = Margins(graph, x, ball, bounds)
        lows = interval_margins(margins, label)
        if self.bounds == "linear":
            linear = linear_margins(margins, label)
            lows = self.progress * lows + (1 - self.progress) * jnp.maximum(lows, linear)
        return lows, jnp.mean(box.high - box.low), at_kinks(graph, bounds)


def _scaled(ball: AbstractBall, by: float | Scalar) -> AbstractBall:
    return eqx.tree_at(lambda b: b.eps, ball, replace_fn=lambda eps: by * eps)


def _penalties(of_pixels: Scalar, at_kinks: list[Interval]) -> Scalar:
    """Those of Shi et al. (2021), from the intervals of a batch, (n, turns, *shape)."""
    kinks = [_of_kink(*(end.reshape(*end.shape[:2], -1) for end in at)) for at in at_kinks]
    widths, means, squares = (jnp.concatenate(parts) for parts in zip(*kinks, strict=True))
    tight = _lack(of_pixels / jnp.maximum(widths, _TINY))
    return jnp.mean(tight + _lack(means) + _lack(squares))


def _of_kink(low: Float[Array, "n turns size"], high: Float[Array, "n turns size"]):
    """Of every turn: the mean width; and for the means and the variances of the centres, which are
    about the mean of all, the smaller of active / inactive and inactive / active."""
    centre, n = (low + high) / 2, low.shape[0] * low.shape[2]

    def mean(*factors):  # as products of vectors: a reduction is slower on a CPU
        return jnp.einsum(",".join(["btn"] * len(factors)) + "->t", *factors) / n

    ones = jnp.ones_like(low)
    sides, deviation = (low > 0, high < 0), centre - mean(centre, ones)[:, None]
    sides = [side.astype(low.dtype) for side in sides]
    means = [jnp.abs(mean(side, centre)) for side in sides]
    squares = [mean(side, deviation**2) for side in sides]
    return mean(high - low, ones), _ratio(*means), _ratio(*squares)


def _lack(ratio: Array) -> Array:
    return jax.nn.relu(TOLERANCE - ratio) / TOLERANCE


def _ratio(a: Array, b: Array) -> Array:
    """The smaller of a / b and b / a."""
    return jnp.minimum(a, b) / jnp.maximum(jnp.maximum(a, b), _TINY)
