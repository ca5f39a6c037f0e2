"""How many floating-point operations a program takes, from its trace: nothing is compiled or run.

XLA's own analysis counts the body of a loop once, and epochs, attacks, layered networks and solves
are loops. Here a loop counts as often as it runs.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def flop(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of all matrix products and convolutions in `function(*arguments)`.

    A product of (m, k) and (k, n) takes 2 m k n. Of a condition the longest branch counts, and
    where there is a choice of platforms that of a GPU.

    - `arguments`: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Raises `ValueError` for products in a loop whose length depends on the data, as that of an
    adaptive solve does.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total, platforms = 0.0, {}
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            size = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * size
        elif name in ("conv_general_dilated", "odejax_conv2d"):
            total += _convolution(equation)
        elif name == "platform_index":
            platforms[equation.outvars[0]] = parameters["platforms"]
        elif name == "cond":
            branches = [_count(branch.jaxpr) for branch in parameters["branches"]]
            of = platforms.get(equation.invars[0])
            total += max(branches) if of is None else branches[of.index(None)]
        else:
            inside = sum(map(_count, _programs(parameters)))
            if name == "while" and inside:
                raise ValueError("a loop whose length depends on the data cannot be counted")
            total += inside * (parameters["length"] if name == "scan" else 1)
    return total


def _convolution(equation: Any) -> float:
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
    numbers = equation.params.get("dimension_numbers")
    channels = kernel[-1] if numbers is None else kernel[numbers.rhs_spec[0]]
    zeros = math.prod(equation.params.get("lhs_dilation", ()))  # between pixels, which cost nothing
    return 2 * out.size * math.prod(kernel) / channels / zeros


def _programs(parameters: dict[str, Any]) -> Iterator[Any]:
    """Those that an operation consists of."""
    for value in parameters.values():
        if hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)
