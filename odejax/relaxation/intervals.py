"""Intervals through a graph in real numbers, to be differentiated: what certified training uses.

What float32 may lose is not given up here, so that nothing of this is a proof; it is a third of the
work of `propagate`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .graph import Graph
from .kinks import is_kink
from .propagate import Bounds, nothing_off, pull
from .rules import Affine, Bound, Interval, Loop, Node, constants


class Intervals(NamedTuple):
    """What the values of a graph lie between.

    - `bounds`: of all values by their numbers, those within loops left out.
    - `at_kinks`: of the operand of every kink, (turns, *shape); there are several turns in a loop.
    """

    bounds: Bounds
    at_kinks: list[Interval]

    def lowest(self, graph: Graph, rows: Float[Array, "r ..."]) -> Float[Array, " r"]:
        """Lower bounds on <rows, output>, the last affine operations taken together with them."""
        (out,) = graph.outputs
        start = nothing_off(len(rows), rows.dtype)
        moved, offset = pull(graph.nodes, self.bounds, {out: rows}, start, stop=True)
        low = offset.middle - offset.reach
        for number, row in moved.items():  # the network is affine, and this its input
            row, x = row.reshape(len(rows), -1), self.bounds[number].interval
            middle, reach = jnp.ravel(x.high + x.low) / 2, jnp.ravel(x.high - x.low) / 2
            low += row @ middle - jnp.abs(row) @ reach
        return low


def plain_intervals(graph: Graph, inputs: Sequence[Interval]) -> Intervals:
    """Interval arithmetic, from the inputs to the outputs."""
    bounds = {n: Bound(x, x.largest()) for n, x in zip(graph.inputs, inputs, strict=True)}
    at_kinks: list[Interval] = []
    for node in graph.nodes:
        xs = [bounds[n].interval for n in node.inputs]
        if isinstance(node.rule, Loop):
            ends, kept = _through_loop(node.rule, xs)
            bounds |= {n: Bound(x, x.largest()) for n, x in zip(node.outputs, ends, strict=True)}
            at_kinks += kept
            continue
        bounds[node.outputs[0]] = _through(node, xs)
        if is_kink(node):
            at_kinks.append(Interval(*(end[None] for end in xs[0])))
    return Intervals(bounds, at_kinks)


def _through(node: Node, xs: Sequence[Interval]) -> Bound:
    if not isinstance(node.rule, Affine):
        return node.rule.forward(*xs)
    out, zeros = node.rule.range(*xs), (jnp.zeros_like(x.low) for x in xs)
    return Bound(out, out.largest(), constants(node.rule.apply(*zeros), None))


def _through_loop(loop: Loop, xs: list[Interval]) -> tuple[list[Interval], list[Interval]]:
    def turn(xs, item):
        body = loop.body(item)
        inner = plain_intervals(body, xs)
        kept = [Interval(*(end[0] for end in at)) for at in inner.at_kinks]  # no loop is within
        return [inner.bounds[n].interval for n in body.outputs], kept

    return lax.scan(turn, xs, loop.items, loop.length)
