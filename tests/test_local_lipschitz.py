"""Intervals of gradients, and Lipschitz constants: never exceeded between any two points."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    LinearLogits,
    alternate,
    digits,
    predictor_of,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)
from test_relaxation import ELEMENTWISE, PROGRAMS, W, X as IMAGE, points

from odejax import L2Ball, LinfBall, Predictor
from odejax.attacks import PGD
from odejax.certificates import LinearRelaxation, LipschitzMargin, LocalLipschitz
from odejax.evaluation import bracket, certified_radii
from odejax.relaxation import Margins, Propagation, trace
from odejax.relaxation.elementwise import of_flow_map
from odejax.relaxation.gradients import gradients, slopes
from odejax.solvers import interval_flow_map

KEY = jax.random.key(4)
RNG = np.random.default_rng(0)
X = jnp.asarray(IMAGE)
# Whose derivatives are not JAX's.
DERIVATIVES = {"custom_vjp": lambda x: jnp.sin(W @ x)}


# -- intervals of gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ELEMENTWISE, "flow map on an interval"])
def test_slopes_enclose_the_derivative(name):
    if name in ELEMENTWISE:
        function, f, domain = ELEMENTWISE[name]
    else:
        f, domain = interval_flow_map(lambda y, gamma: jnp.sin(y) - gamma, 1.0, -4.0, 4.0), "any"
        function = of_flow_map(f)
    ends = np.sort(np.random.default_rng(1).uniform(-4, 4, size=(2, 300)), axis=0)
    ends[1, :50] = ends[0, :50] + 1e-3
    if domain != "any":
        ends = np.sort(np.abs(ends) + 0.01, axis=0)
    if domain == "negative":
        ends = -ends[::-1]
    low, high = ends.astype(np.float32)
    z = (low + (high - low) * np.linspace(0.001, 0.999, 201)[:, None]).astype(np.float32)
    derivative = np.asarray(jax.vmap(jax.vmap(jax.grad(f)))(z))
    least, most = slopes(function, jnp.asarray(low), jnp.asarray(high))
    assert (least <= derivative).all()
    assert (derivative <= most).all()
    if name != "flow map on an interval":
        near = np.s_[: len(z), :50]
        spread = derivative[near].max(0) - derivative[near].min(0)
        size = 1 + np.abs(derivative[near]).max(0)
        # Narrow intervals have narrow slopes, where no kink is in them.
        assert (np.asarray(most - least)[:50] <= 3 * spread + 1e-2 * size).all()


def test_a_slope_may_be_unbounded():
    sqrt, reciprocal = (ELEMENTWISE[name][0] for name in ("sqrt", "1/z, z > 0"))
    least, most = slopes(sqrt, jnp.asarray(0.0), jnp.asarray(4.0))
    assert (least, most) == (pytest.approx(0.25, rel=1e-4), np.inf)
    least, most = slopes(reciprocal, jnp.asarray(-1.0), jnp.asarray(1.0))
    assert least == -np.inf
    assert most >= 0


def gradients_of(function, ball):
    """The interval of each result's gradient, and what float32 may take the result off."""
    graph = trace(function, X)
    margins = Margins(graph, X, ball, Propagation(chunk=4))
    (n,) = graph.shapes[graph.outputs[0]]
    found = gradients(graph, margins.bounds, jnp.eye(n))
    return *found.rows[0], found.lost


@pytest.mark.usefixtures("unchecked")  # programs of one axis, without a state
@pytest.mark.parametrize("name", alternate(PROGRAMS))
def test_no_difference_is_outside_that_of_the_gradients(name):
    """f(x') - f(x'') lies in sum_i [low_i, high_i] (x' - x'')_i; no derivative is taken."""
    function = PROGRAMS[name]
    intervals = jax.jit(lambda ball: gradients_of(function, ball))
    for ball in (LinfBall(0.02), LinfBall(0.1)):
        low, high, lost = (np.asarray(v, np.float64) for v in intervals(ball))
        assert np.isfinite(low).all()
        assert np.isfinite(high).all()
        first = points(ball, 250)
        second = first[RNG.permutation(500)].copy()
        single = RNG.integers(16, size=250)
        second[:250] = first[:250]  # nearer to the image by one pixel
        second[np.arange(250), single] = np.asarray(X)[single]
        moves = first.astype(np.float64) - second
        y, z = (np.asarray(jax.vmap(function)(p), np.float64) for p in (first, second))
        ends = np.stack([moves[:, None] * low, moves[:, None] * high])
        assert (ends.min(0).sum(-1) - 2 * lost <= y - z).all(), ball
        assert (y - z <= ends.max(0).sum(-1) + 2 * lost).all(), ball
    # Of a single point they are the derivatives.
    low, high, lost = map(np.asarray, intervals(LinfBall(0.0)))
    exact = np.asarray(jax.jacobian(DERIVATIVES.get(name, function))(X))
    size = np.abs(exact).max()
    assert (low <= exact + 1e-5 * size).all()
    assert (exact <= high + 1e-5 * size).all()
    if name != "max pooling":  # where padding repeats an entry of its window
        assert (high - low <= 5e-3 * size).all()
    assert (lost < 1e-2).all()


