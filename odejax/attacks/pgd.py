"""Projected gradient descent (Madry et al. 2018), for any ball."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._threat_model import AbstractBall
from .._types import Image, Key, Label, Logits, LogitsFn, Scalar
from .base import AbstractAttack, logit_margin
from .losses import cross_entropy


class PGD(AbstractAttack):
    """x_{k+1} = project(x_k + step * steepest(grad_x loss(x_k))), the worst x_k of all restarts.

    - `steps`, `step_size`: 40 and 0.01 (pixel scale), as in *natural* and *nmode*. A `step_size` of
      None is 2.5 eps / steps, which can cross the ball at every eps (but is too short to turn far
      along the surface of an l2 ball).
    - `random_start`: from a uniform draw in the ball rather than from x.
    - `restarts`: that many independent random starts.
    - The iterate with the smallest logit margin is kept, not the last one.

    Costs `restarts * steps` gradients and `restarts + 1` evaluations; memory grows with neither.
    """

    steps: int = eqx.field(static=True, default=40)
    step_size: float | Float[Array, ""] | None = 0.01
    restarts: int = eqx.field(static=True, default=1)
    random_start: bool = eqx.field(static=True, default=True)
    loss: Callable[[Logits, Label], Scalar] = eqx.field(static=True, default=cross_entropy)

    def __check_init__(self):
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(
                f"steps and restarts must be at least 1; got {self.steps} and {self.restarts}"
            )
        if isinstance(self.step_size, float | int) and not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size must be finite and positive; got {self.step_size}")
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without a random start repeat the same attack")

    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, int]:
        step_size = 2.5 * ball.eps / self.steps if self.step_size is None else self.step_size

        def loss_and_margin(x_adv, key):
            logits = logits_fn(x_adv, key=key)
            return self.loss(logits, y), logit_margin(logits, y)

        gradient = jax.grad(loss_and_margin, has_aux=True)

        def keep_worst(best, x_adv, margin):
            worst, smallest = best
            worse = margin < smallest
            return jnp.where(worse, x_adv, worst), jnp.where(worse, margin, smallest)

        def step(carry, key):
            x_adv, best = carry
            g, margin = gradient(x_adv, key)
            best = keep_worst(best, x_adv, margin)
            return (ball.project(x_adv + step_size * ball.steepest(g), x), best), None

        def restart(best, key):
            start_key, last_key, key = jax.random.split(key, 3)
            x_adv = ball.sample(x, key=start_key) if self.random_start else x
            (x_adv, best), _ = jax.lax.scan(step, (x_adv, best), jax.random.split(key, self.steps))
            margin = logit_margin(logits_fn(x_adv, key=last_key), y)
            return keep_worst(best, x_adv, margin), None

        best = (x, jnp.asarray(jnp.inf, x.dtype))
        (x_adv, _), _ = jax.lax.scan(restart, best, jax.random.split(key, self.restarts))
        return x_adv, self.restarts * (self.steps + 1)
