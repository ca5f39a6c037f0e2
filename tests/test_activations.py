"""Functions of one number: two lines that enclose them, about as close as parallel ones can be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from odejax.relaxation import Interval, elementwise, trace
from odejax.relaxation.elementwise import SMOOTH, celu, elu, power
from odejax.relaxation.rules import Loop, Product, Unary

# What is tested, and what JAX computes.
ANYWHERE = {
    "silu": (elementwise.SILU, jax.nn.silu),
    "gelu": (elementwise.GELU, partial(jax.nn.gelu, approximate=False)),
    "gelu by tanh": (elementwise.GELU_BY_TANH, jax.nn.gelu),
    "mish": (elementwise.MISH, jax.nn.mish),
    "soft_sign": (elementwise.SOFT_SIGN, jax.nn.soft_sign),
    "hard_silu": (elementwise.HARD_SILU, jax.nn.hard_silu),
    **{f"elu {a}": (elu(a), partial(jax.nn.elu, alpha=a)) for a in (1.0, 1.7, 0.3, -1.0)},
    **{f"celu {a}": (celu(a), partial(jax.nn.celu, alpha=a)) for a in (1.0, 2.0, -0.5)},
    "softplus": (elementwise.SOFTPLUS, jax.nn.softplus),
    "expm1": (elementwise.EXPM1, jnp.expm1),
    "exp2": (elementwise.EXP2, jnp.exp2),
    "cube": (power(3), lambda z: z**3),
    "power 4": (power(4), lambda z: z**4),
    "power 13": (power(13), lambda z: z**13),
    "logistic": (SMOOTH["logistic"], jax.nn.sigmoid),
    **{name: (SMOOTH[name], getattr(lax, name)) for name in SMOOTH if name != "logistic"},
}
POSITIVE = {
    "log2": (elementwise.LOG2, jnp.log2),
    **{f"power {p}": (power(p), lambda z, p=p: z**p) for p in (0.3, 1.5, 2.5, -0.7, -3.0, 7.3)},
}


def intervals(function, positive, n=1200):
    """Tiny and huge ones, of one side and of both, at bends and elsewhere, some of no length."""
    rng = np.random.default_rng(1)
    if positive:
        low = 10 ** rng.uniform(-4, 3, n)
        high = low + 10 ** rng.uniform(-6, 3, n)
    else:
        centre = rng.normal(size=n) * rng.choice([0, 1, 3, 10, 100], n)
        centre += rng.choice([0.0, *getattr(function, "bends", ())], n)
        length, side = 10 ** rng.uniform(-6, 5, n), rng.integers(0, 3, n)
        low = centre - length * rng.uniform(0, 1, n) * (side != 0)
        high = centre + length * rng.uniform(0, 1, n) * (side != 1)
    low[: n // 20] = high[: n // 20]
    return low, high


def points(low, high):
    """Evenly, near the ends, and evenly over what is neither flat nor straight."""
    near = 10 ** np.linspace(-7, 0, 60)
    at = np.concatenate([np.linspace(0, 1, 201), near, 1 - near])[:, None]
    middle = np.broadcast_to(np.linspace(-12, 12, 400)[:, None], (400, len(low)))
    return np.clip(np.concatenate([low + (high - low) * at, middle.astype(low.dtype)]), low, high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*ANYWHERE, *POSITIVE])
def test_no_value_is_outside_of_the_range_or_the_lines(name, dtype):
    function, f = (ANYWHERE | POSITIVE)[name]
    with jax.enable_x64(dtype == np.float64):
        low, high = (v.astype(dtype) for v in intervals(function, name in POSITIVE))
        z = points(low, high)

        @jax.jit
        def bounds(x):
            y = Unary(function).forward(x)
            return y.interval, Unary(function).relax(y, x)

        given = bounds(Interval(jnp.asarray(low), jnp.asarray(high)))
        y = np.asarray(jax.jit(f)(z), np.float64)
    given = jax.tree.map(lambda v: np.asarray(v, np.float64), given)
    (least, most), (best, parallel, _) = given
    y = np.where(np.isfinite(y), y, np.nan)  # where it overflows, nothing is said
    assert not ((y < least) | (y > most)).any()
    for low_slope, high_slope, constant in (best, parallel):
        middle, reach = constant
        with np.errstate(invalid="ignore", over="ignore"):  # of no number nothing is said, either
            below = low_slope * z + middle - reach
            above = high_slope * z + middle + reach
        assert not (below > y).any()
        assert not (above < y).any()
    within = np.abs([low, high]).max(0) < 20
    assert np.isfinite(middle[within]).all()


CURVED = {name: pair for name, pair in ANYWHERE.items() if isinstance(pair[0], elementwise.Curved)}


@pytest.mark.parametrize("name", CURVED)
def test_lines_are_about_as_close_as_any_parallel_ones(name):
    """On intervals up to 10 long, against 400 slopes and 1,000 points."""
    function, f = CURVED[name]
    rng = np.random.default_rng(2)
    low, high = np.sort(rng.uniform(-5, 5, (2, 200)), axis=0)
    with jax.enable_x64(True):
        lines = function.lines(jnp.asarray(low), jnp.asarray(high))
        z = low + (high - low) * np.linspace(0, 1, 1001)[:, None]
        y = np.asarray(f(jnp.asarray(z)))
    steepness = np.diff(y, axis=0) / np.diff(z, axis=0)
    slopes = np.linspace(steepness.min(0), steepness.max(0), 400)
    gaps = np.stack([np.ptp(y - slope * z, axis=0) for slope in slopes]).min(0)
    gap = np.asarray(lines.high) - np.asarray(lines.low)
    wide = np.ptp(y, axis=0) > 1e-3
    assert wide.mean() > 0.5
    ratio = gap[wide] / np.maximum(gaps[wide], 1e-3 * np.ptp(y[:, wide], axis=0))
    assert np.mean(ratio) < 1.2
    assert np.percentile(ratio, 90) < 1.5


def test_lines_of_gelu_are_closer_than_those_of_its_product():
    """On [-3, 3], where the hull of z and of Phi(z) alone has |gap| up to 3."""
    low_slope, low, high_slope, high = elementwise.GELU.lines(jnp.asarray(-3.0), jnp.asarray(3.0))
    assert low_slope == high_slope
    assert high - low < 1.5
    z = np.linspace(-3, 3, 301)
    y = np.asarray(jax.nn.gelu(z, approximate=False))
    assert high - low < 1.1 * np.ptp(y - float(low_slope) * z)


# -- programs --------------------------------------------------------------------------------------

X = jnp.linspace(-1.0, 1.0, 6)
RECOGNISED = {
    "gelu": (jax.nn.gelu, elementwise.GELU_BY_TANH),
    "exact gelu": (partial(jax.nn.gelu, approximate=False), elementwise.GELU),
    "silu": (jax.nn.silu, elementwise.SILU),
    "swish": (jax.nn.swish, elementwise.SILU),
    "z sigmoid(z)": (lambda z: z * jax.nn.sigmoid(z), elementwise.SILU),
    "sigmoid(z) z": (lambda z: jax.nn.sigmoid(z) * z, elementwise.SILU),
    "z / (1 + exp(-z))": (lambda z: z / (1 + jnp.exp(-z)), elementwise.SILU),
    "mish": (jax.nn.mish, elementwise.MISH),
    "soft_sign": (jax.nn.soft_sign, elementwise.SOFT_SIGN),
    "hard_silu": (jax.nn.hard_silu, elementwise.HARD_SILU),
    "hard_swish": (jax.nn.hard_swish, elementwise.HARD_SILU),
    "softplus": (jax.nn.softplus, elementwise.SOFTPLUS),
}
WITHIN = {
    "alone": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(x.reshape(3, 2)).ravel(),
    "vmap of numbers": jax.vmap,
    "scan": lambda f: lambda x: lax.scan(lambda y, w: (f(w * y), None), x, jnp.ones(3))[0],
}


def rules(function, x=X):
    (nodes,) = [trace(function, x).nodes]
    if isinstance(nodes[0].rule, Loop):
        nodes = nodes[0].rule.at(0).nodes
    return [node.rule for node in nodes]


@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("name", RECOGNISED)
def test_an_activation_is_recognised_as_one_function(name, within):
    program, function = RECOGNISED[name]
    found = [r for r in rules(WITHIN[within](program)) if isinstance(r, Unary | Product)]
    assert [r.function for r in found if isinstance(r, Unary)] == [function]
    assert len(found) == 1


def test_an_activation_is_recognised_in_float64_too():
    with jax.enable_x64(True):
        (rule,) = rules(jax.nn.gelu, jnp.linspace(-1.0, 1.0, 6))
    assert rule.function is elementwise.GELU_BY_TANH


@pytest.mark.parametrize("make", [jax.nn.elu, jax.nn.celu])
def test_alpha_may_be_known_only_as_the_program_runs(make):
    @jax.jit
    def ends(alpha):
        (rule,) = rules(lambda x: make(x, alpha))
        return rule.forward(Interval(-jnp.ones(1), jnp.ones(1))).interval

    for alpha in (0.3, 2.0):
        np.testing.assert_allclose(ends(alpha), make(jnp.asarray([[-1.0], [1.0]]), alpha), 1e-4)


@jax.jit
def silu(z):
    return 2 * z


NOT_SILU = {
    "another operand": lambda x: x * jax.nn.sigmoid(x[::-1]),
    "another argument": lambda x: x * jax.nn.sigmoid(2 * x),
    "its logistic is used twice": lambda x: (lambda y: x * y + y)(jax.nn.sigmoid(x)),
    "another constant": lambda x: x / (1.5 + jnp.exp(-x)),
    "its name alone": silu,
    "its logistic is a result of a turn": lambda x: lax.scan(
        lambda y, _: (lambda s: (y * s, s))(jax.nn.sigmoid(y)), x, None, length=2
    )[1].sum(0),
}


@pytest.mark.parametrize("name", NOT_SILU)
def test_what_only_looks_like_silu_is_not_it(name):
    assert elementwise.SILU not in [
        rule.function for rule in rules(NOT_SILU[name]) if isinstance(rule, Unary)
    ]


def test_an_activation_of_what_is_known_is_evaluated():
    (rule,) = rules(lambda x: x + jax.nn.gelu(jnp.ones(6)) + jax.nn.silu(jnp.ones(6)))
    np.testing.assert_allclose(rule.apply(X), X + jax.nn.gelu(1.0) + jax.nn.silu(1.0), rtol=1e-5)
