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

from .._rounding import SUM_ROUNDING
from .elementwise import AbstractElementwise

Numbers = Float[Array, "..."]

# What a few operations on single numbers may lose: 8 u. It and all others are float32's.
ROUNDING = 5e-7


def unit(v: Array) -> float:
    """The roundings of an array's type, as a fraction of float32's."""
    return float(jnp.finfo(v.dtype).eps / jnp.finfo(jnp.float32).eps)


def sum_rounding(n: int) -> float:
    """What a sum of n terms may lose, as a fraction of the sum of their sizes.

    XLA's dot products keep at least 8 partial sums, so their longest chain has about n / 8
    additions: n / 8 u where that is more than `SUM_ROUNDING`. Equal terms come to n / 27 u.
    """
    return max(SUM_ROUNDING, (n / 8 + 8) * 2.0**-24)


class Interval(NamedTuple):
    """What a value lies between."""

    low: Numbers
    high: Numbers

    def largest(self) -> Numbers:
        return jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))


class Bound(NamedTuple):
    """An interval, and the sizes of what each entry is a sum of."""

    interval: Interval
    size: Numbers


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
    def backward(self, rows: Numbers, y: Bound, *xs: Interval) -> tuple[Sequence[Numbers], Numbers]:
        """Rows on the operands, and the constant (r,), of `rows` (r, *shape) on the result."""


@dataclasses.dataclass(frozen=True)
class Affine(Rule):
    """An affine operation of all its operands together.

    - `apply`: the operation; `radius`: the same with the sizes of its coefficients, and without
      its constant.
    - `exact`: it only copies; `positive`: no coefficient is negative; `elementwise`: each entry of
      the result is one of an entry of the one operand.
    - `rounding`: what an evaluation may lose, as a fraction of the sizes of what is added.
    - `sizes`: these, from the sizes of the operands; None: the radius and the constant's size.
    - `factor`: what the operand is multiplied by, where nothing else is done to it.
    - `copies`: how often one entry may be copied; the backward pass adds up as many.
    """

    apply: Callable
    radius: Callable
    exact: bool = False
    positive: bool = True
    elementwise: bool = False
    rounding: float = SUM_ROUNDING
    sizes: Callable | None = None
    factor: Any = None
    copies: int = 1

    def size_of(self, *sizes: Numbers) -> Numbers:
        """The sizes of all that is added, for operands of these sizes."""
        if self.sizes is not None:
            return self.sizes(*sizes)
        return self.radius(*sizes) + jnp.abs(self.apply(*map(jnp.zeros_like, sizes)))

    def then(self, other: "Affine") -> "Affine":
        """This operation, and then another."""
        return Affine(
            lambda *ys: other.apply(self.apply(*ys)),
            lambda *rs: other.radius(self.radius(*rs)),
            exact=self.exact and other.exact,
            positive=self.positive and other.positive,
            elementwise=self.elementwise and other.elementwise,
            rounding=sum(rule.rounding for rule in (self, other) if not rule.exact),
            copies=self.copies * other.copies,
            sizes=lambda *sizes: other.size_of(self.size_of(*sizes)),
        )

    def forward(self, *xs: Interval) -> Bound:
        lows, highs = [x.low for x in xs], [x.high for x in xs]
        if self.exact:
            low, high = self.apply(*lows), self.apply(*highs)
            return Bound(Interval(low, high), jnp.zeros_like(low))
        size = self.size_of(*(x.largest() for x in xs))
        # What is smaller than any normal number may be flushed to zero.
        size = size + jnp.finfo(size.dtype).tiny / (ROUNDING * unit(size))
        lost = self.rounding * unit(size) * size
        if self.positive:
            low, high = self.apply(*lows), self.apply(*highs)
            # A sum of what is not negative is not, either.
            kept = (low >= 0) & (self.apply(*map(jnp.zeros_like, lows)) >= 0)
            low = jnp.where(kept, jnp.maximum(low - lost, 0.0), low - lost)
            return Bound(Interval(low, high + lost), size)
        if self.elementwise:
            ends = self.apply(*lows), self.apply(*highs)
            low, high = jnp.minimum(*ends), jnp.maximum(*ends)
        else:
            middle = self.apply(*((x.low + x.high) / 2 for x in xs))
            reach = self.radius(*((x.high - x.low) / 2 for x in xs))
            low, high = middle - reach, middle + reach
        return Bound(Interval(low - lost, high + lost), size)

    def backward(self, rows, y, *xs):
        constant, pull = jax.vjp(self.apply, *(jnp.zeros_like(x.low) for x in xs))
        moved = jax.vmap(pull)(rows)
        added = sum_rounding(self.copies)
        if not self.exact:
            lost = (2 * self.rounding + added) * y.size
        elif self.copies > 1:
            lost = added * y.interval.largest()
        else:
            lost = jnp.zeros_like(constant)
        return moved, least_sum(rows, constant, unit(rows) * lost)


