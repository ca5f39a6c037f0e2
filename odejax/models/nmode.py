"""nmODE: y' = -lambda y + sin^2(y + gamma), y(0) = 0, gamma = W x + b constant in time (*nmode*).

Every neuron is a scalar ODE of its own and gamma is constant, so y(t1; gamma) is a fixed scalar
function, analytic and pi-periodic: an activation function.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_count, check_finite, check_instance, check_positive
from .._network_names import nameable
from .._types import Image, Key, Logits, Scalar
from ..solvers import AbstractFlowMap, interval_flow_map, periodic_flow_map
from .blocks import ImageShape, check_image, check_image_shape

Activation = Callable[..., Array]
_PERIODS = (math.pi, 2 * math.pi)


@nameable
def sin_squared(x: ArrayLike) -> Array:
    """sin^2(x), elementwise: the activation of nmODE.

    - `x`: of any shape.

        >>> import odejax
        >>> round(float(odejax.models.sin_squared(1.0)), 4)
        0.7081

    Luo, He and Yi (2024), *A stable mapping of nmODE*.
    """
    return jnp.sin(x) ** 2


def nmode_field(
    y: ArrayLike, gamma: ArrayLike, lam: ArrayLike, activations: tuple[Activation, ...]
) -> Array:
    """-lam y + f_k{y + f_{k-1}[y + ... + f_1(y + gamma)]} (*nmode* Eq. 8; Eq. 2 is k = 1)."""
    inner = gamma
    for activation in activations:
        inner = activation(y + inner)
    return jnp.asarray(inner - jnp.multiply(lam, y))


@lru_cache
def _flow_map(lam, t1, y0, activations) -> AbstractFlowMap:
    """gamma enters through f_1 alone: with its period, or up to where it saturates."""

    @jax.jit  # a table is thousands of evaluations
    def field(y, gamma):
        return nmode_field(y, gamma, lam, activations)

    period = _period(activations[0])
    try:
        if period is not None:
            return periodic_flow_map(field, t1, period=period, y0=y0)
        for size in (16.0, 32.0, 64.0):
            flow_map = interval_flow_map(field, t1, -size, size, y0=y0)
            if all(flow_map.saturates):
                return flow_map
    except ValueError as error:  # whose advice is about arguments that a layer does not have
        raise ValueError(
            f"nmODE with lam={lam}, t1={t1}, y0={y0} and {_name(activations[0])} cannot be "
            f"compiled ({str(error).partition(';')[0]}); pass a Diffrax solver"
        ) from error
    raise ValueError(
        f"{_name(activations[0])} neither has the period pi or 2 pi nor saturates, so that its "
        f"nmODE cannot be compiled for every gamma; pass a Diffrax solver"
    )


@lru_cache
def _period(activation: Activation) -> float | None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-10, 10, 64), rng.uniform(-200, 200, 1024)])
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        values = np.asarray(activation(jnp.asarray(x)))
        if np.ptp(values[:64]) < 1e-9:  # constant: of no period
            return None
        for period in _PERIODS:
            if np.abs(np.asarray(activation(jnp.asarray(x + period))) - values).max() < 1e-12:
                return period
    return None


def _name(activation) -> str:
    return getattr(activation, "__name__", repr(activation))


class NmODE(eqx.Module):
    """gamma -> y(t1; gamma), elementwise on any shape: an activation function.

        y' = -lam y + sin^2(y + gamma),  y(0) = y0

    - `lam`, `t1`: lambda (3.0), and the time of integration (1.0).
    - `y0`: the initial state (0.0).
    - `activations`: (f_1, ..., f_k) makes it nmODE^k, `nmode_field` (`sin_squared` alone); without
      a solver f_1 must have the period pi or 2 pi, or saturate on both sides (`jnp.tanh`,
      `jax.nn.sigmoid`), which is checked by evaluating it.
    - `solver`: None is the compiled flow map, exact to rounding, at the cost of an activation
      function; `lam`, `t1` and `y0` are then constants. With a Diffrax solver: a solve; `lam`, `t1`
      and `y0` may be arrays and are then learned.
    - `rtol`, `atol`: the tolerances of a solve (both 1e-3, the paper's).
    - `max_steps`: of a solve (4096); NaN where it needs more.

    The paper has lam > 1, which its certificate needs. A negative `lam` is its P-nmODE, whose
    solution grows like e^(|lam| t1) and needs a `solver` for all but short times.

    Raises `ValueError` for a time that is not positive, and for what cannot be compiled.

        >>> import jax.numpy as jnp, odejax
        >>> round(float(odejax.models.NmODE(lam=3.0, t1=1.0)(jnp.asarray(1.0))), 3)
        0.283

    Luo, He and Yi (2024), *A stable mapping of nmODE*; Yi (2023), *nmODE: neural memory ordinary
    differential equation*.
    """

    lam: float | Scalar
    t1: float | Scalar
    y0: float | Float[Array, "..."]
    solver: diffrax.AbstractSolver | None
    activations: tuple[Activation, ...] = eqx.field(static=True)
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        lam: float | Scalar = 3.0,
        t1: float | Scalar = 1.0,
        *,
        y0: float | Float[Array, "..."] = 0.0,
        activations: tuple[Activation, ...] = (sin_squared,),
        solver: diffrax.AbstractSolver | None = None,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        max_steps: int = 4096,
    ):
        learned = [name for name, x in (("lam", lam), ("t1", t1), ("y0", y0)) if eqx.is_array(x)]
        check_finite(lam=lam, y0=y0)
        check_positive(t1=t1, rtol=rtol, atol=atol)
        check_count(max_steps=max_steps)
        if solver is not None:
            check_instance(diffrax.AbstractSolver, "a Diffrax solver", solver=solver)
        if not activations or not all(callable(activation) for activation in activations):
            raise ValueError(f"activations must be functions (f_1, ..., f_k); got {activations}")
        if solver is None and any(eqx.is_array(leaf) for leaf in jax.tree.leaves(activations)):
            raise ValueError(f"activations with weights need a Diffrax solver; got {activations}")
        if solver is None and learned:
            raise ValueError(f"a learned {' and '.join(learned)} (an array) needs a Diffrax solver")
        self.lam, self.t1, self.y0, self.solver = lam, t1, y0, solver
        self.activations = tuple(activations)
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps
        _ = self.flow_map  # what cannot be compiled is refused here

    @property
    def flow_map(self) -> AbstractFlowMap | None:
        """The compiled map gamma -> y(t1; gamma); None with a solver."""
        if self.solver is not None:
            return None
        return _flow_map(float(self.lam), float(self.t1), float(self.y0), self.activations)  # pyright: ignore

    def __call__(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        flow_map = self.flow_map
        if flow_map is not None:
            return flow_map(gamma)
        assert self.solver is not None
        # Times of the state's dtype: under x64 a Python number would make float64 of it.
        dtype = jnp.promote_types(gamma.dtype, jnp.float32)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: nmode_field(y, gamma, self.lam, self.activations)),
            self.solver,
            jnp.zeros((), dtype),
            jnp.asarray(self.t1, dtype),
            None,
            jnp.broadcast_to(jnp.asarray(self.y0, gamma.dtype), gamma.shape),
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys[0], jnp.nan)

    def check_theorem(self):
        """Raise `ValueError` unless this is the layer of Theorem 1: constant lam and t1, sin^2."""
        if eqx.is_array(self.lam) or eqx.is_array(self.t1):
            raise ValueError("the slope bound is for constant lam and t1, not for learned ones")
        if self.activations != (sin_squared,):
            raise ValueError(
                f"the slope bound is nmODE's, with sin^2; got {[*map(_name, self.activations)]}"
            )

    def slope_bound(self) -> float:
        """(1 - e^{-(lam - 1) t1}) / (lam - 1) >= |dy/dgamma| for every gamma.

        From the paper's differential inequality |u|' <= -(lam - 1)|u| + 1 for u = dy/dgamma,
        solved to time t1. The paper's own Eq. (4) lets t1 go to infinity: 1 / (lam - 1). Raises
        `ValueError` where the theorem says nothing (`check_theorem`).
        """
        self.check_theorem()
        rate, t1 = float(self.lam) - 1, float(self.t1)
        return -math.expm1(-rate * t1) / rate if rate else t1


class NmODENet(eqx.Module):
    """A fully connected network of nmODE.

        pixels -> Linear -> nmODE (`depth` times, `width` wide) -> Linear(n_classes)

    The paper's MNIST net has width 2048 and depth 1; more stack nmODE.

    - `image_shape`, `n_classes`: (h, w, c) of an image, and the number of logits (10).
    - `width`, `depth`: neurons in each layer (2048), and layers (1).
    - `nmode`: the activation (`NmODE()`).

    Raises `ValueError` for sizes that are no counts, or an `nmode` that is none.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> def logits(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.NmODENet)
        ...     model, state = make((8, 8, 1), width=8, key=key)
        ...     return model(x, state)[0]
        >>> jax.eval_shape(logits, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        (10,)

    Luo, He and Yi (2024), *A stable mapping of nmODE*.
    """

    layers: tuple[eqx.nn.Linear, ...]
    nmode: NmODE
    outputs: eqx.nn.Linear
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 2048,
        depth: int = 1,
        nmode: NmODE | None = None,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_count(width=width, depth=depth)
        sizes = [math.prod(image_shape), *[width] * depth]
        *keys, outputs_key = jax.random.split(key, depth + 1)
        self.layers = tuple(
            eqx.nn.Linear(i, o, key=k) for i, o, k in zip(sizes, sizes[1:], keys, strict=False)
        )
        if not (nmode is None or isinstance(nmode, NmODE)):
            raise ValueError(f"nmode must be an NmODE; got {type(nmode).__name__}")
        self.nmode = NmODE() if nmode is None else nmode
        self.outputs = eqx.nn.Linear(width, n_classes, key=outputs_key)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        y = jnp.ravel(x)
        for layer in self.layers:
            y = self.nmode(layer(y))
        return self.outputs(y), state
