"""Bounds through programs: never broken by samples, exact where they can be, CROWN's by hand."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import alternate
from jax import lax

from odejax import L2Ball, LinfBall
from odejax._rounding import sum_rounding
from odejax.models import GroupNorm, NmODE, conv2d
from odejax.relaxation import Margins, Propagation, trace
from odejax.relaxation.elementwise import (
    ABS,
    EXP,
    LEAKY,
    LOG,
    RECIPROCAL,
    RELU,
    RSQRT,
    SMOOTH,
    SQRT,
    SQUARE,
    of_flow_map,
)
from odejax.relaxation.primitives import COPYING, SCALING, SUMMING, UNARY
from odejax.relaxation.rules import Affine, Interval, Product, Unary

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# -- functions of one number ----------------------------------------------------------------------

ELEMENTWISE = {
    "relu": (RELU, jax.nn.relu, "any"),
    "leaky": (LEAKY(0.1), partial(jax.nn.leaky_relu, negative_slope=0.1), "any"),
    "abs": (ABS, jnp.abs, "any"),
    "exp": (EXP, jnp.exp, "any"),
    "square": (SQUARE, jnp.square, "any"),
    "log": (LOG, jnp.log, "positive"),
    "sqrt": (SQRT, jnp.sqrt, "positive"),
    "rsqrt": (RSQRT, lax.rsqrt, "positive"),
    "1/z, z > 0": (RECIPROCAL, jnp.reciprocal, "positive"),
    "1/z, z < 0": (RECIPROCAL, jnp.reciprocal, "negative"),
    "flow map": (of_flow_map(NmODE(3.0, 1.0).flow_map), NmODE(3.0, 1.0).flow_map, "any"),
    **{
        name: (function, getattr(lax, name) if hasattr(lax, name) else getattr(jnp, name), "any")
        for name, function in SMOOTH.items()
    },
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_lines_and_ranges_enclose_the_function(name):
    function, f, domain = ELEMENTWISE[name]
    ends = np.sort(3 * RNG.normal(size=(2, 500)), axis=0)
    ends[:, :50] = ends[0, :50] + np.stack([np.zeros(50), 1e-3 * RNG.random(50)])  # narrow ones
    if domain != "any":
        ends = np.sort(np.abs(ends) + 0.01, axis=0)
    if domain == "negative":
        ends = -ends[::-1]
    low, high = ends.astype(np.float32)
    z = low + (high - low) * np.linspace(0, 1, 201)[:, None]
    y = np.asarray(f(jnp.asarray(z, jnp.float32)), np.float64)
    a, b, c, d = (np.asarray(v, np.float64) for v in function.lines(low, high))
    tolerance = 1e-5 * (1 + np.abs(y).max(0) + np.abs(b) + np.abs(d))  # rounding is the rules'
    assert (a * z + b <= y + tolerance).all()
    assert (c * z + d >= y - tolerance).all()
    least, most = function.range(low, high)
    assert (least <= y + tolerance).all()
    assert (most >= y - tolerance).all()


def test_a_reciprocal_across_zero_is_unbounded():
    low, high = RECIPROCAL.range(jnp.asarray(-1.0), jnp.asarray(1.0))
    assert (low, high) == (-np.inf, np.inf)


# -- programs -------------------------------------------------------------------------------------

W, V, K, C = draw(6, 16), draw(6, 6), draw(3, 3, 2, 2), draw(16)
NORM, LAYER_NORM = GroupNorm(2, groups=1), eqx.nn.LayerNorm(6, 1e-3, False, False)


def image(x):
    return x.reshape(2, 4, 2)


def loop(x):
    def turn(carry, w):
        t, y = carry
        return (t + 1.0, y + 0.3 * jnp.tanh(w @ y + 0.1 * t)), None

    return lax.scan(turn, (0.0, W @ x), jnp.stack([V, V.T, -V]))[0][1]


def reversed_loop(x):
    def turn(carry, item):
        y, z = carry
        w, i = item
        return (y + 0.2 * jax.nn.relu(w @ z), z - 0.1 * y * i), None

    items = jnp.stack([V, 0.5 * V]), jnp.arange(2.0)
    y, z = lax.scan(turn, (W @ x, W @ x[::-1]), items, reverse=True)[0]
    return y * z


def counting(x):
    def turn(carry, w):
        count, y = carry
        return (2 * count + 1, y + 0.1 * count * (w @ y)), None

    weights = jnp.stack([V, jnp.zeros_like(V), -V])
    return lax.scan(turn, (1.0, W @ x), weights, reverse=True)[0][1]


def masked_loop(x):
    mask = x > 0
    return lax.scan(lambda y, _: (jnp.where(mask, y, 0.1 * y), None), x, None, length=2)[0]


def states(x):
    def turn(y, _):
        y = jax.nn.relu(V @ y)
        return y, y

    return lax.scan(turn, W @ x, None, length=3)[1].sum(0)


@jax.custom_vjp
def own_rule(x):
    return jnp.sin(x)


own_rule.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (g,))


def by_parity(x):
    """A branch that is known turn by turn."""

    def turn(y, item):
        i, w = item
        return lax.cond(i % 2 == 0, lambda z: jnp.sin(w @ z), lambda z: 0.5 * z, y), None

    return lax.scan(turn, W @ x, (jnp.arange(3), jnp.stack([V, V.T, -V])))[0]


def in_three_ways(x):
    def turn(y, i):
        branches = jnp.tanh, lambda z: 0.5 * z, lambda z: jnp.ones_like(z)
        return y + lax.switch(i, branches, y), None

    return lax.scan(turn, W @ x, jnp.arange(4))[0]


PROGRAMS = {
    "linear": lambda x: W @ x + 1,
    "relu": lambda x: jax.nn.relu(W @ x) @ V,
    "leaky relu": lambda x: jax.nn.leaky_relu(W @ x) @ V,
    "leaky relu of slope 2": lambda x: jax.nn.leaky_relu(W @ x, 2.0) @ V,
    "absolute value by cases": lambda x: (lambda z: jnp.where(z > 0, z, -z))(W @ x) @ V,
    "relu6": lambda x: jax.nn.relu6(W @ x) @ V,
    "gelu": lambda x: jax.nn.gelu(W @ x) @ V,
    "exact gelu": lambda x: jax.nn.gelu(W @ x, approximate=False) @ V,
    "silu": lambda x: jax.nn.silu(W @ x) @ V,
    "softplus": lambda x: jax.nn.softplus(W @ x) @ V,
    "elu": lambda x: jax.nn.elu(W @ x) @ V,
    "selu": lambda x: jax.nn.selu(W @ x) @ V,
    "hard tanh": lambda x: jax.nn.hard_tanh(W @ x) @ V,
    "logaddexp": lambda x: jnp.logaddexp(W @ x, C[:6]),
    "mish": lambda x: jax.nn.mish(W @ x) @ V,
    "soft sign": lambda x: jax.nn.soft_sign(W @ x) @ V,
    "hard silu": lambda x: jax.nn.hard_silu(W @ x) @ V,
    "celu": lambda x: jax.nn.celu(W @ x, 0.5) @ V,
    "relu by cases": lambda x: (lambda z: jnp.where(z > 0, z, 0.0))(W @ x) @ V,
    "leaky relu by cases": lambda x: (lambda z: jnp.where(z < 0, 0.1 * z, z))(W @ x) @ V,
    "relu, 0 first": lambda x: (lambda z: jnp.where(lax.ge(jnp.zeros(6), z), 0.0, z))(W @ x),
    "powers": lambda x: jnp.concatenate([(x + 1) ** 2.5, (x + 1) ** -0.5, x**2.0, 2.0**x]),
    "power 21": lambda x: (0.1 * (W @ x)) ** 21,
    "smallest": lambda x: (W @ x).reshape(2, 3).min(1),
    "a branch that is known": lambda x: lax.cond(jnp.ones(()) > 0, jnp.sin, jnp.floor, W @ x),
    "branches by parity": by_parity,
    "three branches": in_three_ways,
    "softmax": lambda x: jax.nn.softmax(W @ x) @ V,
    "log_softmax": lambda x: jax.nn.log_softmax(W @ x),
    "tanh": lambda x: jnp.tanh(W @ x) @ V,
    "sigmoid": lambda x: jax.nn.sigmoid(W @ x) @ V,
    "sin, cos": lambda x: jnp.sin(W @ x) * jnp.cos(W @ x),
    "square": lambda x: (W @ x) ** 2,
    "cube": lambda x: (W @ x) ** 3,
    "inverse square": lambda x: (jnp.abs(W @ x) + 1) ** -2,
    "inner product": lambda x: (x[:6] @ x[2:8] ** 2) * jnp.ones(2),
    "matrix product": lambda x: (x.reshape(4, 4).T @ (x.reshape(4, 4) ** 2)).ravel(),
    "batched product": lambda x: jnp.einsum(
        "bij,kbj->bik", x.reshape(2, 4, 2), x.reshape(4, 2, 2) ** 2
    ).ravel(),
    "division": lambda x: (W @ x) / (2 + (V @ (W @ x)) ** 2),
    "division of a constant": lambda x: C[:6] / (1 + jnp.exp(W @ x)),
    "layer norm": lambda x: LAYER_NORM(W @ x),
    "group norm": lambda x: NORM(image(x), None)[0].ravel(),
    "min and max": lambda x: jnp.maximum(W @ x, jnp.minimum(V @ (W @ x), 0.5)),
    "clip": lambda x: jnp.clip(W @ x, -0.3, 0.7),
    "where": lambda x: jnp.where(C > 0, x, 2 * x) @ W.T,
    "largest": lambda x: (W @ x).reshape(2, 3).max(1),
    "concatenation": lambda x: jnp.concatenate([W @ x, jnp.ones(2), -x]),
    "stack and split": lambda x: sum(jnp.split(jnp.stack([W @ x, C[:6]]) ** 2, 2))[0],
    "padding": lambda x: jnp.pad(W @ x, 2, constant_values=3.0)[::2],
    "gather": lambda x: x[jnp.asarray([3, 1, 1])],
    "cumulative sum": lambda x: jnp.cumsum(W @ x),
    "flow map": lambda x: NmODE(3.0, 1.0)(W @ x) @ V,
    "conv2d": lambda x: jax.nn.relu(conv2d(image(x), K, padding=1)).ravel(),
    "strided convolution": lambda x: lax.conv_general_dilated(
        image(x)[None], K, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).ravel(),
    "max pooling": lambda x: lax.reduce_window(
        image(x), -jnp.inf, lax.max, (2, 3, 1), (1, 2, 1), "SAME"
    ).ravel(),
    "average pooling": lambda x: lax.reduce_window(
        image(x), 0.0, lax.add, (2, 2, 1), (2, 2, 1), "VALID"
    ).ravel(),
    "loop": loop,
    "reversed loop": reversed_loop,
    "reversed loop that counts": counting,
    "states of a loop": states,
    "checkpoint": lambda x: jax.checkpoint(lambda y: jnp.tanh(W @ y))(x) @ V,
    "custom_vjp": lambda x: own_rule(W @ x),
    "nested loops": lambda x: lax.scan(
        lambda y, w: (lax.scan(lambda z, _: (jnp.tanh(w @ z), None), y, None, length=2)[0], None),
        W @ x,
        jnp.stack([V, -V]),
    )[0],
    "no loop": lambda x: lax.scan(lambda y, w: (w @ y, None), W @ x, jnp.zeros((0, 6, 6)))[0],
    "power 0": lambda x: lax.integer_pow(W @ x, 0) + W @ x,
    "clamp between the image and a number": lambda x: lax.clamp(W @ x - 1, C[:6], W @ x + 1),
    "vmap": lambda x: jax.vmap(lambda row: jax.nn.relu(row @ x))(W),
}
X = RNG.uniform(0.1, 0.9, 16).astype(np.float32)


def bounds_of(function, ball, tighten):
    """The interval of each result, from the rows +1 and -1 on it."""
    graph = trace(function, jnp.asarray(X))
    margins = Margins(graph, jnp.asarray(X), ball, Propagation(tighten, chunk=4))
    (out,) = graph.outputs
    n = graph.shapes[out][0]
    rows = jnp.eye(n)
    return margins.least_of(rows, stop=not tighten), -margins.least_of(-rows, stop=not tighten)


def points(ball, n=500):
    """Random points, and corners, of ball and box."""
    moves = RNG.uniform(-1, 1, (n, 16))
    corners = np.sign(moves)
    moves = np.concatenate([moves, corners]).astype(np.float32)
    moves /= np.linalg.norm(moves, axis=1, keepdims=True) if isinstance(ball, L2Ball) else 1
    return np.clip(X + np.asarray(ball.eps) * moves, 0, 1)


@pytest.mark.usefixtures("unchecked")  # programs of one axis, without a state
@pytest.mark.parametrize("tighten", [False, True], ids=["intervals", "linear"])
@pytest.mark.parametrize("name", alternate(PROGRAMS))
def test_no_point_of_the_ball_is_outside_the_bounds(name, tighten):
    function = PROGRAMS[name]
    bounds = jax.jit(lambda ball: bounds_of(function, ball, tighten))
    for ball in (LinfBall(0.0), LinfBall(0.02), LinfBall(0.2), L2Ball(0.1)):
        low, high = bounds(ball)
        y = jax.vmap(function)(points(ball))
        assert (low <= y.min(0)).all(), ball
        assert (y.max(0) <= high).all(), ball
        assert np.isfinite(low).all()
        assert np.isfinite(high).all()


@pytest.mark.usefixtures("unchecked")  # programs of one axis, without a state
@pytest.mark.parametrize("name", alternate(PROGRAMS))
def test_of_a_single_point_the_bounds_are_its_value(name):
    low, high = jax.jit(lambda: bounds_of(PROGRAMS[name], LinfBall(0.0), True))()
    y = PROGRAMS[name](jnp.asarray(X))
    np.testing.assert_allclose(low, y, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(high, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "where", "gather", "padding", "average pooling"])
def test_of_an_affine_program_the_bounds_are_attained(name):
    function, eps = PROGRAMS[name], 0.05
    low, high = bounds_of(function, LinfBall(eps), True)
    jacobian = np.asarray(jax.jacobian(function)(jnp.asarray(X)))
    reach = np.abs(jacobian).sum(1) * eps
    np.testing.assert_allclose(low, function(X) - reach, atol=5e-4)
    np.testing.assert_allclose(high, function(X) + reach, atol=5e-4)


def test_two_layers_of_relu_have_the_bounds_of_crown_by_hand():
    """Zhang et al. (2018), arXiv:1811.00866, written out in NumPy for one hidden layer."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((8, 16), (8,), (3, 8), (3,))]
    w, b, v, c = (a.astype(np.float64) for a in weights)
    eps = 0.1

    def function(x):
        return weights[2] @ jax.nn.relu(weights[0] @ x + weights[1]) + weights[3]

    box = np.maximum(X - eps, 0), np.minimum(X + eps, 1)
    middle, reach = sum(box) / 2, (box[1] - box[0]) / 2
    z, r = w @ middle + b, np.abs(w) @ reach
    low, high = z - r, z + r
    assert ((low < 0) & (high > 0)).any()
    chord = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / (high - low)))
    below = np.where((low < 0) & (high > 0), (high > -low) * 1.0, chord)
    up, down = np.maximum(v, 0), np.minimum(v, 0)
    rows = up * below + down * chord
    constant = (down * np.where((low < 0) & (high > 0), -chord * low, 0.0)).sum(1)
    lower = (rows @ w) @ middle - np.abs(rows @ w) @ reach + rows @ b + c + constant
    bounds, _ = bounds_of(function, LinfBall(eps), True)
    np.testing.assert_allclose(bounds, lower, atol=1e-3)


