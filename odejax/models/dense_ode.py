"""Fully connected neural ODEs: of a field in general, and of one that settles."""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count
from .._types import Image, Key, Logits, Scalar
from .blocks import ImageShape, check_image_shape
from .ode_net import AbstractODENet
from .ode_solve import ODESolve

Vector = Float[Array, " width"]


class AbstractDenseField(eqx.Module):
    """f(t, y) of states y in R^width, built as `field(width, keys)` of `n_keys` random keys."""

    n_keys: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        """y'."""


class TanhField(AbstractDenseField):
    """f(y) = V tanh(W y + b) + c, with as many hidden units as y has entries."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    n_keys: ClassVar[int] = 2

    def __init__(self, width: int, keys: Key):
        self.first, self.second = (eqx.nn.Linear(width, width, key=key) for key in keys)

    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        return self.second(jnp.tanh(self.first(y)))


class HopfieldField(AbstractDenseField):
    """f(y) = -y + tanh(W y + b): the state settles.

    Over a long time it falls towards an attractor and forgets where it started at an exponential
    rate: so do the gradients. With a long `t1` a `DenseODENet` of this field is the smallest neural
    ODE with the settings of *natural* (t1 = 100, Dopri5) whose gradients say less about its
    decisions than its decisions do.
    """

    recurrent: eqx.nn.Linear
    n_keys: ClassVar[int] = 1

    def __init__(self, width: int, keys: Key):
        self.recurrent = eqx.nn.Linear(width, width, key=keys[0])

    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        return -y + jnp.tanh(self.recurrent(y))


class DenseODENet(AbstractODENet):
    """y' = f(t, y), y(0) = A x + a, logits = C y(t1) + d: all of the image is in the initial state.

    - `width`: the entries of y.
    - `field`: f, an `AbstractDenseField`; by default `TanhField`, the vanilla neural ODE.
    - `solve`: how it is solved, the arguments of `ODESolve`, such as `t1` and `solver`.
    """

    inputs: eqx.nn.Linear
    vector_field: AbstractDenseField
    outputs: eqx.nn.Linear
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 128,
        field: type[AbstractDenseField] = TanhField,
        key: Key,
        **solve,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        if not (isinstance(field, type) and issubclass(field, AbstractDenseField)):
            raise ValueError(f"field must be a subclass of AbstractDenseField; got {field}")
        keys = jax.random.split(key, 2 + field.n_keys)
        self.inputs = eqx.nn.Linear(math.prod(image_shape), width, key=keys[0])
        self.vector_field = field(width, keys[1:-1])  # pyright: ignore[reportCallIssue]
        self.outputs = eqx.nn.Linear(width, n_classes, key=keys[-1])
        self.ode = ODESolve(**solve)

    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        return self.inputs(jnp.ravel(x)), state

    def parameters(self, state: eqx.nn.State):
        return self.vector_field

    @staticmethod
    def field(t: float | Scalar, y: Array, parameters) -> Array:
        return parameters(t, y)

    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        return self.outputs(y), state
