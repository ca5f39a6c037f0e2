"""What single primitives do to values of the graph: each handler writes one in its operations.

    x / y = x * (1 / y),  max(x, y) = y + relu(x - y),  min(x, y) = -max(-x, -y)

A handler takes an equation and its operands, of which some are values of the graph and the others
are known. It returns the results, or None where it does not take this form of the primitive.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._rounding import sum_rounding
from .elementwise import EXP, LEAKY, RECIPROCAL, RELU, SQUARE, of_flow_map, power as of_power
from .graph import Graph, Value, copied_rounding
from .rules import ROUNDING, Affine

Equation = Any  # a `jax.extend.core.JaxprEqn`, which declares no shapes
Operands = Sequence[Any]
Handler = Callable[[Graph, Equation, Operands], list[Any] | None]


@dataclasses.dataclass(frozen=True)
class Sign:
    """Whether a value is above 0 (`above`) or below it; at 0 either."""

    value: Value
    above: bool = True


def bind(equation: Equation, operands: Operands) -> list[Any]:
    """The results of an equation on arrays."""
    out = equation.primitive.bind(*operands, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


# -- affine primitives -----------------------------------------------------------------------------

_ONE_ROUNDING = ("mul", "div", "add", "add_any", "sub", "neg")  # of each entry, not of a sum
_SUMS = ("dot_general", "conv_general_dilated", "odejax_conv2d")
_INDEXED = ("gather", "dynamic_slice", "dynamic_update_slice")


def affine(
    graph: Graph,
    equation: Equation,
    operands: Operands,
    *,
    exact: bool = False,
    positive: bool = True,
    scaling: bool = False,
) -> list[Value]:
    """A primitive that is affine in all its values together: one operation for each result.

    - `exact`, `positive`: see `Affine`.
    - `scaling`: what is known are the coefficients. The radius map has their sizes.
    """
    name = equation.primitive.name
    places = [i for i, v in enumerate(operands) if isinstance(v, Value)]
    known = {i: v for i, v in enumerate(operands) if i not in places}
    absolute = {i: jnp.abs(v) if scaling else jnp.zeros_like(v) for i, v in known.items()}
    if name == "select_n":  # its first operand chooses
        absolute[0] = operands[0]
    if name in _INDEXED:  # an integer is a place
        absolute |= {i: v for i, v in known.items() if not _is_float(v)}
    single = name in _ONE_ROUNDING
    if scaling:
        positive = single and all(_is_positive(v) for v in known.values())

    def evaluated(out: int, others: dict[int, Any]):
        """Result number `out` as a function of the values; `others`: the other operands."""

        def function(*ys):
            given = others | dict(zip(places, ys, strict=True))
            return bind(equation, [given[i] for i in range(len(operands))])[out]

        return function

    def added(shape):
        """The radius map of a sum or a difference."""
        return lambda *rs: jnp.broadcast_to(sum(rs), shape)

    results = []
    for out, var in enumerate(equation.outvars):
        shape = var.aval.shape
        rule = Affine(
            evaluated(out, known),
            added(shape) if name in ("sub", "neg") else evaluated(out, absolute),
            exact,
            positive=positive,
            elementwise=(single or exact) and len(places) == 1,
            rounding=ROUNDING if single else sum_rounding(_terms(equation, known)),
            factor=_factor(name, known),
            linear=scaling or not known,
            added=_added(name, shape, [graph.shape(operands[i]) for i in places]),
        )
        results.append(graph.add(rule, [operands[i] for i in places], shape))
    return results


def _terms(equation: Equation, known: dict[int, Any]) -> int:
    """The number of terms in the longest sum of a primitive, or of its transpose."""
    name, params = equation.primitive.name, equation.params
    shape = equation.invars[0].aval.shape
    if name == "reduce_sum":
        return math.prod(shape[i] for i in params["axes"])
    if name == "cumsum":
        return shape[params["axis"]]
    if name == "reduce_window_sum":
        return math.prod(params["window_dimensions"])
    if name in _SUMS:
        # At most one of the known operand's axes is in none of the sums.
        (operand,) = known.values()
        return math.prod(operand.shape) // max(1, min(operand.shape, default=1))
    return 1


def _added(name: str, shape: tuple[int, ...], operands: Sequence[tuple[int, ...]]) -> float:
    """What the transpose of a primitive may lose where it copies entries."""
    if name in _SUMS:  # the terms are counted
        return 0.0
    if name == "gather":  # its indices may be alike
        return sum_rounding(math.prod(shape))
    return copied_rounding(shape, *operands)


def _factor(name: str, known: dict[int, Any]) -> Any:
    """What a value is multiplied by, where nothing else is done to it."""
    if name == "neg":
        return -1.0
    return next(iter(known.values())) if name == "mul" else None


def convert(graph: Graph, equation: Equation, operands: Operands):
    """To a type of at least as many bits: fewer would round."""
    if isinstance(operands[0], Sign):
        return list(operands)
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if not jnp.issubdtype(before, jnp.floating):
        return None
    if jnp.issubdtype(after, jnp.floating) and jnp.finfo(after).bits >= jnp.finfo(before).bits:
        return affine(graph, equation, operands, exact=True)
    return None


def stop_gradient(graph: Graph, equation: Equation, operands: Operands):
    """The operand. The primitive's own derivative, by which rows are carried back, would be 0."""
    return list(operands)


