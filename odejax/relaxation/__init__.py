"""Bound propagation: a network's program as a graph, and bounds through it."""

from .graph import Graph as Graph, depends_on as depends_on, trace as trace
from .propagate import Propagation as Propagation, pull as pull
from .rules import Interval as Interval
