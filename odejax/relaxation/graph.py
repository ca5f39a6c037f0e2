"""A network as a graph of operations that bounds go through: its jaxpr, walked once.

What does not depend on the image is evaluated. Programs within (`jit`, `custom_jvp`, `custom_vjp`,
`checkpoint`) are inlined; a `scan` whose carry alone depends on the image stays a loop.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval as pe

from .._rounding import SUM_ROUNDING
from .elementwise import (
    ABS,
    EXP,
    LEAKY,
    LOG,
    LOG1P,
    RECIPROCAL,
    RELU,
    RSQRT,
    SMOOTH,
    SOFTPLUS,
    SQRT,
    SQUARE,
    of_flow_map,
)
from .rules import ROUNDING, Affine, Largest, Loop, Node, Product, Rule, Unary


@dataclasses.dataclass(frozen=True)
class Value:
    """What depends on the image: a value of the graph, by its number."""

    number: int


@dataclasses.dataclass(frozen=True)
class Sign:
    """A comparison of a value with 0: `value > 0` or `value >= 0`."""

    value: Value


class Graph:
    """Nodes in the order of evaluation, and the shapes of all values; the first are the inputs."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.nodes: list[Node] = []
        self.shapes = list(shapes)
        self.inputs = tuple(range(len(shapes)))
        self.outputs: tuple[int, ...] = ()

    def add(self, rule: Rule, inputs: Sequence[Value], *shapes: tuple[int, ...]) -> list[Value]:
        outputs = tuple(range(len(self.shapes), len(self.shapes) + len(shapes)))
        self.shapes += shapes
        self.nodes.append(Node(rule, tuple(v.number for v in inputs), outputs))
        return [Value(number) for number in outputs]

    def joined(self) -> "Graph":
        """The same graph, a chain of affine operations that nothing else looks into as one.

        The backward pass then goes through it in one step, and sums up its constants once.
        """
        uses = Counter(number for node in self.nodes for number in node.inputs)
        uses.update(self.outputs)
        nodes: dict[int, Node] = {}  # by their first result
        for node in self.nodes:
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


def trace(function: Callable, x: jax.Array) -> Graph:
    """The graph of `function`, of one array to one array, for inputs of the shape of `x`.

    Raises `ValueError` for a primitive that no rule is known for, and for a result that does not
    depend on `x`.
    """
    closed = jax.make_jaxpr(function)(x)
    graph = Graph([x.shape])
    (out,) = _Walk(graph).run(closed.jaxpr, closed.consts, [Value(0)])
    if not isinstance(out, Value):
        raise ValueError("the logits do not depend on the image: there is nothing to prove")
    graph.outputs = (out.number,)
    return graph.joined()


# Linear in each operand that depends on the image, with coefficients 0 and 1: nothing is rounded.
_SELECTING = {
    "reshape", "squeeze", "broadcast_in_dim", "transpose", "slice", "rev", "copy", "copy_p",
    "expand_dims", "concatenate", "pad", "gather", "dynamic_slice", "select_n", "split", "stack",
    "dynamic_update_slice", "optimization_barrier",
}  # fmt: skip
_SUMMING = {"reduce_sum", "cumsum", "reduce_window_sum", "add", "add_any", "sub", "neg"}
_SCALING = {"mul", "div", "dot_general", "conv_general_dilated", "odejax_conv2d"}
_INLINED = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin",
}  # fmt: skip
_UNARY = {
    "exp": EXP,
    "log": LOG,
    "sqrt": SQRT,
    "rsqrt": RSQRT,
    "square": SQUARE,
    "abs": ABS,
    "log1p": LOG1P,
    **SMOOTH,
}


_ACTIVATIONS = ("softplus", "elu", "hard_tanh")


