"""Convolutional neural ODEs: a residual field that does not change with depth (*natural*)."""

import equinox as eqx
import jax
from jaxtyping import Array

from .._checks import check_count
from .._types import Image, Key, Logits, Scalar
from .blocks import (
    Head,
    ImageShape,
    Norm,
    ResidualField,
    Stem,
    check_image_shape,
)
from .norms import BatchNorm, GroupNorm
from .ode_net import AbstractODENet
from .ode_solve import ODESolve


class ConvODENet(AbstractODENet):
    """A convolutional neural ODE.

        y' = f(t, y),  y(0) = stem(x),  logits = head(y(t1)),  f norm-ReLU-conv `layers` times

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`, `layers`: channels (32), and convolutions in f (2).
    - `time`, `last_norm`: see `ResidualField` (both False); with both, `width=64` and
      `norm=partial(GroupNorm, groups=32)` this is the network of Chen et al. (2018) for MNIST.
    - `norm`: built as `norm(width)` (`GroupNorm`).
    - `solve`: how it is solved, the arguments of `ODESolve`, such as `t1` and `solver`.

    *natural* Table A1: `width=128, layers=4, t1=100` for MNIST, `width=256, layers=5, t1=500` for
    CIFAR-10, reading its "convolution layers" as the field's; it does not say more.

    Raises `ValueError` for `BatchNorm`, sizes that are no counts, and what `ODESolve` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.ConvODENet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Chen et al. (2018), arXiv:1806.07366.
    """

    stem: Stem
    residual: ResidualField
    head: Head
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 32,
        layers: int = 2,
        time: bool = False,
        last_norm: bool = False,
        norm: Norm = GroupNorm,
        key: Key,
        **solve,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        if norm is BatchNorm:
            raise ValueError("batch statistics change within an adaptive solve: use GroupNorm")
        stem_key, field_key, head_key = jax.random.split(key, 3)
        self.stem = Stem(image_shape, width, norm, key=stem_key)
        self.residual = ResidualField(
            width, norm, layers=layers, time=time, last_norm=last_norm, key=field_key
        )
        self.head = Head(width, n_classes, norm, key=head_key)
        self.ode = ODESolve(**solve)

    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        return self.stem(x, state)

    def parameters(self, state: eqx.nn.State):
        return self.residual, state

    @staticmethod
    def field(t: float | Scalar, y: Array, parameters) -> Array:
        residual, state = parameters
        return residual(y, state, t=t)[0]

    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        return self.head(y, state)
