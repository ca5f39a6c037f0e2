"""Bound propagation: a network's program as a graph, and bounds through it.

- `walk`: from a function to its graph.
- `primitives`: which primitives are known; `handlers`: what those do that need more than a table.
- `activations`: programs that are one function; `no_rule`: the error for what has no bounds.
- `elementwise`: functions of one number between two lines; `rules`: bounds through one operation.
- `propagate`: bounds through the graph; `kinks`: what may be chosen at its kinks.
- `margins`: what bounds prove around an image; `deterministic`: of which networks.
- `in_reals`: bounds in real numbers, to be differentiated.
- `gradients`: what the derivatives of its outputs lie between.
"""

from .deterministic import deterministic as deterministic, draws_noise as draws_noise
from .graph import Graph as Graph
from .in_reals import (
    at_kinks as at_kinks,
    interval_margins as interval_margins,
    linear_margins as linear_margins,
    plain_bounds as plain_bounds,
)
from .kinks import Kinks as Kinks, kinks_of as kinks_of, with_kinks as with_kinks
from .margins import Margins as Margins, around as around, margin_rows as margin_rows
from .propagate import Bounds as Bounds, Propagation as Propagation, pull as pull
from .rules import Interval as Interval
from .walk import depends_on as depends_on, trace as trace
