"""Networks whose layers keep an invariant, between two matrices (*structured*).

The layers, and what each of them keeps, are those of `invariant_layers`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count
from .._types import Image, Key, Logits
from ..solvers import apply_layers, stack_layers
from .blocks import ImageShape, check_image, check_image_shape
from .invariant_layers import (
    AbstractInvariantLayer,
    MassLayer,
    SphereLayer,
    SymplecticLayer,
    Vector,
    VolumeLayer,
)


class AbstractInvariantNet(eqx.Module):
    """Pixels to a state in R^`features` by a matrix, `depth` layers, and logits by another.

    The layers alone are `flow`, a map of states with the invariant that the class is named after;
    `width` are the hidden units of each, `step_size` is h.
    """

    lift: eqx.nn.Linear
    layers: AbstractInvariantLayer  # stacked: every array has a leading axis of depth
    head: eqx.nn.Linear
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        features: int = 64,
        depth: int = 8,
        width: int = 64,
        step_size: float = 0.1,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(features=features, depth=depth, width=width)
        h, w, c = image_shape
        lift_key, layers_key, head_key = jax.random.split(key, 3)
        self.lift = eqx.nn.Linear(h * w * c, features, key=lift_key)
        self.layers = stack_layers(  # pyright: ignore[reportAttributeAccessIssue]
            lambda key: self._layer(features, width=width, step_size=step_size, key=key),
            depth,
            key=layers_key,
        )
        self.head = eqx.nn.Linear(features, n_classes, key=head_key)

    @staticmethod
    @abc.abstractmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        """One layer."""

    def flow(self, y: Vector) -> Vector:
        """The layers, one after the other."""
        return apply_layers(self.layers, y)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        return self.head(self.flow(self.lift(jnp.ravel(x)))), state


class HamiltonianNet(AbstractInvariantNet):
    """A symplectic flow between two matrices.

        y(0) = A x + a,  y_{l+1} = SymplecticLayer(y_l),  logits = C y_L + c

    The layers alone are `flow`, a map of states that keeps the area form.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `features`: n, the entries of the state (64), an even number.
    - `depth`, `width`: layers (8), and hidden units of each (64).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, and what `SymplecticLayer` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.HamiltonianNet)
        ...     model, state = make((8, 8, 1), features=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Celledoni et al. (2022), arXiv:2210.02373; Jin et al. (2020), arXiv:2001.03750.
    """

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return SymplecticLayer(n, **settings)


class VolumePreservingNet(AbstractInvariantNet):
    """A volume-preserving flow between two matrices.

        y(0) = A x + a,  y_{l+1} = VolumeLayer(y_l),  logits = C y_L + c

    The layers alone are `flow`, a map of states that keeps volumes.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `features`: n, the entries of the state (64), an even number.
    - `depth`, `width`: layers (8), and hidden units of each (64).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, and what `VolumeLayer` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.VolumePreservingNet)
        ...     model, state = make((8, 8, 1), features=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return VolumeLayer(n, **settings)


class MassPreservingNet(AbstractInvariantNet):
    """A flow that keeps the sum of the state's entries, between two matrices.

        y(0) = A x + a,  y_{l+1} = MassLayer(y_l),  logits = C y_L + c

    The layers alone are `flow`, a map of states that keeps sum_i y_i.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `features`: n, the entries of the state (64).
    - `depth`, `width`: layers (8), and hidden units of each (64).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, and what `MassLayer` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.MassPreservingNet)
        ...     model, state = make((8, 8, 1), features=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return MassLayer(n, **settings)


class SpherePreservingNet(AbstractInvariantNet):
    """A flow that keeps the norm of the state, between two matrices.

        y(0) = A x + a,  y_{l+1} = SphereLayer(y_l),  logits = C y_L + c

    The layers alone are `flow`, a map of states that keeps |y|.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `features`: n, the entries of the state (64).
    - `depth`, `width`: layers (8), and hidden units of each (64).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, and what `SphereLayer` refuses.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.SpherePreservingNet)
        ...     model, state = make((8, 8, 1), features=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return SphereLayer(n, **settings)
