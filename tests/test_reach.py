"""The geometry of attacks that look for the nearest image: moves, dual norms, directions."""

import itertools

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from scipy.stats import beta, kstest

from odejax import L2Ball, LinfBall

SHAPE = (3, 2, 1)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
pixel = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
slope = st.one_of(st.just(0.0), st.floats(2**-10, 4, width=32), st.floats(-4, -(2**-10), width=32))


@eqx.filter_jit
def reach(ball_type, x, w, gap):
    return ball_type(0.0).reach(x, w, gap)


def room(x, w, gap):
    """How far each pixel can go in the direction that helps, in float64."""
    return np.where(w * gap > 0, 1.0 - x, x) * (w != 0)


def smallest_linf(x, w, gap):
    """The linear program: min t, <w, d> = gap, |d_i| <= t, 0 <= x + d <= 1."""
    n = len(x)
    sides = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
    bounds = [*zip(-x, 1 - x, strict=True), (0, None)]
    solved = linprog([*np.zeros(n), 1], sides, np.zeros(2 * n), [[*w, 0]], [gap], bounds)
    assert solved.success
    return solved.fun


def smallest_l2(x, w, gap):
    """The best of all choices of pixels at their bound, the others sharing the rest along w."""
    most, best = room(x, w, gap), np.inf
    for bound in itertools.product([False, True], repeat=len(x)):
        at_bound = np.asarray(bound)
        rest = abs(gap) - np.sum((abs(w) * most)[at_bound])
        steep = np.sum(w[~at_bound] ** 2)
        if steep == 0 and abs(rest) > 1e-12:
            continue
        d = np.where(at_bound, most, abs(w) * (rest / steep if steep else 0.0))
        if (d <= most + 1e-12).all() and (d >= -1e-12).all():
            best = min(best, np.linalg.norm(d))
    return best