@pytest.mark.parametrize("f", [jax.nn.logsumexp, jax.nn.softmax, jax.nn.log_softmax])
def test_bounds_of_softmax_are_little_wider_than_its_values(f):
    def function(x):
        return f((W @ x).reshape(2, 3), axis=1).ravel()

    ball = LinfBall(0.02)
    low, high = jax.jit(lambda ball: bounds_of(function, ball, True))(ball)
    y = jax.vmap(function)(points(ball))
    assert np.isfinite(high - low).all()
    assert (low <= y.min(0)).all()
    assert (y.max(0) <= high).all()
    assert ((high - low) < 1.8 * np.ptp(y, axis=0)).all()


def test_a_loop_has_the_bounds_of_its_turns_written_out():
    def written_out(x):
        y = W @ x
        for t, w in enumerate((V, V.T, -V)):
            y = y + 0.3 * jnp.tanh(w @ y + 0.1 * t)
        return y

    for ball in (LinfBall(0.05), L2Ball(0.2)):
        for one, other in zip(
            bounds_of(loop, ball, True), bounds_of(written_out, ball, True), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_of_a_loop_the_program_is_as_long_for_many_turns_as_for_few():
    def size(turns):
        items = jnp.broadcast_to(0.1 * V, (turns, *V.shape))

        def function(x):
            return lax.scan(lambda y, w: (y + jax.nn.relu(w @ y), None), W @ x, items)[0]

        lowered = jax.jit(lambda ball: bounds_of(function, ball, True)).lower(LinfBall(0.1))
        return len(lowered.as_text().splitlines())

    assert size(24) == size(3)


def test_bounds_are_no_wider_when_they_are_tightened():
    ball = LinfBall(0.05)
    for name in ("relu", "gelu", "loop", "conv2d", "layer norm"):
        (low, high), (wide_low, wide_high) = (
            jax.jit(bounds_of, static_argnums=(0, 2))(PROGRAMS[name], ball, tighten)
            for tighten in (True, False)
        )
        assert (high - low).mean() <= (wide_high - wide_low).mean() + 1e-4, name


def test_no_primitive_is_in_two_tables():
    tables = COPYING, SUMMING, SCALING, set(UNARY)
    assert sum(map(len, tables)) == len(set().union(*tables))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.where(x > 0, x, x[::-1]), "primitive select_n"),
        (masked_loop, "primitive scan"),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1,), (1,), [(1, 0)]),
         "primitive reduce_window_max"),
        (lambda x: x.astype(jnp.bfloat16), "got bfloat16 from convert_element_type"),
        (lambda x: lax.dot(W, x, preferred_element_type=jnp.bfloat16),
         "got bfloat16 from dot_general"),
    ],
    ids=["where, reversed", "a mask in a loop", "a window of padding", "bfloat16", "bfloat16 dot"],
)  # fmt: skip
def test_what_only_looks_like_a_known_form_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        trace(function, jnp.asarray(X))