class _Walk:
    """Evaluates a jaxpr on what is known, and adds a node to the graph for all else."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def run(self, jaxpr: Jaxpr, consts, args) -> list[Any]:
        known: dict[Any, Any] = {}

        def read(var):
            return var.val if isinstance(var, Literal) else known[var]

        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))
        for equation in jaxpr.eqns:
            operands = [read(var) for var in equation.invars]
            results = self.equation(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def equation(self, equation, operands: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        depends = [isinstance(v, Value | Sign) for v in operands]
        if name in _INLINED:
            if any(depends) and name in ("jit", "pjit"):
                done = self.named(equation, operands)
                if done is not None:
                    return done
            inner = next(p for p in map(params.get, ("jaxpr", "call_jaxpr", "fun_jaxpr")) if p)
            jaxpr, consts = (
                (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
            )
            return self.run(jaxpr, consts, operands)
        if not any(depends):
            return _evaluate(equation, operands)
        if name == "scan":
            return self.scan(params, operands)
        rule = getattr(self, f"_{name}", None)
        if rule is not None:
            done = rule(equation, operands)
            if done is not None:
                return done
        if any(isinstance(v, Sign) for v in operands):
            raise _no_rule(equation)
        if name in _SELECTING:
            return self.affine(equation, operands, exact=True)
        if name in _SUMMING:
            return self.affine(equation, operands, positive=name not in ("sub", "neg"))
        if name in _SCALING and sum(depends) == 1 and (name != "div" or depends[0]):
            return self.affine(equation, operands, scaling=True)
        if name in _UNARY:
            return self.unary(_UNARY[name], operands[0])
        raise _no_rule(equation)

    def named(self, equation, operands) -> list[Any] | None:
        """Activations of `jax.nn` whose programs say less than their names; None for others."""
        name = equation.params["name"]
        if name not in _ACTIVATIONS or not isinstance(operands[0], Value):
            return None
        shapes = [
            jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype, weak_type=v.aval.weak_type)
            for v in equation.invars
        ]
        original = jax.make_jaxpr(getattr(jax.nn, name))(*shapes).eqns
        if len(original) != 1 or str(original[0].params["jaxpr"]) != str(equation.params["jaxpr"]):
            return None  # somebody else's of that name
        z, *alpha = operands
        if name == "softplus":
            return self.unary(SOFTPLUS, z)
        if name == "hard_tanh":
            (z,) = self._max(equation, [z, -1.0])
            return self._min(equation, [z, 1.0])
        # relu(z) + alpha (e^{-relu(-z)} - 1)
        (positive,) = self.unary(RELU, z)
        (negative,) = self.unary(RELU, self.shift(z, 0.0, -1.0))
        (decay,) = self.unary(EXP, self.shift(negative, 0.0, -1.0))
        by = alpha[0] if alpha else 1.0
        scaled = self.scaled(self.shift(decay, -1.0), by)
        return [self.sum(positive, scaled)]

    # -- affine operations -------------------------------------------------------------------

    def affine(
        self, equation, operands, *, exact=False, positive=True, scaling=False
    ) -> list[Value]:
        """One node for each result; `scaling`: by what is known, whose sizes are the radius map's."""
        places = [i for i, v in enumerate(operands) if isinstance(v, Value)]
        known = {i: v for i, v in enumerate(operands) if i not in places}
        name = equation.primitive.name
        absolute = {i: jnp.abs(v) if scaling else _zeros(v) for i, v in known.items()}
        if name == "select_n":  # its first operand chooses
            absolute[0] = operands[0]
        if name in ("gather", "dynamic_slice", "dynamic_update_slice"):  # where, not what
            absolute |= {i: v for i, v in known.items() if not _is_float(v)}

        def bind(*args, of, out):
            merged = [
                dict(zip(places, args, strict=True)).get(i, of.get(i)) for i in range(len(operands))
            ]
            return _bind(equation, merged)[out]

        made = []
        for out, var in enumerate(equation.outvars):
            apply = lambda *ys, out=out: bind(*ys, of=known, out=out)  # noqa: E731
            if name in ("sub", "neg"):
                radius = lambda *rs, shape=var.aval.shape: jnp.broadcast_to(sum(rs), shape)  # noqa: E731
            else:
                radius = lambda *rs, out=out: bind(*rs, of=absolute, out=out)  # noqa: E731
            single = name in ("mul", "div", "add", "add_any", "sub", "neg")
            rounding = ROUNDING if single else SUM_ROUNDING
            elementwise = (single or exact) and len(places) == 1
            rule = Affine(apply, radius, exact, positive and not scaling, elementwise, rounding)
            made += self.graph.add(rule, [operands[i] for i in places], var.aval.shape)
        return made

    def shift(self, value: Value, by, sign=1.0) -> Value:
        """sign * value + by."""
        shape = jnp.broadcast_shapes(self.graph.shapes[value.number], jnp.shape(by))
        rule = Affine(
            lambda y: jnp.broadcast_to(sign * y + by, shape),
            lambda r: jnp.broadcast_to(r, shape),
            positive=sign > 0,
            rounding=ROUNDING,
        )
        return self.graph.add(rule, [value], shape)[0]

    def scaled(self, value: Value, by) -> Value:
        """The value times `by`, of its shape or a number."""
        rule = Affine(
            lambda y: by * y,
            lambda r: jnp.abs(by) * r,
            positive=False,
            elementwise=True,
            rounding=ROUNDING,
        )
        return self.graph.add(rule, [value], self.graph.shapes[value.number])[0]

    def sum(self, a: Value, b: Value, sign: float = 1.0) -> Value:
        """a + sign * b."""
        shape = jnp.broadcast_shapes(*(self.graph.shapes[v.number] for v in (a, b)))
        rule = Affine(
            lambda x, y: jnp.broadcast_to(x + sign * y, shape),
            lambda r, s: jnp.broadcast_to(r + s, shape),
            positive=sign > 0,
            rounding=ROUNDING,
        )
        return self.graph.add(rule, [a, b], shape)[0]

    def unary(self, function, value: Value) -> list[Value]:
        return self.graph.add(Unary(function), [value], self.graph.shapes[value.number])

    # -- operations with rules of their own ----------------------------------------------------

    def _odejax_flow_map(self, equation, operands):
        if equation.params["order"]:
            return None
        return self.unary(of_flow_map(equation.params["flow_map"]), operands[0])

    def _mul(self, equation, operands):
        if not all(isinstance(v, Value) for v in operands):
            return None
        if operands[0] == operands[1]:
            return self.unary(SQUARE, operands[0])
        return self.graph.add(Product(), operands, equation.outvars[0].aval.shape)

    def _div(self, equation, operands):
        if not isinstance(operands[1], Value):
            return None
        (inverse,) = self.unary(RECIPROCAL, operands[1])
        shape = equation.outvars[0].aval.shape
        if isinstance(operands[0], Value):
            return self.graph.add(Product(), [operands[0], inverse], shape)
        return [self.scaled(self.spread(inverse, shape), operands[0])]

    def _integer_pow(self, equation, operands):
        power, (value,) = equation.params["y"], operands
        if power < 0:
            (value,) = self.unary(RECIPROCAL, value)
        made, square = None, value
        for bit in reversed(bin(abs(power))[2:]):
            if bit == "1":
                shape = self.graph.shapes[value.number]
                made = (
                    square if made is None else self.graph.add(Product(), [made, square], shape)[0]
                )
            (square,) = self.unary(SQUARE, square)
        return [made]

    def _max(self, equation, operands):
        a, b = operands
        shape = equation.outvars[0].aval.shape
        if not isinstance(a, Value):
            a, b = b, a
        if isinstance(b, Value):  # b + relu(a - b)
            (above,) = self.unary(RELU, self.sum(a, b, -1.0))
            return [self.sum(above, b)]
        if _is(b, -np.inf):
            return [self.spread(a, shape)]
        if _is(b, 0.0):
            return self.unary(RELU, a)
        (above,) = self.unary(RELU, self.shift(a, -b))
        return [self.shift(above, b)]

    def _min(self, equation, operands):
        a, b = operands
        shape = equation.outvars[0].aval.shape
        negated = [
            self.shift(v, jnp.zeros(shape), -1.0) if isinstance(v, Value) else -v for v in (a, b)
        ]
        (largest,) = self._max(equation, negated)
        return [self.shift(largest, jnp.zeros(shape), -1.0)]

    def _clamp(self, equation, operands):
        low, value, high = operands
        (value,) = self._max(equation, [value, low])
        return self._min(equation, [value, high])

    def spread(self, value: Value, shape) -> Value:
        if self.graph.shapes[value.number] == shape:
            return value
        spread = lambda y: jnp.broadcast_to(y, shape)  # noqa: E731
        return self.graph.add(Affine(spread, spread, exact=True, elementwise=True), [value], shape)[
            0
        ]

    def _stop_gradient(self, equation, operands):
        return operands  # whose derivative, by which rows are carried back, would be 0

    def _convert_element_type(self, equation, operands):
        before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        if jnp.issubdtype(after, jnp.floating) and jnp.finfo(after).bits >= jnp.finfo(before).bits:
            return self.affine(equation, operands, exact=True)
        return None  # rounds

    def _ne(self, equation, operands):
        """Whether a value is NaN: no bound of one is a number."""
        same = operands[0] == operands[1]
        return [np.zeros(equation.outvars[0].aval.shape, bool)] if same else None

    def _ge(self, equation, operands):
        value, by = operands
        return [Sign(value)] if isinstance(value, Value) and _is(by, 0.0) else None

    _gt = _ge

    def _select_n(self, equation, operands):
        """where(z > 0, z, a z): a leaky ReLU."""
        which, *cases = operands
        if not isinstance(which, Sign):
            return None
        if len(cases) == 2 and cases[1] == which.value and isinstance(cases[0], Value):
            slope = self._slope(cases[0], which.value)
            if slope is not None:
                return self.unary(LEAKY(slope), which.value)
        return None

    def _slope(self, value: Value, of: Value):
        """a, where `value` is a times the value `of`, with one known number a; else None."""
        for node in self.graph.nodes:
            if (
                node.outputs == (value.number,)
                and node.inputs == (of.number,)
                and node.rule.elementwise
            ):
                with jax.ensure_compile_time_eval():
                    ones = jnp.ones(self.graph.shapes[of.number])
                    slopes, zeros = node.rule.apply(ones), node.rule.apply(0 * ones)
                return slopes.ravel()[0] if _uniform(slopes) and _is(zeros, 0.0) else None
        return None

    def _reduce_max(self, equation, operands):
        (value,) = operands
        axes, shape = equation.params["axes"], self.graph.shapes[value.number]
        index = np.arange(int(np.prod(shape))).reshape(shape)
        kept = [i for i in range(len(shape)) if i not in axes]
        index = index.transpose(*kept, *axes).reshape(*(shape[i] for i in kept), -1)
        return self.largest(value, index)

    def _argmax(self, equation, operands):
        return None

    def _reduce_window_max(self, equation, operands):
        (value,), params = operands, equation.params
        if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
            return None
        shape = self.graph.shapes[value.number]
        index = np.arange(int(np.prod(shape))).reshape(shape)
        index = np.pad(index, params["padding"], constant_values=-1)
        index = np.lib.stride_tricks.sliding_window_view(index, params["window_dimensions"])
        index = index[tuple(slice(None, None, s) for s in params["window_strides"])]
        index = index.reshape(*index.shape[: len(shape)], -1)
        # What lies in the padding is replaced by another of the window.
        return self.largest(value, np.where(index < 0, index.max(axis=-1, keepdims=True), index))

    def largest(self, value: Value, index: np.ndarray) -> list[Value]:
        """The largest of `index[..., k]` over k, in the flattened value."""
        take = lambda y: jnp.ravel(y)[index]  # noqa: E731
        (windows,) = self.graph.add(
            Affine(take, take, exact=True, elementwise=True), [value], index.shape
        )
        return self.graph.add(Largest(), [windows], index.shape[:-1])

    # -- loops -------------------------------------------------------------------------------------

    def scan(self, params, operands) -> list[Any]:
        n_consts, n_carry, length = params["num_consts"], params["num_carry"], params["length"]
        consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
        xs, jaxpr = operands[n_consts + n_carry :], params["jaxpr"]
        loop = self.loop(params, consts, carry, xs)
        if loop is not None:
            return loop
        ys: list[list[Any]] = []
        for t in range(length - 1, -1, -1) if params["reverse"] else range(length):
            out = self.run(
                jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *(self.item(v, t) for v in xs)]
            )
            carry = out[:n_carry]
            ys.append(out[n_carry:])
        if params["reverse"]:
            ys.reverse()
        return [*carry, *(self.stack(y) for y in zip(*ys, strict=True))]

    def item(self, value, t: int):
        if not isinstance(value, Value):
            return jax.tree.map(lambda v: v[t], value)
        take = lambda y: y[t]  # noqa: E731
        shape = self.graph.shapes[value.number][1:]
        return self.graph.add(Affine(take, take, exact=True, elementwise=True), [value], shape)[0]

    def stack(self, values):
        """What the turns of an unrolled loop gave, one after another."""
        if not any(isinstance(v, Value) for v in values):
            return jnp.stack(values)
        places = [i for i, v in enumerate(values) if isinstance(v, Value)]
        shape = self.graph.shapes[values[places[0]].number]

        def apply(*ys, of=lambda v: v):
            given = dict(zip(places, ys, strict=True))
            return jnp.stack([given[i] if i in given else of(v) for i, v in enumerate(values)])

        rule = Affine(apply, lambda *rs: apply(*rs, of=jnp.zeros_like), exact=True)
        return self.graph.add(rule, [values[i] for i in places], (len(values), *shape))[0]

    def loop(self, params, consts, carry, xs) -> list[Any] | None:
        """A scan as a loop, if only its carry depends on the image; else None: unrolled."""
        jaxpr, n_carry, length = params["jaxpr"], len(carry), params["length"]
        if length < 2 or any(isinstance(v, Value) for v in (*consts, *xs)):
            return None
        depends = [isinstance(v, Value) for v in carry]
        while True:  # until no further part of the carry turns out to depend on the image
            out = depends_on(jaxpr.jaxpr, [*[False] * len(consts), *depends, *[False] * len(xs)])
            more = [a or b for a, b in zip(depends, out[:n_carry], strict=True)]
            if more == depends:
                break
            depends = more
        if any(out[n_carry:]) or depends != [isinstance(v, Value) for v in carry]:
            return None
        places = [i for i, d in enumerate(depends) if d]
        known = [None if d else v for d, v in zip(depends, carry, strict=True)]
        ends, starts, ys = _known_part(params, consts, known, xs)

        def body(item) -> Graph:
            """The graph of one turn: `item` holds what is known of it."""
            values, before = item
            graph = Graph([self.graph.shapes[carry[i].number] for i in places])
            at = iter(Value(number) for number in graph.inputs)
            args = [next(at) if d else b for d, b in zip(depends, before, strict=True)]
            out = _Walk(graph).run(jaxpr.jaxpr, jaxpr.consts, [*consts, *args, *values])
            last = [out[i] for i in places]
            if not all(isinstance(v, Value) for v in last):
                raise ValueError("a loop forgets the image within")
            graph.outputs = tuple(v.number for v in last)
            return graph.joined()

        order = slice(None, None, -1) if params["reverse"] else slice(None)
        items = jax.tree.map(lambda v: v[order], (list(xs), starts))
        shapes = [self.graph.shapes[carry[i].number] for i in places]
        out = iter(self.graph.add(Loop(body, items, length), [carry[i] for i in places], *shapes))
        return [*(next(out) if d else e for d, e in zip(depends, ends, strict=True)), *ys]


