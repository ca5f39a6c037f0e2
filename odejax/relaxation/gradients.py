"""Intervals of gradients: what the derivatives of a graph's outputs lie between, for all inputs.

    dm / dx = sum_y (dm / dy) (dy / dx),  each factor an interval

Backwards, as the chain rule goes, from rows on the outputs. The slopes of a function of one number
lie in an interval on the interval of its operand, known from bound propagation; at a kink that is
crossed it is the one between the two slopes. In between all is affine. Where a function has no
derivative, this is about Clarke's generalised one, for which the mean value theorem holds.

Weng et al. (2018), arXiv:1804.09699 (Fast-Lip); Zhang et al. (2019), arXiv:1810.11783 (RecurJac).
"""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._rounding import SUM_ROUNDING, sum_rounding
from ..solvers.chebyshev import ChebyshevFlowMap
from ..solvers.flow_map import AbstractFlowMap
from .elementwise import AbstractElementwise, Convex, Curved, Leaky, Reciprocal, Smooth
from .graph import Graph
from .propagate import Bounds
from .rules import (
    ROUNDING,
    Affine,
    Interval,
    Largest,
    Loop,
    Node,
    Product,
    Unary,
    unbroadcast,
    unit,
)


class Gradients(NamedTuple):
    """What the derivatives of r functions lie between.

    - `rows`: by the number of a value, (r, *shape).
    - `lost`: (r,) what float32 may take each function off, in one evaluation.
    """

    rows: dict[int, Interval]
    lost: Float[Array, " r"]


def gradients(graph: Graph, bounds: Bounds, rows: Float[Array, "r ..."]) -> Gradients:
    """The gradients of <rows, output> with respect to the graph's inputs."""
    ends = Gradients({graph.outputs[0]: Interval(rows, rows)}, jnp.zeros(len(rows), rows.dtype))
    return _through(graph.nodes, bounds, ends)


def _through(nodes: Sequence[Node], bounds: Bounds, behind: Gradients) -> Gradients:
    """Gradients with respect to what goes into nodes, from those with respect to their results."""
    rows, lost = dict(behind.rows), behind.lost
    for node in reversed(nodes):
        if not any(number in rows for number in node.outputs):
            continue
        here = [_or_zero(rows.pop(n, None), bounds[n], lost) for n in node.outputs]
        if isinstance(node.rule, Loop):
            kept = bounds["loop", node.outputs[0]]
            moved, lost = _through_loop(node.rule, kept, here, lost)
        else:
            ((row,), (number,)) = here, node.outputs
            xs = [bounds[i].interval for i in node.inputs]
            size = row.largest().reshape(len(lost), -1)
            lost = lost + size @ jnp.ravel(_lost_at(node.rule, bounds[number].interval, *xs))
            moved = _moved(node.rule, row, *xs)
        for number, more in zip(node.inputs, moved, strict=True):
            rows[number] = _sum(rows[number], more) if number in rows else more
    return Gradients(rows, lost)


def _through_loop(loop: Loop, kept: Bounds, rows: list[Interval], lost: Array):
    def turn(carry, known):
        item, bounds = known
        (rows, lost), graph = carry, loop.body(item)
        behind: dict[int, Interval] = {}
        for number, row in zip(graph.outputs, rows, strict=True):
            behind[number] = _sum(behind[number], row) if number in behind else row
        ahead, lost = _through(graph.nodes, bounds, Gradients(behind, lost))
        return ([_or_zero(ahead.get(n), bounds[n], lost) for n in graph.inputs], lost), None

    return lax.scan(turn, (rows, lost), (loop.items, kept), reverse=True)[0]


def _or_zero(row: Interval | None, bound: Any, lost: Array) -> Interval:
    zero = jnp.zeros((len(lost), *bound.shape), lost.dtype)
    return Interval(zero, zero) if row is None else row


def _widened(low: Array, high: Array, by: float) -> Interval:
    """Each end by a fraction of its size; of what is no number nothing is known."""
    low, high = low - by * unit(low) * jnp.abs(low), high + by * unit(high) * jnp.abs(high)
    unknown = jnp.isnan(low) | jnp.isnan(high)
    return Interval(jnp.where(unknown, -jnp.inf, low), jnp.where(unknown, jnp.inf, high))


def _sum(a: Interval, b: Interval) -> Interval:
    lost = ROUNDING * unit(a.low) * (a.largest() + b.largest())
    return Interval(a.low + b.low - lost, a.high + b.high + lost)


def _times(a: Interval, b: Interval) -> Interval:
    ends = jnp.stack([u * v for u in a for v in b])
    return _widened(ends.min(0), ends.max(0), ROUNDING)


# -- single operations -----------------------------------------------------------------------------


def _moved(rule: Any, rows: Interval, *xs: Interval) -> Sequence[Interval]:
    """Gradients with respect to the operands, from those with respect to the result."""
    if isinstance(rule, Affine):
        return _through_affine(rule, rows, *xs)
    if isinstance(rule, Unary):
        return [_times(rows, slopes(rule.function, *xs[0]))]
    if isinstance(rule, Product):
        x, y = xs
        return [_unbroadcast(_times(rows, other), one) for one, other in ((x, y), (y, x))]
    if isinstance(rule, Largest):
        return [_times(Interval(*(r[..., None] for r in rows)), _share(xs[0]))]
    raise ValueError(f"no bounds are known for the derivative of {type(rule).__name__}")


