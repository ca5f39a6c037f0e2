"""Functions of one number: their range on an interval, and two lines that enclose them there.

    a z + b <= f(z) <= c z + d  for l <= z <= u

- of a convex function the tangent in the middle, and the chord (of a concave one the reverse);
- of ReLU the chord above, below a line through 0 of slope 0 or 1, whichever loses the smaller area;
- of another smooth one two lines along its mean slope, as far apart as n + 1 samples and the
  largest curvature between two of them ask for: spacing^2 / 8 max |f''|.

No slope is the difference of two values over a short interval: a compiler may compute such a
difference once for the slope and once more for the intercept, with other roundings, and the two
would not fit each other. So chords are written without cancellation.

Zhang et al. (2018), arXiv:1811.00866.
"""

import abc
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._rounding import SUM_ROUNDING
from ..solvers.flow_map import AbstractFlowMap

Numbers = Float[Array, "..."]


class Lines(NamedTuple):
    """`low_slope z + low <= f(z) <= high_slope z + high`, for each neuron."""

    low_slope: Numbers
    low: Numbers
    high_slope: Numbers
    high: Numbers


class AbstractElementwise(eqx.Module):
    """A function of one number, on intervals."""

    exact = False  # no value of it is rounded
    kinked = False  # linear but for a kink at 0, where the slope of the lower line is free

    @abc.abstractmethod
    def range(self, l: Numbers, u: Numbers) -> tuple[Numbers, Numbers]:
        """The least and the largest value on [l, u]."""

    @abc.abstractmethod
    def lines(self, l: Numbers, u: Numbers, slope: Numbers | None = None) -> Lines:
        """Two lines that enclose it on [l, u]; `slope`: of the lower one, where it is free."""


class Leaky(AbstractElementwise):
    """max(z, a z), ReLU for a = 0; 0 <= a <= 1."""

    a: float | Array = 0.0
    exact = True
    kinked = True

    def range(self, l, u):
        return jnp.maximum(l, self.a * l), jnp.maximum(u, self.a * u)

    def lines(self, l, u, slope=None):
        low, high = self.range(l, u)
        chord = _ratio(high - low, u - l)
        crosses = (l < 0) & (u > 0)
        chord = jnp.where(crosses, chord, jnp.where(l >= 0, 1.0, self.a))
        steep = jnp.where(u > -l, 1.0, self.a) if slope is None else self.a + slope * (1 - self.a)
        below = jnp.where(crosses, steep, chord)
        return Lines(below, jnp.zeros_like(l), chord, jnp.where(crosses, low - chord * l, 0.0))


class Convex(AbstractElementwise):
    """A convex function, or a concave one (`sign` -1).

    - `derivative(z)`; `chord(l, u)`: the slope from l to u > l, without cancellation.
    - `bottom`: where it is least; None where it is monotone.
    - `start`: of its domain.
    """

    f: Callable = eqx.field(static=True)
    derivative: Callable = eqx.field(static=True)
    chord: Callable = eqx.field(static=True)
    sign: int = eqx.field(static=True, default=1)
    bottom: float | None = eqx.field(static=True, default=None)
    start: float = eqx.field(static=True, default=-math.inf)

    def range(self, l, u):
        l, u = jnp.maximum(l, self.start), jnp.maximum(u, self.start)
        ends = self.f(l), self.f(u)
        low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        if self.bottom is not None:
            low = jnp.where(
                (l < self.bottom) & (u > self.bottom), self.f(jnp.asarray(self.bottom)), low
            )
        return low, high

    def lines(self, l, u, slope=None):
        l, u = jnp.maximum(l, self.start), jnp.maximum(u, self.start)
        middle = (l + u) / 2
        tangent = self.derivative(middle)
        chord = jnp.where(u > l, self.chord(l, jnp.where(u > l, u, l + 1)), tangent)
        under = tangent, self.f(middle) - tangent * middle
        over = chord, jnp.maximum(self.f(l) - chord * l, self.f(u) - chord * u)
        if self.sign < 0:
            over = chord, jnp.minimum(self.f(l) - chord * l, self.f(u) - chord * u)
            return Lines(*over, *under)
        return Lines(*under, *over)


class Reciprocal(AbstractElementwise):
    """1 / z, where z keeps its sign; else nothing is known."""

    def range(self, l, u):
        unknown = (l <= 0) & (u >= 0)
        return jnp.where(unknown, -jnp.inf, 1 / u), jnp.where(unknown, jnp.inf, 1 / l)

    def lines(self, l, u, slope=None):
        middle = (l + u) / 2
        tangent, chord = -1 / middle**2, -1 / (l * u)
        touching, through = 2 / middle, 1 / l + 1 / u  # f(m) + m / m^2, f(l) + l / (l u)
        under, over = (tangent, touching), (chord, through)
        positive = l > 0
        flipped = [
            jnp.where(positive, a, b) for a, b in zip((*under, *over), (*over, *under), strict=True)
        ]
        unknown = (l <= 0) & (u >= 0)
        return Lines(
            jnp.where(unknown, 0.0, flipped[0]), jnp.where(unknown, -jnp.inf, flipped[1]),
            jnp.where(unknown, 0.0, flipped[2]), jnp.where(unknown, jnp.inf, flipped[3]),
        )  # fmt: skip