@pytest.mark.parametrize("name", ["linear", "relu", "division", "layer norm", "loop", "softmax"])
def test_float32_takes_no_more_off_than_is_stated(name):
    """Against NumPy's float64 of the same weights, through JAX with float64 enabled."""
    ball, function = LinfBall(0.1), PROGRAMS[name]
    *_, lost = jax.jit(lambda ball: gradients_of(function, ball))(ball)
    at = points(ball, 500)
    single = np.asarray(jax.jit(jax.vmap(function))(at), np.float64)
    with jax.enable_x64(True):
        double = np.asarray(jax.vmap(function)(jnp.asarray(at, jnp.float64)))
        assert double.dtype == np.float64
    off = np.abs(single - double).max(0)
    assert (off <= lost).all()
    if name in ("linear", "relu", "loop"):
        assert (np.asarray(lost) <= 1000 * off.max()).all()


# -- local constants -------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", [LinfBall(0.1), L2Ball(0.3)])
def test_of_a_linear_network_the_constants_are_exact(ball):
    weight = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    network = LinearLogits(jnp.asarray(weight), jnp.asarray([3.0, 0.0, 0.0, 0.5]))
    x, label = jnp.full((1, 6, 1), 0.5), 2
    constants = LocalLipschitz().constants(network, x, label, ball)
    apart = weight.astype(np.float64)[label] - weight
    exact = np.linalg.norm(apart, ord=1 if isinstance(ball, LinfBall) else 2, axis=1)
    np.testing.assert_allclose(constants, exact, rtol=2e-5, atol=1e-12)
    assert (constants >= exact).all()
    logits = np.asarray(network(x), np.float64)
    margins = np.delete(logits.max() - logits, logits.argmax())
    apart = weight.astype(np.float64)[logits.argmax()] - np.delete(weight, logits.argmax(), axis=0)
    lengths = np.linalg.norm(apart, ord=1 if isinstance(ball, LinfBall) else 2, axis=1)
    for eps in (0.01, 10.0):
        around = type(ball)(eps)
        result = LocalLipschitz()(network, x, int(logits.argmax()), around, key=KEY)
        expected = min(eps, (margins / lengths).min())
        assert expected * (1 - 1e-3) <= float(result.radius) <= expected * (1 + 1e-7)
        assert bool(result.certified) == (eps < 1)


@pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
@pytest.mark.parametrize(
    "name", ["mlp", "nmode", pytest.param("ResNet BatchNorm", marks=pytest.mark.slow)]
)
def test_no_two_points_exceed_the_constants(name, ball_type):
    trained = {"mlp": trained_mlp, "nmode": trained_nmode}
    network = trained[name]() if name in trained else predictor_of(name)
    x = jnp.asarray(digits("test").pixels[0])
    moves = RNG.choice([-1.0, 1.0], (1001, 8, 8, 1)).astype(np.float32)
    moves[::3] = RNG.uniform(-1, 1, moves[::3].shape)

    @eqx.filter_jit
    def one(network, x, eps):
        ball = ball_type(eps)
        label = jnp.argmax(network(x))
        around = jax.vmap(lambda move: ball.project(x + eps * move, x))(jnp.asarray(moves))
        logits = jax.vmap(network)(around)

        def margins(x):
            logits = network(x)
            return logits[label] - logits

        steepest = jax.vmap(jax.vmap(ball.dual_norm))(jax.vmap(jax.jacobian(margins))(around[:100]))
        falls = jnp.abs(jnp.diff(logits[:, label, None] - logits, axis=0))
        lengths = jax.vmap(ball.norm)(jnp.diff(around, axis=0))
        constants = LocalLipschitz().constants(network, x, label, ball)
        return constants, falls, lengths, steepest.max(0)

    before = np.zeros(10)
    for eps in (1e-4, 0.05) if ball_type is LinfBall else (1e-3, 0.3):
        constants, falls, lengths, steepest = map(np.asarray, one(network, x, np.float32(eps)))
        assert np.isfinite(constants).all()
        assert (falls <= constants * lengths[:, None] + 1e-4).all()
        assert (steepest <= constants * (1 + 1e-5)).all()
        assert (constants >= before).all()
        before = constants
        if eps < 0.01:
            assert (constants <= 1.5 * steepest + 1e-6).all()


