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
    """f(t, y) of states y in R^width, built as `field(width, keys)` of `n_keys` random keys.

    A subclass states `n_keys`, a class variable, and is given as `DenseODENet(field=...)`.

        >>> import odejax
        >>> class Decay(odejax.models.AbstractDenseField):
        ...     n_keys = 0
        ...     def __init__(self, width, keys): pass
        ...     def __call__(self, t, y): return -y
        >>> Decay(4, [])(0.0, 2.0)
        -2.0

    Chen et al. (2018), arXiv:1806.07366.
    """

    n_keys: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        """y'."""


class TanhField(AbstractDenseField):
    """The field of the vanilla neural ODE, with as many hidden units as y has entries.

        f(y) = V tanh(W y + b) + c

    - `width`: the entries of y.
    - `keys`: two random keys, (2,).

        >>> import jax, jax.numpy as jnp, odejax
        >>> odejax.models.TanhField(4, jax.random.split(jax.random.key(0)))(0.0, jnp.zeros(4)).shape
        (4,)

    Chen et al. (2018), arXiv:1806.07366.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    n_keys: ClassVar[int] = 2

    def __init__(self, width: int, keys: Array):
        self.first, self.second = (eqx.nn.Linear(width, width, key=key) for key in keys)

    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        return self.second(jnp.tanh(self.first(y)))


class HopfieldField(AbstractDenseField):
    """A field whose state settles.

        f(y) = -y + tanh(W y + b)

    Over a long time the state converges to an attractor and forgets where it started at an
    exponential rate; so the gradients vanish at that rate. With a long `t1` a `DenseODENet` of this
    field is the smallest neural ODE with the settings of *natural* (t1 = 100, Dopri5) that masks
    its gradients.

    - `width`: the entries of y.
    - `keys`: one random key, (1,).

        >>> import jax, jax.numpy as jnp, odejax
        >>> field = odejax.models.HopfieldField(4, jax.random.split(jax.random.key(0), 1))
        >>> field(0.0, jnp.zeros(4)).shape
        (4,)

    Hopfield (1984), *Proceedings of the National Academy of Sciences* 81.
    """

    recurrent: eqx.nn.Linear
    n_keys: ClassVar[int] = 1

    def __init__(self, width: int, keys: Array):
        self.recurrent = eqx.nn.Linear(width, width, key=keys[0])

    def __call__(self, t: float | Scalar, y: Vector) -> Vector:
        return -y + jnp.tanh(self.recurrent(y))


class DenseODENet(AbstractODENet):
    """A fully connected neural ODE of any field.

        y' = f(t, y),  y(0) = A x + a,  logits = C y(t1) + d

    All of the image is in the initial state.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`: the entries of y (128).
    - `field`: f, a subclass of `AbstractDenseField`; by default `TanhField`, the vanilla neural
      ODE.
    - `solve`: how it is solved, the arguments of `ODESolve`, such as `t1` and `solver`.

    Raises `ValueError` for a field of another kind, sizes that are no counts, and what `ODESolve`
    refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> field = odejax.models.HopfieldField
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.DenseODENet)
        ...     model, state = make((8, 8, 1), width=4, field=field, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Chen et al. (2018), arXiv:1806.07366.
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