@pytest.mark.parametrize("tighten", [False, True], ids=["intervals", "linear"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sqrt(x[:2] - X[:2]),
        lambda x: jnp.log(x[:2] - X[:2]),
        lambda x: 1 / (x[:2] - X[:2]),
        lambda x: lax.rsqrt(1e30 * (x[:2] - X[:2] + 0.05)),
    ],
    ids=["sqrt", "log", "1/z", "large numbers"],
)
def test_where_a_function_has_no_value_nothing_is_bounded(function, tighten):
    low, high = bounds_of(function, LinfBall(0.1), tighten)
    assert (low == -np.inf).all()
    assert (high == np.inf).all()


@pytest.mark.parametrize("n", [784, 3072, 12288])
def test_rounding_of_long_sums_is_counted(n):
    """Equal terms, whose roundings do not cancel, in every order that XLA has for them."""
    x, w = jnp.full(n, 0.1, jnp.float32), jnp.full((2, n), 0.013, jnp.float32)
    exact = n * float(x[0]) * float(w[0, 0])
    columns = w.T + 0.0  # a product of a vector with a matrix is one chain of additions
    margins = Margins(trace(lambda x: w @ x, x), x, LinfBall(0.0), Propagation())
    low, high = (sign * margins.least_of(sign * jnp.eye(2), stop=False)[0] for sign in (1, -1))
    sums = [exact, float((w @ x)[0]), *jax.vmap(lambda x: w @ x)(jnp.stack([x] * 64))[:, 0]]
    sums.append(float(jax.jit(lambda x, w: x @ w)(x, columns)[0]))
    assert low <= min(sums)
    assert max(sums) <= high
    assert high - low < 12 * sum_rounding(n) * exact  # of the network twice, and of the bound


