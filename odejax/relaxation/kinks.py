"""What may be chosen at each kink of a graph: the line below it.

A choice is a dictionary: by the number of a kink's result an array; by that of a loop's first
result, the choices of all turns, stacked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .propagate import Bounds
from .rules import Interval, Loop, Node, Unary

Choices = dict[int, Any]


def at_kinks(nodes: Sequence[Node], bounds: Bounds, choose: Callable[[Interval], Any]) -> Choices:
    """choose(interval) at each kink, for the interval that its operand lies in."""
    out: Choices = {}
    for node in nodes:
        first = node.outputs[0]
        if isinstance(node.rule, Loop):
            turn = node.rule.at(0).nodes  # those of every turn have the same numbers
            chosen = jax.vmap(lambda kept, turn=turn: at_kinks(turn, kept, choose))(
                bounds["loop", first]
            )
            if chosen:
                out[first] = chosen
        elif isinstance(node.rule, Unary) and node.rule.function.kinked:
            out[first] = choose(bounds[node.inputs[0]].interval)
    return out


def with_tilts(bounds: Bounds, tilts: Choices) -> Bounds:
    """Bounds whose lines below the kinks are those of `tilts`, with an array (r, *shape) each."""
    out = dict(bounds)
    for number, tilt in tilts.items():
        if isinstance(tilt, dict):
            out["loop", number] = with_tilts(bounds["loop", number], tilt)
        else:
            out[number] = bounds[number]._replace(tilt=tilt)
    return out
