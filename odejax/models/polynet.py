"""PolyNet: polynomial residual modules (*natural* Section 3.3.1)."""

from .._types import Key
from ..solvers import NeumannSeries
from .blocks import ImageShape, Norm
from .norms import GroupNorm
from .resnet import AbstractResNet


class PolyNet(AbstractResNet):
    """A residual network of polynomial steps (*natural* Eq. 15).

        y_{l+1} = (I + F_l + F_l^2 + ...) y_l,  F = h f

    A ResNet of the same weights whose steps are those of `NeumannSeries(order)`: order 2 is
    PolyNet's poly-2 module, order 1 the ResNet itself.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `order`: the highest power (2).
    - `width`, `depth`, `step_size`: channels (32), layers (6) and h (1.0).
    - `norm`: built as `norm(width)` (`GroupNorm`).

    Raises `ValueError` for an order below 1, sizes that are no counts, and a negative step.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.PolyNet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Zhang et al. (2017), arXiv:1611.05725.
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