def _known_part(params, consts, known, xs):
    """Of a scan: the carry's known part at the end and at the start of each turn, and the ys."""
    jaxpr, n_carry = params["jaxpr"], len(known)
    n_out = len(jaxpr.jaxpr.outvars)
    kept = [i for i in range(n_out) if i >= n_carry or known[i] is not None]
    if not kept:
        return [None] * n_carry, [None] * n_carry, []

    def turn(carry, values):
        full = [
            jnp.zeros(v.aval.shape, v.aval.dtype) if c is None else c
            for c, v in zip(carry, jaxpr.jaxpr.invars[len(consts) :], strict=False)
        ]
        out = jaxpr_as_fun(jaxpr)(*consts, *full, *values)
        new = [None if k is None else out[i] for i, k in enumerate(known)]
        return new, (carry, out[n_carry:])

    ends, (starts, ys) = lax.scan(
        turn, known, list(xs), length=params["length"], reverse=params["reverse"]
    )
    return ends, jax.tree.map(lambda v: v[::-1], starts) if params["reverse"] else starts, ys


def depends_on(jaxpr: Jaxpr, depends: Sequence[bool]) -> list[bool]:
    """Which results depend on the operands that `depends` marks."""
    return [
        any(d and u for d, u in zip(depends, pe.dce_jaxpr(jaxpr, one)[1], strict=True))
        for one in np.eye(len(jaxpr.outvars), dtype=bool).tolist()
    ]


def _bind(equation, operands) -> list[Any]:
    out = equation.primitive.bind(*operands, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def _evaluate(equation, operands) -> list[Any]:
    """On what is known; numbers that are known now stay so under `jit`."""
    if any(isinstance(v, jax.core.Tracer) for v in operands):
        return _bind(equation, operands)
    with jax.ensure_compile_time_eval():
        return _bind(equation, operands)


def _zeros(value):
    return jnp.zeros_like(value)


def _is_float(value) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _uniform(value) -> bool:
    if isinstance(value, jax.core.Tracer):
        return False
    value = np.asarray(value)
    return bool((value == value.ravel()[0]).all())


def _is(value, number: float) -> bool:
    """Whether all of `value` is known now, and is `number`."""
    return not isinstance(value, jax.core.Tracer | Value) and bool(
        (np.asarray(value) == number).all()
    )


def _no_rule(equation) -> ValueError:
    from jax._src import source_info_util

    where = source_info_util.summarize(equation.source_info)
    return ValueError(
        f"no bounds are known for the primitive {equation.primitive.name} (at {where})"
    )
