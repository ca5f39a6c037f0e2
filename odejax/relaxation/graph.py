"""A network as a graph: operations that bounds go through, in the order of evaluation.

A value of the graph depends on the image, and has a number. All else is known, and is part of the
operation that it goes into.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._rounding import sum_rounding
from .elementwise import AbstractElementwise
from .normalisation import normalised_limit
from .rules import ROUNDING, Affine, Largest, Loop, Node, Product, Rule, Unary

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the graph, by its number."""

    number: int


class Graph:
    """Nodes in the order of evaluation, and the shapes of all values; the first are the inputs."""

    def __init__(self, shapes: Sequence[Shape]):
        self.nodes: list[Node] = []
        self.shapes = list(shapes)
        self.inputs = tuple(range(len(shapes)))
        self.outputs: tuple[int, ...] = ()
        self._results: dict[Any, tuple[Any, list[Any]]] = {}

    def shape(self, value: Value) -> Shape:
        return self.shapes[value.number]

    def add(self, rule: Rule, inputs: Sequence[Value], shape: Shape) -> Value:
        """The result of an operation."""
        return self._append(rule, inputs, [shape])[0]

    def add_loop(self, loop: Loop, inputs: Sequence[Value], shapes: Sequence[Shape]) -> list[Value]:
        """The results of a loop."""
        return self._append(loop, inputs, shapes)

    def _append(self, rule: Rule, inputs: Sequence[Value], shapes: Sequence[Shape]) -> list[Value]:
        outputs = tuple(range(len(self.shapes), len(self.shapes) + len(shapes)))
        self.shapes += shapes
        self.nodes.append(Node(rule, tuple(v.number for v in inputs), outputs))
        return [Value(number) for number in outputs]

    def once(self, equation: Any, operands: Sequence[Any], make: Callable[[], list[Any]]) -> list:
        """The results of `make`: those from before, of the same operation on the same operands."""
        params = tuple(sorted(equation.params.items()))
        try:
            key = equation.primitive, params, tuple(map(_identity, operands))
            hash(key)
        except TypeError:  # of what has no hash it is not known
            return make()
        if key not in self._results:
            # The operands live as long as their addresses are in use.
            self._results[key] = operands, make()
        return self._results[key][1]

    def joined(self) -> "Graph":
        """The same graph, with every chain of affine operations as one operation.

        A chain ends at a value that is used more than once, unless it is used by itself and by one
        chain from it alone, as in x - mean(x). The backward pass goes through a chain in one step,
        and adds up its constants once.
        """
        uses = Counter(number for node in self.nodes for number in node.inputs)
        uses.update(self.outputs)
        nodes: dict[int, Node] = {}  # by their first result
        for node in self.nodes:
            node = _of_one_value(node, nodes, uses)
            first = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
            if (
                first is not None
                and isinstance(node.rule, Affine)
                and isinstance(first.rule, Affine)
                and uses[node.inputs[0]] == 1
            ):
                del nodes[node.inputs[0]]
                node = Node(first.rule.then(node.rule), first.inputs, node.outputs)
            nodes[node.outputs[0]] = node
        out = Graph([self.shapes[number] for number in self.inputs])
        out.nodes, out.shapes, out.outputs = list(nodes.values()), self.shapes, self.outputs
        return out

    # -- the operations that programs are made of ----------------------------------------------

    def unary(self, function: AbstractElementwise, value: Value) -> Value:
        """function(value)"""
        return self.add(Unary(function), [value], self.shape(value))

    def product(self, a: Value, b: Value, shape: Shape) -> Value:
        """a * b"""
        factors = (a.number, b.number), (b.number, a.number)
        limits = [normalised_limit(self.nodes, self.shapes, *pair, shape) for pair in factors]
        limit = next((limit for limit in limits if limit is not None), None)
        return self.add(Product(limit), [a, b], shape)

    def shift(self, value: Value, by, sign: float = 1.0) -> Value:
        """sign * value + by"""
        shape = jnp.broadcast_shapes(self.shape(value), jnp.shape(by))
        rule = Affine(
            lambda y: jnp.broadcast_to(sign * y + by, shape),
            lambda r: jnp.broadcast_to(r, shape),
            positive=sign > 0,
            rounding=ROUNDING,
            added=copied_rounding(shape, self.shape(value)),
        )
        return self.add(rule, [value], shape)

    def scaled(self, value: Value, by) -> Value:
        """by * value; `by` has the value's shape, or is a number."""
        rule = Affine(
            lambda y: by * y,
            lambda r: jnp.abs(by) * r,
            positive=False,
            elementwise=True,
            rounding=ROUNDING,
            linear=True,
        )
        return self.add(rule, [value], self.shape(value))

    def sum(self, a: Value, b: Value, sign: float = 1.0) -> Value:
        """a + sign * b"""
        shape = jnp.broadcast_shapes(self.shape(a), self.shape(b))
        rule = Affine(
            lambda x, y: jnp.broadcast_to(x + sign * y, shape),
            lambda r, s: jnp.broadcast_to(r + s, shape),
            positive=sign > 0,
            rounding=ROUNDING,
            linear=True,
            added=copied_rounding(shape, self.shape(a), self.shape(b)),
        )
        return self.add(rule, [a, b], shape)

    def copied(self, copy, value: Value, shape: Shape, copies: int = 1) -> Value:
        """copy(value), each of whose entries is one of the value's, at most `copies` times."""
        added = copied_rounding((copies,), ())
        rule = Affine(copy, copy, exact=True, elementwise=True, linear=True, added=added)
        return self.add(rule, [value], shape)

    def spread(self, value: Value, shape: Shape) -> Value:
        """The value broadcast to `shape`."""
        if self.shape(value) == shape:
            return value
        copies = math.prod(shape) // math.prod(self.shape(value))
        return self.copied(lambda y: jnp.broadcast_to(y, shape), value, shape, copies)

    def largest(self, value: Value, index: np.ndarray) -> Value:
        """max_k value[index[..., k]], where `index` counts the entries of the flattened value."""
        copies = int(np.bincount(index.ravel()).max())
        windows = self.copied(lambda y: jnp.ravel(y)[index], value, index.shape, copies)
        return self.add(Largest(), [windows], index.shape[:-1])