class Smooth(AbstractElementwise):
    """A function of bounded curvature, max |f''|.

    - `derivative(z)`: f'.
    - `bounds`: what all its values lie between.
    - `error`: how far an evaluation may be off besides rounding; `argument_error`: and for each
      unit of |z|, where that is rounded within.
    - `samples`: pieces of an interval.
    """

    f: Callable = eqx.field(static=True)
    derivative: Callable = eqx.field(static=True)
    curvature: float = eqx.field(static=True)
    bounds: tuple[float, float] = eqx.field(static=True, default=(-math.inf, math.inf))
    error: float = eqx.field(static=True, default=0.0)
    increasing: bool = eqx.field(static=True, default=False)
    argument_error: float = eqx.field(static=True, default=0.0)
    samples: int = eqx.field(static=True, default=16)

    def range(self, l, u):
        if self.increasing:
            return self.f(l), self.f(u)
        y, _, between = self._sampled(l, u)
        return jnp.maximum(y.min(0) - between, self.bounds[0]), jnp.minimum(
            y.max(0) + between, self.bounds[1]
        )

    def lines(self, l, u, slope=None):
        y, z, between = self._sampled(l, u)
        slopes = self.derivative(z)
        slope = jnp.mean((slopes[1:] + slopes[:-1]) / 2, axis=0)
        rest = y - slope * z
        return Lines(slope, rest.min(0) - between, slope, rest.max(0) + between)

    def _sampled(self, l, u):
        spacing = (u - l) / self.samples
        z = l + spacing * jnp.arange(self.samples + 1, dtype=l.dtype).reshape(-1, *[1] * l.ndim)
        largest = jnp.maximum(jnp.abs(l), jnp.abs(u))
        between = spacing**2 / 8 * self.curvature + 2 * self.error + self.argument_error * largest
        return self.f(z), z, between


def of_flow_map(flow_map: AbstractFlowMap) -> Smooth:
    """A flow map, which takes gamma to its place in the period first."""
    return Smooth(
        flow_map,
        partial(flow_map.derivative, order=1),
        flow_map.max_curvature(),
        flow_map.value_range(),
        error=flow_map.error,
        argument_error=SUM_ROUNDING * flow_map.max_slope(),
    )


def _ratio(a, b):
    return a / jnp.where(b > 0, b, 1.0)


def _exp_chord(l, u):
    return jnp.exp(l) * jnp.expm1(u - l) / (u - l)


def _log_chord(l, u):
    return jnp.log1p((u - l) / l) / (u - l)


def _log1p_chord(l, u):
    return jnp.log1p((u - l) / (1 + l)) / (u - l)


def _softplus_chord(l, u):
    # log((1 + e^u) / (1 + e^l)), of long intervals as it stands
    width = u - l
    short = jnp.log1p(jax.nn.sigmoid(l) * jnp.expm1(jnp.minimum(width, 1.0)))
    return jnp.where(width < 1, short, jax.nn.softplus(u) - jax.nn.softplus(l)) / width


def _gauss(z):
    return 2 / math.sqrt(math.pi) * jnp.exp(-(z**2))


_TINY = 1e-30
RELU = Leaky()
LEAKY = Leaky
ABS = Convex(jnp.abs, jnp.sign, lambda l, u: (jnp.abs(u) - jnp.abs(l)) / (u - l), bottom=0.0)
SQUARE = Convex(jnp.square, lambda z: 2 * z, lambda l, u: l + u, bottom=0.0)
EXP = Convex(jnp.exp, jnp.exp, _exp_chord)
SOFTPLUS = Convex(jax.nn.softplus, jax.nn.sigmoid, _softplus_chord)
LOG = Convex(jnp.log, lambda z: 1 / z, _log_chord, sign=-1, start=0.0)
LOG1P = Convex(jnp.log1p, lambda z: 1 / (1 + z), _log1p_chord, sign=-1, start=-1.0)
SQRT = Convex(
    jnp.sqrt,
    lambda z: 0.5 / jnp.sqrt(jnp.maximum(z, _TINY)),
    lambda l, u: 1 / (jnp.sqrt(l) + jnp.sqrt(u)),
    sign=-1,
    start=0.0,
)
RSQRT = Convex(
    lax.rsqrt,
    lambda z: -0.5 * z**-1.5,
    lambda l, u: -1 / (jnp.sqrt(l * u) * (jnp.sqrt(l) + jnp.sqrt(u))),
    start=0.0,
)
RECIPROCAL = Reciprocal()
# The largest |f''|: tanh 4 / (3 sqrt 3), the logistic 1 / (6 sqrt 3), erf sqrt(8 / (pi e)).
SMOOTH = {
    "tanh": Smooth(jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2, 0.7699, (-1.0, 1.0), increasing=True),
    "logistic": Smooth(
        jax.nn.sigmoid,
        lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
        0.09623,
        (0.0, 1.0),
        increasing=True,
    ),
    "erf": Smooth(lax.erf, _gauss, 0.9679, (-1.0, 1.0), increasing=True),
    "erfc": Smooth(lax.erfc, lambda z: -_gauss(z), 0.9679, (0.0, 2.0)),
    "sin": Smooth(jnp.sin, jnp.cos, 1.0, (-1.0, 1.0)),
    "cos": Smooth(jnp.cos, lambda z: -jnp.sin(z), 1.0, (-1.0, 1.0)),
}
