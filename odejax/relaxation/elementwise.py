"""Functions of one number: their range on an interval, and two lines that enclose them there.

    a z + b <= f(z) <= c z + d  for every z in [lower, upper]

- of a convex function the tangent in the middle, and the chord (of a concave one the reverse);
- of a kink (ReLU) the chord above, below a line through 0 of any slope between its two: by default
  the one of the two that loses the smaller area;
- of another one whose bends are known, as of tanh or GELU, two lines along the chord. Between two
  samples a convex function lies below its ends and above its tangents, a concave one the reverse;
- of any other smooth one two lines along its mean slope, as far apart as n + 1 samples and the
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
    relative = False  # every value is rounded by a fraction of itself
    kinked = False  # linear but for a kink at 0

    @abc.abstractmethod
    def range(self, lower: Numbers, upper: Numbers) -> tuple[Numbers, Numbers]:
        """The least and the largest value on [lower, upper]."""

    @abc.abstractmethod
    def lines(self, lower: Numbers, upper: Numbers) -> Lines:
        """Two lines that enclose the function on [lower, upper]."""

    def parallel_lines(self, lower: Numbers, upper: Numbers) -> Lines:
        """Two lines of one slope, the mean of those of `lines`."""
        low_slope, low, high_slope, high = self.lines(lower, upper)
        slope = (low_slope + high_slope) / 2
        down, up = low_slope - slope, high_slope - slope
        furthest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
        size = (jnp.abs(low_slope) + jnp.abs(high_slope)) * furthest + jnp.abs(low) + jnp.abs(high)
        lost = 4 * jnp.finfo(size.dtype).eps * size
        low = low + jnp.minimum(down * lower, down * upper)
        high = high + jnp.maximum(up * lower, up * upper)
        return Lines(slope, low - lost, slope, high + lost)


class Leaky(AbstractElementwise):
    """max(z, a z), ReLU for a = 0 and |z| for a = -1; -1 <= a <= 1.

    Below it lies every line of slope a + tilt (1 - a), 0 <= tilt <= 1.
    """

    a: float | Array = 0.0
    exact = True
    kinked = True

    def range(self, lower, upper):
        at_lower, at_upper = self._ends(lower, upper)
        if isinstance(self.a, float | int) and self.a >= 0:
            return at_lower, at_upper
        low = jnp.minimum(at_lower, at_upper)
        crosses = (lower < 0) & (upper > 0)
        return jnp.where(crosses, jnp.minimum(low, 0.0), low), jnp.maximum(at_lower, at_upper)

    def _ends(self, lower, upper):
        if isinstance(self.a, float | int) and self.a == 0:  # which infinity is not times 0
            return jax.nn.relu(lower), jax.nn.relu(upper)
        return jnp.maximum(lower, self.a * lower), jnp.maximum(upper, self.a * upper)

    def lines(self, lower, upper, tilt=None):
        low, high = self._ends(lower, upper)
        chord = _ratio(high - low, upper - lower)
        crosses = (lower < 0) & (upper > 0)
        chord = jnp.where(crosses, chord, jnp.where(lower >= 0, 1.0, self.a))
        if tilt is None:
            tilt = smaller_loss(lower, upper)
        below = jnp.clip(self.a + (1 - self.a) * tilt, self.a, 1.0)
        return Lines(
            low_slope=jnp.where(crosses, below, chord),
            low=jnp.zeros_like(lower),
            high_slope=chord,
            high=jnp.where(crosses, low - chord * lower, 0.0),
        )

    def parallel_lines(self, lower, upper):
        lines = self.lines(lower, upper)
        return lines._replace(low_slope=lines.high_slope)  # below it through 0, too


def smaller_loss(lower: Numbers, upper: Numbers) -> Numbers:
    """The tilt, 0 or 1, of the line below a kink that loses the smaller area."""
    return jnp.where(upper > -lower, jnp.ones_like(upper), 0.0)


class Convex(AbstractElementwise):
    """A convex function, or a concave one (`sign` -1).

    - `derivative(z)`: f'.
    - `chord(lower, upper)`: the slope between the two, lower < upper, without cancellation.
    - `bottom`: where it is least; None where it is monotone.
    - `start`: of its domain.
    """

    f: Callable = eqx.field(static=True)
    derivative: Callable = eqx.field(static=True)
    chord: Callable = eqx.field(static=True)
    sign: int = eqx.field(static=True, default=1)
    bottom: float | None = eqx.field(static=True, default=None)
    start: float = eqx.field(static=True, default=-math.inf)
    relative: bool = eqx.field(static=True, default=False)

    def range(self, lower, upper):
        ends = self.f(lower), self.f(upper)
        low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        if self.bottom is not None:
            bottom = self.f(jnp.asarray(self.bottom))
            low = jnp.where((lower < self.bottom) & (upper > self.bottom), bottom, low)
        outside = lower < self.start
        return jnp.where(outside, -jnp.inf, low), jnp.where(outside, jnp.inf, high)

    def lines(self, lower, upper):
        middle, wide = (lower + upper) / 2, upper > lower
        tangent = self.derivative(middle)
        chord = jnp.where(wide, self.chord(lower, jnp.where(wide, upper, lower + 1)), tangent)
        ends = self.f(lower) - chord * lower, self.f(upper) - chord * upper
        touching = tangent, self.f(middle) - tangent * middle
        low, high = self.range(lower, upper)
        if self.sign > 0:
            under, over = touching, (chord, jnp.maximum(*ends))
        else:
            under, over = (chord, jnp.minimum(*ends)), touching
        lost = _flushed(jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
        under, over = (under[0], under[1] - lost), (over[0], over[1] + lost)
        return Lines(*_or_flat(under, low), *_or_flat(over, high))


def _flushed(largest):
    """What is lost where numbers that are smaller than any normal one are flushed to zero."""
    return 4 * jnp.finfo(largest.dtype).tiny * (1 + largest)


def _or_flat(line, end):
    """A line where it and the range's end are numbers, and else that end."""
    good = jnp.isfinite(line[0]) & jnp.isfinite(line[1]) & jnp.isfinite(end)
    return jnp.where(good, line[0], 0.0), jnp.where(good, line[1], end)


