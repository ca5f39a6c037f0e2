"""How large a normalised value can be, whatever is normalised.

    y_i = k_i x_i / sqrt(c + sum_j w_ij x_j^2)  =>  |y_i| <= |k_i| / sqrt(w_ii)    for c > 0, w >= 0

GroupNorm and LayerNorm are of this form: x is less its mean, w_ij is 1 / n over a group of n
entries, and |y_i| <= sqrt(n) |k_i|. As a product of x and of the inverse root alone, y would be as
wide as x is.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._rounding import SUM_ROUNDING, sum_rounding
from .elementwise import RECIPROCAL, RELU, RSQRT, SQRT, SQUARE
from .rules import Affine, Node, Rule, Unary

Shape = tuple[int, ...]
INVERSE_ROOTS = ((RSQRT,), (SQRT, RECIPROCAL), (RECIPROCAL, SQRT))
MOST_WEIGHTS = 2**24  # 64 MB; a group norm of 64 channels of 56 x 56 has 12.8 million


def normalised_limit(
    nodes: Sequence[Node], shapes: Sequence[Shape], x: int, inverse: int, shape: Shape
) -> Float[Array, "..."] | None:
    """The limit of |x * inverse| in the form above; None for any other product.

    - `nodes`, `shapes`: the operations so far, and the shapes of all values by their numbers.
    - `x`, `inverse`: the numbers of the two factors; `shape`: of their product.
    """
    made_by = {node.outputs[0]: node for node in nodes}
    after, moment = _back(made_by, inverse, _is_root_or_scale)
    sums, square = _back(made_by, moment, _is_weighted_sum)
    if square not in made_by or not _is_square(made_by[square].rule):
        return None
    copies, base = _back(made_by, made_by[square].inputs[0], _is_copy)
    factors, same = _back(made_by, x, _is_scale_or_copy, until=base)
    roots = [i for i, rule in enumerate(after) if isinstance(rule, Unary)]
    functions = tuple(after[i].function for i in roots)
    if same != base or functions not in INVERSE_ROOTS:
        return None
    if not all(_is_copy(rule) for rule in after[: roots[-1]] if isinstance(rule, Affine)):
        return None
    if math.prod(shapes[moment]) * math.prod(shapes[base]) > MOST_WEIGHTS:
        return None
    with jax.ensure_compile_time_eval():  # all but what is known only as the program runs
        weights, constant = _weights([*copies, *sums], shapes[base], shapes[moment])
        of, scale = _origins(after, shapes[moment])
        entry, factor = _origins(factors, shapes[base])
        own = weights[jnp.broadcast_to(of, shape), jnp.broadcast_to(entry, shape)]
        largest = jnp.where((own > 0) & (constant > 0).all(), lax.rsqrt(own), jnp.inf)
        # The network's sum and root, and those here.
        lost = 2 * (sum_rounding(math.prod(shapes[square])) + SUM_ROUNDING)
        return jnp.broadcast_to(scale * factor, shape) * largest * (1 + lost)


def _back(
    made_by: dict[int, Node], number: int, goes_on: Callable[[Rule], bool], until: int | None = None
) -> tuple[list[Any], int]:
    """The operations of one value each that a value comes from, first to last, and from what."""
    rules: list[Rule] = []
    while number != until and number in made_by:
        node = made_by[number]
        if len(node.inputs) != 1 or not goes_on(node.rule):
            break
        rules.insert(0, node.rule)
        (number,) = node.inputs
    return rules, number


def _is_square(rule: Rule) -> bool:
    return isinstance(rule, Unary) and rule.function is SQUARE


def _is_copy(rule: Rule) -> bool:
    return isinstance(rule, Affine) and rule.exact and rule.elementwise and rule.linear


def _is_scale_or_copy(rule: Rule) -> bool:
    return isinstance(rule, Affine) and rule.elementwise and rule.linear


def _is_root_or_scale(rule: Rule) -> bool:
    roots = SQRT, RSQRT, RECIPROCAL
    return _is_scale_or_copy(rule) or (isinstance(rule, Unary) and rule.function in roots)


def _is_weighted_sum(rule: Rule) -> bool:
    """Some take the positive part of a variance, which it is."""
    return rule.positive if isinstance(rule, Affine) else _is_positive_part(rule)


def _is_positive_part(rule: Rule) -> bool:
    return isinstance(rule, Unary) and rule.function is RELU


def _weights(rules: Sequence[Any], base: Shape, moment: Shape) -> tuple[Array, Array]:
    """What each entry of the moment has of each square, (moments, squares), and its constant."""

    def total(v):
        for rule in rules:
            v = jnp.where(v >= 0, v, jnp.nan) if _is_positive_part(rule) else rule.apply(v)
        return v

    constant, pull = jax.vjp(total, jnp.zeros(base))
    n = math.prod(moment)
    (weights,) = jax.vmap(pull)(jnp.eye(n).reshape(n, *moment))
    return weights.reshape(n, -1), constant


def _origins(rules: Sequence[Rule], shape: Shape) -> tuple[Array, Array]:
    """For each entry of the result, the entry of the value it is of, and its factor's size."""
    entry, size = jnp.arange(float(math.prod(shape))).reshape(shape), jnp.ones(shape)
    for rule in rules:
        if isinstance(rule, Affine):
            entry = rule.apply(entry) if rule.exact else entry
            size = rule.radius(size)
    return entry.astype(int), size
