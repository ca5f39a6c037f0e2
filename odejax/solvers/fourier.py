"""Flow maps of periodic fields, as Fourier series.

When g is analytic and periodic in gamma so is y(t1; gamma), and its Fourier series converges
geometrically: a dozen harmonics replace the ODE solver, with more digits than the solver.
"""

import math
from functools import lru_cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial, chebyshev

from .._checks import check_positive
from .flow_map import AbstractFlowMap, ScalarField, check_flow, solve

_MAX_SAMPLES = 8192


class FourierFlowMap(AbstractFlowMap):
    """A flow map y(gamma), periodic in gamma, by its Fourier series.

        y(gamma) = Re sum_{k=0}^K c_k e^{2 pi i k gamma / period}

    Half precision is computed in float32; as many harmonics are used as the dtype of gamma
    can resolve. A layer costs one range reduction, one sine, one cosine, and two multiply-adds for
    each harmonic (four where the sum is too ill-conditioned for powers of the cosine). Derivatives
    are the differentiated series, not the derivative of its evaluation.

    - `coefficients`, `period`: (c_0, ..., c_K), and the period.
    - `error`, `slope_error`, `curvature_error`: see `AbstractFlowMap`.

        >>> import jax.numpy as jnp, odejax
        >>> cosine = odejax.solvers.FourierFlowMap((0j, 1 + 0j), 1.0, 0.0, 0.0, 0.0)
        >>> round(float(cosine(jnp.asarray(0.5))), 4)
        -1.0

    Trefethen (2000), *Spectral Methods in MATLAB*.
    """

    coefficients: tuple[complex, ...] = eqx.field(static=True)
    period: float = eqx.field(static=True)
    error: float = eqx.field(static=True)
    slope_error: float = eqx.field(static=True)
    curvature_error: float = eqx.field(static=True)

    def derivative(self, gamma: Float[Array, "..."], order: int) -> Float[Array, "..."]:
        coefficients = self.coefficients
        for _ in range(order):
            coefficients = _differentiate(coefficients, self.period)
        return _series(coefficients, self.period, gamma)

    def extremes(self, order: int) -> tuple[float, float]:
        """Bounds on the series' derivative: its extremes on a grid, and what it can gain between
        two grid points, spacing^2 / 8 times the bound sum_k |c_k| (2 pi k / period)^(order + 2).
        """
        n = 64 * len(self.coefficients)
        derivative = np.asarray(_differentiate(self.coefficients, self.period, order))
        values = _dense(derivative, n)
        curvature = np.abs(_differentiate(tuple(derivative), self.period, 2)).sum()
        between = float(curvature) * (self.period / n) ** 2 / 8
        return float(values.min()) - between, float(values.max()) + between


