"""Normalisation of channels-last feature maps, with one calling convention.

`norm(x, state) -> (y, state)` on (h, w, c). A network takes the class itself as its `norm`
argument and builds `norm(channels)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._batch import AbstractBatchNorm
from .._checks import check_count, check_fraction, check_positive
from .._promotion import own_promotion
from .._types import BATCH_AXIS, Image, Scalar


class GroupNorm(eqx.Module):
    """Group normalisation, per example: no state, no batch axis.

        y = scale (x - mean) / sqrt(variance + eps) + shift, moments over the pixels of a group

    By default 4 channels a group, in at most 32 groups. (*ssp* has min(32, c) groups, 2 channels
    each at its 64; at 32 channels or fewer that is instance normalisation, after which the pooled
    features are nearly constant and the network hardly learns.)

    - `channels`: c of x, (h, w, c).
    - `groups`: how many, a divisor of c; None: see above.
    - `eps`: added to the variance (1e-5).

    Raises `ValueError` for groups that do not divide the channels.

        >>> import equinox as eqx, jax.numpy as jnp, odejax
        >>> norm, state = eqx.nn.make_with_state(odejax.models.GroupNorm)(4)
        >>> y, _ = norm(jnp.arange(4.0).reshape(1, 1, 4), state)
        >>> [round(v, 2) for v in y.ravel().tolist()]
        [-1.34, -0.45, 0.45, 1.34]

    Wu and He (2018), arXiv:1803.08494.
    """

    scale: Float[Array, " c"]
    shift: Float[Array, " c"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int | None = None, eps: float = 1e-5):
        check_count(channels=channels)
        self.groups = max(1, min(32, channels // 4)) if groups is None else groups
        check_count(groups=self.groups)
        check_positive(eps=eps)
        if channels % self.groups:
            raise ValueError(f"{channels} channels do not divide into {self.groups} groups")
        self.scale, self.shift, self.eps = jnp.ones(channels), jnp.zeros(channels), eps

    def lipschitz_bound(self, state: eqx.nn.State) -> Scalar:
        """max |scale| / sqrt(eps), of an image whose variance vanishes; l2."""
        return jnp.max(jnp.abs(self.scale)) / self.eps**0.5

    @own_promotion
    def __call__(self, x: Image, state: eqx.nn.State) -> tuple[Image, eqx.nn.State]:
        # Moments in float32, of features in bfloat16 too.
        dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x - self._by_group(x)
        # Not E x^2 - (E x)^2, which cancels where the mean is large beside the deviation.
        scale = self.scale * jnp.reciprocal(jnp.sqrt(self._by_group(x**2) + self.eps))
        return (x * scale + self.shift).astype(dtype), state

    def _by_group(self, x):
        """The mean over the pixels and channels of each channel's group."""
        # Over the pixels first: that reduction runs along the contiguous layout.
        means = jnp.mean(x, (0, 1)).reshape(self.groups, -1).mean(1)
        return jnp.repeat(means, x.shape[-1] // self.groups)


class BatchNorm(AbstractBatchNorm):
    """Batch normalisation over the batch and the pixels, with running statistics for inference.

        y = scale (x - mean) / sqrt(variance + eps) + shift

    In training it needs the batch axis: `jax.vmap(..., axis_name=BATCH_AXIS)`, as `fit` does. In
    inference mode (`Predictor`) it is an affine map of each example alone. PyTorch's conventions:
    a batch moves the running statistics by `momentum`, the variance without bias. Unlike
    `eqx.nn.BatchNorm` it is channels-last throughout.

    - `channels`: c of x, (h, w, c).
    - `momentum`: in [0, 1] (0.1).
    - `eps`: added to the variance (1e-5).

    Raises `ValueError` for a momentum outside [0, 1] or an eps that is not positive.

        >>> import equinox as eqx, jax.numpy as jnp, odejax
        >>> norm, state = eqx.nn.make_with_state(odejax.models.BatchNorm)(2)
        >>> norm = eqx.nn.inference_mode(norm)
        >>> norm(jnp.ones((1, 1, 2)), state)[0].round(2).ravel().tolist()
        [1.0, 1.0]

    Ioffe and Szegedy (2015), arXiv:1502.03167.
    """

    scale: Float[Array, " c"]
    shift: Float[Array, " c"]
    statistics: eqx.nn.StateIndex  # running mean and variance
    momentum: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    inference: bool  # set by eqx.nn.inference_mode

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5):
        check_count(channels=channels)
        check_fraction(momentum=momentum)
        check_positive(eps=eps)
        self.scale, self.shift = jnp.ones(channels), jnp.zeros(channels)
        self.statistics = eqx.nn.StateIndex((jnp.zeros(channels), jnp.ones(channels)))
        self.momentum, self.eps, self.inference = momentum, eps, False

    def lipschitz_bound(self, state: eqx.nn.State) -> Scalar:
        """max |scale| / sqrt(running variance + eps), of inference; l2."""
        _, variance = state.get(self.statistics)
        return jnp.max(jnp.abs(self.scale) / jnp.sqrt(variance + self.eps))

    @own_promotion
    def __call__(self, x: Image, state: eqx.nn.State) -> tuple[Image, eqx.nn.State]:
        running = state.get(self.statistics)
        mean, variance = running
        dtype, x = x.dtype, x.astype(mean.dtype)  # statistics of bfloat16 features are float32
        if not self.inference:
            mean = _batch_mean(x)
            variance = _batch_mean((x - mean) ** 2)
            n = jax.lax.psum(1, BATCH_AXIS) * x.shape[0] * x.shape[1]
            batch = mean, variance * (n / max(n - 1, 1))
            running = jax.tree.map(
                lambda old, new: old + self.momentum * (new - old), running, batch
            )
            state = state.set(self.statistics, running)
        scale = self.scale * jax.lax.rsqrt(variance + self.eps)
        return (x * scale + (self.shift - mean * scale)).astype(dtype), state


class NoNorm(eqx.Module):
    """y = x, for networks without normalisation.

    - `channels`: of any x.

        >>> import equinox as eqx, jax.numpy as jnp, odejax
        >>> norm, state = eqx.nn.make_with_state(odejax.models.NoNorm)(2)
        >>> norm(jnp.ones((1, 1, 2)), state)[0].ravel().tolist()
        [1.0, 1.0]

    Zhang, Dauphin and Ma (2019), arXiv:1901.09321, train residual networks so.
    """

    def __init__(self, channels: int):
        check_count(channels=channels)

    def lipschitz_bound(self, state: eqx.nn.State) -> Scalar:
        """1"""
        return jnp.ones(())

    def __call__(self, x: Image, state: eqx.nn.State) -> tuple[Image, eqx.nn.State]:
        return x, state


def _batch_mean(x):
    return jax.lax.pmean(jnp.mean(x, (0, 1)), BATCH_AXIS)