def by_group(x, power=2, weights=1.0):
    """The moment of each of two groups, for each of its 8 entries."""
    return jnp.repeat(jnp.mean(weights * x.reshape(2, 8) ** power, 1), 8)


def own_norm(x):
    norm = eqx.tree_at(lambda n: (n.scale, n.shift), GroupNorm(4, groups=2), (C[:4], C[4:8]))
    return norm(x.reshape(2, 2, 4), None)[0].ravel()


# What the largest entry can be, whatever x is.
NORMALISED = {
    "group norm": (own_norm, np.tile(8**0.5 * np.abs(C[:4]) + np.abs(C[4:8]), 4)),
    "by rsqrt": (lambda x: x * lax.rsqrt(jnp.mean(x**2) + 1e-5), 4.0),
    "by division": (lambda x: -3 * x / jnp.sqrt(jnp.sum(x * x) + 1e-5), 3.0),
    "of a group": (lambda x: x / jnp.sqrt(by_group(x) + 1e-5), 8**0.5),
    "of entries that are copied": (
        lambda x: jnp.repeat(x, 2) * lax.rsqrt(jnp.mean(x**2) + 1e-5),
        4.0,
    ),
    "in another order": (lambda x: x[::-1] / jnp.sqrt(by_group(x)[::-1] + 1e-5), 8**0.5),
    "a scale within": (lambda x: (C / jnp.sqrt(by_group(x) + 1e-5)) * x, 8**0.5 * np.abs(C)),
}
NOT_NORMALISED = {
    "another's moment": lambda x: x * lax.rsqrt(jnp.mean((x + 1) ** 2) + 1e-2),
    "the other group's": lambda x: x * lax.rsqrt(by_group(x)[::-1] + 1e-2),
    "the other group's, in order": lambda x: x[::-1] * lax.rsqrt(by_group(x) + 1e-2),
    "another power": lambda x: x * lax.rsqrt(by_group(x, 4) + 1e-2),
    "negative weights": lambda x: x * lax.rsqrt(by_group(x, 2, -0.01) + 1.0),
    "a positive part": lambda x: x * lax.rsqrt(jax.nn.relu(by_group(x) + -0.1) + 1.0),
    "no constant": lambda x: x * lax.rsqrt(by_group(x) + 0.0),
    "no root": lambda x: x / (by_group(x) + 1e-2),
    "a scale of the root": lambda x: x / (C * jnp.sqrt(by_group(x) + 1e-2)),
}


