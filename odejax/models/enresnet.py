"""Feynman-Kac ensembles: the mean of noisy networks (*enresnet*)."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count
from .._types import Image, Key, Logits
from ..solvers import AbstractNoise, RelativeNoise
from .blocks import ImageShape
from .resnet import ResNet


class EnResNet(eqx.Module):
    """The mean logits of several noise-injected ResNets, trained jointly (*enresnet* 3).

        logits = (1 / n) sum_i z_i(x),  each layer x+ = x + F(x) + sigma N(0, I)

    Every member has weights of its own and adds sigma N(0, I) after each residual layer, with
    sigma = a sqrt(Var(x + F(x))): a Monte-Carlo estimate of the Feynman-Kac expectation. Noise is
    drawn at test time too, so every call needs a `key`. This noise proves nothing of an adversary:
    a certificate needs noise on the image (`odejax.Smoothed`), and counts both.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `members`: n (2).
    - `base`: the network (`ResNet`), with `settings` of its own: En2 ResNet20 is
      `EnResNet(image_shape, members=2, base=PreActResNet, depth=20, key=key)`.
    - `noise`: by default `RelativeNoise(0.1)`, per example; `RelativeNoise(0.1, BATCH_AXIS)` takes
      the variance over the batch, as the authors' code does.

    Raises `ValueError` for fewer than one member, and when it is called without a key.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.EnResNet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state, key=key)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Wang et al. (2019), arXiv:1811.10745.
    """

    nets: Callable  # stacked: every array has a leading axis of `members`
    members: int = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        members: int = 2,
        base: Callable[..., Any] = ResNet,
        noise: AbstractNoise | None = None,
        key: Key,
        **settings: Any,
    ):
        check_count(members=members)
        noise = RelativeNoise(0.1) if noise is None else noise

        def member(key):
            return base(image_shape, n_classes, noise=noise, key=key, **settings)

        self.nets = eqx.filter_vmap(member)(jax.random.split(key, members))
        self.members = members

    @property
    def image_shape(self) -> ImageShape:
        return self.nets.image_shape  # pyright: ignore[reportFunctionMemberAccess]

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        key = _checked(key)

        def member(net, substate, key):
            return net(x, substate, key=key)

        logits, substate = eqx.filter_vmap(member)(
            self.nets, state.substate(self.nets), jax.random.split(key, self.members)
        )
        state = state.update(substate) if jax.tree.leaves(substate) else state
        return jnp.mean(logits, axis=0), state


class MixedEnResNet(eqx.Module):
    """The weighted logits of noise-injected ResNets of different depths (*enresnet* 5).

        logits = sum_i w_i z_i(x)

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `bases`: of each member, for example `partial(PreActResNet, depth=20)`.
    - `noise`: as in `EnResNet`.
    - `softmax`: w = softmax(`weights`), trained with everything else (True). Without, w =
      `weights`: the paper's form, trained by `training.mixture_weights`, which moves them once in
      an epoch and keeps their sum.

    Raises `ValueError` for no bases, and when it is called without a key.

        >>> import equinox as eqx, functools, jax, jax.numpy as jnp, odejax
        >>> base = odejax.models.ResNet
        >>> bases = [functools.partial(base, depth=1), functools.partial(base, depth=2)]
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.MixedEnResNet)
        ...     model, state = make((8, 8, 1), bases=bases, key=key)
        ...     return model(x, state, key=key)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Wang et al. (2019), arXiv:1811.10745.
    """

    nets: list[Callable]
    weights: Float[Array, " n"]
    softmax: bool = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        bases: Sequence[Callable[..., Any]],
        noise: AbstractNoise | None = None,
        softmax: bool = True,
        key: Key,
    ):
        if not bases:
            raise ValueError("bases must name at least one network; got none")
        noise = RelativeNoise(0.1) if noise is None else noise
        keys = jax.random.split(key, len(bases))
        self.nets = [
            base(image_shape, n_classes, noise=noise, key=key)
            for base, key in zip(bases, keys, strict=True)
        ]
        self.weights = jnp.zeros(len(bases)) if softmax else jnp.full(len(bases), 1 / len(bases))
        self.softmax = softmax

    @property
    def image_shape(self) -> ImageShape:
        return self.nets[0].image_shape  # pyright: ignore[reportFunctionMemberAccess]

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        key = _checked(key)
        weights = jax.nn.softmax(self.weights) if self.softmax else self.weights
        keys = jax.random.split(key, len(self.nets))
        total: Any = 0.0
        for net, weight, key in zip(self.nets, weights, keys, strict=True):
            logits, state = net(x, state, key=key)
            total = total + weight * logits
        return total, state


def _checked(key: Key | None) -> Key:
    if key is None:
        raise ValueError("EnResNet draws noise in every call: give it key=jax.random.key(...)")
    return key
