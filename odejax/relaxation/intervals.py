"""Intervals through a graph in real numbers, to be differentiated: what certified training uses.

What float32 may lose is not given up here: nothing of this is a proof, and there is less to compute
than in `propagate`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._types import Label
from .elementwise import Smooth
from .graph import Graph
from .kinks import is_kink
from .margins import margin_rows
from .rules import Affine, Interval, Loop, Rule, Unary

MOST_CLASSES = 32  # of which the rows of every pair are taken at once
COARSE = 3  # pieces that a smooth function is sampled in; a proof takes more


class Intervals(NamedTuple):
    """What the values of a graph lie between.

    - `of`: all values by their numbers, those within loops left out.
    - `at_kinks`: of the operand of every kink, (turns, *shape); there are several turns in a loop.
    """

    of: dict[int, Interval]
    at_kinks: list[Interval]

    def margins(self, graph: Graph, label: Label) -> Float[Array, " k"]:
        """Lower bounds on z_label - z_j for every j."""
        (k,) = graph.shapes[graph.outputs[0]]
        if k > MOST_CLASSES:
            return self.lowest(graph, margin_rows(label, k, self._dtype()))
        # Of all labels: these rows are the same for all images of a batch.
        rows = [margin_rows(jnp.asarray(y), k, self._dtype()) for y in range(k)]
        return self.lowest(graph, jnp.concatenate(rows)).reshape(k, k)[label]

    def lowest(self, graph: Graph, rows: Float[Array, "r ..."]) -> Float[Array, " r"]:
        """Lower bounds on <rows, output>, the last affine operations taken together with them."""
        ahead, low = {graph.outputs[0]: rows}, jnp.zeros(len(rows), rows.dtype)
        for node in reversed(graph.nodes):
            if node.outputs[0] not in ahead or not isinstance(node.rule, Affine):
                continue
            rows = ahead.pop(node.outputs[0])
            zeros = [jnp.zeros_like(self.of[n].low) for n in node.inputs]
            constant, pull = jax.vjp(node.rule.apply, *zeros)
            low += rows.reshape(len(rows), -1) @ jnp.ravel(constant)
            for number, row in zip(node.inputs, jax.vmap(pull)(rows), strict=True):
                ahead[number] = ahead[number] + row if number in ahead else row
        for number, rows in ahead.items():
            (first, last), rows = self.of[number], rows.reshape(len(rows), -1)
            middle, reach = jnp.ravel(last + first) / 2, jnp.ravel(last - first) / 2
            low += rows @ middle - jnp.abs(rows) @ reach
        return low

    def _dtype(self):
        return next(iter(self.of.values())).low.dtype


def plain_intervals(graph: Graph, inputs: Sequence[Interval]) -> Intervals:
    """Interval arithmetic, from the inputs to the outputs."""
    known = dict(zip(graph.inputs, inputs, strict=True))
    at_kinks: list[Interval] = []
    for node in graph.nodes:
        xs = [known[n] for n in node.inputs]
        if isinstance(node.rule, Loop):
            ends, kept = _through_loop(node.rule, xs)
            known |= zip(node.outputs, ends, strict=True)
            at_kinks += kept
            continue
        known[node.outputs[0]] = _through(node.rule, xs)
        if is_kink(node):
            at_kinks.append(Interval(*(end[None] for end in xs[0])))
    return Intervals(known, at_kinks)


def _through(rule: Rule, xs: Sequence[Interval]) -> Interval:
    if isinstance(rule, Affine):
        return rule.range(*xs)
    if isinstance(rule, Unary) and isinstance(rule.function, Smooth):
        rule = Unary(dataclasses.replace(rule.function, samples=COARSE))
    return rule.forward(*xs).interval


def _through_loop(loop: Loop, xs: list[Interval]) -> tuple[list[Interval], list[Interval]]:
    def turn(xs, item):
        body = loop.body(item)
        inner = plain_intervals(body, xs)
        kept = [Interval(*(end[0] for end in at)) for at in inner.at_kinks]  # no loop is within
        return [inner.of[n] for n in body.outputs], kept

    return lax.scan(turn, xs, loop.items, loop.length)
