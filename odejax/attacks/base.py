"""What an attack is: one example in, the worst image it found out."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._threat_model import AbstractBall
from .._types import Flag, Image, Key, Label, Logits, LogitsFn, Scalar


class AttackResult(eqx.Module):
    """What one attack did to one example; batched by `vmap`.

    - `x_adv`: inside ball and box, whether or not the attack succeeded.
    - `success`: the class predicted at `x_adv` (largest logit) is not `y`.
    - `margin`: z_y - max_{j != y} z_j at `x_adv`, not positive on success.
    - `queries`: evaluations of the logits, the judge's at `x_adv` among them; one with its gradient
      counts once.
    """

    x_adv: Float[Array, "*batch h w c"]
    success: Flag | Any
    margin: Scalar | Any
    queries: Int[Array, "*batch"]


def logit_margin(logits: Logits, y: Label) -> Scalar:
    """z_y - max_{j != y} z_j: how far the prediction is from changing, in logits."""
    others = jnp.where(jnp.arange(len(logits)) == y, -jnp.inf, logits)
    return logits[y] - jnp.max(others)


class AbstractAttack(eqx.Module):
    """`attack(logits_fn, x, y, ball, key=key) -> AttackResult` on one example; batch with `vmap`.

    An attack is written as `perturb`, which may return any image: the call brings it into ball
    and box and judges it by a fresh evaluation, so a result never claims more than it holds.
    """

    @abc.abstractmethod
    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, int | Int[Array, ""]]:
        """The worst image found, and the number of evaluations of `logits_fn` spent on it."""

    @final
    def __call__(
        self, logits_fn: LogitsFn, x: Image, y: Label | int, ball: AbstractBall, *, key: Key
    ) -> AttackResult:
        """Raises `ValueError` for pixels outside the box or a label that is not a class, where
        these are known (not traced); `evaluation.robust_accuracy` checks whole arrays.
        """
        x, y = jnp.asarray(x), jnp.asarray(y)
        _check_example(x, y, ball)
        perturb_key, judge_key = jax.random.split(key)
        x_adv, queries = self.perturb(logits_fn, x, y, ball, key=perturb_key)
        x_adv = ball.project(x_adv, x)
        logits = logits_fn(x_adv, key=judge_key)
        check_labels(y, len(logits))
        return AttackResult(
            x_adv=x_adv,
            success=jnp.argmax(logits) != y,
            margin=logit_margin(logits, y),
            queries=jnp.asarray(queries + 1),
        )


def _check_example(x, y, ball):
    if x.ndim != 3:
        raise ValueError(f"an attack takes one image (h, w, c); got shape {x.shape}; use jax.vmap")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images are floats in [0, 1]; got {x.dtype} (divide uint8 by 255)")
    if ball.eps.shape != ():
        raise ValueError(f"an attack takes one eps; got shape {ball.eps.shape}; use jax.vmap")
    if y.shape != () or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y is the index of one class; got shape {y.shape} and dtype {y.dtype}")
    if not isinstance(x, Tracer):
        check_pixels(np.asarray(x), ball)


def check_pixels(images: np.ndarray, ball: type[AbstractBall] | AbstractBall = AbstractBall):
    """Raise `ValueError` unless every pixel is in the box."""
    low, high = float(images.min()), float(images.max())
    if not (low >= ball.lower and high <= ball.upper):
        raise ValueError(f"pixels must lie in [{ball.lower}, {ball.upper}]; got [{low}, {high}]")


def check_labels(labels, n_classes: int):
    """Raise `ValueError` unless every (known) label is a class."""
    if isinstance(labels, Tracer):
        return
    labels = np.atleast_1d(np.asarray(labels))
    bad = labels[(labels < 0) | (labels >= n_classes)]
    if len(bad):
        raise ValueError(f"labels must be classes 0 to {n_classes - 1}; got {bad[0]}")


def check_positive(**values):
    """Raise `ValueError` unless every (known) number is finite and positive."""
    for name, value in values.items():
        if not (value is None or isinstance(value, Tracer) or 0 < float(value) < float("inf")):
            raise ValueError(f"{name} must be finite and positive; got {value}")


def check_at_least_one(**values):
    """Raise `ValueError` unless every count is at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
