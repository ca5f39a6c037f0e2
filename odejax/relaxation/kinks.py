"""What may be chosen at the kinks of a graph, whose functions are linear but for one point.

At each kink the operand's interval may be cut, the line below be tilted, and a sign of the operand
be used with a multiplier. Each of these is a vector over all kinks of the graph, in the order of
evaluation.

Xu et al. (2021), arXiv:2011.13824; Wang et al. (2021), arXiv:2103.06624.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .elementwise import smaller_loss
from .graph import Graph
from .propagate import Bounds
from .rules import Interval, Loop, Node, Unary


class Kinks(NamedTuple):
    """What is chosen at every kink.

    - `low`, `high`: what its operand lies between.
    - `tilt`: of the line below it, in [0, 1].
    - `multiplier`: of the operand's sign, not negative where the operand is not, not positive where
      it is not.
    """

    low: Float[Array, " kinks"]
    high: Float[Array, " kinks"]
    tilt: Float[Array, " kinks"]
    multiplier: Float[Array, " kinks"]

    def crossing(self):
        """Where the kink lies inside the interval."""
        return (self.low < 0) & (self.high > 0)


def kinks_of(graph: Graph, bounds: Bounds) -> Kinks:
    """Those that CROWN chooses for a graph whose bounds are known."""
    low, _ = ravel_pytree(_at_kinks(graph.nodes, bounds, lambda x: x.low))
    high, _ = ravel_pytree(_at_kinks(graph.nodes, bounds, lambda x: x.high))
    return Kinks(low, high, smaller_loss(low, high), jnp.zeros_like(low))


def with_kinks(graph: Graph, bounds: Bounds, kinks: Kinks) -> Bounds:
    """The bounds of a graph with other choices at its kinks."""
    _, unravel = ravel_pytree(_at_kinks(graph.nodes, bounds, lambda x: x.low))
    chosen = jax.tree.map(lambda *parts: Kinks(*parts), *map(unravel, kinks))
    return _inserted(graph.nodes, bounds, chosen)


def _at_kinks(nodes: Sequence[Node], bounds: Bounds, part: Callable[[Interval], Any]) -> dict:
    """By the number of a kink's result, a part of its operand's interval.

    By that of a loop's first result, those of all turns, stacked.
    """
    out = {}
    for node in nodes:
        first = node.outputs[0]
        if isinstance(node.rule, Loop):
            out[first] = _at_kinks(_turn(node.rule), bounds["loop", first], part)
        elif is_kink(node):
            out[first] = part(bounds[node.inputs[0]].interval)
    return out


def _inserted(nodes: Sequence[Node], bounds: Bounds, kinks: dict) -> Bounds:
    out = dict(bounds)
    for node in nodes:
        first = node.outputs[0]
        if isinstance(node.rule, Loop):
            each = jax.vmap(partial(_inserted, _turn(node.rule)))
            out["loop", first] = each(bounds["loop", first], kinks[first])
        elif is_kink(node):
            low, high, tilt, multiplier = kinks[first]
            (operand,) = node.inputs
            known = out[operand].interval  # two kinks may have one operand
            both = Interval(jnp.maximum(low, known.low), jnp.minimum(high, known.high))
            out[operand] = out[operand]._replace(interval=both)
            kink: Unary = node.rule  # pyright: ignore[reportAssignmentType]
            relaxed = kink.relax(out[first], both, tilt=tilt, multiplier=multiplier)
            out[first] = out[first]._replace(relaxed=relaxed)
    return out


def _turn(loop: Loop) -> Sequence[Node]:
    """The nodes of a turn, whose numbers are the same in every one."""
    return loop.at(0).nodes


def is_kink(node: Node) -> bool:
    return isinstance(node.rule, Unary) and node.rule.function.kinked
