"""Free adversarial training (Shafahi et al. 2019)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import PyTree

from .._checks import check_count
from .._threat_model import AbstractBall, check_ball
from .._types import Images, Key, Labels
from .gradients import AbstractGradientRule, Gradient
from .objectives import CrossEntropy


class FreeAdversarial(AbstractGradientRule):
    """Free adversarial training: one gradient for weights and images.

    Each batch is taken `replays` (their m) times; every step moves the weights by the optimizer and
    the perturbation by eps steepest(grad_x loss), from the same backward pass. The perturbation is
    carried on to the next batch. Train for 1 / m of the epochs at the same cost.

    - `ball`: the threat model.
    - `replays`: m, 8 by default.

    Raises `ValueError` for what is no ball, or fewer than one replay.

    >>> data = odejax.data.ArrayDataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    >>> net = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 1), 2, key=jax.random.key(0))
    >>> settings = {"epochs": 1, "batch_size": 4, "key": jax.random.key(1), "progress": False}
    >>> rule = odejax.training.FreeAdversarial(odejax.LinfBall(0.1), replays=2)
    >>> len(odejax.training.fit(*net, data, rule, optax.sgd(0.1), **settings).history)
    1

    Shafahi et al. 2019, arXiv:1904.12843.
    """

    ball: AbstractBall
    replays: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        check_ball(self.ball)
        check_count(replays=self.replays)

    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        return jnp.zeros(shape)

    def __call__(
        self, params, static, state: State, carry, images: Images, labels: Labels, *, key: Key
    ) -> Gradient:
        ball = self.ball
        # The move itself is carried: what one image has no room for in the box, the next may have.
        start = jax.vmap(ball.clip)(images + carry)

        def loss(params, x_adv):
            return CrossEntropy()(eqx.combine(params, static), state, x_adv, labels, key=key)

        (value, aux), (gradient, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, start
        )
        # The loss is a mean over the batch; the direction of an image's gradient is its own.
        moved = jax.vmap(lambda v, g: ball.shrink(v + ball.eps * ball.steepest(g)))(carry, slope)
        return (value, aux), gradient, moved