def test_it_proves_nothing_that_crown_does_not():
    """On these digits, so that its docstring may say so; and it is no certificate of nothing."""
    data = digits("test", 60)
    for ball in (LinfBall(0.02), L2Ball(0.1)):
        local, crown = (
            certified_radii(trained_mlp(), *data, ball, certificate, key=0) >= np.asarray(ball.eps)
            for certificate in (LocalLipschitz(), LinearRelaxation())
        )
        assert local.mean() > 0.7
        assert not (local & ~crown).any()


def test_a_constant_that_is_not_known_proves_nothing():
    """The root has no bounded slope at 0."""

    def network(x):
        a, b = x[0, 0, 0], x[0, 1, 0]
        return jnp.stack([1 + jnp.sqrt(a), b])

    x, ball = jnp.asarray([0.05, 0.1]).reshape(1, 2, 1), LinfBall(0.1)
    assert LocalLipschitz().constants(network, x, 0, ball).tolist() == [0.0, np.inf]
    result = LocalLipschitz()(network, x, 0, ball, key=KEY)
    assert (float(result.radius), bool(result.certified)) == (0.0, False)
    with pytest.raises(ValueError, match="no bounds are known for the primitive erf_inv"):
        LocalLipschitz().constants(lambda x: jax.lax.erf_inv(x.ravel()), x, 0, ball)
    with pytest.raises(ValueError, match="labels must be classes 0 to 1; got 2"):
        LocalLipschitz().constants(network, x, 2, ball)
    with pytest.raises(ValueError, match=r"one image \(h, w, c\); got shape \(2,\)"):
        LocalLipschitz().constants(network, x.ravel(), 0, ball)


# -- constants of whole networks -------------------------------------------------------------------


@pytest.mark.slow
def test_a_lipschitz_net_has_a_constant_for_each_pair_of_classes():
    net, x = trained_lipschitz(), jnp.asarray(digits("test").pixels[3])
    *layers, head = net.model.layers.layers
    rows = np.asarray(head.operator.freeze().matrix, np.float64)
    body = np.prod([float(one.lipschitz_bound()) for one in layers])
    whole = float(net.model.lipschitz_bound())
    pairs = np.stack([np.asarray(net.model.margin_bounds(y)) for y in jnp.arange(10)])
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.testing.assert_allclose(pairs, np.minimum(body * apart, 2**0.5 * whole), rtol=1e-5)
    different = pairs[~np.eye(10, dtype=bool)]
    assert different.max() > 1.02 * different.min()
    assert different.min() < 0.95 * 2**0.5 * whole
    logits = np.asarray(net(x), np.float64)
    label = logits.argmax()
    radii = np.delete((logits[label] - logits) / np.maximum(pairs[label], 1e-9), label)
    radius = float(LipschitzMargin()(net, x, 0, L2Ball(0.1), key=KEY).radius)
    assert 0.95 * radii.min() < radius < radii.min()


class Difference(eqx.Module):
    """Two pixels as logits, and a constant of theirs that is three times too large."""

    def __call__(self, x, state, *, key=None):
        return jnp.ravel(x), state

    def lipschitz_bound(self):
        return jnp.asarray(3.0)

    def float32_error(self, x, radius):
        return jnp.zeros_like(radius)


def test_a_bracket_has_the_larger_of_the_radii_of_two_certificates():
    """One of them has a radius for every image, the other one the ball's eps or nothing."""
    network = Predictor(Difference(), eqx.nn.State(Difference()))
    first = np.array([0.52, 0.6, 0.9], np.float32)
    images = np.stack([first, np.full(3, 0.4, np.float32)], axis=1).reshape(3, 1, 2, 1)
    labels, ball = np.zeros(3, int), L2Ball(0.1)
    certificates = {"Lipschitz": LipschitzMargin(), "CROWN": LinearRelaxation()}
    settings = {"attacks": PGD(3), "certificates": certificates, "key": 0, "flag_images": 0}
    result = bracket(network, images, labels, ball, **settings)
    alone = [
        certified_radii(network, images, labels, ball, one, key=0) for one in certificates.values()
    ]
    assert (alone[0] < alone[1])[1]
    assert (alone[0] > alone[1])[[0, 2]].all()
    np.testing.assert_array_equal(result.radius, np.maximum(*alone))
    assert result.certified_correct.tolist() == [False, True, True]
    assert result.certified == pytest.approx(2 / 3)
