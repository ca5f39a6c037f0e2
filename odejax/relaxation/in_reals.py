"""Bounds through a graph in real numbers, to be differentiated: what certified training uses.

What float32 may lose is not given up here: nothing of this is a proof, and there is less to compute
than in `propagate`.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._types import Label
from .elementwise import Smooth
from .graph import Graph
from .kinks import is_kink
from .margins import Margins, margin_rows
from .propagate import Bounds
from .rules import Affine, Bound, Interval, Loop, Node, Rule, Unary

MOST_CLASSES = 32  # of which the rows of every pair are taken at once
COARSE = 3  # pieces that a smooth function is sampled in; a proof takes more


def plain_bounds(graph: Graph, inputs: Sequence[Interval]) -> Bounds:
    """The intervals of all values from those of their operands, and the lines that they give."""
    bounds: Bounds = {n: Bound(x, None) for n, x in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        xs = [bounds[n].interval for n in node.inputs]
        if isinstance(node.rule, Loop):
            bounds |= _through_loop(node, xs)
        else:
            rule = _coarse(node.rule)
            bound = Bound(_through(rule, xs), None)
            bounds[node.outputs[0]] = bound._replace(relaxed=rule.relax(bound, *xs))
    return bounds


def at_kinks(graph: Graph, bounds: Bounds) -> list[Interval]:
    """Of the operand of every kink, (turns, *shape); there are several turns in a loop."""
    kinks: list[Interval] = []
    for node in graph.nodes:
        if isinstance(node.rule, Loop):
            kept = bounds["loop", node.outputs[0]]
            body = node.rule.at(0)  # of which no part is a loop
            kinks += [kept[n.inputs[0]].interval for n in body.nodes if is_kink(n)]
        elif is_kink(node):
            kinks.append(Interval(*(end[None] for end in bounds[node.inputs[0]].interval)))
    return kinks


def interval_margins(margins: Margins, label: Label) -> Float[Array, " k"]:
    """Lower bounds on z_label - z_j from the intervals ahead of the last affine part."""
    graph, dtype = margins.graph, margins.x.dtype
    (k,) = graph.shapes[graph.outputs[0]]
    if k > MOST_CLASSES:
        return margins.of_label(label, stop=True)
    # Of all labels: these rows are the same for all images of a batch.
    rows = jnp.concatenate([margin_rows(jnp.asarray(y), k, dtype) for y in range(k)])
    return margins.least_of(rows, stop=True).reshape(k, k)[label]


def linear_margins(margins: Margins, label: Label) -> Float[Array, " k"]:
    """The same from linear functions of the image.

    One row after another: a CPU computes what they are multiplied by once, and not for each row.
    """
    (k,) = margins.graph.shapes[margins.graph.outputs[0]]
    rows = margin_rows(label, k, margins.x.dtype)
    return lax.map(lambda row: margins.least_of(row[None], stop=False)[0], rows)


def _coarse(rule: Rule) -> Rule:
    if isinstance(rule, Unary) and isinstance(rule.function, Smooth):
        return Unary(dataclasses.replace(rule.function, samples=COARSE))
    return rule


def _through(rule: Rule, xs: Sequence[Interval]) -> Interval:
    return rule.range(*xs) if isinstance(rule, Affine) else rule.forward(*xs).interval


def _through_loop(node: Node, xs: list[Interval]) -> Bounds:
    """The bounds behind a loop, and those of each turn, stacked."""
    loop: Loop = node.rule  # pyright: ignore[reportAssignmentType]

    def turn(xs, item):
        body = loop.body(item)
        bounds = plain_bounds(body, xs)
        return [bounds[n].interval for n in body.outputs], bounds

    ends, kept = lax.scan(turn, xs, loop.items, loop.length)
    results = {n: Bound(end, None) for n, end in zip(node.outputs, ends, strict=True)}
    return {**results, ("loop", node.outputs[0]): kept}