def _of_one_value(node: Node, nodes: dict[int, Node], uses: Counter) -> Node:
    """An affine operation of a value and of affine operations of it, as one of the value alone."""
    if not isinstance(node.rule, Affine) or len(node.inputs) < 2:
        return node
    parts: list[Affine | None] = []
    values: set[int] = set()
    for number in node.inputs:
        maker = nodes.get(number)
        part, origin = None, (number,)
        if maker is not None and isinstance(maker.rule, Affine):
            alone = uses[number] == 1 and len(maker.inputs) == 1
            part, origin = (maker.rule, maker.inputs) if alone else (part, origin)
        parts.append(part)
        values.update(origin)
    if len(values) != 1 or not any(parts):
        return node
    for number, part in zip(node.inputs, parts, strict=True):
        if part is not None:
            del nodes[number]
    (value,) = values
    uses[value] -= len(parts) - 1
    return Node(node.rule.of_one(parts), (value,), node.outputs)


def _identity(operand: Any) -> Any:
    """What two operands that are the same have in common."""
    if isinstance(operand, np.ndarray | np.generic | float | int) and np.ndim(operand) == 0:
        return np.result_type(operand), float(operand)
    return id(operand) if isinstance(operand, jax.Array) else operand


def copied_rounding(more: Shape, *fewer: Shape) -> float:
    """What the transpose of copying entries of `fewer` to `more` may lose: it adds them up."""
    copies = max(math.prod(more) // max(1, math.prod(one)) for one in fewer)
    return sum_rounding(copies) if copies > 1 else 0.0
