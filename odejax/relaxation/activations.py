"""Activations: programs that are one function of one number, with closer lines than their parts.

GELU is a product of z and a function of z. As such its lines would be far apart, so it is
recognised as a whole: the equations of a program are compared with those that JAX writes for the
function. Other equations may be in between, and variables have other names.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from . import elementwise
from .elementwise import AbstractElementwise
from .graph import Graph, Value
from .handlers import Equation, Operands, between

# From the graph, z, and numbers that are known, to the result.
Activation = Callable[..., Value]


def _of(function: AbstractElementwise) -> Activation:
    return lambda graph, z: graph.unary(function, z)


ACTIVATIONS: tuple[tuple[Callable, Activation], ...] = (
    (jax.nn.softplus, _of(elementwise.SOFTPLUS)),
    (jax.nn.silu, _of(elementwise.SILU)),
    (lambda z: z * jax.nn.sigmoid(z), _of(elementwise.SILU)),
    (lambda z: jax.nn.sigmoid(z) * z, _of(elementwise.SILU)),
    (lambda z: z / (1 + jnp.exp(-z)), _of(elementwise.SILU)),
    (jax.nn.gelu, _of(elementwise.GELU_BY_TANH)),
    (partial(jax.nn.gelu, approximate=False), _of(elementwise.GELU)),
    (jax.nn.mish, _of(elementwise.MISH)),
    (jax.nn.soft_sign, _of(elementwise.SOFT_SIGN)),
    (jax.nn.hard_silu, _of(elementwise.HARD_SILU)),
    (jax.nn.hard_tanh, lambda graph, z: between(graph, z, -1.0, 1.0)),
    (jax.nn.elu, lambda graph, z, alpha=1.0: graph.unary(elementwise.elu(alpha), z)),
    (jax.nn.celu, lambda graph, z, alpha=1.0: graph.unary(elementwise.celu(alpha), z)),
)


class Step(NamedTuple):
    """Equations that are walked together, the last of which has the result.

    - `activation`: what they do to the `operands`; None where that is not known.
    """

    equations: Sequence[Equation]
    operands: Sequence[Any] = ()
    activation: Activation | None = None

    def result(self, graph: Graph, operands: Operands) -> Value | None:
        """The activation of the first operand; None if any other one depends on the image."""
        if self.activation is None or not isinstance(operands[0], Value):
            return None
        if any(isinstance(v, Value) or jnp.ndim(v) for v in operands[1:]):
            return None
        return self.activation(graph, *operands)


def steps(jaxpr: Jaxpr) -> Iterator[Step]:
    """The equations of a program, those of an activation together."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    used_by = _uses(jaxpr.eqns)
    used_by.update(_variables(jaxpr.outvars))
    last: dict[int, Step] = {}
    inner: set[int] = set()
    for equation in jaxpr.eqns:
        step = _activation(equation, made_by)
        if step is not None and _is_closed(step.equations, used_by):
            last[id(equation)] = step
            inner.update(id(e) for e in step.equations[:-1])
    for equation in jaxpr.eqns:
        if id(equation) not in inner:
            yield last.get(id(equation), Step([equation]))


def _uses(equations: Sequence[Equation]) -> Counter:
    return Counter(v for equation in equations for v in _variables(equation.invars))


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if not isinstance(v, Literal)]


def _is_closed(equations: Sequence[Equation], used_by: Counter) -> bool:
    """Whether these equations alone use the results of all but the last."""
    uses = _uses(equations)
    return all(uses[v] == used_by[v] for e in equations[:-1] for v in e.outvars)


def _activation(equation: Equation, made_by: dict[Any, Equation]) -> Step | None:
    """The activation whose last equation this is, if there is one."""
    if not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in equation.outvars):
        return None  # JAX writes no activation of whole numbers
    called = equation.primitive.name in ("jit", "pjit")
    name = equation.params["name"] if called else equation.primitive.name
    for program, activation in ACTIVATIONS:
        if _last_name(program) == name:
            of = equation.invars if called else equation.outvars
            avals = tuple((v.aval.shape, v.aval.dtype, v.aval.weak_type) for v in of)
            match = _Match(_written(program, avals), made_by)
            if match.alike(match.pattern.outvars[0], equation.outvars[0]):
                operands = [match.meant[v] for v in match.pattern.invars]
                return Step(match.equations, operands, activation)
    return None


@lru_cache
def _written(program: Callable, avals: tuple[tuple, ...]) -> Jaxpr:
    """A program as JAX writes it."""
    operands = [jax.ShapeDtypeStruct(s, dtype, weak_type=weak) for s, dtype, weak in avals]
    return jax.make_jaxpr(program)(*operands).jaxpr


@lru_cache
def _last_name(program: Callable) -> str:
    """The name of a program's last primitive, or of the function that it calls."""
    last = _written(program, (((), jnp.dtype(jnp.float32), False),)).eqns[-1]
    return last.params.get("name", last.primitive.name)


class _Match:
    """What a pattern's variables mean in a program, and the program's equations for them."""

    def __init__(self, pattern: Jaxpr, made_by: dict[Any, Equation]):
        self.pattern, self.made_by = pattern, made_by
        self.meant: dict[Any, Any] = {}
        self.equations: list[Equation] = []

    def alike(self, a: Any, b: Any) -> bool:
        """Whether `b` of the program is computed as `a` of the pattern."""
        if isinstance(a, Literal):
            return isinstance(b, Literal) and a.aval == b.aval and np.array_equal(a.val, b.val)
        if a in self.meant:
            return self.meant[a] is b
        self.meant[a] = b
        if a in self.pattern.invars:
            return a.aval.shape == b.aval.shape and a.aval.dtype == b.aval.dtype
        (first,) = (e for e in self.pattern.eqns if a in e.outvars)
        second = None if isinstance(b, Literal) else self.made_by.get(b)
        if second is None or not _same_operation(first, second):
            return False
        if not all(map(self.alike, first.invars, second.invars)):
            return False
        self.equations.append(second)
        return True


def _same_operation(a: Equation, b: Equation) -> bool:
    if a.primitive.name != b.primitive.name or len(a.invars) != len(b.invars):
        return False
    names = ("name", "jaxpr") if "jaxpr" in a.params else a.params
    return all(str(a.params[name]) == str(b.params.get(name)) for name in names)
