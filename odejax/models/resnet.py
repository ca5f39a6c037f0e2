"""Residual networks: one set of layers, integrated by Euler (*natural*: step size h) or better."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax

from .._checks import check_count, check_not_negative
from .._types import Features, Image, Key, Logits
from ..solvers import (
    SSPRK33,
    AbstractLayerStep,
    AbstractNoise,
    integrate_layers,
    layer_states,
    layer_step,
    stack_layers,
)
from .blocks import (
    Head,
    ImageShape,
    Norm,
    ResidualField,
    Stem,
    check_image,
    check_image_shape,
)
from .norms import GroupNorm


class AbstractResNet(eqx.Module):
    """A stem, stacked residual layers that a solver integrates, and a head: see `ResNet`."""

    stem: Stem
    layers: Callable  # the fields, stacked: every array has a leading axis of `depth`
    head: Head
    noise: AbstractNoise | None
    solver: diffrax.AbstractSolver | AbstractLayerStep
    step_size: float = eqx.field(static=True)
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int,
        *,
        width: int,
        depth: int,
        solver: diffrax.AbstractSolver | AbstractLayerStep,
        norm: Norm,
        key: Key,
        step_size: float = 1.0,
        field: Callable[..., eqx.Module] = ResidualField,
        noise: AbstractNoise | None = None,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth)
        check_not_negative(step_size=step_size)
        stem_key, layers_key, head_key = jax.random.split(key, 3)
        self.stem = Stem(image_shape, width, norm, key=stem_key)
        self.layers = stack_layers(  # pyright: ignore[reportAttributeAccessIssue]
            lambda key: field(width, norm, key=key), depth, key=layers_key
        )
        self.head = Head(width, n_classes, norm, key=head_key)
        self.noise = noise
        self.solver = solver
        layer_step(solver)  # which refuses what cannot integrate layers
        self.step_size = step_size

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        y, state = self.stem(x, state)
        y, state = integrate_layers(
            self.layers,
            y,
            state,
            solver=self.solver,
            step_size=self.step_size,
            noise=self.noise,
            key=key,
        )
        return self.head(y, state)

    def block_states(self, x: Image, state: eqx.nn.State) -> list[Features]:
        """The state behind every residual layer, the noise left out."""
        check_image(x, self.image_shape)
        y, state = self.stem(x, state)
        states = layer_states(self.layers, y, state, solver=self.solver, step_size=self.step_size)
        return list(states[1:])


class ResNet(AbstractResNet):
    """A residual network between a convolutional stem and a pooled linear head.

        y_{l+1} = y_l + h f_l(y_l)

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `depth` residual layers of `width` channels, all of one shape (6 and 32).
    - `step_size`: h, 1 in an ordinary ResNet; *natural* Fig. 1 takes it down to 1e-10.
    - `solver`: any explicit Diffrax solver or `AbstractLayerStep` in place of Euler; one set of
      weights per step.
    - `field`: f_l, built as `field(width, norm, key=key)` (`ResidualField`).
    - `noise`: added after every step; the network then needs a `key` (None).
    - `norm`: `GroupNorm` (the default) or `BatchNorm`.

    Raises `ValueError` for sizes that are no counts, a negative step, and a solver that cannot
    integrate layers.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.ResNet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    He et al. (2016), arXiv:1603.05027.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 32,
        depth: int = 6,
        step_size: float = 1.0,
        solver: diffrax.AbstractSolver | AbstractLayerStep | None = None,
        field: Callable[..., eqx.Module] = ResidualField,
        noise: AbstractNoise | None = None,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        super().__init__(
            image_shape,
            n_classes,
            width=width,
            depth=depth,
            step_size=step_size,
            solver=diffrax.Euler() if solver is None else solver,
            field=field,
            noise=noise,
            norm=norm,
            key=key,
        )


class SSPNet(AbstractResNet):
    """A residual network of strong-stability-preserving steps (*ssp*).

        SSP-2: x1 = r(x), x+ = x/2 + r(x1)/2,  SSP-3: see `SSPRK33`,  r(x) = x + f(x)

    A ResNet of the same weights, each used at all stages.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `solver`: `SSPRK22()` (SSP-2) or `SSPRK33()` (SSP-3, the default), `SSPRK43()`, `SSPRK104()`
      or `LearnedRK2(depth)`.
    - `width`, `depth`: channels (32) and layers (6).
    - `norm`: built as `norm(width)` (`GroupNorm`).

    Raises `ValueError` for sizes that are no counts, and a solver that cannot integrate layers.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.SSPNet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Kim et al. (2020), arXiv:2010.10047.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        solver: diffrax.AbstractSolver | AbstractLayerStep | None = None,
        width: int = 32,
        depth: int = 6,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        solver = SSPRK33() if solver is None else solver
        super().__init__(
            image_shape, n_classes, width=width, depth=depth, solver=solver, norm=norm, key=key
        )
