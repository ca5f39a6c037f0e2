"""Flow maps on an interval, as piecewise Chebyshev interpolants."""

import math
import zlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import chebyshev

from .flow_map import AbstractFlowMap, ScalarField, check_flow, solve

_DEGREE = 5  # of every piece: six loads an element, and a table that stays in the cache
_MAX_PIECES = 4096
# Where a saturated field is checked, in widths of the interval beyond it: at no regular spacing.
_FAR = np.geomspace(0.01, 64, 64) * (1 + 0.1 * np.sin(np.arange(64)))


class _Pieces:
    """The polynomials (pieces, degree + 1), lowest power first, in units of half a piece.

    Hashed once and printed in a line: it is a static part of the modules that hold it.
    """

    def __init__(self, coefficients: np.ndarray):
        self.coefficients = coefficients
        self.digest = zlib.crc32(coefficients.tobytes())  # the same in every process

    def __hash__(self):
        return self.digest

    def __eq__(self, other):
        return isinstance(other, _Pieces) and np.array_equal(self.coefficients, other.coefficients)

    def __repr__(self):
        pieces, powers = self.coefficients.shape
        return f"<{pieces} pieces of degree {powers - 1}, crc {self.digest:08x}>"


class ChebyshevFlowMap(AbstractFlowMap):
    """A flow map y(gamma) by a polynomial of degree 5 for each of many pieces of equal width.

        y(gamma) = sum_k c_ik s^k in piece i, s in [-1, 1] its place there

    Beyond an end of [lower, upper] y is its value there where the field saturates, and NaN where it
    does not (`saturates`: below, above). The width is a power of two and the pieces start at its
    multiples, so that finding the place within a piece is exact in every dtype.

    - `pieces`, `first`, `width`, `saturates`: what `interval_flow_map` compiles.
    - `error`, `slope_error`, `curvature_error`: measured by it, see `AbstractFlowMap`.

        >>> import jax.numpy as jnp, odejax
        >>> relaxation = lambda y, gamma: gamma - y
        >>> flow_map = odejax.solvers.interval_flow_map(relaxation, 1.0, -1.0, 1.0)
        >>> round(float(flow_map(jnp.asarray(0.5))), 4)
        0.3161

    Trefethen (2013), *Approximation Theory and Approximation Practice*.
    """

    pieces: _Pieces = eqx.field(static=True)
    first: int = eqx.field(static=True)  # the first piece starts at first * width
    width: float = eqx.field(static=True)
    saturates: tuple[bool, bool] = eqx.field(static=True)
    error: float = eqx.field(static=True)
    slope_error: float = eqx.field(static=True)
    curvature_error: float = eqx.field(static=True)

    @property
    def lower(self) -> float:
        return self.first * self.width

    @property
    def upper(self) -> float:
        return (self.first + len(self.pieces.coefficients)) * self.width

    def derivative(self, gamma: Float[Array, "..."], order: int) -> Float[Array, "..."]:
        return _piecewise(self.pieces, self.first, self.width, self.saturates, order, gamma)

    def extremes(self, order: int) -> tuple[float, float]:
        """Bounds on a derivative over the interval: its extremes on a grid, and what it can gain
        between two grid points, spacing^2 / 8 times a bound on its second derivative.
        """
        n = 32
        points = np.vander(np.linspace(-1, 1, n + 1), _DEGREE + 1 - order, increasing=True)
        values = _differentiate(self.pieces, self.width, order).coefficients @ points.T
        second = _differentiate(self.pieces, self.width, order + 2).coefficients
        between = float(np.abs(second).sum(axis=1).max()) * (self.width / n) ** 2 / 8
        return float(values.min()) - between, float(values.max()) + between