def test_what_is_computed_of_whole_numbers_is_known():
    """JAX writes no activation of whole numbers, so their product is not looked for among them."""
    graph = trace(lambda x: x[2 * jnp.arange(3)], jnp.asarray(X))
    (out,) = graph.outputs
    assert graph.shapes[out] == (3,)


@pytest.mark.parametrize("tighten", [False, True], ids=["intervals", "linear"])
@pytest.mark.parametrize("name", NORMALISED)
def test_a_normalised_value_has_a_limit_whatever_goes_in(name, tighten):
    function, limit = NORMALISED[name]

    def large(x):
        return function(100 * (x - 0.5))

    low, high = jax.jit(lambda: bounds_of(large, LinfBall(1.0), tighten))()
    assert (-1.01 * limit <= low).all()
    assert (high <= 1.01 * limit).all()
    # Of an image with one bright or dark pixel that pixel's value is near the limit.
    single = np.concatenate([0.5 + np.eye(16) / 2, 0.5 - np.eye(16) / 2]).astype(np.float32)
    y = jax.vmap(large)(np.concatenate([points(LinfBall(1.0)), single]))
    assert (low <= y.min(0)).all()
    assert (y.max(0) <= high).all()


@pytest.mark.parametrize("name", NOT_NORMALISED)
def test_what_only_looks_like_a_normalised_value_has_no_limit(name):
    graph = trace(NOT_NORMALISED[name], jnp.asarray(X))
    limits = [node.rule.limit for node in graph.nodes if isinstance(node.rule, Product)]
    assert len(limits) == 1
    assert limits[0] is None or np.isinf(limits[0]).all()


