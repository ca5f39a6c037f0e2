"""What the image models share: the convolution layer, the residual field, the stem and the head."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, is_integer
from .._promotion import own_promotion
from .._types import Features, Image, Key, Logits, Scalar
from .convolution import conv2d
from .spectral import conv_norm_bound

ImageShape = tuple[int, int, int]
"""(h, w, c): height, width, channels."""
Norm = Callable[[int], Callable[[Image, eqx.nn.State], tuple[Image, eqx.nn.State]]]


def check_image(x: Image, image_shape: ImageShape):
    """Raise `ValueError` unless `x` is one image of the shape that the model was built for."""
    if x.shape != image_shape:
        hint = "; batch with jax.vmap" if x.shape[1:] == image_shape else ""
        raise ValueError(f"this model takes one image of shape {image_shape}, got {x.shape}{hint}")


def check_image_shape(image_shape: Sequence[int], n_classes: int = 2) -> ImageShape:
    """`image_shape` as a tuple; `ValueError` unless a model can be built for it."""
    if (
        not isinstance(image_shape, Sequence)
        or len(image_shape) != 3
        or not all(is_integer(side) and side >= 1 for side in image_shape)
    ):
        raise ValueError(f"image_shape must be (height, width, channels); got {image_shape}")
    check_count(2, n_classes=n_classes)
    height, width, channels = image_shape
    return int(height), int(width), int(channels)


class Conv(eqx.Module):
    """A 2-D convolution of (h, w, inputs) to (h2, w2, outputs), He initialised.

        y = conv2d(x, kernel) + bias,  kernel ~ N(0, 2 / fan-in), without a bias N(0, 2 / fan-out)

    A bias is of no use in front of a norm. Those who leave it out (the pre-activation ResNets of
    *enresnet*) count the fan as in their code.

    - `inputs`, `outputs`, `size`: channels, and the side of the kernel in pixels.
    - `stride`, `padding`: in pixels (1, and 0 zeros on each side).
    - `bias`: whether there is one (True); it starts at 0.

    Raises `ValueError` for sizes that are no counts.

        >>> import jax, jax.numpy as jnp, odejax
        >>> conv = odejax.models.Conv(1, 8, 3, stride=2, padding=1, key=jax.random.key(0))
        >>> conv(jnp.zeros((8, 8, 1))).shape
        (4, 4, 8)

    He et al. (2015), arXiv:1502.01852.
    """

    kernel: Float[Array, "k k i o"]
    bias: Float[Array, " o"] | None
    stride: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        key: Key,
    ):
        check_count(inputs=inputs, outputs=outputs, size=size, stride=stride)
        check_count(0, padding=padding)
        std = (2 / (size * size * (inputs if bias else outputs))) ** 0.5
        self.kernel = std * jax.random.normal(key, (size, size, inputs, outputs))
        self.bias = jnp.zeros(outputs) if bias else None
        self.stride, self.padding = stride, padding

    @own_promotion
    def __call__(self, x: Image) -> Features:
        y = conv2d(x, self.kernel, stride=self.stride, padding=self.padding)
        return y if self.bias is None else y + self.bias


def with_time(y: Image, t: float | Scalar) -> Features:
    """y and a further channel that is t everywhere."""
    return jnp.concatenate([y, jnp.full((*y.shape[:2], 1), t, y.dtype)], axis=-1)


class ResidualField(eqx.Module):
    """The vector field of every convolutional family: `field(y, state) -> (dy, state)`.

        f = conv3x3 . relu . norm, twice or `layers` times, at constant width (pre-activation)

    - `width`: the channels of y, (h, w, width), and of dy.
    - `norm`: `GroupNorm` or `BatchNorm`, built as `norm(width)`.
    - `layers`: how many convolutions (2).
    - `time`: every convolution has t as a further, constant channel: `field(y, state, t=t)`
      (False).
    - `last_norm`: a norm behind the last convolution (False). With both this is the field of Chen
      et al. (2018, arXiv:1806.07366).

    Raises `ValueError` for fewer than one layer.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def apply(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.ResidualField)
        ...     module, state = make(4, odejax.models.GroupNorm, key=key)
        ...     return module(x, state)[0]
        >>> jax.eval_shape(apply, jax.random.key(0), jnp.zeros((6, 6, 4))).shape
        (6, 6, 4)

    He et al. (2016), arXiv:1603.05027.
    """

    norms: tuple[Callable, ...]
    convs: tuple[Conv, ...]
    last_norm: Callable | None
    time: bool = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        norm: Norm,
        *,
        layers: int = 2,
        time: bool = False,
        last_norm: bool = False,
        key: Key,
    ):
        check_count(layers=layers)
        self.norms = tuple(norm(width) for _ in range(layers))
        self.convs = tuple(
            Conv(width + time, width, 3, padding=1, key=k) for k in jax.random.split(key, layers)
        )
        self.last_norm = norm(width) if last_norm else None
        self.time = time

    def __call__(
        self,
        y: Image,
        state: eqx.nn.State,
        *,
        t: float | Scalar = 0.0,
        key: Key | None = None,
    ) -> tuple[Image, eqx.nn.State]:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y, state = norm(y, state)
            y = jax.nn.relu(y)
            y = conv(with_time(y, t) if self.time else y)
        return (y, state) if self.last_norm is None else self.last_norm(y, state)

    def lipschitz_bound(self, state: eqx.nn.State, image_size: tuple[int, int]) -> Scalar:
        """A proven l2 Lipschitz constant on images of (h, w) pixels: its parts' product.

        That of GroupNorm is 1 / sqrt(eps), over 300: proven, and far from what a network does.
        """
        norms = [*self.norms, *([] if self.last_norm is None else [self.last_norm])]
        constant = jnp.ones(())
        for norm in norms:
            constant *= norm.lipschitz_bound(state)  # pyright: ignore[reportFunctionMemberAccess]
        for conv in self.convs:
            kernel = conv.kernel[:, :, : conv.kernel.shape[-1]]  # the time's channel left out
            constant *= conv_norm_bound(kernel, image_size, padding=conv.padding)
        return constant


class Stem(eqx.Module):
    """Pixels to features: conv3 (no padding), then conv4 with stride 2, norm and ReLU between.

    Halved until the feature map is about 6 pixels wide: 28 -> 26 -> 13 -> 6, the MNIST network of
    *ssp*; 8 x 8 digits are not halved.

    - `image_shape`: (h, w, c) of an image.
    - `width`: the channels of the features, (h2, w2, width).
    - `norm`: `GroupNorm` or `BatchNorm`, built as `norm(width)`.

    Raises `ValueError` for images below 5 x 5 pixels.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def apply(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.Stem)
        ...     module, state = make((28, 28, 1), 4, odejax.models.GroupNorm, key=key)
        ...     return module(x, state)[0]
        >>> jax.eval_shape(apply, jax.random.key(0), jnp.zeros((28, 28, 1))).shape
        (6, 6, 4)

    Kim et al. (2020), arXiv:2010.10047; the same stem is that of Chen et al. (2018),
    arXiv:1806.07366.
    """

    convs: list[Conv]
    norms: list[Callable]

    def __init__(self, image_shape: ImageShape, width: int, norm: Norm, *, key: Key):
        height, width_in, channels = image_shape
        if min(height, width_in) < 5:
            raise ValueError(f"images must be at least 5 x 5 pixels; got {image_shape}")
        halvings = 0
        while min(height, width_in) / 2**halvings > 9:
            halvings += 1
        keys = jax.random.split(key, halvings + 1)
        self.convs = [Conv(channels, width, 3, key=keys[0])]
        self.convs += [Conv(width, width, 4, stride=2, padding=1, key=k) for k in keys[1:]]
        self.norms = [norm(width) for _ in range(halvings)]

    def __call__(self, x: Image, state: eqx.nn.State) -> tuple[Features, eqx.nn.State]:
        x = self.convs[0](x)
        for norm, conv in zip(self.norms, self.convs[1:], strict=True):
            x, state = norm(x, state)
            x = conv(jax.nn.relu(x))
        return x, state


class Head(eqx.Module):
    """Features (h, w, width) to logits: norm, ReLU, global average pool, linear.

    - `width`: the channels of the features.
    - `n_classes`: the number of logits.
    - `norm`: `GroupNorm` or `BatchNorm`, built as `norm(width)`; None for neither norm nor ReLU.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def apply(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.Head)
        ...     module, state = make(4, 10, odejax.models.GroupNorm, key=key)
        ...     return module(x, state)[0]
        >>> jax.eval_shape(apply, jax.random.key(0), jnp.zeros((6, 6, 4))).shape
        (10,)

    He et al. (2016), arXiv:1603.05027.
    """

    norm: Callable | None
    linear: eqx.nn.Linear

    def __init__(self, width: int, n_classes: int, norm: Norm | None, *, key: Key):
        self.norm = None if norm is None else norm(width)
        self.linear = eqx.nn.Linear(width, n_classes, key=key)

    def __call__(self, y: Image, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        if self.norm is not None:
            y, state = self.norm(y, state)
            y = jax.nn.relu(y)
        return self.linear(jnp.mean(y, axis=(0, 1))), state