@each_ball
@hypothesis.given(
    x=arrays(np.float32, SHAPE, elements=pixel),
    w=arrays(np.float32, SHAPE, elements=slope),
    part=st.floats(-0.99, 0.99),
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_the_move_to_a_hyperplane_is_the_smallest_in_the_box(ball_type, x, w, part):
    wide, flat = np.float64(w).ravel(), np.float64(x).ravel()
    gap = part * np.sum(abs(wide) * room(flat, wide, part))
    d = reach(ball_type, jnp.asarray(x), jnp.asarray(w), jnp.asarray(gap, jnp.float32))
    d = np.asarray(d, np.float64).ravel()
    assert (flat + d >= -1e-6).all()
    assert (flat + d <= 1 + 1e-6).all()
    np.testing.assert_allclose(wide @ d, gap, rtol=1e-5, atol=1e-6)
    if gap == 0:
        assert (d == 0).all()
        return
    norm, smallest = (
        (abs(d).max(), smallest_linf) if ball_type is LinfBall else (np.linalg.norm(d), smallest_l2)
    )
    np.testing.assert_allclose(norm, smallest(flat, wide, gap), rtol=1e-4, atol=1e-6)


@each_ball
@hypothesis.given(
    x=arrays(np.float32, SHAPE, elements=pixel),
    w=arrays(np.float32, SHAPE, elements=slope),
    excess=st.floats(1.001, 1e6),
    sign=st.sampled_from([-1, 1]),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_beyond_the_box_the_move_goes_as_far_as_it_can(ball_type, x, w, excess, sign):
    wide, flat = np.float64(w).ravel(), np.float64(x).ravel()
    most = room(flat, wide, sign)
    gap = sign * (excess * np.sum(abs(wide) * most) + 1e-3)
    d = reach(ball_type, jnp.asarray(x), jnp.asarray(w), jnp.asarray(gap, jnp.float32))
    np.testing.assert_allclose(np.ravel(d), sign * np.sign(wide) * most, atol=1e-6)


@each_ball
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_smallest_move_is_found_on_large_images_of_any_steepness(ball_type, scale):
    rng = np.random.default_rng(0)
    x = rng.choice([0.0, 1.0, 0.3, 0.999], (28, 28, 3)).astype(np.float32)
    w = (rng.normal(size=x.shape) * 10.0 ** rng.uniform(-4, 0, x.shape)).astype(np.float32)
    wide = np.float64(w)
    most = room(x, wide, 1.0)
    for part in (0.01, 0.5, 0.999):
        gap = part * np.sum(abs(wide) * most)

        def move(size):
            along = np.sign(wide) if ball_type is LinfBall else wide
            return np.sign(wide) * np.minimum(size * abs(along), most)

        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(wide * move(middle)) < gap else (low, middle)
        d = reach(
            ball_type,
            jnp.asarray(x),
            jnp.asarray(w * np.float32(scale)),
            jnp.asarray(gap * scale, jnp.float32),
        )
        np.testing.assert_allclose(np.sum(wide * d), gap, rtol=1e-4)
        order = np.inf if ball_type is LinfBall else 2
        norm, smallest = (np.linalg.norm(np.ravel(v), order) for v in (d, move(high)))
        np.testing.assert_allclose(norm, smallest, rtol=1e-3)


@each_ball
@pytest.mark.parametrize("gap", [0.0, 1.0, -1.0])
def test_along_a_vanished_gradient_nothing_moves(ball_type, gap):
    x = jnp.full(SHAPE, 0.5)
    assert (reach(ball_type, x, jnp.zeros(SHAPE), jnp.asarray(gap)) == 0).all()


@each_ball
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_dual_norm_is_the_largest_inner_product_with_a_step_of_norm_1(ball_type, scale):
    gradient = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    ball = ball_type(1.0)
    order = 1 if ball_type is LinfBall else 2
    expected = np.linalg.norm(np.float64(gradient).ravel(), order) * scale
    dual_norm, steepest = (eqx.filter_jit(f) for f in (ball_type.dual_norm, ball_type.steepest))
    np.testing.assert_allclose(dual_norm(ball, gradient * np.float32(scale)), expected, rtol=1e-5)
    along = np.sum(np.float64(steepest(ball, gradient)) * gradient)
    np.testing.assert_allclose(along * scale, expected, rtol=1e-5)


@each_ball
def test_the_dual_norm_of_nothing_is_nothing(ball_type):
    assert ball_type(1.0).dual_norm(jnp.zeros(SHAPE)) == 0


def directions(ball_type, shape, n=4000):
    @jax.jit
    def draw():
        keys = jax.random.split(jax.random.key(0), n)
        return jax.vmap(lambda key: ball_type(0.3).random_direction(shape, key=key))(keys)

    return np.asarray(draw(), np.float64).reshape(n, -1)


@each_ball
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (3, 2, 2)])
def test_random_directions_have_norm_1(ball_type, shape):
    order = np.inf if ball_type is LinfBall else 2
    norms = np.linalg.norm(directions(ball_type, shape, 200), order, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_random_directions_are_uniform_on_the_sphere():
    # The square of a coordinate of a uniform point of the sphere in R^n is Beta(1/2, (n - 1)/2).
    v = directions(L2Ball, (2, 3, 1))
    for i in range(6):
        assert kstest(v[:, i] ** 2, beta(0.5, 2.5).cdf).pvalue > 0.01
        assert abs(np.mean(v[:, i] > 0) - 0.5) < 0.03


def test_random_directions_are_uniform_on_the_surface_of_the_cube():
    # A face at random, and a uniform point of it.
    v = directions(LinfBall, (2, 3, 1))
    face = abs(v).argmax(axis=1)
    counts = np.bincount(face, minlength=6)
    assert abs(counts / len(v) - 1 / 6).max() < 0.03
    assert abs(np.mean(v[np.arange(len(v)), face] > 0) - 0.5) < 0.03
    others = v[np.arange(6) != face[:, None]]
    assert kstest((others[::5] + 1) / 2, "uniform").pvalue > 0.01


def test_a_pixel_of_no_weight_stays_where_it_is_however_far_the_others_go():
    x, w = jnp.full((3, 1, 1), 0.5), jnp.asarray([1.0, 2e-19, 0.0]).reshape(3, 1, 1)
    for ball_type in (LinfBall, L2Ball):
        d = np.ravel(reach(ball_type, x, w, jnp.asarray(1000.0)))
        np.testing.assert_allclose(d, [0.5, 0.5, 0.0])