@pytest.mark.parametrize(
    "norm",
    [
        eqx.nn.GroupNorm(2, 4),
        eqx.nn.LayerNorm((4, 4)),
    ],
    ids=["groups", "layer"],
)
def test_norms_of_equinox_have_the_limit(norm):
    """They compute the mean twice: once for the variance."""
    graph = trace(lambda x: norm(x.reshape(4, 4)), jnp.asarray(X))
    (limit,) = (node.rule.limit for node in graph.nodes if isinstance(node.rule, Product))
    np.testing.assert_allclose(limit, 4.0 if isinstance(norm, eqx.nn.LayerNorm) else 8**0.5, 1e-4)


def test_what_is_written_twice_is_one_operation():
    graph = trace(lambda x: jnp.tanh(W @ x) * jnp.tanh(W @ x) + C[:6] * 2, jnp.asarray(X))
    assert len([n for n in graph.nodes if isinstance(n.rule, Unary)]) == 2  # tanh, and a square


def test_each_entry_by_itself_may_be_normalised():
    """x / sqrt(1 + x^2), and no matrix of a million squared weights for it."""
    graph = trace(lambda x: x / jnp.sqrt(1 + x**2), jnp.asarray(X))
    (limit,) = (node.rule.limit for node in graph.nodes if isinstance(node.rule, Product))
    np.testing.assert_allclose(limit, 1.0, 1e-4)
    graph = trace(lambda x: x / jnp.sqrt(1 + x**2), jnp.zeros(2**20))
    assert [n.rule.limit for n in graph.nodes if isinstance(n.rule, Product)] == [None]


