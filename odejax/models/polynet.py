"""PolyNet: polynomial residual modules (*natural* Section 3.3.1)."""

import equinox as eqx

from .._types import Image, Key, Logits
from ..solvers import NeumannSeries
from .blocks import ImageShape, Norm
from .norms import GroupNorm
from .resnet import ResNet


class PolyNet(eqx.Module):
    """y_{l+1} = (I + F_l + F_l^2 + ...) y_l with F = h f (Zhang et al. 2017; *natural* Eq. 15).

    A ResNet of the same weights whose steps are those of `NeumannSeries(order)`: order 2 is
    PolyNet's poly-2 module, order 1 the ResNet itself.
    """

    net: ResNet

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        order: int = 2,
        width: int = 32,
        depth: int = 6,
        step_size: float = 1.0,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        self.net = ResNet(
            image_shape,
            n_classes,
            width=width,
            depth=depth,
            step_size=step_size,
            solver=NeumannSeries(order),
            norm=norm,
            key=key,
        )

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        return self.net(x, state, key=key)
