"""Fully connected neural ODEs: of a field in general, and of one that settles."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_count
from .._types import Image, Key, Logits, Scalar
from .blocks import ImageShape, check_image_shape
from .ode_net import AbstractODENet
from .ode_solve import ODESolve


class DenseODENet(AbstractODENet):
    """y' = V tanh(W y + b) + c, y(0) = A x + a, logits = C y(t1) + d: the vanilla neural ODE.

    `width` is that of y and of the field's hidden layer. `solve`: how it is solved, the arguments
    of `ODESolve`, such as `t1` and `solver`.
    """

    inputs: eqx.nn.Linear
    hidden: tuple[eqx.nn.Linear, eqx.nn.Linear]
    outputs: eqx.nn.Linear
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self, image_shape: ImageShape, n_classes: int = 10, *, width: int = 128, key: Key, **solve
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        keys = jax.random.split(key, 4)
        self.inputs = eqx.nn.Linear(math.prod(image_shape), width, key=keys[0])
        self.hidden = (
            eqx.nn.Linear(width, width, key=keys[1]),
            eqx.nn.Linear(width, width, key=keys[2]),
        )
        self.outputs = eqx.nn.Linear(width, n_classes, key=keys[3])
        self.ode = ODESolve(**solve)

    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        return self.inputs(jnp.ravel(x)), state

    def parameters(self, state: eqx.nn.State):
        return self.hidden

    @staticmethod
    def field(t: float | Scalar, y: Array, parameters) -> Array:
        first, second = parameters
        return second(jnp.tanh(first(y)))

    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        return self.outputs(y), state


class HopfieldODENet(AbstractODENet):
    """y' = -y + tanh(W y + b), y(0) = A x + a, logits = C y(t1) + c.

    All of the image is in the initial state, and over a long time the state falls towards an
    attractor and forgets it at an exponential rate: so do the gradients. With a long `t1` this is
    the smallest neural ODE with the settings of *natural* (t1 = 100, Dopri5) whose gradients say
    less about its decisions than its decisions do.

    `solve`: how it is solved, the arguments of `ODESolve`, such as `t1` and `solver`.
    """

    inputs: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    outputs: eqx.nn.Linear
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self, image_shape: ImageShape, n_classes: int = 10, *, width: int = 128, key: Key, **solve
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        keys = jax.random.split(key, 3)
        self.inputs = eqx.nn.Linear(math.prod(image_shape), width, key=keys[0])
        self.recurrent = eqx.nn.Linear(width, width, key=keys[1])
        self.outputs = eqx.nn.Linear(width, n_classes, key=keys[2])
        self.ode = ODESolve(**solve)

    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        return self.inputs(jnp.ravel(x)), state

    def parameters(self, state: eqx.nn.State):
        return self.recurrent

    @staticmethod
    def field(t: float | Scalar, y: Array, parameters) -> Array:
        return -y + jnp.tanh(parameters(y))

    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        return self.outputs(y), state
