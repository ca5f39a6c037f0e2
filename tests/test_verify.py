"""Kinks and branch and bound: against dense grids, where the least margin is known."""

import itertools
from collections.abc import Callable
from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import alternate, digits, predictor_of, trained_mlp

from odejax import L2Ball, LinfBall, Predictor, predict
from odejax.attacks import APGD, AttackResult, Restarts, dlr
from odejax.certificates import LinearRelaxation
from odejax.evaluation import certified_radii, verify
from odejax.evaluation.verify import _by_kinks
from odejax.models import DenseODENet
from odejax.relaxation import Kinks, Margins, Propagation, kinks_of, trace, with_kinks
from odejax.relaxation.elementwise import LEAKY

EPS = 0.4
X = jnp.asarray([0.45, 0.6]).reshape(1, 2, 1)


class Tiny(eqx.Module):
    """Of two pixels, whose grids are dense: four kinds of kinks, or blocks in a scan."""

    first: jax.Array
    blocks: jax.Array
    last: jax.Array
    scanned: bool = eqx.field(static=True)

    def __call__(self, x):
        y = self.first @ jnp.append(x.ravel(), 1.0)
        if self.scanned:
            y, _ = jax.lax.scan(lambda y, w: (y + w @ jax.nn.relu(y - 0.1), None), y, self.blocks)
        else:
            y = jax.nn.relu(self.blocks[0] @ y)
            y = self.blocks[1] @ jnp.concatenate([jnp.abs(y[:3] - 0.2), y[3:]])
            y = jnp.maximum(y, y[::-1]) + jax.nn.leaky_relu(self.blocks[2] @ y, 0.1)
        return self.last @ y


def tiny(seed, scanned):
    rng = np.random.default_rng(seed)
    shapes = (6, 3), (3, 6, 6), (3, 6)
    return Tiny(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes), scanned)


@eqx.filter_jit
def grid(net, ball):
    """The points of a grid in ball and box, and the logits there."""
    moves = jnp.linspace(-ball.eps, ball.eps, 201)
    points = X + jnp.stack(jnp.meshgrid(moves, moves), -1).reshape(-1, 1, 2, 1)
    inside = jax.vmap(lambda p: ball.norm(p - X) <= ball.eps)(points)
    points = jnp.where(inside[:, None, None, None], jnp.clip(points, 0, 1), X)
    return points, jax.vmap(net)(points)


def least_margin(net, ball, label):
    _, logits = map(np.asarray, grid(net, ball))
    return (logits[:, label] - np.delete(logits, label, axis=1).max(1)).min()