def interval_flow_map(
    field: ScalarField,
    t1: float,
    lower: float,
    upper: float,
    *,
    y0: float = 0.0,
    tol: float = 1e-8,
) -> ChebyshevFlowMap:
    """Compile y(t1; gamma) for gamma in [lower, upper], a `ChebyshevFlowMap`.

        y' = field(y, gamma),  y(0) = y0

    The interval is widened to whole pieces, and the pieces halved until value and slope are right
    to `tol` (relative to the largest |y| where that is above 1) at points that were not used to
    fit, against interpolants of twice the degree. Where the field saturates (y at 64 places, up to
    64 widths of the interval beyond an end, is y at that end to `tol`) the map continues as a
    constant.

    - `field`: `field(y, gamma)`, elementwise, of NumPy or JAX functions.
    - `t1`: the time of integration.
    - `lower`, `upper`: the ends of the interval.
    - `y0`: the initial state (0.0).
    - `tol`: at least 1e-12 (1e-8).

    Raises `ValueError` when 4,096 pieces do not reach `tol`.

        >>> import odejax
        >>> relaxation = lambda y, gamma: gamma - y
        >>> flow_map = odejax.solvers.interval_flow_map(relaxation, 1.0, -1.0, 1.0)
        >>> round(flow_map.max_slope(), 4)  # 1 - 1/e
        0.6321

    Trefethen (2013), *Approximation Theory and Approximation Practice*.
    """
    check_flow(t1, tol)
    if not -np.inf < lower < upper < np.inf:
        raise ValueError(f"lower must be below upper, both finite; got {lower} and {upper}")
    width = 2.0 ** math.floor(math.log2((upper - lower) / 32))
    while True:
        first, last = math.floor(lower / width), math.ceil(upper / width)
        if last - first > _MAX_PIECES:
            raise ValueError(
                f"y(t1={t1}; gamma) is not resolved to tol={tol} by {_MAX_PIECES} pieces of "
                f"[{lower}, {upper}]: is the field smooth? Use a larger tol, or Diffrax"
            )
        pieces = _fit(field, t1, y0, first, last, width, _DEGREE)
        fine = _fit(field, t1, y0, first, last, width, 2 * _DEGREE + 1)
        errors = [_difference(pieces, fine, width, order) for order in range(3)]
        goal = tol * max(1.0, float(np.abs(fine.coefficients[:, 0]).max()))
        if max(errors[:2]) <= goal:
            break
        width /= 2
    ends = np.array([first * width, last * width])
    at_ends = solve(field, t1, ends, y0)
    far = (upper - lower) * _FAR[:, None] * np.array([-1.0, 1.0])
    beyond = solve(field, t1, (ends + far).ravel(), y0).reshape(far.shape)
    below, above = (np.abs(beyond - at_ends).max(axis=0) <= goal).tolist()
    return ChebyshevFlowMap(
        pieces=pieces,
        first=first,
        width=width,
        saturates=(below, above),
        error=errors[0],
        slope_error=errors[1],
        curvature_error=errors[2],
    )


def _fit(field, t1, y0, first, last, width, degree) -> _Pieces:
    """Interpolants at the Chebyshev points of each piece."""
    points = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    centers = width * (np.arange(first, last) + 0.5)
    gamma = centers[:, None] + width / 2 * points
    values = solve(field, t1, gamma.ravel(), y0).reshape(gamma.shape)
    series = values @ np.linalg.inv(chebyshev.chebvander(points, degree)).T
    to_powers = np.array([
        np.pad(chebyshev.cheb2poly(row), (0, degree + 1))[: degree + 1]
        for row in np.eye(degree + 1)
    ])  # fmt: skip
    return _Pieces(series @ to_powers)


def _differentiate(pieces: _Pieces, width: float, order: int = 1) -> _Pieces:
    coefficients = pieces.coefficients
    for _ in range(order):
        powers = np.arange(1, coefficients.shape[1])
        coefficients = coefficients[:, 1:] * powers * (2 / width)
    return _Pieces(coefficients if coefficients.shape[1] else np.zeros((len(coefficients), 1)))


def _difference(pieces, fine, width, order) -> float:
    """The largest difference of a derivative, at points that neither was fitted at."""
    points = np.linspace(-1, 1, 4 * _DEGREE)
    values = [
        _differentiate(p, width, order).coefficients
        @ np.vander(points, p.coefficients.shape[1] - order, increasing=True).T
        for p in (pieces, fine)
    ]
    return float(np.abs(values[0] - values[1]).max())


def _piecewise(pieces, first, width, saturates, order, gamma):
    dtype = gamma.dtype
    gamma = gamma.astype(jnp.promote_types(dtype, jnp.float32))
    n = len(pieces.coefficients)
    below, above = gamma < first * width, gamma > (first + n) * width
    index = jnp.clip(jnp.floor(gamma / width), first, first + n - 1)
    place = jnp.clip(2 * (gamma / width - index) - 1, -1.0, 1.0)
    table = jnp.asarray(_differentiate(pieces, width, order).coefficients, gamma.dtype)
    rows = table[(index - first).astype(jnp.int32)]
    y = rows[..., -1]
    for power in range(rows.shape[-1] - 2, -1, -1):
        y = y * place + rows[..., power]
    for outside, saturated in zip((below, above), saturates, strict=True):
        if not saturated:
            y = jnp.where(outside, jnp.nan, y)
        elif order:
            y = jnp.where(outside, 0.0, y)
    return y.astype(dtype)