def _through_affine(rule: Affine, rows: Interval, *xs: Interval) -> list[Interval]:
    zeros = [jnp.zeros_like(x.low) for x in xs]

    def transposed(function, rows):
        _, pull = jax.vjp(function, *zeros)
        return jax.vmap(pull)(rows)

    middle, reach = (rows.low + rows.high) / 2, (rows.high - rows.low) / 2
    size = jnp.abs(middle) + reach
    # A transpose loses what the transpose of the operation's own losses says.
    losses = transposed(rule.lost_of, unit(size) * size)
    wide = reach + (ROUNDING + rule.added) * unit(size) * size
    wide = transposed(rule.radius, wide * (1 + SUM_ROUNDING * unit(size)))
    out = []
    for m, r, lost in zip(transposed(rule.apply, middle), wide, losses, strict=True):
        out.append(_widened(m - r - 2 * lost, m + r + 2 * lost, ROUNDING))
    return out


def _unbroadcast(rows: Interval, x: Interval) -> Interval:
    """The transpose of broadcasting `x` to the shape of the rows: a sum."""
    low, high, size = (unbroadcast(v, x.low.shape) for v in (*rows, rows.largest()))
    lost = sum_rounding(rows.low[0].size // max(1, x.low.size)) * unit(low) * size
    return Interval(low - lost, high + lost)


def _share(x: Interval) -> Interval:
    """Of the largest entry of the last axis, how much of it each entry may be."""
    least = x.low.max(-1, keepdims=True)
    may_be = x.high >= least
    alone = may_be & (may_be.sum(-1, keepdims=True) == 1)
    return Interval(alone.astype(x.low.dtype), may_be.astype(x.low.dtype))


def _lost_at(rule: Any, y: Interval, *xs: Interval) -> Array:
    """What float32 may take the result off, for operands that are right."""
    if isinstance(rule, Affine):
        lost = rule.lost_of(*(x.largest() for x in xs))
        return unit(lost) * lost + jnp.finfo(lost.dtype).tiny
    if isinstance(rule, Product):
        return ROUNDING * unit(y.low) * y.largest()
    if isinstance(rule, Unary) and not rule.function.exact:
        lost = SUM_ROUNDING * unit(y.low) * y.largest()
        if isinstance(rule.function, Smooth):
            lost = lost + rule.function.error + rule.function.argument_error * xs[0].largest()
        return lost
    return jnp.zeros_like(y.low)


# -- functions of one number -----------------------------------------------------------------------


@singledispatch
def slopes(function: AbstractElementwise, lower: Array, upper: Array) -> Interval:
    """What the derivative lies between on [lower, upper]."""
    raise ValueError(f"no bounds are known for the derivative of {type(function).__name__}")


@slopes.register
def _(function: Leaky, lower, upper):
    a = jnp.broadcast_to(jnp.asarray(function.a, lower.dtype), lower.shape)
    return Interval(jnp.where(lower >= 0, 1.0, a), jnp.where(upper <= 0, a, 1.0))


@slopes.register
def _(function: Convex, lower, upper):
    ends = function.derivative(lower), function.derivative(upper)
    low, high = ends[:: function.sign]
    outside = lower < function.start
    low, high = jnp.where(outside, -jnp.inf, low), jnp.where(outside, jnp.inf, high)
    return _widened(low, high, SUM_ROUNDING)


@slopes.register
def _(function: Reciprocal, lower, upper):
    unknown = (lower <= 0) & (upper >= 0)
    ends = -1 / lower**2, -1 / upper**2
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    return _widened(jnp.where(unknown, -jnp.inf, low), jnp.where(unknown, 0.0, high), SUM_ROUNDING)


@slopes.register
def _(function: Smooth, lower, upper):
    steepest = jnp.full_like(lower, function.steepest)
    if isinstance(function.f, ChebyshevFlowMap):  # a piece at a time
        return Interval(-steepest, steepest)
    spacing = (upper - lower) / function.samples
    steps = jnp.arange(function.samples + 1, dtype=lower.dtype)
    z = lower + spacing * steps.reshape(-1, *[1] * lower.ndim)
    values, largest = function.derivative(z), jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    # A point is no further than half the spacing from a sample, where that is rounded, too.
    between = (spacing / 2 + SUM_ROUNDING * unit(z) * largest) * function.curvature
    if isinstance(function.f, AbstractFlowMap):
        between = between + function.f.slope_error
    between = between + SUM_ROUNDING * unit(z) * steepest
    low, high = values.min(0) - between, values.max(0) + between
    return Interval(jnp.clip(low, -steepest, steepest), jnp.clip(high, -steepest, steepest))


@slopes.register
def _(function: Curved, lower, upper):
    # Between two bends f' is monotone.
    bends = [jnp.clip(bend, lower, upper) for bend in function.bends]
    values = jnp.stack([function.derivative(z) for z in (lower, *bends, upper)])
    # Its parts, of which some cancel, are about 1 or as large as it is.
    lost = SUM_ROUNDING * unit(lower) * jnp.maximum(1.0, jnp.abs(values).max(0))
    return Interval(values.min(0) - lost, values.max(0) + lost)