# -- kinks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [-1.0, 0.0, 0.3])
def test_every_tilt_is_a_line_below_a_kink(a):
    low, high = np.sort(np.random.default_rng(0).normal(size=(2, 200)), axis=0).astype(np.float32)
    z = low + (high - low) * np.linspace(0, 1, 101)[:, None]
    for tilt in (-1.0, 0.0, 0.4, 1.0, 2.0):  # beyond its interval, too
        slope, constant, *_ = LEAKY(a).lines(low, high, tilt)
        assert (slope * z + constant <= np.maximum(z, a * z) + 1e-6).all()
    slopes = [LEAKY(a).lines(low, high, tilt).low_slope for tilt in (0.0, 1.0)]
    crossing = (low < 0) & (high > 0)
    np.testing.assert_allclose(np.stack(slopes)[:, crossing].min(1), [a, 1.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("ball", [LinfBall(EPS), L2Ball(EPS)])
def test_any_tilts_and_multipliers_bound_a_subdomain(ball, scanned):
    """A subdomain is where some operands of kinks have the signs that they have at a point."""
    rng = np.random.default_rng(1)
    net = tiny(3, scanned)
    points, logits = grid(net, ball)
    graph = trace(net, X)
    margins = Margins(graph, X, ball, Propagation())
    start = kinks_of(graph, margins.bounds)

    @jax.vmap
    def operands(x):
        """Of all kinks at one point: the ends of their intervals there."""
        at = Margins(graph, x, type(ball)(0.0), Propagation(tighten=False))
        return kinks_of(graph, at.bounds)

    exact = operands(points)
    assert (exact.high - exact.low < 1e-2).all()
    rows = jnp.eye(3) - jnp.roll(jnp.eye(3), 1, axis=0)
    at = rng.integers(len(points), size=40)
    signs = jnp.sign(exact.low[at]) * rng.integers(0, 2, (40, *start.low.shape))
    signs = signs.at[:20].set(jnp.sign(exact.low[at[:20]]))  # of all kinks: nothing is relaxed
    kinks = Kinks(
        low=jnp.where(signs > 0, jnp.maximum(start.low, 0), start.low),
        high=jnp.where(signs < 0, jnp.minimum(start.high, 0), start.high),
        tilt=jnp.asarray(rng.uniform(-0.5, 1.5, signs.shape), jnp.float32),
        multiplier=jnp.asarray(0.3 * rng.normal(size=signs.shape), jnp.float32),
    )

    @jax.jit
    @jax.vmap
    def bounds(kinks):
        """As they were drawn, of any sign and size; and the best on the way uphill."""
        ascended, _ = jax.vmap(lambda row: margins.ascend(row, kinks, 30))(rows)
        return margins.least(*margins.linear(rows, kinks)), ascended

    drawn, ascended = map(np.asarray, bounds(kinks))
    # What is within rounding of a kink belongs to both sides.
    fits = (signs[:, None] * exact.low >= -1e-4) & (signs[:, None] * exact.high >= -1e-4)
    true = np.stack([np.asarray(logits[inside.all(1)] @ rows.T).min(0) for inside in fits])
    assert (drawn <= true + 1e-4).all()
    assert (ascended <= true + 1e-4).all()
    lost, lost_by_chance = ((true - some)[:20][true[:20] < 0] for some in (ascended, drawn))
    assert np.median(lost) < 0.1 * np.median(lost_by_chance)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_chosen_at_kinks_is_put_there(scanned):
    net, ball = tiny(0, scanned), LinfBall(EPS)
    graph = trace(net, X)
    margins = Margins(graph, X, ball, Propagation())
    start = kinks_of(graph, margins.bounds)
    assert start.low.shape == ((18,) if scanned else (6 + 3 + 6 + 6,))
    same = kinks_of(graph, with_kinks(graph, margins.bounds, start))
    np.testing.assert_array_equal(same.low, start.low)
    np.testing.assert_array_equal(same.high, start.high)
    plain, chosen = (margins.linear(jnp.eye(3), kinks) for kinks in (None, start))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), plain, chosen)


# -- branch and bound ------------------------------------------------------------------------------


class Nothing(eqx.Module):
    """An attack that changes nothing: what is broken, branch and bound has broken."""

    def __call__(self, logits_fn, x, y, ball, *, key):
        return AttackResult(x, jnp.asarray(False), jnp.asarray(1.0), jnp.asarray(1))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("ball_type", alternate([LinfBall, L2Ball]))
def test_it_agrees_with_a_dense_grid(ball_type, scanned):
    images = np.asarray(X)[None]
    decided, split = [], 0
    for seed, eps in itertools.product(range(10), (0.25, EPS)):
        net, ball = tiny(seed, scanned), ball_type(eps)
        label = int(net(X).argmax())
        least = least_margin(net, ball, label)
        result = verify(
            net, images, np.array([label]), ball, attack=Nothing(), time_limit=20.0, key=0
        )
        (status,), (bound,) = result.status, result.bound
        assert bound <= least + 1e-5
        if abs(least) > 5e-3:  # else the grid is too coarse
            assert status == ("proven" if least > 0 else "broken"), (seed, eps, least)
            decided.append(status)
        if status == "broken":
            assert predict(net, result.x_adv, key=0).argmax() != label
            assert ball.contains(jnp.asarray(result.x_adv[0]), jnp.asarray(X))
        split += int(result.subdomains[0] > 2)
    assert len(decided) >= 18
    assert 5 <= decided.count("proven") < len(decided)
    assert split >= (3 if ball_type is LinfBall else 1)


def test_it_proves_what_linear_relaxation_leaves_open():
    data, ball = digits("test", 40), LinfBall(0.06)
    net = trained_mlp()
    result = verify(net, *data, ball, time_limit=20.0, key=0, progress=False)
    crown = certified_radii(net, *data, ball, LinearRelaxation(), key=0) > 0
    proven = result.status == "proven"
    assert (proven >= crown).all()
    assert proven.sum() > crown.sum()
    assert (result.status != "open").all()
    assert result.certified == result.attacked == proven.mean()
    assert (result.bound[proven] > 0).all()
    # A proof holds against other attacks, and what is broken is so by its own image.
    strong = Restarts(APGD(loss=dlr), 3)
    x, y = data.pixels[proven], data.labels[proven]
    attacked = jax.vmap(lambda x, y: strong(net, x, y, ball, key=jax.random.key(1)))(x, y)
    assert not attacked.success.any()
    assert ((predict(net, result.x_adv, key=0).argmax(1) == data.labels) == proven).all()
    assert "certified <= robust accuracy <=" in repr(result)


