"""RevNet: a residual network that can be run backwards (*natural* Section 3.3.3)."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count, check_not_negative
from .._types import Features, Image, Key, Logits
from ..solvers import integrate_reversible, invert_reversible, stack_layers
from .blocks import (
    Head,
    ImageShape,
    Norm,
    ResidualField,
    Stem,
    check_image,
    check_image_shape,
)
from .norms import BatchNorm, GroupNorm


class RevNet(eqx.Module):
    """A residual network that can be run backwards.

        X+ = X + h f1(Y),  Y+ = Y + h f2(X+) on the two halves of the channels

    Between the stem and the head of `ResNet`; each of the `depth` layers has two residual fields of
    `width` / 2 channels. The gradient recomputes the features from the last ones
    (`integrate_reversible`), so its memory does not grow with `depth`; it is for reverse mode, and
    for norms that look at one example alone.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`, `depth`, `step_size`: channels, an even number (32), layers (6) and h (1.0).
    - `norm`: built as `norm(width)` (`GroupNorm`).

    Raises `ValueError` for an odd width, `BatchNorm`, sizes that are no counts, and a negative
    step.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.RevNet)
        ...     model, state = make((8, 8, 1), width=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Gomez et al. (2017), arXiv:1707.04585.
    """

    stem: Stem
    layers: tuple[ResidualField, ResidualField]  # stacked
    head: Head
    step_size: float = eqx.field(static=True)
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 32,
        depth: int = 6,
        step_size: float = 1.0,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth)
        if width % 2:
            raise ValueError(f"width must be even, its halves are coupled; got {width}")
        check_not_negative(step_size=step_size)
        if norm is BatchNorm:
            raise ValueError("the reversible gradient has no batch statistics: use GroupNorm")
        stem_key, first_key, second_key, head_key = jax.random.split(key, 4)
        self.stem = Stem(image_shape, width, norm, key=stem_key)

        def field(key):
            return ResidualField(width // 2, norm, key=key)

        self.layers = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            stack_layers(field, depth, key=key) for key in (first_key, second_key)
        )
        self.head = Head(width, n_classes, norm, key=head_key)
        self.step_size = step_size

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        y, state = self.stem(x, state)
        return self.head(self.forward(y, state), state)

    def forward(self, y: Features, state: eqx.nn.State) -> Features:
        """The stem's features to the head's."""
        x, y = jnp.split(y, 2, axis=-1)
        halves = integrate_reversible(self.layers, (x, y), state, step_size=self.step_size)
        return jnp.concatenate(halves, axis=-1)

    def inverse(self, y: Features, state: eqx.nn.State) -> Features:
        """The head's features to the stem's."""
        x, y = jnp.split(y, 2, axis=-1)
        halves = invert_reversible(self.layers, (x, y), state, step_size=self.step_size)
        return jnp.concatenate(halves, axis=-1)
