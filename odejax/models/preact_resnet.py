"""Pre-activation ResNets in stages: a stage integrates one state, a downsampling block starts it.

Stages as in He et al. (2016); Zagoruyko and Komodakis (2016) call them groups.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax

from .._checks import check_count, check_not_negative
from .._types import Features, Image, Key, Logits
from ..solvers import (
    AbstractLayerStep,
    AbstractNoise,
    integrate_layers,
    layer_states,
    layer_step,
    stack_layers,
)
from .blocks import (
    Conv,
    Head,
    ImageShape,
    Norm,
    check_image,
    check_image_shape,
)
from .norms import BatchNorm

Solver = diffrax.AbstractSolver | AbstractLayerStep | None  # None: Euler

# Residual layers of each of the four stages, 64 to 512 channels; from 50 on bottlenecks.
_FOUR_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_BOTTLENECK = 4


class _Convs(eqx.Module):
    """conv . relu . norm ... conv . relu . norm; the inputs of the first one, activated, too."""

    norms: tuple[Callable, ...]
    convs: tuple[Conv, ...]

    def __init__(
        self, inputs: int, width: int, stride: int, bottleneck: bool, norm: Norm, *, key: Key
    ):
        # (inputs, outputs, size, stride) of every convolution.
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            inner = width // _BOTTLENECK
            shapes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, width, 1, 1)]
        keys = jax.random.split(key, len(shapes))
        self.norms = tuple(norm(shape[0]) for shape in shapes)
        self.convs = tuple(
            _conv(i, o, size, stride=s, key=k)
            for (i, o, size, s), k in zip(shapes, keys, strict=True)
        )

    def __call__(self, y: Image, state: eqx.nn.State) -> tuple[Features, Image, eqx.nn.State]:
        activated = None
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y, state = norm(y, state)
            y = jax.nn.relu(y)
            activated = y if activated is None else activated
            y = conv(y)
        assert activated is not None
        return y, activated, state


def _conv(inputs, outputs, size, *, stride=1, key):
    return Conv(inputs, outputs, size, stride=stride, padding=size // 2, bias=False, key=key)


class PreActField(eqx.Module):
    """The vector field of a stage: `field(y, state) -> (dy, state)` at constant width."""

    convs: _Convs

    def __init__(self, width: int, bottleneck: bool, norm: Norm, *, key: Key):
        self.convs = _Convs(width, width, 1, bottleneck, norm, key=key)

    def __call__(
        self, y: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Features, eqx.nn.State]:
        y, _, state = self.convs(y, state)
        return y, state


class Downsample(eqx.Module):
    """y -> conv1x1(relu(norm(y))) + h convs(y): to another width or resolution.

    The block in front of a stage. With a stride of 1 it changes the width alone. The shortcut
    starts behind the first norm and ReLU of the convolutions, or, where it is not `activated`, at
    y itself.
    """

    convs: _Convs
    shortcut: Conv
    activated: bool = eqx.field(static=True, default=True)  # files without it are of such

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        bottleneck: bool,
        norm: Norm,
        activated: bool,
        *,
        key: Key,
    ):
        convs_key, shortcut_key = jax.random.split(key)
        self.convs = _Convs(inputs, width, stride, bottleneck, norm, key=convs_key)
        self.shortcut = _conv(inputs, width, 1, stride=stride, key=shortcut_key)
        self.activated = activated

    def __call__(
        self, y: Image, state: eqx.nn.State, *, step_size: float
    ) -> tuple[Features, eqx.nn.State]:
        change, activated, state = self.convs(y, state)
        shortcut = self.shortcut(activated if self.activated else y)
        return shortcut + step_size * change, state


class AbstractPreActResNet(eqx.Module):
    """conv3x3 stem, stages of residual layers y + h f(y), then norm, ReLU, average pool, linear.

    Every stage after the first halves the resolution and doubles the channels (He et al. 2016, for
    images of 32 pixels; *enresnet* Fig. 3 a). `counts` are the residual layers of each stage,
    `channels` those of the stem, `width` a factor on them in the stages.
    """

    stem: Conv
    downsamples: list[Downsample | None]
    layers: list[PreActField | None]  # of each stage, stacked
    head: Head
    noise: AbstractNoise | None
    solvers: tuple[AbstractLayerStep, ...]
    step_size: float = eqx.field(static=True)
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int,
        channels: int,
        counts: tuple[int, ...],
        *,
        width: int,
        bottleneck: bool,
        noise: AbstractNoise | None,
        norm: Norm,
        step_size: float = 1.0,
        solver: Solver | Sequence[Solver] = None,
        activated_shortcut: bool = True,
        last_norm: bool = True,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width)
        check_not_negative(step_size=step_size)
        keys = iter(jax.random.split(key, 2 + 2 * len(counts)))
        self.stem = _conv(image_shape[2], channels, 3, key=next(keys))
        self.downsamples, self.layers = [], []
        inputs, outputs = channels, width * channels * (_BOTTLENECK if bottleneck else 1)
        for stage, count in enumerate(counts):
            stride = 1 if stage == 0 else 2
            downsample_key, layers_key = next(keys), next(keys)
            changes = stride > 1 or inputs != outputs
            downsample = Downsample(
                inputs, outputs, stride, bottleneck, norm, activated_shortcut, key=downsample_key
            )
            self.downsamples.append(downsample if changes else None)
            layers = None
            if count > changes:
                field = partial(_field, outputs, bottleneck, norm)
                layers = stack_layers(field, count - changes, key=layers_key)
            self.layers.append(layers)  # pyright: ignore[reportArgumentType]
            inputs, outputs = outputs, 2 * outputs
        self.head = Head(inputs, n_classes, norm if last_norm else None, key=next(keys))
        self.noise, self.step_size = noise, step_size
        self.solvers = _of_stages(solver, len(counts))

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        if self.noise is not None and key is None:
            raise ValueError("a network with noise needs a key: call it with key=...")
        y = self.stem(x)
        stages = zip(self.downsamples, self.layers, self.solvers, strict=True)
        for i, (downsample, layers, solver) in enumerate(stages):
            noise_key, layers_key = _keys(key, i)
            if downsample is not None:
                y, state = downsample(y, state, step_size=self.step_size)
                if self.noise is not None and noise_key is not None:
                    y = self.noise.add(y, noise_key)
            if layers is not None:
                y, state = integrate_layers(
                    layers,
                    y,
                    state,
                    solver=solver,
                    step_size=self.step_size,
                    noise=self.noise,
                    key=layers_key,
                )
        return self.head(y, state)

    def block_states(self, x: Image, state: eqx.nn.State) -> list[Features]:
        """The state behind every block, downsampling and residual layers, the noise left out."""
        check_image(x, self.image_shape)
        y, states = self.stem(x), []
        for downsample, layers, solver in zip(
            self.downsamples, self.layers, self.solvers, strict=True
        ):
            if downsample is not None:
                y, state = downsample(y, state, step_size=self.step_size)
                states.append(y)
            if layers is not None:
                inner = layer_states(layers, y, state, solver=solver, step_size=self.step_size)
                states += list(inner[1:])
                y = inner[-1]
        return states


def _of_stages(solver, n):
    """One for each stage."""
    several = isinstance(solver, Sequence) and not isinstance(solver, str)
    solvers: tuple[Any, ...] = tuple(solver) if several else (solver,) * n
    if len(solvers) != n:
        raise ValueError(f"{n} stages take one solver, or {n}; got {len(solvers)}")
    return tuple(layer_step(s) for s in solvers)


def _field(width, bottleneck, norm, key):
    return PreActField(width, bottleneck, norm, key=key)


def _keys(key: Key | None, stage: int):
    return (None, None) if key is None else jax.random.split(jax.random.fold_in(key, stage))


class PreActResNet(AbstractPreActResNet):
    """The pre-activation ResNet of *enresnet* and *nmode*, for small images.

        y+ = y + h f(y),  f = conv3x3 . relu . norm, twice (or a bottleneck of three)

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `depth`: 6 n + 2 (20, 32, 44, 56, 110: three stages of n layers, 16, 32 and 64 channels), or
      18, 34, 50, 101 (four stages, 64 to 512 channels, in the last two with bottlenecks four times
      as many). 20 by default.
    - `step_size`: h, 1 in an ordinary ResNet; *natural* Fig. 1 takes ResNet-56 down to 1e-10.
    - `solver`: in place of Euler, as in `integrate_layers`, or one for each stage (*ssp*).
    - `noise`: added after every residual layer; the network then needs a `key` (None).
    - `norm`: built as `norm(channels)` (`BatchNorm`).
    - `activated_shortcut`: whether the shortcut of a downsampling block starts behind its first
      norm and ReLU (True), or at the block's input, as in some PyTorch networks.
    - `last_norm`: whether there are norm and ReLU in front of the average pool (True).

    Raises `ValueError` for another depth, a negative step, and as many solvers as there are no
    stages.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.PreActResNet)
        ...     model, state = make((8, 8, 1), depth=20, key=key)
        ...     return odejax.Predictor(model, state)(x)
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    He et al. (2016), arXiv:1603.05027.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        depth: int = 20,
        step_size: float = 1.0,
        solver: Solver | Sequence[Solver] = None,
        noise: AbstractNoise | None = None,
        norm: Norm = BatchNorm,
        activated_shortcut: bool = True,
        last_norm: bool = True,
        key: Key,
    ):
        if depth in _FOUR_STAGES:
            channels, counts = 64, _FOUR_STAGES[depth]
        elif depth >= 8 and depth % 6 == 2:
            channels, counts = 16, 3 * (depth // 6,)
        else:
            accepted = ", ".join(map(str, _FOUR_STAGES))
            raise ValueError(f"depth must be 6 n + 2 or one of {accepted}; got {depth}")
        super().__init__(
            image_shape,
            n_classes,
            channels,
            counts,
            width=1,
            bottleneck=depth in (50, 101),
            noise=noise,
            norm=norm,
            step_size=step_size,
            solver=solver,
            activated_shortcut=activated_shortcut,
            last_norm=last_norm,
            key=key,
        )


class WideResNet(AbstractPreActResNet):
    """The wide pre-activation ResNet.

        y+ = y + f(y), three stages of 16 `width`, 32 `width` and 64 `width` channels

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `depth`: 6 n + 4, as its authors count; *enresnet* leaves out the shortcuts' convolutions and
      has WRN-14-2 for their WRN-16-2: both are accepted. 14 by default.
    - `width`: a factor on the channels (2). WRN-34-10 is `depth=34, width=10`.
    - `noise`: added after every residual layer; the network then needs a `key` (None).
    - `norm`: built as `norm(channels)` (`BatchNorm`).

    Raises `ValueError` for another depth.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.WideResNet)
        ...     model, state = make((8, 8, 1), depth=14, key=key)
        ...     return odejax.Predictor(model, state)(x)
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Zagoruyko and Komodakis (2016), arXiv:1605.07146.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        depth: int = 14,
        width: int = 2,
        noise: AbstractNoise | None = None,
        norm: Norm = BatchNorm,
        key: Key,
    ):
        if depth < 8 or depth % 6 not in (2, 4):
            raise ValueError(f"depth must be 6 n + 4, or 6 n + 2 without shortcuts; got {depth}")
        super().__init__(
            image_shape,
            n_classes,
            16,
            3 * ((depth - 2) // 6,),
            width=width,
            bottleneck=False,
            noise=noise,
            norm=norm,
            key=key,
        )