class Reciprocal(AbstractElementwise):
    """1 / z, where z keeps its sign; else nothing is known."""

    relative = True

    def range(self, lower, upper):
        unknown = (lower <= 0) & (upper >= 0)
        return jnp.where(unknown, -jnp.inf, 1 / upper), jnp.where(unknown, jnp.inf, 1 / lower)

    def lines(self, lower, upper):
        middle = (lower + upper) / 2
        tangent, chord = -1 / middle**2, -1 / (lower * upper)
        # With m the middle, f(m) + m / m^2 and f(lower) + lower / (lower upper).
        touching, through = 2 / middle, 1 / lower + 1 / upper
        under, over = (tangent, touching), (chord, through)
        positive = lower > 0  # where it is convex
        low_slope, low, high_slope, high = (
            jnp.where(positive, a, b) for a, b in zip((*under, *over), (*over, *under), strict=True)
        )
        unknown = (lower <= 0) & (upper >= 0)
        return Lines(
            low_slope=jnp.where(unknown, 0.0, low_slope),
            low=jnp.where(unknown, -jnp.inf, low),
            high_slope=jnp.where(unknown, 0.0, high_slope),
            high=jnp.where(unknown, jnp.inf, high),
        )


class Smooth(AbstractElementwise):
    """A function of bounded curvature.

    - `derivative(z)`: f'; `steepest`: max |f'|; `curvature`: max |f''|.
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
    argument_error: float = eqx.field(static=True, default=0.0)
    steepest: float = eqx.field(static=True, default=1.0)
    samples: int = eqx.field(static=True, default=16)

    def range(self, lower, upper):
        y, _, between = self._sampled(lower, upper)
        least, most = self.bounds
        return jnp.maximum(y.min(0) - between, least), jnp.minimum(y.max(0) + between, most)

    def lines(self, lower, upper):
        y, z, between = self._sampled(lower, upper)
        slopes = self.derivative(z)
        slope = jnp.mean((slopes[1:] + slopes[:-1]) / 2, axis=0)
        rest = y - slope * z
        return Lines(slope, rest.min(0) - between, slope, rest.max(0) + between)

    def parallel_lines(self, lower, upper):
        return self.lines(lower, upper)

    def _sampled(self, lower, upper):
        """Values, where they are taken, and how far the function may be beyond them in between."""
        spacing = (upper - lower) / self.samples
        steps = jnp.arange(self.samples + 1, dtype=lower.dtype)
        z = lower + spacing * steps.reshape(-1, *[1] * lower.ndim)
        largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
        # Samples are rounded: two may be an ulp further apart, and the ends one inside.
        ulp = 4 * jnp.finfo(z.dtype).eps * largest
        between = (spacing + ulp) ** 2 / 8 * self.curvature + ulp * self.steepest
        between = between + 2 * self.error + self.argument_error * largest
        return self.f(z), z, between


class Curved(AbstractElementwise):
    """A function that is convex, concave or linear between its bends.

    - `derivative(z)`: f'; at the end of a linear piece that of the other side.
    - `bends`: where that changes, in order; `signs`: of the curvature before, between and after
      them, 0 for a linear piece. They may be arrays.
    - `extrema`: where it may be least or largest within an interval.
    - `rounding`: what an evaluation may be off by, in roundings of z; a fraction of the value is
      counted by the rules.
    - `samples`: pieces from one bend to the next.
    """

    f: Callable = eqx.field(static=True)
    derivative: Callable = eqx.field(static=True)
    bends: tuple[float, ...] = eqx.field(static=True)
    signs: tuple[int | Array, ...]
    extrema: tuple[float, ...] = eqx.field(static=True, default=())
    rounding: float = eqx.field(static=True, default=0.0)
    samples: int = eqx.field(static=True, default=8)

    def range(self, lower, upper):
        ends = self.f(lower), self.f(upper)
        low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        for z in self.extrema:
            y, within = self.f(jnp.asarray(z, lower.dtype)), (lower < z) & (z < upper)
            low = jnp.where(within, jnp.minimum(low, y), low)
            high = jnp.where(within, jnp.maximum(high, y), high)
        lost = self._lost(lower, upper)
        return low - lost, high + lost

    def lines(self, lower, upper):
        ends = [lower, *(jnp.clip(bend, lower, upper) for bend in self.bends), upper]
        starts, stops = jnp.stack(ends[:-1])[:, None], jnp.stack(ends[1:])[:, None]
        spacing = (stops - starts) / self.samples
        across = (-1, *[1] * lower.ndim)  # the first axis is that of the pieces, then of samples
        at = jnp.linspace(0, 1, self.samples + 1, dtype=lower.dtype).reshape(across)
        z = starts * (1 - at) + stops * at
        y, slopes = self.f(z), self.derivative(z)

        # The chord's slope, as a mean of slopes: the function's own on an interval of no length.
        mean = jnp.mean((slopes[:, 1:] + slopes[:, :-1]) / 2, axis=1)
        length = jnp.sum(spacing[:, 0], axis=0)
        weighted = jnp.sum(spacing[:, 0] * mean, axis=0)
        slope = jnp.where(length > 0, _ratio(weighted, length), slopes[0, 0])

        # Two tangents meet this far beyond the ends of a piece, where they have other signs.
        sign = jnp.stack([jnp.asarray(v, lower.dtype) for v in self.signs])
        sign = sign.reshape(-1, 1, *across[1:])
        rest, tilts = y - slope * z, sign * (slopes - slope)
        down, up = jnp.maximum(-tilts[:, :-1], 0.0), jnp.maximum(tilts[:, 1:], 0.0)
        # Samples are rounded: two may be an ulp further apart.
        ulp = 8 * jnp.finfo(z.dtype).eps * jnp.maximum(jnp.abs(lower), jnp.abs(upper))
        beyond = (spacing + ulp) * down * _ratio(up, down + up)
        beyond = beyond + ulp * (jnp.abs(slopes[:, :-1]) + jnp.abs(slopes[:, 1:]))
        below = jnp.minimum(rest[:, :-1], rest[:, 1:]) - jnp.where(sign > 0, beyond, 0.0)
        above = jnp.maximum(rest[:, :-1], rest[:, 1:]) + jnp.where(sign < 0, beyond, 0.0)

        lost, (least, most) = self._lost(lower, upper), self.range(lower, upper)
        under = _or_flat((slope, below.min((0, 1)) - lost), least)
        over = _or_flat((slope, above.max((0, 1)) + lost), most)
        return Lines(*under, *over)

    def _lost(self, lower, upper):
        largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
        return self.rounding * jnp.finfo(lower.dtype).eps * largest + _flushed(largest)


def of_flow_map(flow_map: AbstractFlowMap) -> Smooth:
    """A flow map, which takes gamma to its place in the period first."""
    return Smooth(
        flow_map,
        partial(flow_map.derivative, order=1),
        flow_map.max_curvature(),
        flow_map.value_range(),
        error=flow_map.error,
        argument_error=SUM_ROUNDING * flow_map.max_slope(),
        steepest=flow_map.max_slope(),
    )


def _ratio(a, b):
    """a / b, and a where b = 0."""
    return a / jnp.where(b > 0, b, 1.0)


def _exp_chord(lower, upper):
    return jnp.exp(lower) * jnp.expm1(upper - lower) / (upper - lower)


def _power_slope(exponent, z):
    return exponent * z ** (exponent - 1)


def _power_chord(exponent, lower, upper):
    # upper^p (1 - (lower / upper)^p) / (upper - lower)
    width = upper - lower
    return -(upper**exponent) * jnp.expm1(exponent * jnp.log1p(-width / upper)) / width


def _log_chord(lower, upper):
    return jnp.log1p((upper - lower) / lower) / (upper - lower)


def _log1p_chord(lower, upper):
    return jnp.log1p((upper - lower) / (1 + lower)) / (upper - lower)


def _softplus_chord(lower, upper):
    # log((1 + e^upper) / (1 + e^lower)), which cancels on short intervals alone
    width = upper - lower
    short = jnp.log1p(jax.nn.sigmoid(lower) * jnp.expm1(jnp.minimum(width, 1.0)))
    return jnp.where(width < 1, short, jax.nn.softplus(upper) - jax.nn.softplus(lower)) / width


def _logistic_slope(z):
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def _tanh_slope(z):
    return 4 * _logistic_slope(2 * z)


def _gelu_by_tanh_slope(z):
    z = jnp.clip(z, -20.0, 20.0)  # beyond it is 0 or 1
    c, inner = math.sqrt(2 / math.pi), z + 0.044715 * z**3
    rises = z * c * (1 + 3 * 0.044715 * z**2) * _tanh_slope(c * inner) / 2
    return jax.nn.sigmoid(2 * c * inner) + rises


def _gauss(z):
    return 2 / math.sqrt(math.pi) * jnp.exp(-(z**2))


RELU = Leaky()
LEAKY = Leaky
ABS = Leaky(-1.0)
SQUARE = Convex(jnp.square, lambda z: 2 * z, lambda lower, upper: lower + upper, bottom=0.0)
EXP = Convex(jnp.exp, jnp.exp, _exp_chord)
EXPM1 = Convex(jnp.expm1, jnp.exp, _exp_chord)
SOFTPLUS = Convex(jax.nn.softplus, jax.nn.sigmoid, _softplus_chord)
LOG = Convex(jnp.log, lambda z: 1 / z, _log_chord, sign=-1, start=0.0)
EXP2 = Convex(
    jnp.exp2,
    lambda z: math.log(2) * jnp.exp2(z),
    lambda lower, upper: (
        jnp.exp2(lower) * jnp.expm1(math.log(2) * (upper - lower)) / (upper - lower)
    ),
)
LOG2 = Convex(
    jnp.log2,
    lambda z: 1 / (math.log(2) * z),
    lambda lower, upper: _log_chord(lower, upper) / math.log(2),
    sign=-1,
    start=0.0,
)
LOG1P = Convex(jnp.log1p, lambda z: 1 / (1 + z), _log1p_chord, sign=-1, start=-1.0)
SQRT = Convex(
    jnp.sqrt,
    lambda z: 0.5 / jnp.sqrt(z),
    lambda lower, upper: 1 / (jnp.sqrt(lower) + jnp.sqrt(upper)),
    sign=-1,
    start=0.0,
    relative=True,
)
RSQRT = Convex(
    lax.rsqrt,
    lambda z: -0.5 * z**-1.5,
    lambda lower, upper: -1 / (jnp.sqrt(lower * upper) * (jnp.sqrt(lower) + jnp.sqrt(upper))),
    start=0.0,
    relative=True,
)
RECIPROCAL = Reciprocal()
# Of sin and cos max |f''| is 1. The bends and the extrema below are zeros of f'' and f'.
SMOOTH = {
    "tanh": Curved(jnp.tanh, _tanh_slope, (0.0,), (1, -1)),
    "logistic": Curved(jax.nn.sigmoid, _logistic_slope, (0.0,), (1, -1)),
    "erf": Curved(lax.erf, _gauss, (0.0,), (1, -1)),
    "erfc": Curved(lax.erfc, lambda z: -_gauss(z), (0.0,), (-1, 1)),
    "atan": Curved(jnp.arctan, lambda z: 1 / (1 + z**2), (0.0,), (1, -1)),
    "asinh": Curved(jnp.arcsinh, lambda z: lax.rsqrt(1 + z**2), (0.0,), (1, -1)),
    "sinh": Curved(jnp.sinh, jnp.cosh, (0.0,), (-1, 1)),
    "cosh": Curved(jnp.cosh, jnp.sinh, (), (1,), (0.0,)),
    "sin": Smooth(jnp.sin, jnp.cos, 1.0, (-1.0, 1.0)),
    "cos": Smooth(jnp.cos, lambda z: -jnp.sin(z), 1.0, (-1.0, 1.0)),
}
SILU = Curved(
    jax.nn.silu,
    lambda z: jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z)),
    (-2.3993572805154675, 2.3993572805154675),
    (-1, 1, -1),
    (-1.278464542761074,),
    rounding=4.0,
)
GELU = Curved(
    partial(jax.nn.gelu, approximate=False),
    lambda z: lax.erfc(-z / math.sqrt(2)) / 2 + z * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    (-math.sqrt(2), math.sqrt(2)),
    (-1, 1, -1),
    (-0.7517915246935646,),
    rounding=4.0,
)
GELU_BY_TANH = Curved(
    jax.nn.gelu,
    _gelu_by_tanh_slope,
    (-1.4185040087908283, 1.4185040087908283),
    (-1, 1, -1),
    (-0.7524614220710162,),
    rounding=4.0,
)
MISH = Curved(
    jax.nn.mish,
    lambda z: (
        jnp.tanh(jax.nn.softplus(z)) + z * _tanh_slope(jax.nn.softplus(z)) * jax.nn.sigmoid(z)
    ),
    (-2.2563763963607935, 1.4905711794854288),
    (-1, 1, -1),
    (-1.1924312145154952,),
    rounding=4.0,
)
SOFT_SIGN = Curved(jax.nn.soft_sign, lambda z: 1 / (1 + jnp.abs(z)) ** 2, (0.0,), (1, -1))
HARD_SILU = Curved(
    jax.nn.hard_silu,
    lambda z: jnp.where(jnp.abs(z) <= 3, (2 * z + 3) / 6, jnp.where(z > 0, 1.0, 0.0)),
    (-3.0, 3.0),
    (0, 1, 0),
    (-1.5,),
    rounding=4.0,
)


def elu(alpha: float | Array = 1.0) -> Curved:
    """z where it is positive, alpha (e^z - 1) elsewhere."""
    return Curved(
        lambda z: jax.nn.elu(z, alpha),
        lambda z: jnp.where(z > 0, 1.0, alpha * jnp.exp(jnp.minimum(z, 0.0))),
        (0.0,),
        (jnp.sign(alpha), 0),
        (0.0,),
    )


def celu(alpha: float | Array = 1.0) -> Curved:
    """z where it is positive, alpha (e^{z / alpha} - 1) elsewhere."""
    return Curved(
        lambda z: jax.nn.celu(z, alpha),
        lambda z: jnp.exp(jnp.minimum(z, 0.0) / alpha),
        (0.0,),
        (jnp.sign(alpha), 0),
    )


def power(exponent: float) -> AbstractElementwise:
    """z^p; of z > 0, if p is no positive integer."""
    if exponent == 2:
        return SQUARE
    slope = partial(_power_slope, exponent)
    if exponent > 0 and exponent == round(exponent):
        power = round(exponent)
        odd = power % 2
        return Curved(lambda z: z**power, slope, (0.0,), (-1 if odd else 1, 1), (0.0,))
    return Convex(
        lambda z: z**exponent,
        slope,
        partial(_power_chord, exponent),
        sign=-1 if 0 < exponent < 1 else 1,
        start=0.0,
    )
