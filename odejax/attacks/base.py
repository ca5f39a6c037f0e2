"""What an attack is: a function from one example to the worst image it finds."""

import abc
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import (
    as_array,
    check_callable,
    check_example,
    check_labels,
    check_positive,
)
from .._inputs import as_key
from .._logits import Checked
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import BoolScalar, Image, Key, Label, Logits, LogitsFn, Scalar


class AttackResult(eqx.Module):
    """What one attack did to one example; under `vmap` every field has a leading batch axis.

    - `x_adv`: the image (h, w, c), inside ball and box, whether or not the attack succeeded.
    - `success`: the class predicted at `x_adv` (largest logit) is not `y`.
    - `margin`: z_y - max_{j != y} z_j at `x_adv`, in logits; not positive on success.
    - `queries`: evaluations of the logits, the judge's at `x_adv` among them; one with its gradient
      counts once.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> result = odejax.attacks.FGSM()(logits_fn, x, 0, ball, key=key)
    >>> result.x_adv.shape, bool(result.success), int(result.queries)
    ((4, 4, 1), True, 3)
    """

    x_adv: Float[Array, "*batch h w c"]
    success: BoolScalar | Any
    margin: Scalar | Any
    queries: Int[Array, "*batch"]


def logit_margin(logits: Logits, y: Label) -> Scalar:
    """z_y - max_{j != y} z_j: how far the prediction is from changing, in logits.

    - `logits`: z, of shape (k,).
    - `y`: the class.

    >>> float(odejax.attacks.logit_margin(jnp.array([2.0, 0.5, -1.0]), 0))
    1.5
    """
    others = jnp.where(jnp.arange(len(logits)) == y, -jnp.inf, logits)
    return logits[y] - jnp.max(others)


class AbstractAttack(eqx.Module):
    """`attack(logits_fn, x, y, ball, key=key) -> AttackResult` on one example; batch with `vmap`.

    An attack is written as `perturb`, which may return any image: the call projects it to ball
    and box, and its success is that of a fresh evaluation there.
    """

    @abc.abstractmethod
    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, int | Int[Array, ""]]:
        """The worst image found, and the number of evaluations of `logits_fn` spent on it."""

    @final
    @own_promotion
    def __call__(
        self, logits_fn: LogitsFn, x: Image, y: Label | int, ball: AbstractBall, *, key: Key | int
    ) -> AttackResult:
        """Raises `ValueError` for pixels outside the box or a label that is not a class, where
        these are known (not traced; `evaluation.robust_accuracy` checks whole arrays), and for
        logits of another form than (k,).
        """
        x, y = as_array("x", x), as_array("y", y)
        check_callable(logits_fn=logits_fn)
        check_ball(ball)
        key = as_key(key)
        check_example(x, y, ball)
        # Steps of 2/255 are lost in half precision.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        logits_fn = Checked(logits_fn)
        perturb_key, judge_key = jax.random.split(key)
        x_adv, queries = self.perturb(logits_fn, x, y, ball, key=perturb_key)
        x_adv = ball.project(x_adv, x)
        logits = logits_fn(x_adv, key=judge_key).astype(x.dtype)
        check_labels(y, len(logits))
        return AttackResult(
            x_adv=x_adv,
            success=jnp.argmax(logits) != y,
            margin=logit_margin(logits, y),
            queries=jnp.asarray(queries + 1),
        )


def default_step(ball: AbstractBall, steps: int) -> Scalar:
    """2.5 eps / steps: the step size of gradient attacks, in the ball's norm.

    It is long enough to cross the ball at every eps, but too short to turn far along the surface of
    an l2 ball.

    - `ball`: its eps is in pixels of [0, 1].
    - `steps`: how many steps the attack takes.

    >>> round(float(odejax.attacks.default_step(odejax.LinfBall(0.1), 10)), 4)
    0.025

    Madry et al. 2018, arXiv:1706.06083.
    """
    return 2.5 * ball.eps / steps


class RelativeStep(eqx.Module):
    """A step of `share` times eps, in a ball of any size.

    Raises `ValueError` unless `share` is finite and positive.

    >>> float(odejax.attacks.RelativeStep(0.25)(odejax.LinfBall(0.5)))
    0.125
    """

    share: float = eqx.field(converter=float, static=True)

    def __check_init__(self):
        check_positive(share=self.share)

    def __call__(self, ball: AbstractBall) -> Scalar:
        return self.share * ball.eps


StepSize = float | Float[Array, ""] | RelativeStep | None
"""What an attack takes as `step_size`: a length, a share of eps, or None for `default_step`."""
