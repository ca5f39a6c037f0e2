"""nmODE: y' = -lambda y + sin^2(y + gamma), y(0) = 0, gamma = W x + b constant in time (*nmode*).

Every neuron is a scalar ODE of its own and gamma is constant, so y(t1; gamma) is a fixed scalar
function, analytic and pi-periodic: an activation function.
"""

import math
from functools import lru_cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Image, Key, Logits, Scalar
from ..solvers import FourierFlowMap, periodic_flow_map
from .blocks import ImageShape, check_image, check_image_shape, check_sizes


@lru_cache
def _flow_map(lam: float, t1: float) -> FourierFlowMap:
    return periodic_flow_map(lambda y, gamma: -lam * y + np.sin(y + gamma) ** 2, t1, period=np.pi)


class NmODE(eqx.Module):
    """gamma -> y(t1; gamma), elementwise on any shape.

    - Without a `solver`: the compiled flow map, exact to rounding, at the cost of an activation
      function. `lam` and `t1` are then constants.
    - With a Diffrax `solver`: a solve, adapted to `rtol` and `atol` (the paper's 1e-3); `lam` and
      `t1` may be arrays and are then learned. NaN where it needs more than `max_steps`.

    The paper has lam > 1, which its certificate needs. A negative `lam` is its P-nmODE, whose
    solution grows like e^(|lam| t1) and needs a `solver` for all but short times.
    """

    lam: float | Scalar
    t1: float | Scalar
    solver: diffrax.AbstractSolver | None
    flow_map: FourierFlowMap | None
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        lam: float | Scalar = 3.0,
        t1: float | Scalar = 1.0,
        *,
        solver: diffrax.AbstractSolver | None = None,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        max_steps: int = 4096,
    ):
        constants = not (eqx.is_array(lam) or eqx.is_array(t1))
        if constants and not (np.isfinite(lam) and np.isfinite(t1) and t1 > 0):
            raise ValueError(f"lam must be finite and t1 finite and positive; got {lam} and {t1}")
        if solver is None and not constants:
            raise ValueError("a learned lam or t1 (an array) needs a Diffrax solver")
        self.lam, self.t1, self.solver = lam, t1, solver
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps
        self.flow_map = _flow_map(float(lam), float(t1)) if solver is None else None

    def __call__(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.flow_map is not None:
            return self.flow_map(gamma)
        assert self.solver is not None
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -self.lam * y + jnp.sin(y + gamma) ** 2),
            self.solver,
            0.0,
            self.t1,
            None,
            jnp.zeros_like(gamma),
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, solution.ys[0], jnp.nan)

    def slope_bound(self) -> Scalar:
        """(1 - e^{-(lam - 1) t1}) / (lam - 1) >= |dy/dgamma| for every gamma.

        From the paper's differential inequality |u|' <= -(lam - 1)|u| + 1 for u = dy/dgamma,
        solved to time t1. The paper's own Eq. (4) lets t1 go to infinity: 1 / (lam - 1). Raises
        `ValueError` for a learned lam or t1.
        """
        if eqx.is_array(self.lam) or eqx.is_array(self.t1):
            raise ValueError("the slope bound is for constant lam and t1, not for learned ones")
        rate, t1 = float(self.lam) - 1, float(self.t1)
        return jnp.asarray(-math.expm1(-rate * t1) / rate if rate else t1, jnp.float32)


class NmODENet(eqx.Module):
    """pixels -> Linear(width) -> nmODE -> Linear(n_classes): the paper's MNIST net, width 2048."""

    inputs: eqx.nn.Linear
    nmode: NmODE
    outputs: eqx.nn.Linear
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 2048,
        nmode: NmODE | None = None,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_sizes(width=width)
        height, width_in, channels = image_shape
        inputs_key, outputs_key = jax.random.split(key)
        self.inputs = eqx.nn.Linear(height * width_in * channels, width, key=inputs_key)
        self.nmode = NmODE() if nmode is None else nmode
        self.outputs = eqx.nn.Linear(width, n_classes, key=outputs_key)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        check_image(x, self.image_shape)
        return self.outputs(self.nmode(self.inputs(jnp.ravel(x)))), state