# -- products and powers ---------------------------------------------------------------------------


def multiply(graph: Graph, equation: Equation, operands: Operands):
    a, b = operands
    if not (isinstance(a, Value) and isinstance(b, Value)):
        return None
    if a == b:
        return [graph.unary(SQUARE, a)]
    return [graph.product(a, b, equation.outvars[0].aval.shape)]


def contract(graph: Graph, equation: Equation, operands: Operands):
    """sum_k x_k y_k of two values: products entry by entry, and their sums."""
    if not all(isinstance(v, Value) for v in operands):
        return None
    contracted, batched = equation.params["dimension_numbers"]
    n_batch = len(batched[0])
    shapes = [graph.shape(v) for v in operands]
    free = [
        [i for i in range(len(shape)) if i not in (*c, *b)]
        for shape, c, b in zip(shapes, contracted, batched, strict=True)
    ]
    sizes = [tuple(shape[i] for i in axes) for shape, axes in zip(shapes, free, strict=True)]
    full = (
        *(shapes[0][i] for i in batched[0]), *sizes[0], *sizes[1],
        *(shapes[0][i] for i in contracted[0]),
    )  # fmt: skip

    def spread(side: int) -> Value:
        """An operand with the axes of all: batch, free ones of either, contracted."""
        order = (*batched[side], *free[side], *contracted[side])
        # The free axes of the other operand are new ones.
        at = n_batch + (len(sizes[0]) if side == 0 else 0)
        new = tuple(range(at, at + len(sizes[1 - side])))

        def copy(y):
            return jnp.broadcast_to(jnp.expand_dims(jnp.transpose(y, order), new), full)

        copies = math.prod(sizes[1 - side])
        return graph.copied(copy, operands[side], full, copies)

    product = graph.product(spread(0), spread(1), full)
    axes = tuple(range(len(full) - len(contracted[0]), len(full)))

    def added(y):
        return jnp.sum(y, axis=axes)

    n = math.prod(full[i] for i in axes)
    rule = Affine(added, added, rounding=sum_rounding(n), linear=True)
    return [graph.add(rule, [product], equation.outvars[0].aval.shape)]


def divide(graph: Graph, equation: Equation, operands: Operands):
    a, b = operands
    if not isinstance(b, Value):
        return None
    inverse, shape = graph.unary(RECIPROCAL, b), equation.outvars[0].aval.shape
    if isinstance(a, Value):
        return [graph.product(a, inverse, shape)]
    return [graph.scaled(graph.spread(inverse, shape), a)]


def integer_power(graph: Graph, equation: Equation, operands: Operands):
    return [_to_integer(graph, operands[0], equation.params["y"])]


