"""FractalNet: depth from an expansion rule, no identity mappings (*natural* Section 3.3.2)."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax

from .._checks import check_count
from .._types import Image, Key
from ..solvers import Composition
from .blocks import Conv, ImageShape, Norm
from .norms import GroupNorm
from .resnet import AbstractResNet


class FractalField(eqx.Module):
    """The field of one fractal block: `field(y, state) -> (f_C(y), state)` (*natural* Eq. 19).

        f_1 = conv3x3 . relu . norm,  f_{C+1} = (f_C . f_C + f_1) / 2

    Every f_C and f_1 in it has weights of its own: 2^C - 1 convolutions, the longest path through
    2^{C-1} of them.

    - `width`: the channels of y, (h, w, width).
    - `norm`: `GroupNorm` or `BatchNorm`, built as `norm(width)`.
    - `columns`: C.

    Raises `ValueError` for fewer than one column.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def apply(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.FractalField)
        ...     module, state = make(4, odejax.models.GroupNorm, columns=2, key=key)
        ...     return module(x, state)[0]
        >>> jax.eval_shape(apply, jax.random.key(0), jnp.zeros((6, 6, 4))).shape
        (6, 6, 4)

    Larsson et al. (2016), arXiv:1605.07648.
    """

    norm: Callable
    conv: Conv
    halves: "tuple[FractalField, FractalField] | None"

    def __init__(self, width: int, norm: Norm, *, columns: int, key: Key):
        check_count(columns=columns)
        conv_key, *keys = jax.random.split(key, 3)
        self.norm = norm(width)
        self.conv = Conv(width, width, 3, padding=1, key=conv_key)
        self.halves = None
        if columns > 1:
            first, second = (FractalField(width, norm, columns=columns - 1, key=k) for k in keys)
            self.halves = first, second

    def __call__(
        self, y: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Image, eqx.nn.State]:
        short, state = self.norm(y, state)
        short = self.conv(jax.nn.relu(short))
        if self.halves is None:
            return short, state
        for field in self.halves:
            y, state = field(y, state)
        return (y + short) / 2, state


class FractalNet(AbstractResNet):
    """Fractal blocks one after the other, no identity mappings.

        y_{l+1} = f_C(y_l), `depth` fractal blocks of C `columns`

    As in *natural* Section 3.3.2, where the join is the mean of two paths; between the stem and the
    head of `ResNet`, without drop-path.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `columns`, `width`, `depth`: C (3), channels (32), blocks (3).
    - `norm`: built as `norm(width)` (`GroupNorm`).

    Raises `ValueError` for sizes that are no counts.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.FractalNet)
        ...     model, state = make((8, 8, 1), width=4, columns=2, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Larsson et al. (2016), arXiv:1605.07648.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        columns: int = 3,
        width: int = 32,
        depth: int = 3,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        super().__init__(
            image_shape,
            n_classes,
            width=width,
            depth=depth,
            solver=Composition(),
            field=partial(FractalField, columns=columns),
            norm=norm,
            key=key,
        )