def test_an_image_is_open_when_its_time_is_over():
    data, ball = digits("test", 40), LinfBall(0.06)
    crown = certified_radii(trained_mlp(), *data, ball, LinearRelaxation(), key=0) > 0
    result = verify(trained_mlp(), *data, ball, time_limit=1e-9, key=0)
    assert ((result.status == "proven") == crown).all()
    is_open = result.status == "open"
    assert is_open.any()
    assert (result.bound[is_open] <= 0).all()
    assert (result.bound[is_open] > -20).all()
    assert (result.subdomains[is_open] == 0).all()


def test_a_tie_is_neither_proven_nor_broken():
    """The prediction is the first of equal logits: no image has another one, and none is proven."""

    def network(x):
        y = jax.nn.relu(x.ravel() - 0.5)
        return jnp.stack([y[0], y[0], -1 - y[1]])

    images = np.asarray(X)[None]
    result = verify(network, images, np.array([0]), LinfBall(0.1), time_limit=20.0, key=0)
    assert result.status.tolist() == ["open"]
    assert -1e-3 < result.bound[0] <= 0
    assert (result.x_adv == images).all()


def test_what_it_does_not_split_is_refused():
    data = digits("test", 2)
    with pytest.raises(ValueError, match=r'split="kinks" splits kinks.*not affine: Curved; split='):
        verify(lambda x: jnp.tanh(x.ravel()[:10]), *data, LinfBall(0.1), split="kinks", key=0)
    with pytest.raises(ValueError, match="split must be auto, kinks or inputs; got 'pixels'"):
        verify(trained_mlp(), *data, LinfBall(0.1), split="pixels", key=0)
    with pytest.raises(ValueError, match="draws noise"):
        verify(predictor_of("EnResNet"), *data, LinfBall(0.1), key=0)
    with pytest.raises(ValueError, match="time_limit must be finite and positive; got 0"):
        verify(trained_mlp(), *data, LinfBall(0.1), time_limit=0.0, key=0)


# -- splitting inputs ------------------------------------------------------------------------------


class Curved(eqx.Module):
    """Of two pixels: products, and functions that are smooth."""

    first: jax.Array
    last: jax.Array

    def __call__(self, x):
        y = jnp.tanh(self.first @ jnp.append(x.ravel(), 1.0))
        return self.last @ (y[:3] * y[3:] + jax.nn.sigmoid(2 * y[::2]))


def curved(seed):
    rng = np.random.default_rng(seed)
    return Curved(*(jnp.asarray(2 * rng.normal(size=s), jnp.float32) for s in ((6, 3), (3, 3))))


def neural_ode(seed):
    """A neural ODE on a grid, with weights three times as large as its first ones."""
    make = eqx.nn.make_with_state(DenseODENet)
    solver = diffrax.Heun()
    net, state = make((1, 2, 1), 3, width=4, solver=solver, key=jax.random.key(seed))
    larger = jax.tree.map(lambda a: 3 * a if eqx.is_inexact_array(a) else a, net)
    return Predictor(eqx.tree_at(lambda m: m.ode, larger, net.ode.on_grid(2)), state)


class Raised(eqx.Module):
    """A network with a constant added to one of its logits."""

    net: Callable
    label: jax.Array
    by: jax.Array

    def __call__(self, x):
        return self.net(x) + self.by * jax.nn.one_hot(self.label, 3)


