"""Free adversarial training (Shafahi et al. 2019)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._threat_model import AbstractBall
from .._types import Key
from ..attacks import check_at_least_one
from .gradients import AbstractGradientRule, Gradient
from .objectives import CrossEntropy


class FreeAdversarial(AbstractGradientRule):
    """Free adversarial training (Shafahi et al. 2019): one gradient for weights and images.

    Each batch is taken `replays` (their m) times; every step moves the weights by the optimizer and
    the perturbation by eps steepest(grad_x loss), from the same backward pass. The perturbation is
    carried on to the next batch. Train for 1 / m of the epochs at the same cost.
    """

    ball: AbstractBall
    replays: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        check_at_least_one(replays=self.replays)

    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        return jnp.zeros(shape)

    def __call__(
        self,
        params: PyTree,
        static: PyTree,
        state: eqx.nn.State,
        carry: PyTree,
        images: Float[Array, "n h w c"],
        labels: Int[Array, " n"],
        *,
        key: Key,
    ) -> Gradient:
        ball = self.ball
        # Of another image, if this is a new batch: inside its ball, but not always its box.
        start = jax.vmap(ball.project)(images + carry, images)

        def loss(params, x_adv):
            return CrossEntropy()(eqx.combine(params, static), state, x_adv, labels, key=key)

        (value, aux), (gradient, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, start
        )
        # The loss is a mean over the batch; the direction of an image's gradient is its own.
        moved = jax.vmap(lambda x_adv, g, x: ball.project(x_adv + ball.eps * ball.steepest(g), x))(
            start, slope, images
        )
        return (value, aux), gradient, moved - images
