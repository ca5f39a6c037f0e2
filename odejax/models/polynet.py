"""PolyNet: polynomial residual modules (*natural* Section 3.3.1)."""

from .._types import Key
from ..solvers import NeumannSeries
from .blocks import ImageShape, Norm
from .norms import GroupNorm
from .resnet import AbstractResNet


class PolyNet(AbstractResNet):
    """y_{l+1} = (I + F_l + F_l^2 + ...) y_l with F = h f (Zhang et al. 2017; *natural* Eq. 15).

    A ResNet of the same weights whose steps are those of `NeumannSeries(order)`: order 2 is
    PolyNet's poly-2 module, order 1 the ResNet itself.
    """

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
        super().__init__(
            image_shape,
            n_classes,
            width=width,
            depth=depth,
            step_size=step_size,
            solver=NeumannSeries(order),
            norm=norm,
            key=key,
        )