@pytest.mark.parametrize("ball_type", alternate([LinfBall, L2Ball]))
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (curved, 0.02),
        pytest.param(neural_ode, 0.02, marks=pytest.mark.slow),
        (partial(tiny, scanned=True), 0.2),
    ],
)
def test_splitting_inputs_agrees_with_a_dense_grid(make, size, ball_type):
    """With a least margin that is just above 0 in a ball, and just below, by more than the grid."""
    images, ball, split = np.asarray(X)[None], ball_type(EPS), 0
    for seed, margin in itertools.product(range(5), (size, -size)):
        net = eqx.filter_jit(make)(seed)
        label = seed % 3
        least = least_margin(net, ball, label)
        net = Raised(net, jnp.asarray(label), jnp.asarray(margin - least))
        labels = np.array([label])
        result = verify(net, images, labels, ball, split="inputs", attack=Nothing(), key=0)
        assert result.status.tolist() == ["proven" if margin > 0 else "broken"], seed
        assert result.bound[0] <= margin + 1e-5
        if margin < 0:
            assert predict(net, result.x_adv, key=0).argmax() != label
            assert ball.contains(jnp.asarray(result.x_adv[0]), jnp.asarray(X))
        split += int(margin > 0 and result.subdomains[0] > 2)
    assert split >= 3


def test_what_is_split_is_chosen_by_the_network():
    kinks, smooth = tiny(0, True), curved(0)
    assert _by_kinks("auto", kinks, X)
    assert _by_kinks("kinks", kinks, X)
    assert not _by_kinks("inputs", kinks, X)
    assert not _by_kinks("auto", smooth, X)


def test_a_pixel_whose_line_is_flat_is_cut_too():
    """By slopes alone the second pixel would be cut for ever: those in the first are 0."""

    def network(x):
        away = x.ravel() - X.ravel()
        u, v = away[0], away[1]
        rest = 4 * u**2 - 7.8 * (1 - jnp.cos(u)) + 1e-3 * v
        return jnp.stack([rest + 0.05, jnp.zeros(())])

    result = verify(network, np.asarray(X)[None], np.array([0]), LinfBall(EPS), key=0)
    assert result.status.tolist() == ["proven"]
    assert 2 < result.subdomains[0] < 200


def test_cells_beyond_the_ball_are_not_looked_at():
    """The margin is -1/2 in a corner of the box around the ball, and flat there."""
    settings = {"attack": Nothing(), "time_limit": 5.0, "key": 0}

    def network(x):
        bumps = jax.nn.sigmoid(30 * ((x - X).ravel() / 0.2 - 0.72))
        return jnp.stack([0.5 - bumps[0] * bumps[1], jnp.zeros(())])

    result = verify(network, np.asarray(X)[None], np.array([0]), L2Ball(0.2), **settings)
    assert result.status.tolist() == ["proven"]
    assert 0 < result.bound[0] <= 0.5 - 0.16
    assert result.subdomains[0] > 2
    corner = verify(network, np.asarray(X)[None], np.array([0]), LinfBall(0.2), **settings)
    assert corner.status.tolist() == ["broken"]


# -- float64 ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_float64_decides_what_the_rounding_of_float32_leaves_open():
    """Large numbers that cancel: float32 rounds x + 1e4 to a multiple of 1e-3, down at this x."""

    def network(x, shift):
        a, b = x[0, 0, 0], x[0, 1, 0]
        return jnp.stack([jax.nn.relu(a + 1e4) - 1e4 + 1e-5, jax.nn.relu(a) - shift * b])

    images, labels, ball = np.array([0.4496, 0.6]).reshape(1, 1, 2, 1), np.array([0]), LinfBall(0.1)
    settings = {"attack": Nothing(), "time_limit": 2.0, "key": 0}
    for shift, in_float32 in ((1e-2, "open"), (0.0, "broken")):
        shifted = partial(network, shift=shift)
        single = verify(shifted, images, labels, ball, **settings)
        assert single.status.tolist() == [in_float32]
        assert single.x_adv.dtype == np.float32
        with jax.enable_x64(True):
            double = verify(shifted, images, labels, ball, **settings)
        assert double.status.tolist() == ["proven"]
        assert double.x_adv.dtype == np.float64
        np.testing.assert_array_equal(double.x_adv, images)
        assert 0 < double.bound[0] <= 1e-5 + 0.5 * shift + 1e-9


@pytest.mark.slow
def test_a_network_of_float32_is_verified_in_float64():
    data, ball = digits("test", 20), LinfBall(0.06)
    single = verify(trained_mlp(), *data, ball, time_limit=20.0, key=0)
    with jax.enable_x64(True):
        images = data.pixels.astype(np.float64)
        double = verify(trained_mlp(), images, data.labels, ball, time_limit=20.0, key=0)
    np.testing.assert_array_equal(double.status, single.status)
    proven = double.status == "proven"
    assert 0 < proven.sum() < 20
    assert (double.bound[proven] > 0).all()
