"""The networks that *structured* compares: one architecture, five kinds of residual layer."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count, check_fraction
from .._types import Key, Scalar
from .blocks import ImageShape, check_image_shape
from .lipschitz import AbstractLipschitzNet
from .lipschitz_layers import (
    AbstractLipschitzLayer,
    Flatten,
    MaxPool,
    ReLU,
    Residual,
    Sequential,
    TwoFlows,
    delta_orthogonal,
    dense,
    lift,
)
from .operators import ConvOperator
from .spectral import conv_norm_bound
from .step_rules import AbstractSteps, NonExpansiveSteps


class AbstractRegime(eqx.Module):
    """What keeps a network's layers in bounds.

    `gain`: the norm of lifting convolutions and head; None for no constraint.
    """

    gain: eqx.AbstractClassVar[float | None]

    @abc.abstractmethod
    def layer(
        self, channels: int, image_size: tuple[int, int], *, key: Key
    ) -> AbstractLipschitzLayer:
        """One layer of the network: two residual steps."""


class Unconstrained(AbstractRegime):
    """The regime of an ordinary ResNet: weights as they are.

        x + B relu(A x + b)

        >>> import jax, odejax
        >>> layer = odejax.models.Unconstrained().layer(2, (4, 4), key=jax.random.key(0))
        >>> len(layer.layers)
        2

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    gain: ClassVar[float | None] = None

    def layer(self, channels, image_size, *, key):
        return _residuals(channels, image_size, None, key)


class NaivelyConstrained(AbstractRegime):
    """The regime of norms at most 1: each step stretches by at most 2.

        x + B relu(A x + b) with |A| = |B| = 1

        >>> import jax, odejax
        >>> layer = odejax.models.NaivelyConstrained().layer(1, (2, 2), key=jax.random.key(0))
        >>> float(layer.lipschitz_bound())
        4.0

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    gain: ClassVar[float | None] = 1.0

    def layer(self, channels, image_size, *, key):
        return _residuals(channels, image_size, 1.0, key)


class Structured(AbstractRegime):
    """The regimes of gradient-flow steps, in pairs that expand nothing.

        x - h A^T sigma(A x + b) with |A| = 1

    - `steps`: how, `NonExpansiveSteps()` (the default), `PrescribedSteps()` or `FlexibleSteps()`.
    - `slope`: sigma's, of the LeakyReLU, 1/2 in the paper (0.5): where it is 0 nothing contracts,
      and switching has nothing to gain.

    Raises `ValueError` for a slope outside [0, 1].

        >>> import odejax
        >>> regime = odejax.models.Structured(steps=odejax.models.FlexibleSteps())
        >>> regime.slope, regime.steps.switching
        (0.5, True)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    steps: AbstractSteps = NonExpansiveSteps()
    slope: float = eqx.field(static=True, default=0.5)
    gain: ClassVar[float | None] = 1.0

    def __check_init__(self):
        check_fraction(slope=self.slope)

    def layer(self, channels, image_size, *, key):
        def kernel(key):
            if self.steps.switching:
                return delta_orthogonal(key, channels, channels)
            return _of_norm_one(jax.random.normal(key, (3, 3, channels, channels)), image_size)

        first, second = (_operator(kernel(k), image_size, 1.0) for k in jax.random.split(key))
        biases = (jnp.zeros(channels), jnp.zeros(channels))
        return TwoFlows((first, second), biases, jnp.zeros(2), self.steps, self.slope)


def _residuals(channels, image_size, gain, key):
    shape, layers = (3, 3, channels, channels), []
    for k in jax.random.split(key):
        first, second = (jax.random.normal(k_, shape) for k_ in jax.random.split(k))
        if gain is None:  # He et al.'s variance; the outer one small, for a start near the identity
            std = (2 / (9 * channels)) ** 0.5
            first, second = std * first, 0.1 * std * second
        else:
            first, second = _of_norm_one(first, image_size), _of_norm_one(second, image_size)
        first, second = (_operator(kernel, image_size, gain) for kernel in (first, second))
        layers.append(Residual(first, second, jnp.zeros(channels)))
    return Sequential(tuple(layers))


def _of_norm_one(kernel, image_size):
    """A kernel that is scaled in every call learns at the rate / norm^2: all start at the same."""
    return kernel / conv_norm_bound(kernel, image_size, circular=True)


def _operator(kernel, image_size, gain):
    return ConvOperator(kernel, image_size, gain, circular=True)


class StructuredNet(AbstractLipschitzNet):
    """A network of residual layers of one regime, as *structured* compares them.

    Blocks of lifting conv3x3, ReLU, `depth` residual steps and 2x2 max pooling; a linear head.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `regime`: what the residual steps are and how they are constrained, by default `Structured()`.
    - `channels`: those of each block, by default 32, 64 and 128 as in the paper.
    - `depth`: residual steps in each block, an even number; 4 as in the paper.

    Everything between the pixels and the logits is in `lipschitz_bound`: the lifting convolutions,
    the pooling and the head too. Convolutions are circular, so that the bounds on their norms are
    exact but for the slack of the Gram iteration, and smallest singular values have bounds at all.

    Raises `ValueError` for an odd depth, sizes that are no counts, and images that are too small to
    be halved by every block.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.StructuredNet)
        ...     model, state = make((8, 8, 1), channels=(4, 8), key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    layers: Sequential
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        regime: AbstractRegime | None = None,
        channels: Sequence[int] = (32, 64, 128),
        depth: int = 4,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        regime = Structured() if regime is None else regime
        h, w, inputs = image_shape
        check_count(depth=depth, **{f"channels[{i}]": c for i, c in enumerate(channels)})
        if depth % 2:
            raise ValueError(f"depth counts residual steps, which come in twos; got {depth}")
        if min(h, w) < 2 ** len(channels):
            raise ValueError(
                f"{len(channels)} blocks halve images of at least {2 ** len(channels)} pixels; "
                f"got {image_shape}"
            )
        gain = regime.gain
        keys = iter(jax.random.split(key, len(channels) * (1 + depth // 2) + 1))
        layers: list[AbstractLipschitzLayer] = []
        for outputs in channels:
            size = (h, w)
            layers += [lift(inputs, outputs, size, next(keys), gain=gain, circular=True), ReLU()]
            layers += [regime.layer(outputs, size, key=next(keys)) for _ in range(depth // 2)]
            layers.append(MaxPool())
            h, w, inputs = h // 2, w // 2, outputs
        layers += [Flatten(), dense(h * w * inputs, n_classes, next(keys), gain=gain)]
        self.layers = Sequential(tuple(layers))

    def orthogonality(self) -> Scalar:
        """sum |A^T A - I|^2 over the maps of all gradient-flow steps (`ConvOperator`).

        As a penalty, `Penalised(penalty=orthogonality_penalty)`, it gives contracting steps a
        constant that is proven to be below 1, so that others may expand.
        """
        pairs = [layer for layer in self.layers.layers if isinstance(layer, TwoFlows)]
        maps = [operator for pair in pairs for operator in pair.operators]
        return jnp.sum(jnp.stack([a.orthogonality() for a in maps])) if maps else jnp.zeros(())
