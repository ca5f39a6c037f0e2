"""Flow maps: the solution of a scalar ODE at one time, tabulated as a function of its parameter.

For y' = g(y, gamma), y(0) = y0, with gamma constant in time, y(t1; gamma) is a fixed scalar
function of gamma: an activation function, which can be compiled once and evaluated ever after
without a solver. `periodic_flow_map` does it for fields that are periodic in gamma (a Fourier
series), `interval_flow_map` on an interval (piecewise Chebyshev polynomials).
"""

import abc
from collections.abc import Callable
from typing import final

import equinox as eqx
import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .._checks import check_positive
from .._promotion import own_promotion

_MAX_EVALUATIONS = 20_000  # of the field in one solve; nmODE to t = 5 takes 1,000
ScalarField = Callable[..., object]  # g(y, gamma), elementwise, of NumPy or JAX functions


class AbstractFlowMap(eqx.Module):
    """gamma -> y(t1; gamma), elementwise on any shape and float dtype, differentiable to any order.

        y' = g(y, gamma),  y(0) = y0

    `error`, `slope_error` and `curvature_error` are measured when the map is compiled: the largest
    error of y, dy/dgamma and d2y/dgamma2 in float64, at points that were not used to fit. A
    subclass defines `derivative` and `extremes`. In a program it is one operation, which bound
    propagation knows.

        >>> import odejax
        >>> decay = lambda y, gamma: -y
        >>> flow_map = odejax.solvers.periodic_flow_map(decay, 1.0, period=1.0, y0=1.0)
        >>> round(flow_map.value_range()[1], 4)  # 1/e
        0.3679

    Luo, He and Yi (2024), *A stable mapping of nmODE*, for the field that it was made for.
    """

    error: eqx.AbstractVar[float]
    slope_error: eqx.AbstractVar[float]
    curvature_error: eqx.AbstractVar[float]

    @final
    def __call__(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        return _flow_map_p.bind(gamma, flow_map=self, order=0)

    @abc.abstractmethod
    def derivative(self, gamma: Float[Array, "..."], order: int) -> Float[Array, "..."]:
        """The compiled map's derivative of this order; 0 is the map."""

    @abc.abstractmethod
    def extremes(self, order: int) -> tuple[float, float]:
        """Bounds below and above the compiled map's derivative of this order, for every gamma."""

    @final
    def value_range(self) -> tuple[float, float]:
        """Bounds below and above y(t1; gamma) for every gamma."""
        low, high = self.extremes(0)
        return low - self.error, high + self.error

    @final
    def max_slope(self) -> float:
        """An upper bound on |dy/dgamma| for every gamma: the map's Lipschitz constant."""
        return max(map(abs, self.extremes(1))) + self.slope_error

    @final
    def max_curvature(self) -> float:
        """An upper bound on |d2y/dgamma2| for every gamma."""
        return max(map(abs, self.extremes(2))) + self.curvature_error


@own_promotion  # it is traced once more where a program is compiled
def _derivative(gamma, *, flow_map: AbstractFlowMap, order: int):
    return flow_map.derivative(gamma, order)


_flow_map_p = Primitive("odejax_flow_map")
_flow_map_p.def_impl(jax.jit(_derivative, static_argnames=("flow_map", "order")))
_flow_map_p.def_abstract_eval(lambda gamma, **_: ShapedArray(gamma.shape, gamma.dtype))
ad.defjvp(
    _flow_map_p,
    lambda tangent, gamma, *, flow_map, order: (
        tangent * _flow_map_p.bind(gamma, flow_map=flow_map, order=order + 1)
    ),
)
batching.defvectorized(_flow_map_p)
mlir.register_lowering(_flow_map_p, mlir.lower_fun(_derivative, multiple_results=False))


def check_flow(t1: float, tol: float):
    """Raise `ValueError` for a time that no flow map has, or a tolerance that cannot be checked."""
    check_positive(t1=t1, tol=tol)
    if tol < 1e-12:
        raise ValueError(f"tol must be at least 1e-12, what a float64 solve can check; got {tol}")


def solve(field: ScalarField, t1: float, gamma: np.ndarray, y0: float) -> np.ndarray:
    """y(t1) for every gamma, each its own scalar ODE, close to float64's accuracy."""
    from scipy.integrate import solve_ivp

    evaluations = 0

    def rhs(t, y):
        nonlocal evaluations
        evaluations += 1
        if evaluations > _MAX_EVALUATIONS:
            raise ValueError(
                f"the ODE is too stiff, or oscillates too fast, to compile y(t1={t1}; gamma): use "
                f"a smaller t1, or solve with Diffrax"
            )
        return np.asarray(field(y, gamma), np.float64)

    # Networks are built inside jit and vmap too: a field of JAX functions is evaluated now.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        solution = solve_ivp(
            rhs, (0.0, t1), np.full_like(gamma, y0), method="DOP853", rtol=3e-14, atol=1e-16
        )
    if not solution.success or not np.isfinite(solution.y[:, -1]).all():
        raise ValueError(f"the ODE could not be solved to t1={t1}: {solution.message}")
    return solution.y[:, -1]