def test_a_variance_is_not_below_its_constant():
    """So a normalisation's bounds are numbers, whatever rounding may take off the variance."""

    def normalised(x):
        return (2 * x) * lax.rsqrt(4 * jnp.mean(x**2) + 4e-5)

    low, high = bounds_of(lambda x: normalised(1e4 * (x - 0.5)), LinfBall(0.5), False)
    assert (low >= -1.01e4 * 0.5 / 1e-5**0.5).all()
    assert (high <= 1.01e4 * 0.5 / 1e-5**0.5).all()


def test_terms_of_both_signs_may_be_rounded_below_zero():
    add = Affine(lambda y: jnp.sum(y, keepdims=True), lambda r: jnp.sum(r, keepdims=True))
    ends = jnp.array([1e7, 0.5, -1e7], jnp.float32)
    assert add.forward(Interval(ends, ends)).interval.low[0] < -1
    positive = jnp.abs(ends)
    assert add.forward(Interval(0 * positive, positive)).interval.low[0] == 0


def test_what_does_not_depend_on_the_image_has_nothing_to_prove():
    with pytest.raises(ValueError, match="do not depend on the image"):
        trace(lambda x: jnp.ones(3), jnp.asarray(X))


def test_a_nan_is_no_bound_of_a_normalised_value():
    def normalised(scale):
        return lambda x: scale * (W @ x) * lax.rsqrt(jnp.mean((scale * (W @ x)) ** 2) + 1e-5)

    low, high = bounds_of(normalised(jnp.nan), LinfBall(0.1), False)
    assert not (low > -1e30).any()
    assert not (high < 1e30).any()
    assert np.isfinite(bounds_of(normalised(1.0), LinfBall(0.1), False)).all()


def test_a_nan_is_no_bound():
    low, high = bounds_of(lambda x: (W * jnp.nan) @ jax.nn.relu(x), LinfBall(0.1), True)
    assert not (low > -1e30).any()
    assert not (high < 1e30).any()
