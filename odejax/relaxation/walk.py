"""From a function to its graph: the jaxpr, walked once.

What no result depends on is left out, and what does not depend on the image is evaluated. Programs
within (`jit`, `custom_jvp`, `custom_vjp`, `checkpoint`, a branch of `cond`) are inlined. A `scan`
is one operation of the graph if, of all that goes in and comes out, its carry alone depends on the
image; any other `scan` is unrolled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters import partial_eval as pe

from .activations import steps
from .graph import Graph, Value
from .handlers import Equation, Operands, Sign, bind
from .no_rule import COMPARED, NoRule
from .primitives import results_of
from .rules import Affine, Loop

INLINED = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip


def trace(function: Callable, x: jax.Array) -> Graph:
    """The graph of `function`, of one array to one array, for inputs of the shape of `x`.

    Raises `ValueError` for a primitive without a rule, and for a result that does not depend on
    `x`.
    """
    closed = jax.make_jaxpr(function)(x)
    graph = Graph([x.shape])
    used, _ = pe.dce_jaxpr(closed.jaxpr, [True], instantiate=True)
    (out,) = _run(graph, used, closed.consts, [Value(0)])
    if not isinstance(out, Value):
        raise ValueError("the logits do not depend on the image: there is nothing to prove")
    graph.outputs = (out.number,)
    return graph.joined()


def depends_on(jaxpr: Jaxpr, depends: Sequence[bool]) -> list[bool]:
    """Which results depend on the operands that `depends` marks."""
    return [
        any(d and u for d, u in zip(depends, pe.dce_jaxpr(jaxpr, one)[1], strict=True))
        for one in np.eye(len(jaxpr.outvars), dtype=bool).tolist()
    ]


def _run(graph: Graph, jaxpr: Jaxpr, consts: Operands, args: Operands) -> list[Any]:
    """The results of a jaxpr: arrays where they are known, and values of the graph."""
    known: dict[Any, Any] = {}

    def read(var):
        if not isinstance(var, Literal):
            return known[var]
        aval: Any = var.aval
        return np.asarray(var.val, aval.dtype)[()]  # `val` may be of a class of JAX's own

    known.update(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))
    for step in steps(jaxpr):
        result = step.result(graph, [read(v) for v in step.operands])
        if result is not None:
            known[step.equations[-1].outvars[0]] = result
            continue
        for equation in step.equations:
            results = _equation(graph, equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    try:
        return _results(graph, equation, operands)
    except NoRule as error:
        raise error.within(equation) from None


def _results(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    name = equation.primitive.name
    depends = any(isinstance(v, Value | Sign) for v in operands)
    if name in INLINED:
        return _inlined(graph, equation, operands)
    if not depends:
        return _evaluated(equation, operands)
    if name == "cond":
        return _branch(graph, equation, operands)
    for var in equation.outvars:
        dtype = var.aval.dtype
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise ValueError(f"bounds are for float32 and float64; got {dtype} from {name}")
    if name == "scan":
        return _scan(graph, equation, operands)
    return graph.once(equation, operands, lambda: results_of(graph, equation, operands))


def _evaluated(equation: Equation, operands: Operands) -> list[Any]:
    """On what is known; numbers that are known now stay so under `jit`."""
    if any(isinstance(v, Tracer) for v in operands):
        return bind(equation, operands)
    with jax.ensure_compile_time_eval():
        return bind(equation, operands)


def _inlined(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    params = equation.params
    inner = next(p for p in map(params.get, ("jaxpr", "call_jaxpr", "fun_jaxpr")) if p)
    if isinstance(inner, ClosedJaxpr):
        return _run(graph, inner.jaxpr, inner.consts, operands)
    return _run(graph, inner, (), operands)


def _branch(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    """The branch that is taken; all of them, where that is known as the program runs."""
    index, *args = operands
    branches = equation.params["branches"]
    if isinstance(index, Value | Sign):
        raise NoRule([equation])
    if not isinstance(index, Tracer):
        taken = branches[int(np.clip(index, 0, len(branches) - 1))]
        return _run(graph, taken.jaxpr, taken.consts, args)
    results = [_run(graph, branch.jaxpr, branch.consts, args) for branch in branches]
    return [
        _selected(graph, index, cases, var.aval)
        for cases, var in zip(zip(*results, strict=True), equation.outvars, strict=True)
    ]


def _selected(graph: Graph, index: jax.Array, cases: Sequence[Any], aval: Any):
    """cases[index]"""
    case = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    index = jnp.clip(index, 0, len(cases) - 1)

    def select(index, *cases):
        return lax.select_n(index, *cases) if len(cases) > 2 else lax.select_n(index > 0, *cases)

    closed = jax.make_jaxpr(select)(index, *[case] * len(cases))
    (out,) = _run(graph, closed.jaxpr, closed.consts, [index, *cases])
    return out


# -- loops -----------------------------------------------------------------------------------------


def _scan(graph: Graph, equation: Equation, operands: Operands) -> list[Any]:
    if any(isinstance(v, Sign) for v in operands):
        raise NoRule([equation], COMPARED)
    params = equation.params
    # JAX's versions name the numbers of operands in other ways; a turn's own have an axis less.
    inner = params["jaxpr"].jaxpr
    n_carry = _count_alike(equation.outvars, inner.outvars)
    n_consts = _count_alike(equation.invars, inner.invars) - n_carry
    consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    xs = operands[n_consts + n_carry :]
    looped = _loop(graph, params, consts, carry, xs)
    return _unrolled(graph, params, consts, carry, xs) if looped is None else looped


def _count_alike(outer: Sequence[Any], inner: Sequence[Any]) -> int:
    """How many operands of a scan go into every turn as they are."""
    return sum(a.aval.shape == b.aval.shape for a, b in zip(outer, inner, strict=True))


def _unrolled(
    graph: Graph, params: dict[str, Any], consts: Operands, carry: Operands, xs: Operands
) -> list[Any]:
    """The final carry and the stacked results of all turns, one after another."""
    jaxpr, n_carry, turns = params["jaxpr"], len(carry), range(params["length"])
    ys: list[list[Any]] = []
    for t in reversed(turns) if params["reverse"] else turns:
        args = [*consts, *carry, *(_item(graph, v, t) for v in xs)]
        out = _run(graph, jaxpr.jaxpr, jaxpr.consts, args)
        carry = out[:n_carry]
        ys.append(out[n_carry:])
    if params["reverse"]:
        ys.reverse()
    if not ys:
        empty = jaxpr.jaxpr.outvars[n_carry:]
        return [*carry, *(jnp.zeros((0, *v.aval.shape), v.aval.dtype) for v in empty)]
    return [*carry, *(_stacked(graph, y) for y in zip(*ys, strict=True))]


def _item(graph: Graph, value, t: int):
    """value[t]"""
    if not isinstance(value, Value):
        return value[t]
    return graph.copied(lambda y: y[t], value, graph.shape(value)[1:])


def _stacked(graph: Graph, values: Sequence[Any]):
    """What each turn gives, stacked."""
    places = [i for i, v in enumerate(values) if isinstance(v, Value)]
    if not places:
        return jnp.stack(values)

    def stack(ys, known):
        given = dict(zip(places, ys, strict=True))
        return jnp.stack([given[i] if i in given else known(v) for i, v in enumerate(values)])

    rule = Affine(
        lambda *ys: stack(ys, lambda v: v), lambda *rs: stack(rs, jnp.zeros_like), exact=True
    )
    shape = graph.shape(values[places[0]])
    return graph.add(rule, [values[i] for i in places], (len(values), *shape))


def _loop(
    graph: Graph, params: dict[str, Any], consts: Operands, carry: Operands, xs: Operands
) -> list[Any] | None:
    """A scan as one operation, if its carry alone depends on the image; else None.

    Of nested scans the inner one is an operation, and the outer one is unrolled.
    """
    jaxpr, length = params["jaxpr"], params["length"]
    depends = [isinstance(v, Value) for v in carry]
    inner = " scan[" in str(jaxpr)
    if length < 2 or inner or any(isinstance(v, Value) for v in (*consts, *xs)):
        return None
    if not _is_closed(jaxpr.jaxpr, len(consts), depends):
        return None
    places = [i for i, d in enumerate(depends) if d]
    known = [None if d else v for d, v in zip(depends, carry, strict=True)]
    ends, starts, ys = _known_part(params, consts, known, xs)
    shapes = [graph.shape(carry[i]) for i in places]

    def body(item) -> Graph:
        """The graph of one turn: `item` holds what is known of it."""
        values, before = item
        turn = Graph(shapes)
        at = iter(Value(number) for number in turn.inputs)
        args = [next(at) if d else b for d, b in zip(depends, before, strict=True)]
        out = _run(turn, jaxpr.jaxpr, jaxpr.consts, [*consts, *args, *values])
        last = [out[i] for i in places]
        if not all(isinstance(v, Value) for v in last):
            raise ValueError(
                "the carry of a scan depends on the image before a turn and not after it"
            )
        turn.outputs = tuple(v.number for v in last)
        return turn.joined()

    order = slice(None, None, -1) if params["reverse"] else slice(None)
    items = jax.tree.map(lambda v: jnp.asarray(v)[order], (list(xs), starts))
    jax.eval_shape(lambda: (body(jax.tree.map(lambda v: v[0], items)), None)[1])  # may raise
    out = iter(graph.add_loop(Loop(body, items, length), [carry[i] for i in places], shapes))
    return [*(next(out) if d else e for d, e in zip(depends, ends, strict=True)), *ys]


def _is_closed(jaxpr: Jaxpr, n_consts: int, depends: list[bool]) -> bool:
    """Whether the marked parts of the carry stay the only results that depend on the image."""
    n_xs = len(jaxpr.invars) - n_consts - len(depends)
    out = depends_on(jaxpr, [*[False] * n_consts, *depends, *[False] * n_xs])
    more = [a or b for a, b in zip(depends, out, strict=False)]
    return more == depends and not any(out[len(depends) :])


def _known_part(params: dict[str, Any], consts: Operands, known: list[Any], xs: Operands):
    """Of a scan: the carry's known part at the end and at the start of each turn, and the ys.

    What belongs to a turn has the index of the turn's x, in a reversed scan too.

    - `known`: the carry at the start, None for what depends on the image.
    """
    jaxpr, n_carry = params["jaxpr"], len(known)
    n_out = len(jaxpr.jaxpr.outvars)
    if n_out == n_carry and all(v is None for v in known):
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
    return ends, starts, ys
