"""Iterated FGSM with momentum and with input diversity: attacks made to transfer."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_finite, check_fraction
from .._types import Image, Key
from .base import StepSize
from .iterative import AttackProblem, Loss
from .losses import cross_entropy
from .pgd import AbstractClimb, ClimbState


class MIFGSM(AbstractClimb):
    """Iterated FGSM along a momentum of normalised gradients.

        m_k = decay * m_{k-1} + g_k / mean|g_k|  (Dong et al.: divided by the sum)

    - `steps`: 10 by default.
    - `step_size`: in the ball's norm. The published one, eps / steps, never reverses; None, the
      default, is the longer `default_step`.
    - `decay`: of the momentum, 1 by default.
    - `loss(logits, y, target)`: what is climbed, `cross_entropy` by default.

    Raises `ValueError` for fewer than one step, a step size that is not finite and positive, or a
    decay that is not finite.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> bool(odejax.attacks.MIFGSM(steps=5)(logits_fn, x, 0, ball, key=key).success)
    True

    Dong et al. 2018, arXiv:1710.06081.
    """

    steps: int = eqx.field(static=True, default=10)
    step_size: StepSize = None
    decay: float = 1.0
    loss: Loss = eqx.field(static=True, default=cross_entropy)
    random_start: ClassVar[bool] = False
    last: ClassVar[bool] = False
    random: ClassVar[bool] = False

    def __check_init__(self):
        check_finite(decay=self.decay)

    def step(
        self, problem: AttackProblem, state: ClimbState, i: Int[Array, ""], *, key: Key
    ) -> ClimbState:
        return self.climb(problem, state, key, gather=_momentum(self.decay))


class DI2FGSM(AbstractClimb):
    """MI-FGSM whose gradients are taken of a random resize and pad of the image.

    With `probability` the network is evaluated at the iterate shrunk (bilinear) to a side of at
    least `smallest` times its own, drawn uniformly, at a random place on black. Only an iterate
    that was evaluated whole may be returned; the last one always is.

    - `steps`: 10 by default.
    - `step_size`: in the ball's norm. None, the default, is `default_step`.
    - `decay`: of the momentum, 1 by default.
    - `probability`: of a resize in a step, 0.5 by default.
    - `smallest`: a fraction of the side, 0.9 by default.
    - `loss(logits, y, target)`: what is climbed, `cross_entropy` by default.

    Raises `ValueError` for fewer than one step, a step size or decay that is not finite, a
    probability outside [0, 1] or a `smallest` outside (0, 1).

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> bool(odejax.attacks.DI2FGSM(steps=5)(logits_fn, x, 0, ball, key=key).success)
    True

    Xie et al. 2019, arXiv:1803.06978.
    """

    steps: int = eqx.field(static=True, default=10)
    step_size: StepSize = None
    decay: float = 1.0
    probability: float = 0.5
    smallest: float = 0.9
    loss: Loss = eqx.field(static=True, default=cross_entropy)
    random_start: ClassVar[bool] = False
    last: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_finite(decay=self.decay)
        check_fraction(probability=self.probability, smallest=self.smallest)
        if not 0 < self.smallest < 1:
            raise ValueError(f"smallest must lie between 0 and 1; got {self.smallest}")

    def step(
        self, problem: AttackProblem, state: ClimbState, i: Int[Array, ""], *, key: Key
    ) -> ClimbState:
        coin_key, resize_key, key = jax.random.split(key, 3)
        whole = (jax.random.uniform(coin_key) >= self.probability) | (i == self.steps)

        def view(x_adv: Image) -> Image:
            return jnp.where(whole, x_adv, resize_and_pad(x_adv, self.smallest, key=resize_key))

        return self.climb(problem, state, key, view=view, whole=whole, gather=_momentum(self.decay))


def resize_and_pad(x: Image, smallest: float, *, key: Key) -> Image:
    """`x` shrunk (bilinear) by a random factor from [`smallest`, 1), at a random place on black."""
    side_key, place_key = jax.random.split(key)
    h, w, _ = x.shape
    side = jnp.maximum(jax.random.randint(side_key, (), int(smallest * h), h), 1)
    scale = side / h
    room = jnp.floor(jnp.asarray([h - side, w - scale * w]))
    place = jnp.floor(jax.random.uniform(place_key, (2,)) * (room + 1))
    return jax.image.scale_and_translate(
        x, x.shape, (0, 1), jnp.stack([scale, scale]), place, "linear", antialias=False
    )


def _momentum(decay):
    def gather(momentum, gradient):
        size = jnp.mean(jnp.abs(gradient))
        return decay * momentum + gradient / jnp.where(size > 0, size, 1.0)

    return gather
