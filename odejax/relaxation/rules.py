"""How bounds go through an operation: forwards as intervals, backwards as linear functions.

Forwards an interval of the operands becomes one of the results. Backwards rows A, for which a lower
bound on <A, y> is sought, become rows on the operands and a constant: <A, y> >= <B, x> + c for all
x in their intervals. Either way the rule gives up what float32 may lose, in the network and in the
bound itself.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._rounding import SUM_ROUNDING, sum_rounding
from .elementwise import AbstractElementwise, Lines

Numbers = Float[Array, "..."]

# What a few operations on single numbers may lose: 8 u. This and the other roundings are float32's.
ROUNDING = 5e-7


def unit(v: Array) -> float:
    """The roundings of an array's type, as a fraction of float32's."""
    return float(jnp.finfo(v.dtype).eps / jnp.finfo(jnp.float32).eps)


class Interval(NamedTuple):
    """What a value lies between."""

    low: Numbers
    high: Numbers

    def largest(self) -> Numbers:
        return jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))


class Bound(NamedTuple):
    """An interval, and the sizes of what each entry is a sum of.

    - `size`: None for bounds in real numbers, where nothing is rounded.
    - `relaxed`: what the backward pass needs of the operation that makes it (`Rule.relax`).
    """

    interval: Interval
    size: Numbers | None
    relaxed: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.interval.low.shape


class Offset(NamedTuple):
    """A constant for each row, (r,), and how far it may be off."""

    middle: Numbers
    reach: Numbers

    def plus(self, more: "Offset") -> "Offset":
        return Offset(self.middle + more.middle, self.reach + more.reach)


class Node(NamedTuple):
    """An operation in a graph: its operands and results by their numbers."""

    rule: "Rule"
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Rule(abc.ABC):
    """An operation with one result; a `Loop` alone has several."""

    @abc.abstractmethod
    def forward(self, *xs: Interval) -> Bound:
        """The interval of the result."""

    @abc.abstractmethod
    def relax(self, y: Bound, *xs: Interval) -> Any:
        """What `backward` needs, and what is the same for all rows."""

    @abc.abstractmethod
    def backward(
        self, rows: Numbers, relaxed: Any, *xs: Interval, parallel: bool | Array = False
    ) -> tuple[Sequence[Numbers], Offset]:
        """Rows on the operands, and the constants, of `rows` (r, *shape) on the result.

        - `parallel`: the lines above are those below, moved up, so that one row gives both bounds:
          <A, y> <= <B, x> + c + reach.
        """


@dataclasses.dataclass(frozen=True)
class Affine(Rule):
    """An affine operation of all its operands together.

    - `apply`: the operation; `radius`: the same with the sizes of its coefficients, and without
      its constant.
    - `exact`: it only copies; `positive`: no coefficient is negative; `elementwise`: each entry of
      the result is one of an entry of the one operand.
    - `rounding`: what an evaluation may lose, as a fraction of the sizes of what is added.
    - `sizes`: these, from the sizes of the operands; None: the radius and the constant's size.
    - `losses`: what is lost, from these sizes; None: `rounding` times the result's.
    - `factor`: what the operand is multiplied by, where nothing else is done to it.
    - `linear`: its constant is zero.
    - `added`: what the backward pass may lose where it adds up, for an entry that is copied.
    """

    apply: Callable
    radius: Callable
    exact: bool = False
    positive: bool = True
    elementwise: bool = False
    rounding: float = SUM_ROUNDING
    sizes: Callable | None = None
    losses: Callable | None = None
    factor: Any = None
    linear: bool = False
    added: float = 0.0

    def size_of(self, *sizes: Numbers) -> Numbers:
        """The sizes of all that is added, for operands of these sizes."""
        if self.sizes is not None:
            return self.sizes(*sizes)
        return self.radius(*sizes) + jnp.abs(self.apply(*map(jnp.zeros_like, sizes)))

    def lost_of(self, *sizes: Numbers) -> Numbers:
        """What an evaluation may lose in float32, for operands of these sizes."""
        if self.losses is not None:
            return self.losses(*sizes)
        size = self.size_of(*sizes)
        return jnp.zeros_like(size) if self.exact else self.rounding * size

    def then(self, other: "Affine") -> "Affine":
        """This operation, and then another."""
        return Affine(
            lambda *ys: other.apply(self.apply(*ys)),
            lambda *rs: other.radius(self.radius(*rs)),
            exact=self.exact and other.exact,
            positive=self.positive and other.positive,
            elementwise=self.elementwise and other.elementwise,
            linear=self.linear and other.linear,
            added=self.added + other.added,
            sizes=lambda *sizes: other.size_of(self.size_of(*sizes)),
            losses=lambda *sizes: (
                other.radius(self.lost_of(*sizes)) + other.lost_of(self.size_of(*sizes))
            ),
        )

    def of_one(self, parts: Sequence["Affine | None"]) -> "Affine":
        """This operation on what the `parts` make of one value; None is the value itself."""

        def each(name: str, y) -> list:
            return [y if part is None else getattr(part, name)(y) for part in parts]

        rules = [self, *(part for part in parts if part is not None)]
        return Affine(
            lambda y: self.apply(*each("apply", y)),
            lambda r: self.radius(*each("radius", r)),
            positive=all(rule.positive for rule in rules),
            linear=all(rule.linear for rule in rules),
            added=ROUNDING + sum(rule.added for rule in rules),
            sizes=lambda size: self.size_of(*each("size_of", size)),
            losses=lambda size: self._losses_of(parts, size),
        )

    def _losses_of(self, parts: Sequence["Affine | None"], size: Numbers) -> Numbers:
        """What this operation and its `parts` lose together."""
        sizes = [size if part is None else part.size_of(size) for part in parts]
        losses = [jnp.zeros_like(size) if part is None else part.lost_of(size) for part in parts]
        return self.radius(*losses) + self.lost_of(*sizes)

    def range(self, *xs: Interval) -> Interval:
        """The interval of the result in real numbers."""
        if self.exact or self.positive or self.elementwise:
            ends = self.apply(*(x.low for x in xs)), self.apply(*(x.high for x in xs))
            if self.exact or self.positive:
                return Interval(*ends)
            return Interval(jnp.minimum(*ends), jnp.maximum(*ends))
        middle = self.apply(*((x.low + x.high) / 2 for x in xs))
        reach = self.radius(*((x.high - x.low) / 2 for x in xs))
        return Interval(middle - reach, middle + reach)

    def forward(self, *xs: Interval) -> Bound:
        low, high = self.range(*xs)
        if self.exact:
            return Bound(Interval(low, high), jnp.zeros_like(low))
        size, lost = self._size_and_lost(*xs)
        if self.positive:
            # A sum of what is not negative is not below its constant, however it is rounded.
            lows = [x.low for x in xs]
            constant = self.apply(*map(jnp.zeros_like, lows))
            positive = self.radius(*(jnp.minimum(v, 0.0) for v in lows)) >= 0
            floor = jnp.where((constant >= 0) & positive, constant, -jnp.inf)
            floor = floor * (1 - ROUNDING * unit(floor))
            return Bound(Interval(jnp.maximum(low - lost, floor), high + lost), size)
        return Bound(Interval(low - lost, high + lost), size)

    def _size_and_lost(self, *xs: Interval) -> tuple[Numbers, Numbers]:
        sizes = [x.largest() for x in xs]
        size = self.size_of(*sizes)
        # What is smaller than any normal number may be flushed to zero.
        tiny = jnp.finfo(size.dtype).tiny
        return size + tiny / unit(size), unit(size) * self.lost_of(*sizes) + tiny

    def relax(self, y, *xs):
        constant, lost = None, None
        if not self.linear:
            constant = self.apply(*(jnp.zeros_like(x.low) for x in xs))
        if y.size is None:
            return Constants(constant, None)
        if not self.exact:
            # Of the network at x and at x', and of the transpose.
            lost = 3 * self._size_and_lost(*xs)[1] + self.added * unit(y.size) * y.size
        elif self.added:
            lost = self.added * unit(y.size) * y.interval.largest()
        return constants(constant, lost)

    def backward(self, rows, relaxed, *xs, parallel=False):
        _, pull = jax.vjp(self.apply, *(jnp.zeros_like(x.low) for x in xs))
        return jax.vmap(pull)(rows), times(rows, relaxed)


def _toward(low, lost):
    """`low` less what is lost, and not negative where `low` is not."""
    return jnp.where(low >= 0, jnp.maximum(low - lost, 0.0), low - lost)


class Constants(NamedTuple):
    """What a row is multiplied by for its constant, and for how far that may be off; None is 0."""

    middle: Numbers | None
    reach: Numbers | None


def constants(middle: Numbers | None, reach: Numbers | None) -> Constants:
    """With what the sums over them may lose."""
    if middle is not None:
        lost = sum_rounding(middle.size) * unit(middle) * jnp.abs(middle)
        reach = lost if reach is None else reach + lost
    if reach is not None:
        reach = reach * (1 + sum_rounding(reach.size) * unit(reach))
    return Constants(middle, reach)


def times(rows: Numbers, by: Constants) -> Offset:
    """<rows, v> for |v - middle| <= reach.

    Products with matrices: a reduction is many times slower on a CPU.
    """
    rows, zero = rows.reshape(len(rows), -1), jnp.zeros(len(rows), rows.dtype)
    return Offset(
        zero if by.middle is None else rows @ jnp.ravel(by.middle),
        zero if by.reach is None else jnp.abs(rows) @ jnp.ravel(by.reach),
    )


def chosen(parallel: bool | Array, one: Any, other: Any) -> Any:
    """The one where lines are to be parallel, and else the other."""
    if isinstance(parallel, bool):
        return one if parallel else other
    return jax.tree.map(lambda a, b: jnp.where(parallel, a, b), one, other)


def split(rows: Numbers) -> tuple[Numbers, Numbers]:
    """Their positive and their negative part."""
    return jnp.maximum(rows, 0.0), jnp.minimum(rows, 0.0)


@dataclasses.dataclass(frozen=True)
class Unary(Rule):
    """A function of each entry."""

    function: AbstractElementwise

    def forward(self, x: Interval) -> Bound:
        low, high = self.function.range(*x)
        if self.function.exact:
            return Bound(Interval(low, high), jnp.maximum(jnp.abs(low), jnp.abs(high)))
        sizes = jnp.abs(low), jnp.abs(high)
        if not self.function.relative:
            sizes = 2 * (jnp.maximum(*sizes),)
        below, above = (SUM_ROUNDING * unit(low) * size for size in sizes)
        out = Interval(_toward(low, below), high + above)
        return Bound(out, out.largest())

    def relax(self, y, *xs, tilt: Numbers | None = None, multiplier: Numbers | None = None):
        """The lines, those that are parallel, and what is taken off the rows.

        - `tilt`, `multiplier`: what is chosen at a kink (`Kinks`).
        """
        (x,), tilts = xs, () if tilt is None else (tilt,)
        best = self._with_rounding(self.function.lines(*x, *tilts), y, x)
        parallel = self._with_rounding(self.function.parallel_lines(*x), y, x)
        if multiplier is None:
            return best, parallel, None
        # multiplier * x >= 0 where both have one sign: it may be taken off.
        (positive, negative), (low, high) = split(multiplier), x
        used = jnp.where(low >= 0, positive, 0.0) + jnp.where(high <= 0, negative, 0.0)
        lost = 2 * ROUNDING * unit(used) * jnp.sum(jnp.abs(used) * x.largest())
        return best, parallel, (used, lost)

    def _with_rounding(self, lines: Lines, y: Bound, x: Interval):
        low_slope, low, high_slope, high = lines
        if y.size is None:
            return low_slope, high_slope, Constants((low + high) / 2, (high - low) / 2)
        steepest = jnp.maximum(jnp.abs(low_slope), jnp.abs(high_slope))
        size = y.size + steepest * x.largest() + jnp.maximum(jnp.abs(low), jnp.abs(high))
        rounding = ROUNDING if self.function.exact else SUM_ROUNDING
        lost = 2 * rounding * unit(size) * size
        return low_slope, high_slope, constants((low + high) / 2, (high - low) / 2 + lost)

    def backward(self, rows, relaxed, *xs, parallel=False):
        best, moved_up, taken_off = relaxed
        low_slope, high_slope, constant = chosen(parallel, moved_up, best)
        up, down = split(rows)
        moved, offset = up * low_slope + down * high_slope, times(rows, constant)
        if taken_off is not None:
            used, lost = taken_off
            moved, offset = moved - used, offset._replace(reach=offset.reach + lost)
        return (moved,), offset


@dataclasses.dataclass(frozen=True)
class Product(Rule):
    """x y, by the mean of the two planes of McCormick (1976) on each side.

    x y >= a y + c x - a c,  x y >= b y + d x - b d,
    x y <= a y + d x - a d,  x y <= b y + c x - b c   for a <= x <= b, c <= y <= d

    - `limit`: what is known of |x y| besides; None: nothing.

    Where the planes are outside the limit in the middle of x and y, the interval is in their place.
    """

    limit: Any = None

    def forward(self, x: Interval, y: Interval) -> Bound:
        ends = jnp.stack([a * b for a in x for b in y])
        low, high = ends.min(0), ends.max(0)
        size = x.largest() * y.largest()
        lost = ROUNDING * unit(size) * size
        low, high = _toward(low, lost), high + lost
        if self.limit is not None:
            # An end may be infinity times zero, which the limit replaces; a NaN stays unbounded.
            limit = jnp.where(jnp.isnan(lost), jnp.inf, self.limit + lost)
            low, high = jnp.fmax(low, -limit), jnp.fmin(high, limit)
        return Bound(Interval(low, high), size)

    def relax(self, y, *xs):
        z, (x, y), shape = y, xs, y.shape
        (a, b), (c, d) = ([jnp.broadcast_to(v, shape) for v in side] for side in (x, y))
        along_x, along_y, reach = (c + d) / 2, (a + b) / 2, (b - a) * (d - c) / 4
        # The transpose of broadcasting is a sum.
        made, lost = Constants, 0.0
        if z.size is not None:
            added = sum_rounding(z.size.size // min(x.low.size, y.low.size))
            made, lost = constants, (4 * ROUNDING + added) * unit(z.size) * z.size
        if self.limit is None:
            return along_x, along_y, made(-along_x * along_y, reach + lost)
        low, high = z.interval
        # Both ends, and where a reach is no number.
        centre = along_x * along_y
        flat = ~((centre - reach > low) | (centre + reach < high))
        along_x, along_y = jnp.where(flat, 0.0, along_x), jnp.where(flat, 0.0, along_y)
        middle = jnp.where(flat, (low + high) / 2, -along_x * along_y)
        reach = jnp.where(flat, (high - low) / 2 * (1 + ROUNDING * unit(low)), reach + lost)
        return along_x, along_y, made(middle, reach)

    def backward(self, rows, relaxed, *xs, parallel=False):
        (x, y), (along_x, along_y, constant) = xs, relaxed
        moved = (
            unbroadcast(rows * along_x, x.low.shape),
            unbroadcast(rows * along_y, y.low.shape),
        )
        return moved, times(rows, constant)


def unbroadcast(rows, shape):
    """The transpose of broadcasting `shape` to that of the rows."""

    def spread(v):
        return jnp.broadcast_to(v, rows.shape[1:])

    transpose = jax.linear_transpose(spread, jnp.zeros(shape, rows.dtype))
    return jax.vmap(lambda row: transpose(row)[0])(rows)


@dataclasses.dataclass(frozen=True)
class Largest(Rule):
    """The largest over the last axis.

        x_i <= max_j x_j <= max_j high_j,  i the entry whose lower end is largest

    Where no other entry can be larger than x_i, the maximum is x_i.
    """

    def forward(self, x: Interval) -> Bound:
        out = Interval(x.low.max(-1), x.high.max(-1))
        return Bound(out, jnp.zeros_like(out.low))

    def relax(self, y, *xs):
        """The entry, whether it is one of the line above, and the constants below and above."""
        (x,) = xs
        best = jax.nn.one_hot(jnp.argmax(x.low, -1), x.low.shape[-1], dtype=x.low.dtype)
        rival = jnp.where(best > 0, -jnp.inf, x.high).max(-1)
        least, most = x.low.max(-1), x.high.max(-1)
        # By x_i alone, where it is the largest; else from above by the constant, or parallel by
        # x_i and how far the largest may be above it.
        decided = least >= rival
        above = jnp.where(decided, 0.0, jnp.maximum(rival - least, 0.0)) / 2
        constant = jnp.where(decided, 0.0, most)
        if y.size is None:
            return best, decided, Constants(constant, None), Constants(above, above)
        lost = ROUNDING * unit(least) * jnp.where(decided, 0.0, jnp.abs(least) + jnp.abs(most))
        return best, decided, constants(constant, None), constants(above, above + lost)

    def backward(self, rows, relaxed, *xs, parallel=False):
        best, decided, constant, gap = relaxed
        up, down = split(rows)
        along = decided | parallel
        moved = (up + jnp.where(along, down, 0.0))[..., None] * best
        by_constant = times(jnp.where(along, 0.0, down), constant)
        return (moved,), by_constant.plus(times(jnp.where(parallel, rows, 0.0), gap))


@dataclasses.dataclass(frozen=True)
class Loop(Rule):
    """`length` turns of a graph, whose outputs are the next turn's inputs: see `propagate`.

    `body(item)` is the graph of a turn; `items` has what is known of each, along the first axis.
    """

    body: Callable
    items: Any
    length: int

    def at(self, t):
        return self.body(jax.tree.map(lambda v: v[t], self.items))

    def forward(self, *xs):
        raise TypeError("a loop's bounds need those of the graph around it")

    relax = backward = forward  # pyright: ignore
