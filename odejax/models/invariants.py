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
    """A symplectic flow between two matrices."""

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return SymplecticLayer(n, **settings)


class VolumePreservingNet(AbstractInvariantNet):
    """A volume-preserving flow between two matrices."""

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return VolumeLayer(n, **settings)


class MassPreservingNet(AbstractInvariantNet):
    """A flow that keeps the sum of the state's entries, between two matrices."""

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return MassLayer(n, **settings)


class SpherePreservingNet(AbstractInvariantNet):
    """A flow that keeps the norm of the state, between two matrices."""

    @staticmethod
    def _layer(n: int, **settings) -> AbstractInvariantLayer:
        return SphereLayer(n, **settings)
