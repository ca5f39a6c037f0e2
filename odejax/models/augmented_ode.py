"""Augmented neural ODEs: room for the flow that the image alone does not leave (Dupont et al.)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_count
from .._types import Image, Key, Logits, Scalar
from .blocks import Conv, ImageShape, check_image_shape, with_time
from .ode_net import AbstractODENet
from .ode_solve import ODESolve


class AugmentedODENet(AbstractODENet):
    """A neural ODE whose state is the image itself beside channels of zeros.

        y' = f(t, y),  y(0) = [x, 0],  logits = W ravel(y(t1)) + b

    f is conv1x1, ReLU, conv3x3, ReLU, conv1x1, of `width` channels inside.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`: channels inside f (64).
    - `augment`: channels of zeros (5); with none this is their NODE.
    - `time`: every convolution has the time as a further, constant channel (False).
    - `solve`: how it is solved, the arguments of `ODESolve`, such as `t1` and `solver`.

    Raises `ValueError` for sizes that are no counts, and what `ODESolve` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.AugmentedODENet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Dupont et al. (2019), arXiv:1904.01681.
    """

    convs: tuple[Conv, Conv, Conv]
    outputs: eqx.nn.Linear
    ode: ODESolve
    augment: int = eqx.field(static=True)
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 64,
        augment: int = 5,
        time: bool = False,
        key: Key,
        **solve,
    ):
        self.image_shape = height, columns, channels = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        check_count(0, augment=augment)
        self.augment = augment
        *keys, outputs_key = jax.random.split(key, 4)
        channels += augment
        shapes = [(channels, width, 1), (width, width, 3), (width, channels, 1)]
        self.convs = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            Conv(inputs + time, outputs, size, padding=size // 2, key=key)
            for (inputs, outputs, size), key in zip(shapes, keys, strict=True)
        )
        self.outputs = eqx.nn.Linear(height * columns * channels, n_classes, key=outputs_key)
        self.ode = ODESolve(**solve)

    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.augment))), state

    def parameters(self, state: eqx.nn.State):
        return self.convs

    @staticmethod
    def field(t: float | Scalar, y: Array, parameters) -> Array:
        for i, conv in enumerate(parameters):
            y = jax.nn.relu(y) if i else y
            y = conv(with_time(y, t) if conv.kernel.shape[2] > y.shape[-1] else y)
        return y

    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        return self.outputs(jnp.ravel(y)), state