def _to_integer(graph: Graph, value: Value, power: int):
    if power == 0:
        return jnp.ones(graph.shape(value))
    if power < 0:
        return _to_integer(graph, graph.unary(RECIPROCAL, value), -power)
    if power == 1:
        return value
    if power <= 16:  # the rules count the roundings of as many factors
        return graph.unary(of_power(power), value)
    root = _to_integer(graph, value, power // 2)
    square = graph.unary(SQUARE, root)
    return graph.product(square, value, graph.shape(value)) if power % 2 else square


def power(graph: Graph, equation: Equation, operands: Operands):
    """z^p and b^z, of a number p and a number b > 0 that are known now."""
    base, exponent = operands
    if isinstance(base, Value) and isinstance(exponent, Value):
        return None
    if isinstance(base, Value):
        p = _number(exponent)
        if p is None:
            return None
        if p == round(p):
            return [_to_integer(graph, base, round(p))]
        return [graph.unary(of_power(p), base)]
    b = _number(base)
    if b is None or b <= 0:
        return None
    shape = equation.outvars[0].aval.shape
    return [graph.spread(graph.unary(EXP, graph.scaled(exponent, math.log(b))), shape)]


# -- maxima ----------------------------------------------------------------------------------------


def maximum(graph: Graph, equation: Equation, operands: Operands):
    a, b = operands
    if not isinstance(a, Value):
        a, b = b, a
    if not isinstance(a, Value):
        return [jnp.maximum(a, b)]
    if isinstance(b, Value):
        return [graph.sum(graph.unary(RELU, graph.sum(a, b, -1.0)), b)]
    if _is(b, -np.inf):
        return [graph.spread(a, equation.outvars[0].aval.shape)]
    if _is(b, 0.0):
        return [graph.unary(RELU, a)]
    return [graph.shift(graph.unary(RELU, graph.shift(a, -b)), b)]


def minimum(graph: Graph, equation: Equation, operands: Operands):
    shape = equation.outvars[0].aval.shape

    def negative(value: Value):
        return graph.shift(value, jnp.zeros(shape), -1.0)

    negated = [negative(v) if isinstance(v, Value) else -v for v in operands]
    (largest,) = maximum(graph, equation, negated)
    return [negative(largest) if isinstance(largest, Value) else -largest]


def clamp(graph: Graph, equation: Equation, operands: Operands):
    low, value, high = operands
    (value,) = maximum(graph, equation, [value, low])
    return minimum(graph, equation, [value, high])


def between(graph: Graph, z: Value, low: float, high: float) -> Value:
    """z clipped to [low, high]: high - relu(high - low - relu(z - low))"""
    above_low = graph.unary(RELU, graph.shift(z, -low))
    below_high = graph.unary(RELU, graph.shift(above_low, high - low, -1.0))
    return graph.shift(below_high, high, -1.0)


def maximum_over_axes(graph: Graph, equation: Equation, operands: Operands):
    (value,), axes = operands, equation.params["axes"]
    shape = graph.shape(value)
    index = np.arange(int(np.prod(shape))).reshape(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    index = index.transpose(*kept, *axes).reshape(*(shape[i] for i in kept), -1)
    return [graph.largest(value, index)]


def minimum_over_axes(graph: Graph, equation: Equation, operands: Operands):
    negated = graph.scaled(operands[0], -1.0)
    (largest,) = maximum_over_axes(graph, equation, [negated])
    return [graph.scaled(largest, -1.0)]


def maximum_over_windows(graph: Graph, equation: Equation, operands: Operands):
    """Max pooling, without dilation."""
    (value,), params = operands, equation.params
    if any(p < 0 for pair in params["padding"] for p in pair):
        return None
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        return None
    shape = graph.shape(value)
    index = np.arange(int(np.prod(shape))).reshape(shape)
    index = np.pad(index, params["padding"], constant_values=-1)
    index = np.lib.stride_tricks.sliding_window_view(index, params["window_dimensions"])
    index = index[tuple(slice(None, None, s) for s in params["window_strides"])]
    index = index.reshape(*index.shape[: len(shape)], -1)
    if (index.max(axis=-1) < 0).any():  # a window of padding alone
        return None
    # An entry in the padding is replaced by another one of the window.
    return [graph.largest(value, np.where(index < 0, index.max(axis=-1, keepdims=True), index))]


# -- comparisons -----------------------------------------------------------------------------------


def compare_with_zero(graph: Graph, equation: Equation, operands: Operands):
    value, by = operands
    above = equation.primitive.name in ("gt", "ge")
    if not isinstance(value, Value):
        value, by, above = by, value, not above
    return [Sign(value, above)] if isinstance(value, Value) and _is(by, 0.0) else None


def compare_with_itself(graph: Graph, equation: Equation, operands: Operands):
    """Whether a value is NaN: where it may be, no bound is a number."""
    a, b = operands
    same = isinstance(a, Value) and isinstance(b, Value) and a == b
    return [np.zeros(equation.outvars[0].aval.shape, bool)] if same else None


def is_finite(graph: Graph, equation: Equation, operands: Operands):
    """A number is: where a value may overflow, its bounds are infinite."""
    return [np.ones(equation.outvars[0].aval.shape, bool)]


def select_by_sign(graph: Graph, equation: Equation, operands: Operands):
    """where(z > 0, z, a z) = a z + (1 - a) relu(z), a leaky ReLU for 0 <= a <= 1."""
    which, *cases = operands
    if not isinstance(which, Sign) or len(cases) != 2:
        return None
    below, above = cases if which.above else reversed(cases)
    if above != which.value:
        return None
    slope = _slope(graph, below, which.value)
    if slope is None:
        return None
    if 0 <= slope <= 1:
        return [graph.unary(LEAKY(slope), which.value)]
    positive = graph.scaled(graph.unary(RELU, which.value), 1 - slope)
    return [graph.sum(graph.scaled(which.value, slope), positive)]


def _slope(graph: Graph, value: Any, of: Value) -> float | None:
    """a, where `value` is a times the value `of`, with one number a that is known now."""
    if not isinstance(value, Value):
        return 0.0 if _is(value, 0.0) else None
    for node in graph.nodes:
        if node.outputs == (value.number,) and node.inputs == (of.number,):
            factor = node.rule.factor if isinstance(node.rule, Affine) else None
            alike = graph.shape(value) == graph.shape(of)
            return _number(factor) if factor is not None and alike else None
    return None


def flow_map(graph: Graph, equation: Equation, operands: Operands):
    """The flow map of nmODE; not its derivatives."""
    if equation.params["order"]:
        return None
    return [graph.unary(of_flow_map(equation.params["flow_map"]), operands[0])]


# -- what is known ---------------------------------------------------------------------------------


def _is_float(value) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _is_positive(value) -> bool:
    """Whether all of `value` is known now, and not negative."""
    return not isinstance(value, Tracer) and bool((np.asarray(value) >= 0).all())


def _number(value) -> float | None:
    """What all of `value` is, where that is known now and one number."""
    if isinstance(value, Tracer):
        return None
    numbers = np.unique(np.asarray(value))
    return float(numbers[0]) if len(numbers) == 1 else None


def _is(value, number: float) -> bool:
    """Whether all of `value` is known now, and is `number`."""
    return not isinstance(value, Tracer | Value) and bool((np.asarray(value) == number).all())
