"""Flow maps: the solution of a scalar ODE at one time, tabulated as a function of its parameter.

For y' = g(y, gamma), y(0) = 0, with gamma constant in time, y(t1; gamma) is a fixed scalar
function of gamma. When g is analytic and periodic in gamma so is y, and its Fourier series
converges geometrically: a dozen harmonics replace the ODE solver, with more digits than the solver.
"""

import math
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

_MAX_SAMPLES = 4096


class FourierFlowMap(eqx.Module):
    """y(gamma) = Re sum_{k=0}^K c_k e^{2 pi i k gamma / period}, elementwise on any shape.

    Evaluated by Clenshaw's recurrence after one range reduction, in float32 (float64 for float64)
    and returned in the dtype of `gamma`. A layer costs one sine, one cosine and four multiply-adds
    per harmonic. Every derivative is the series' own (not the recurrence's), to any order, in
    forward and reverse mode.

    `error` and `derivative_error` are what compiling found: the largest |y| and |dy/dgamma| error
    at points that were not used to fit.
    """

    coefficients: tuple[complex, ...] = eqx.field(static=True)
    period: float = eqx.field(static=True)
    error: float = eqx.field(static=True)
    derivative_error: float = eqx.field(static=True)

    def __call__(self, gamma: Float[Array, "..."]) -> Float[Array, "..."]:
        return _series(self.coefficients, self.period, gamma)

    def max_slope(self) -> float:
        """An upper bound on |dy/dgamma| over all gamma: the map's Lipschitz constant.

        The maximum over a grid, plus what the series can gain between two grid points (the bound
        sum_k |c_k| (2 pi k / period)^3 on its third derivative times spacing^2 / 8), plus
        `derivative_error`.
        """
        n = 64 * len(self.coefficients)
        slopes = _dense(_differentiate(self.coefficients, self.period), n)
        wave_numbers = 2 * np.pi / self.period * np.arange(len(self.coefficients))
        third = float(np.sum(np.abs(self.coefficients) * wave_numbers**3))
        between = third * (self.period / n) ** 2 / 8
        return float(np.abs(slopes).max() + between + self.derivative_error)