def _toward(low, lost):
    """`low` less what is lost, and not negative where `low` is not."""
    return jnp.where(low >= 0, jnp.maximum(low - lost, 0.0), low - lost)


def least_sum(rows: Numbers, middle: Numbers, reach: Numbers) -> Numbers:
    """The least <rows, v> over |v - middle| <= reach, (r,), less what its own sums may lose.

    Products with matrices: a reduction is many times slower on a CPU.
    """
    reach = reach + sum_rounding(middle.size) * unit(middle) * (jnp.abs(middle) + reach)
    rows = rows.reshape(len(rows), -1)
    return rows @ jnp.ravel(middle) - jnp.abs(rows) @ jnp.ravel(reach)


def split(rows: Numbers) -> tuple[Numbers, Numbers]:
    """Their positive and their negative part."""
    return jnp.maximum(rows, 0.0), jnp.minimum(rows, 0.0)


@dataclasses.dataclass(frozen=True)
class Unary(Rule):
    """A function of each entry."""

    function: AbstractElementwise

    def forward(self, x: Interval) -> Bound:
        low, high = self.function.range(*x)
        lost = 0.0
        if not self.function.exact:
            lost = SUM_ROUNDING * unit(low) * jnp.maximum(jnp.abs(low), jnp.abs(high))
        out = Interval(_toward(low, lost), high + lost)
        return Bound(out, out.largest())

    def backward(self, rows, y, x: Interval):
        low_slope, low, high_slope, high = self.function.lines(*x)
        steepest = jnp.maximum(jnp.abs(low_slope), jnp.abs(high_slope))
        size = y.size + steepest * x.largest() + jnp.maximum(jnp.abs(low), jnp.abs(high))
        rounding = ROUNDING if self.function.exact else SUM_ROUNDING
        lost = 2 * rounding * unit(rows) * size
        up, down = split(rows)
        moved = up * low_slope + down * high_slope
        return (moved,), least_sum(rows, (low + high) / 2, (high - low) / 2 + lost)


@dataclasses.dataclass(frozen=True)
class Product(Rule):
    """x y, by the mean of the two planes of McCormick (1976) on each side.

    x y >= a y + c x - a c,  x y >= b y + d x - b d,
    x y <= a y + d x - a d,  x y <= b y + c x - b c   for a <= x <= b, c <= y <= d
    """

    def forward(self, x: Interval, y: Interval) -> Bound:
        ends = jnp.stack([a * b for a in x for b in y])
        low, high = ends.min(0), ends.max(0)
        lost = ROUNDING * unit(low) * jnp.maximum(jnp.abs(low), jnp.abs(high))
        return Bound(Interval(_toward(low, lost), high + lost), x.largest() * y.largest())

    def backward(self, rows, z, x: Interval, y: Interval):
        shape = rows.shape[1:]
        (a, b), (c, d) = ([jnp.broadcast_to(v, shape) for v in side] for side in (x, y))
        along_x, along_y = (c + d) / 2, (a + b) / 2
        moved = (
            _unbroadcast(rows * along_x, x.low.shape),
            _unbroadcast(rows * along_y, y.low.shape),
        )
        # The transpose of broadcasting is a sum.
        added = sum_rounding(z.size.size // min(x.low.size, y.low.size))
        lost = (4 * ROUNDING + added) * unit(rows) * z.size
        return moved, least_sum(rows, -along_x * along_y, (b - a) * (d - c) / 4 + lost)


def _unbroadcast(rows, shape):
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

    def backward(self, rows, y, x: Interval):
        up, down = split(rows)
        best = jax.nn.one_hot(jnp.argmax(x.low, -1), x.low.shape[-1], dtype=rows.dtype)
        rival = jnp.where(best > 0, -jnp.inf, x.high).max(-1)
        decided = x.low.max(-1) >= rival
        moved = (up + jnp.where(decided, down, 0.0))[..., None] * best
        most = jnp.where(decided, 0.0, x.high.max(-1))
        return (moved,), least_sum(down, most, jnp.zeros_like(most))


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

    backward = forward  # pyright: ignore