def periodic_flow_map(
    field: ScalarField, t1: float, *, period: float, y0: float = 0.0, tol: float = 1e-10
) -> FourierFlowMap:
    """Compile y(t1; gamma) for a field that is periodic in gamma, a `FourierFlowMap`.

        y' = field(y, gamma),  y(0) = y0

    The ODE is solved at equispaced gamma, the samples doubled until the series has converged, and
    the series cut where the rest is below `tol` in value and slope, relative to the largest |y|
    where that is above 1. The result is checked at other points: the value against solves of their
    own, derivatives against the uncut series of twice the samples.

    - `field`: `field(y, gamma)`, elementwise, of NumPy or JAX functions.
    - `t1`: the time of integration.
    - `period`: in gamma.
    - `y0`: the initial state (0.0).
    - `tol`: at least 1e-12 (1e-10).

    Raises `ValueError` when 8,192 samples do not reach `tol`, or the check fails.

        >>> import math, numpy as np, odejax
        >>> forced = lambda y, gamma: np.sin(gamma) - y
        >>> flow_map = odejax.solvers.periodic_flow_map(forced, 1.0, period=2 * math.pi)
        >>> round(flow_map.max_slope(), 3)  # 1 - 1/e
        0.632

    Trefethen (2000), *Spectral Methods in MATLAB*.
    """
    check_flow(t1, tol)
    check_positive(period=period)
    samples = 32
    while True:
        values = solve(field, t1, period * np.arange(samples) / samples, y0)
        coefficients = _fourier(values)
        wave_numbers = 2 * np.pi / period * np.arange(len(coefficients))
        size = np.abs(coefficients) * np.maximum(1.0, wave_numbers)
        goal = tol * max(1.0, np.abs(values).max())
        # The coarse half must hold the series: then aliasing is below the tail that is known.
        if size[len(size) // 2 :].sum() < goal / 10:
            break
        samples *= 2
        if samples > _MAX_SAMPLES:
            raise ValueError(
                f"y(t1={t1}; gamma) is not resolved to tol={tol} by {_MAX_SAMPLES} samples a "
                f"period; use a smaller t1, a larger tol, or solve with Diffrax"
            )
    tails = np.cumsum(size[::-1])[::-1]
    # The last harmonic whose tail still matters stays in.
    cut = coefficients[: int(np.argmax(tails < goal / 2)) or len(coefficients)]

    shifted = period * (np.arange(2 * samples) + 1 / 3) / (2 * samples)
    truth = solve(field, t1, shifted, y0)
    phase = np.exp(2j * np.pi / period * np.outer(shifted, np.arange(len(cut))))
    errors = [float(np.abs(truth - (phase @ cut).real).max())]
    fine = _fourier(solve(field, t1, period * np.arange(2 * samples) / (2 * samples), y0))
    for order in (1, 2):
        derivative, reference = (
            _dense(_differentiate(tuple(c), period, order), 4 * samples) for c in (cut, fine)
        )
        errors.append(float(np.abs(derivative - reference).max()))
    if not max(errors[:2]) <= goal:
        raise ValueError(
            f"the compiled flow map is off by {errors[0]:.1e} (slope {errors[1]:.1e}) at fresh "
            f"points, more than tol={tol}: is the field smooth, and periodic with {period}?"
        )
    return FourierFlowMap(
        coefficients=tuple(cut.tolist()),
        period=float(period),
        error=errors[0],
        slope_error=errors[1],
        curvature_error=errors[2],
    )


def _fourier(values):
    """One-sided coefficients c_k with y = Re sum_k c_k e^{ik theta}, from equispaced samples."""
    n = len(values)
    c = np.fft.rfft(values)[: n // 2] / n
    c[1:] *= 2
    return c


def _dense(coefficients, n):
    """The series at n equispaced points (n at least twice the number of harmonics)."""
    return np.fft.ifft(np.pad(coefficients, (0, n - len(coefficients)))).real * n


def _differentiate(coefficients, period, order: int = 1):
    k = np.arange(len(coefficients))
    return tuple(((1j * 2 * np.pi / period * k) ** order * np.asarray(coefficients)).tolist())


# sin(r) / r and cos(r) as polynomials in r^2 for |r| <= pi / 2, interpolated at Chebyshev points:
# both to 2e-9, below float32's rounding.
_SQUARES = (np.pi / 2) ** 2 * (1 + np.cos(np.pi * (np.arange(7) + 0.5) / 7)) / 2
_SIN = Polynomial.fit(_SQUARES, np.sin(np.sqrt(_SQUARES)) / np.sqrt(_SQUARES), 6).convert().coef
_COS = Polynomial.fit(_SQUARES, np.cos(np.sqrt(_SQUARES)), 6).convert().coef


def _unit_circle(gamma, period):
    """cos and sin of 2 pi gamma / period.

    XLA's own sine spends most of its time on arguments of any size. Here the range is reduced
    once (Cody-Waite: `high` has 8 bits, so turns * high is exact up to 2^16 turns), and half the
    angle goes through polynomials, which the compiler fuses and vectorises with the series. Beyond
    2^16 turns neighbouring float32 numbers are a hundredth of a period apart and more: the angle is
    then right to that, and kept where the polynomials hold.
    """
    mantissa, exponent = math.frexp(period)
    high = math.ldexp(round(mantissa * 256) / 256, exponent)
    turns = jnp.round(gamma / period)
    half = ((gamma - turns * high) - turns * (period - high)) * (math.pi / period)
    half = jnp.clip(half, -math.pi / 2, math.pi / 2)
    if gamma.dtype == jnp.float64:
        return jnp.cos(2 * half), jnp.sin(2 * half)
    square = half**2
    sin = half * _polynomial(_SIN, square)
    cos = _polynomial(_COS, square)
    return 1 - 2 * sin**2, 2 * sin * cos


def _polynomial(coefficients, x):
    out = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        out = out * x + float(c)
    return out


@lru_cache(maxsize=256)
def _visible(coefficients, precision: float):
    """The harmonics that matter at a relative `precision`."""
    tails = np.cumsum(np.abs(coefficients)[::-1])[::-1]
    return coefficients[: max(1, int(np.sum(tails > precision * tails[0])))]


@lru_cache(maxsize=256)
def _powers(coefficients):
    """P and Q with y = P(cos) + sin Q(cos), or None where their evaluation would lose digits.

    cos(k theta) = T_k(cos theta), sin(k theta) = sin theta T_k'(cos theta) / k.
    """
    c = np.asarray(coefficients, np.complex128)
    k = np.maximum(1, np.arange(len(c)))
    p = chebyshev.cheb2poly(np.real(c))
    q = chebyshev.cheb2poly(chebyshev.chebder(np.append(-np.imag(c) / k, 0.0)))
    gain = (np.abs(p).sum() + np.abs(q).sum()) / max(np.abs(c).sum(), np.finfo(float).tiny)
    return (tuple(p.tolist()), tuple(q.tolist())) if gain < 4 else None


def _series(coefficients, period, gamma):
    dtype = gamma.dtype
    coefficients = _visible(coefficients, float(jnp.finfo(dtype).eps) / 4)
    gamma = gamma.astype(jnp.promote_types(dtype, jnp.float32))
    cos, sin = _unit_circle(gamma, period)
    powers = _powers(coefficients)
    if powers is not None:
        p, q = powers
        return (_polynomial(p, cos) + sin * _polynomial(q, cos)).astype(dtype)
    a = b = a_next = b_next = jnp.zeros_like(gamma)  # Clenshaw's recurrence
    for c in coefficients[:0:-1]:
        a, a_next = c.real + 2 * cos * a - a_next, a
        b, b_next = -c.imag + 2 * cos * b - b_next, b
    return (coefficients[0].real + cos * a - a_next + sin * b).astype(dtype)
