"""Neural stochastic differential equations, averaged over their paths (*enresnet*)."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, check_positive
from .._types import Features, Image, Key, Logits
from ..solvers import AbstractNoise, RelativeNoise, diffusion_path, layered_drift, stack_layers
from .blocks import Head, ImageShape, Norm, ResidualField, Stem, check_image, check_image_shape
from .norms import BatchNorm, GroupNorm


class NeuralSDENet(eqx.Module):
    """The mean logits over the paths of a neural SDE, solved by Diffrax: a Feynman-Kac average.

        logits = (1 / n) sum_p head(y_p(t1)),  dy = f(t, y) dt + sigma dB_p,  y_p(0) = stem(x)

    f is one residual field at all times (`depth=1`, a neural SDE) or one on each of `depth`
    intervals of equal length h = t1 / depth. With as many steps as fields, Euler's method takes the
    layers of an `EnResNet`, x+ = x + h f(x) + sqrt(h) sigma N(0, I), along the same Brownian path.
    `EnResNet(image_shape, base=NeuralSDENet, key=key)` has members of their own weights.

    Noise is drawn at test time too, so every call needs a `key`. This noise proves nothing of an
    adversary: a certificate needs noise on the image (`odejax.Smoothed`), and counts both.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`: channels (32).
    - `depth`: how many fields, one after another in time (1).
    - `steps`, `paths`: steps of a path (8), a multiple of the depth, and how many paths (4).
    - `t1`: the time of integration (1.0); an ordinary ResNet's layers have t1 = depth.
    - `noise`: sigma, by default `RelativeNoise(0.1)`, per unit of time.
    - `solver`: Diffrax's own, as in `diffusion_path` (Euler-Maruyama).
    - `field`, `norm`: f, built as `field(width, norm, key=key)` (`ResidualField`), and its norm
      (`GroupNorm`).

    Raises `ValueError` for `BatchNorm`, sizes that are no counts, steps that are no multiple of the
    depth, and when it is called without a key.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.NeuralSDENet)
        ...     model, state = make((8, 8, 1), width=4, key=key)
        ...     return model(x, state, key=key)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Wang et al. (2019), arXiv:1811.10745; Liu et al. (2019), arXiv:1906.02355.
    """

    stem: Stem
    layers: Callable  # the fields, stacked: every array has a leading axis of `depth`
    head: Head
    noise: AbstractNoise
    solver: diffrax.AbstractSolver
    depth: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    paths: int = eqx.field(static=True)
    t1: float = eqx.field(static=True)
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 32,
        depth: int = 1,
        steps: int = 8,
        paths: int = 4,
        t1: float = 1.0,
        noise: AbstractNoise | None = None,
        solver: diffrax.AbstractSolver | None = None,
        field: Callable[..., eqx.Module] = ResidualField,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth, steps=steps, paths=paths)
        check_positive(t1=t1)
        if steps % depth:
            raise ValueError(f"steps must be a multiple of the depth {depth}; got {steps}")
        if norm is BatchNorm:
            raise ValueError("batch statistics change within a solve: use GroupNorm")
        stem_key, layers_key, head_key = jax.random.split(key, 3)
        self.stem = Stem(image_shape, width, norm, key=stem_key)
        self.layers = stack_layers(  # pyright: ignore[reportAttributeAccessIssue]
            lambda key: field(width, norm, key=key), depth, key=layers_key
        )
        self.head = Head(width, n_classes, norm, key=head_key)
        self.noise = RelativeNoise(0.1) if noise is None else noise
        self.solver = diffrax.Euler() if solver is None else solver
        self.depth, self.steps, self.paths, self.t1 = depth, steps, paths, t1

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        if key is None:
            raise ValueError("NeuralSDENet draws noise in every call: give it key=jax.random.key()")
        y, state = self.stem(x, state)
        drift, terminal = self.problem(state)

        def path(key: Key) -> Logits:
            settings = {"steps": self.steps, "t1": self.t1, "solver": self.solver}
            return terminal(diffusion_path(drift, self.noise, y, key=key, **settings))

        return jnp.mean(jax.vmap(path)(jax.random.split(key, self.paths)), axis=0), state

    def problem(
        self, state: eqx.nn.State
    ) -> tuple[Callable[..., Features], Callable[[Float[Array, "..."]], Logits]]:
        """f(t, y) and head(y), the drift and terminal condition of `solvers.feynman_kac`."""
        drift = layered_drift(self.layers, state, self.t1 / self.depth)
        return drift, lambda y: self.head(y, state)[0]
