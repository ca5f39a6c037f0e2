"""Which primitives bounds go through, and how: the tables, and how an equation is looked up.

A primitive is one of these.

- `COPYING`: linear with coefficients 0 and 1 in what depends on the image. Nothing is rounded.
- `SUMMING`: linear with coefficients 0, 1 and -1.
- `SCALING`: linear in one operand, where the other ones are known.
- `UNARY`: a function of each entry, with a range and two lines.
- `HANDLED`: all else. A handler of `handlers.py` writes it in operations of the graph.

A handler that returns None takes only some forms of its primitive. For the other forms the other
tables hold.
"""

from typing import Any

from . import handlers
from .elementwise import (
    ABS,
    EXP,
    EXP2,
    EXPM1,
    LOG,
    LOG1P,
    LOG2,
    RSQRT,
    SMOOTH,
    SQRT,
    SQUARE,
    AbstractElementwise,
)
from .graph import Graph, Value
from .handlers import Equation, Handler, Operands, Sign
from .no_rule import COMPARED, NoRule

COPYING = {
    "reshape", "squeeze", "broadcast_in_dim", "transpose", "slice", "rev", "copy", "copy_p",
    "expand_dims", "concatenate", "pad", "gather", "dynamic_slice", "select_n", "split", "stack",
    "dynamic_update_slice", "optimization_barrier", "unstack",
}  # fmt: skip
SUMMING = {"reduce_sum", "cumsum", "reduce_window_sum", "add", "add_any", "sub", "neg"}
SCALING = {"mul", "div", "dot_general", "conv_general_dilated", "odejax_conv2d"}
UNARY: dict[str, AbstractElementwise] = {
    "exp": EXP,
    "exp2": EXP2,
    "expm1": EXPM1,
    "log": LOG,
    "log2": LOG2,
    "sqrt": SQRT,
    "rsqrt": RSQRT,
    "square": SQUARE,
    "abs": ABS,
    "log1p": LOG1P,
    **SMOOTH,
}
HANDLED: dict[str, Handler] = {
    "odejax_flow_map": handlers.flow_map,
    "mul": handlers.multiply,
    "dot_general": handlers.contract,
    "div": handlers.divide,
    "integer_pow": handlers.integer_power,
    "pow": handlers.power,
    "max": handlers.maximum,
    "min": handlers.minimum,
    "clamp": handlers.clamp,
    "reduce_max": handlers.maximum_over_axes,
    "reduce_min": handlers.minimum_over_axes,
    "reduce_window_max": handlers.maximum_over_windows,
    "ge": handlers.compare_with_zero,
    "gt": handlers.compare_with_zero,
    "le": handlers.compare_with_zero,
    "lt": handlers.compare_with_zero,
    "ne": handlers.compare_with_itself,
    "is_finite": handlers.is_finite,
    "select_n": handlers.select_by_sign,
    "convert_element_type": handlers.convert,
    "stop_gradient": handlers.stop_gradient,
}


def results_of(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    """The results of an equation that depends on the image, as values of the graph.

    Raises `NoRule`, a `ValueError`, for a primitive without a rule.
    """
    name = equation.primitive.name
    if name in HANDLED:
        results = HANDLED[name](graph, equation, operands)
        if results is not None:
            return results
    if any(isinstance(v, Sign) for v in operands):
        raise NoRule([equation], COMPARED)
    depends = [isinstance(v, Value) for v in operands]
    if name in COPYING:
        return handlers.affine(graph, equation, operands, exact=True)
    if name in SUMMING:
        return handlers.affine(graph, equation, operands, positive=name not in ("sub", "neg"))
    if name in SCALING and sum(depends) == 1 and (name != "div" or depends[0]):
        return handlers.affine(graph, equation, operands, scaling=True)
    if name in UNARY:
        return [graph.unary(UNARY[name], operands[0])]
    raise NoRule([equation])
