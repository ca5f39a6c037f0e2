"""The error for a primitive without a rule names it, the network's own line, and why."""

import re
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from odejax.relaxation import trace
from odejax.relaxation.no_rule import NoRule

X = jnp.linspace(0.1, 0.9, 12)


class EquinoxNet(eqx.Module):
    layers: eqx.nn.Sequential

    def __call__(self, x):
        return self.layers(x)


class FlaxNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.floor(nn.Dense(3)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        return jnp.floor(self.dense(x))


def plain(x):
    return jnp.floor(2 * x)


def calls_jax(x):
    return jax.nn.sparse_plus(x)


def loops(x):
    return lax.scan(lambda y, _: (jnp.floor(y), None), x, None, length=3)[0]


def unrolls(x):
    return lax.scan(lambda y, _: (y, jnp.floor(y)), x, None, length=3)[1][-1]


def branches(x):
    return lax.cond(jnp.ones(()) > 0, jnp.floor, jnp.sin, x)


EQUINOX = EquinoxNet(eqx.nn.Sequential([eqx.nn.Lambda(jnp.floor)]))
FLAX, NNX = FlaxNet(), NnxNet(nnx.Rngs(0))
PARAMS = FLAX.init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("function", "caller", "line"),
    [
        (plain, "plain", "jnp.floor(2 * x)"),
        (jax.jit(plain), "plain", "jnp.floor(2 * x)"),
        (jax.vmap(plain), "plain", "jnp.floor(2 * x)"),
        (jax.checkpoint(plain), "plain", "jnp.floor(2 * x)"),
        (calls_jax, "calls_jax", "jax.nn.sparse_plus(x)"),
        (loops, "<lambda>", "(jnp.floor(y), None)"),
        (unrolls, "<lambda>", "(y, jnp.floor(y))"),
        (branches, "branches", "lax.cond("),
        (EQUINOX, "EquinoxNet.__call__", "self.layers(x)"),
        (eqx.filter_jit(EQUINOX), "EquinoxNet.__call__", "self.layers(x)"),
        (lambda x: FLAX.apply(PARAMS, x), "FlaxNet.__call__", "jnp.floor(nn.Dense(3)(x))"),
        (NNX, "NnxNet.__call__", "jnp.floor(self.dense(x))"),
        (nnx.jit(NNX), "NnxNet.__call__", "jnp.floor(self.dense(x))"),
    ],
    ids=[
        "plain", "jit", "vmap", "checkpoint", "jax.nn", "scan", "unrolled scan", "cond", "equinox",
        "equinox, jit", "flax", "nnx", "nnx, jit",
    ],
)  # fmt: skip
def test_the_networks_own_line_is_named(function, caller, line):
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, text in enumerate(lines, 1) if line in text)
    with pytest.raises(ValueError, match="no bounds are known for the primitive") as caught:
        trace(function, X)
    named = re.escape(f"(at {__file__}:{number}, in ") + rf"[^ ]*{re.escape(caller)}[,)]"
    assert re.search(named, str(caught.value))


def test_a_library_that_the_line_calls_is_named_too():
    with pytest.raises(ValueError, match=r"in EquinoxNet.__call__, which calls .*equinox/nn/.*:\d"):
        trace(EQUINOX, X)


def test_where_no_line_is_the_networks_that_of_the_library_is_named():
    with pytest.raises(ValueError, match=r"floor \(at [^ ]*equinox/nn/[^ ]*:\d+, in [^ ]*\):"):
        trace(EQUINOX.layers, X)


def test_of_an_equation_without_a_place_the_name_is_known():
    (equation,) = jax.make_jaxpr(lax.tan)(X).eqns
    unknown = equation.replace(source_info=equation.source_info.replace(traceback=None))
    assert str(NoRule([unknown])) == "no bounds are known for the primitive tan"


COMPARED = r"of comparisons with the image only where\(z > 0, z, a z\) has bounds"


@pytest.mark.parametrize(
    ("function", "primitive", "why"),
    [
        (lambda x: lax.sort(x), "sort", ""),
        (lambda x: lax.top_k(x, 2)[0], "top_k", ""),
        (lambda x: x ** (1 + x), "pow", ""),
        (lambda x: (-2.0) ** x, "pow", ""),
        (lambda x: x ** jnp.linspace(0, 1, 12), "pow", ""),
        (lambda x: lax.floor(x), "floor", "it jumps"),
        (lambda x: jnp.round(x), "round", "it jumps"),
        (lambda x: jnp.sign(x), "sign", "it jumps"),
        (lambda x: 1.0 * jnp.argmax(x), "argmax", "it jumps"),
        (lambda x: lax.while_loop(lambda y: y[0] > 0, lambda y: y - 1, x), "while",
         "the number of its turns is not known"),
        (lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), "cond", "the image chooses the branch"),
        (lambda x: lax.cond(x[0] > 0.5, jnp.sin, jnp.cos, x), "gt", COMPARED),
        (lambda x: x * (x > 0), "mul", COMPARED),
        (lambda x: jnp.where(x < 0, x, x[::-1]), "select_n", COMPARED),
    ],
)  # fmt: skip
def test_the_primitive_is_named_and_why_it_has_no_rule(function, primitive, why):
    with pytest.raises(
        ValueError, match=rf"primitive {primitive} \(at .*\){': ' * bool(why)}{why}"
    ):
        trace(function, X)


def test_a_loop_is_refused_as_it_is_traced():
    """Not only as bounds go through it."""
    with pytest.raises(NoRule):
        trace(loops, np.ones(3, np.float32))