def periodic_flow_map(
    field: Callable[[np.ndarray, np.ndarray], np.ndarray],
    t1: float,
    *,
    period: float,
    tol: float = 1e-8,
) -> FourierFlowMap:
    """Compile y(t1; gamma) for y' = field(y, gamma), y(0) = 0, with `field` periodic in gamma.

    `field` works on NumPy float64 arrays. The ODE is solved at equispaced gamma (DOP853 at close to
    float64's accuracy), the samples doubled until the series has converged, and the series cut
    where the rest is below `tol` in value and in first derivative. The result is then checked at
    other points, against solves of their own and, for the derivative, against the uncut series of
    twice the samples.

    Raises `ValueError` when 4,096 samples do not reach `tol`, or the check fails.
    """
    if not (np.isfinite(t1) and t1 > 0):
        raise ValueError(f"the integration time t1 must be finite and positive; got {t1}")
    if not tol >= 1e-12:
        raise ValueError(f"tol must be at least 1e-12, what a float64 solve can check; got {tol}")
    samples = 32
    while True:
        values = _solve(field, t1, period * np.arange(samples) / samples)
        coefficients = _fourier(values)
        weights = np.maximum(1.0, 2 * np.pi / period * np.arange(len(coefficients)))
        size = np.abs(coefficients) * weights
        # The coarse half must hold the series: then aliasing is below the tail we can see.
        if size[len(size) // 2 :].sum() < tol / 10:
            break
        samples *= 2
        if samples > _MAX_SAMPLES:
            raise ValueError(
                f"y(t1={t1}; gamma) is not resolved to tol={tol} by {_MAX_SAMPLES} samples a "
                f"period; use a smaller t1, a larger tol, or solve with Diffrax"
            )
    tails = np.cumsum(size[::-1])[::-1]
    # The last harmonic whose tail still matters stays in.
    cut = coefficients[: int(np.argmax(tails < tol / 2)) or len(coefficients)]

    shifted = period * (np.arange(2 * samples) + 1 / 3) / (2 * samples)
    truth = _solve(field, t1, shifted)
    phase = np.exp(2j * np.pi / period * np.outer(shifted, np.arange(len(cut))))
    error = float(np.abs(truth - (phase @ cut).real).max())
    fine = _fourier(_solve(field, t1, period * np.arange(2 * samples) / (2 * samples)))
    fine_slope = _dense(_differentiate(fine, period), 4 * samples)
    derivative_error = float(
        np.abs(fine_slope - _dense(_differentiate(cut, period), 4 * samples)).max()
    )
    if not max(error, derivative_error) <= tol:
        raise ValueError(
            f"the compiled flow map is off by {error:.1e} (derivative {derivative_error:.1e}) at "
            f"fresh points, more than tol={tol}: is the field smooth, and periodic with {period}?"
        )
    return FourierFlowMap(tuple(cut.tolist()), float(period), error, derivative_error)


def _solve(field, t1, gamma):
    """y(t1) for every gamma, one by one system, in float64."""
    solution = solve_ivp(
        lambda t, y: field(y, gamma),
        (0.0, t1),
        np.zeros_like(gamma),
        method="DOP853",
        rtol=3e-14,
        atol=1e-16,
    )
    if not solution.success or not np.isfinite(solution.y[:, -1]).all():
        raise ValueError(f"the ODE could not be solved to t1={t1}: {solution.message}")
    return solution.y[:, -1]


def _fourier(values):
    """One-sided coefficients c_k with y = Re sum_k c_k e^{ik theta}, from equispaced samples."""
    n = len(values)
    c = np.fft.rfft(values)[: n // 2] / n
    c[1:] *= 2
    return c


def _dense(coefficients, n):
    """The series at n equispaced points (n at least twice the number of harmonics)."""
    return np.fft.ifft(np.pad(coefficients, (0, n - len(coefficients)))).real * n


def _differentiate(coefficients, period):
    return 1j * 2 * np.pi / period * np.arange(len(coefficients)) * np.asarray(coefficients)


# sin(r) / r and cos(r) as polynomials in r^2 for |r| <= pi / 2, interpolated at Chebyshev points:
# both to 2e-9, below float32's rounding.
_SQUARES = (np.pi / 2) ** 2 * (1 + np.cos(np.pi * (np.arange(7) + 0.5) / 7)) / 2
_SIN = np.polynomial.Polynomial.fit(
    _SQUARES, np.sin(np.sqrt(_SQUARES)) / np.sqrt(_SQUARES), 6
).convert().coef  # fmt: skip
_COS = np.polynomial.Polynomial.fit(_SQUARES, np.cos(np.sqrt(_SQUARES)), 6).convert().coef


def _unit_circle(gamma, period):
    """cos and sin of 2 pi gamma / period.

    XLA's own sine spends most of its time on arguments of any size. Here the range is reduced
    once (Cody-Waite: `high` has few bits, so turns * high is exact), and half the angle goes
    through polynomials, which the compiler fuses and vectorises with the series.
    """
    high = round(period * 64) / 64
    turns = jnp.round(gamma / period)
    half = ((gamma - turns * high) - turns * (period - high)) * (math.pi / period)
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


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _series(coefficients, period, gamma):
    dtype = gamma.dtype
    gamma = gamma.astype(jnp.promote_types(dtype, jnp.float32))
    cos, sin = _unit_circle(gamma, period)
    a = b = a_next = b_next = jnp.zeros_like(gamma)
    for c in coefficients[:0:-1]:
        a, a_next = c.real + 2 * cos * a - a_next, a
        b, b_next = -c.imag + 2 * cos * b - b_next, b
    return (coefficients[0].real + cos * a - a_next + sin * b).astype(dtype)


@_series.defjvp
def _series_jvp(coefficients, period, primals, tangents):
    derivative = tuple(_differentiate(coefficients, period).tolist())
    slope = _series(derivative, period, primals[0])
    return _series(coefficients, period, primals[0]), slope * tangents[0]
