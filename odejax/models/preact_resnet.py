"""Pre-activation ResNets in groups: each group integrates one state, between groups it changes."""

from collections.abc import Callable

import equinox as eqx
import jax

from .._types import Features, Image, Key, Logits
from ..solvers import integrate_layers, stack_layers
from .blocks import (
    Conv,
    Head,
    ImageShape,
    Norm,
    ResidualField,
    check_image,
    check_image_shape,
)
from .norms import BatchNorm

# depth: (widths, layers of each group). Others are 6 n + 2 deep: n layers in each of three groups.
_WIDE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Transition(eqx.Module):
    """y -> conv1x1(r) + conv3x3(relu(norm(conv3x3(r)))), r = relu(norm(y)): to another width.

    The first 3x3 convolution and the shortcut have the stride.
    """

    norms: tuple[Callable, Callable]
    convs: tuple[Conv, Conv]
    shortcut: Conv

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, *, key: Key):
        keys = jax.random.split(key, 3)
        self.norms = norm(inputs), norm(outputs)
        self.convs = (
            Conv(inputs, outputs, 3, stride=stride, padding=1, key=keys[0]),
            Conv(outputs, outputs, 3, padding=1, key=keys[1]),
        )
        self.shortcut = Conv(inputs, outputs, 1, stride=stride, key=keys[2])

    def __call__(self, y: Image, state: eqx.nn.State) -> tuple[Features, eqx.nn.State]:
        y, state = self.norms[0](y, state)
        y = jax.nn.relu(y)
        z, state = self.norms[1](self.convs[0](y), state)
        return self.shortcut(y) + self.convs[1](jax.nn.relu(z)), state


class PreActResNet(eqx.Module):
    """conv3x3 stem, groups of residual layers y + f(y), then norm, ReLU, average pool, linear.

    Every group after the first halves the resolution and doubles the width in a `Transition`. He et
    al. 2016, for images of 32 pixels: `depth` 20, 32, 44, 56, 110 (6 n + 2: three groups of n
    layers, 16, 32 and 64 channels; *enresnet*), or 18, 34 (four groups, 64 to 512; *nmode*).
    """

    stem: Conv
    transitions: list[Transition | None]
    layers: list[ResidualField | None]  # stacked, for each group
    head: Head
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        depth: int = 20,
        norm: Norm = BatchNorm,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        if depth in _WIDE:
            width, counts = 64, _WIDE[depth]
        elif depth >= 8 and depth % 6 == 2:
            width, counts = 16, 3 * (depth // 6,)
        else:
            raise ValueError(f"depth must be 6 n + 2, 18 or 34; got {depth}")
        stem_key, head_key, *keys = jax.random.split(key, 2 + 2 * len(counts))
        self.stem = Conv(image_shape[2], width, 3, padding=1, key=stem_key)
        self.transitions, self.layers = [None], []
        for i, count in enumerate(counts):
            if i > 0:
                width *= 2
                self.transitions.append(Transition(width // 2, width, 2, norm, key=keys[2 * i]))
                count -= 1
            self.layers.append(_stacked(width, count, norm, keys[2 * i + 1]))
        self.head = Head(width, n_classes, norm, key=head_key)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        y = self.stem(x)
        for transition, layers in zip(self.transitions, self.layers, strict=True):
            if transition is not None:
                y, state = transition(y, state)
            if layers is not None:
                y, state = integrate_layers(layers, y, state)
        return self.head(y, state)


def _stacked(width: int, count: int, norm: Norm, key: Key) -> ResidualField | None:
    if count == 0:
        return None
    return stack_layers(  # pyright: ignore[reportReturnType]
        lambda key: ResidualField(width, norm, key=key), count, key=key
    )
