"""Balls against closed forms, brute force and random directions."""

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest

from odejax import L2Ball, LinfBall

SHAPE = (3, 2, 2)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])

# Pixels of the box, its corners included, and a point anywhere near it.
pixel = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))
image = arrays(np.float32, SHAPE, elements=pixel)
anywhere = arrays(np.float32, SHAPE, elements=st.floats(-3, 3, width=32))
radius = st.one_of(st.just(0.0), st.floats(0, 2, width=32))


project = eqx.filter_jit(lambda ball, x_adv, x: ball.project(x_adv, x))
contains = eqx.filter_jit(lambda ball, x_adv, x: ball.contains(x_adv, x))
steepest = eqx.filter_jit(lambda ball, gradient: ball.steepest(gradient))
largest_gain = eqx.filter_jit(lambda ball, x, rows: ball.largest_gain(x, rows))


@eqx.filter_jit
def draw(ball, x, seed, n):
    """`n` samples, their norms around x, and whether they are contained."""
    samples = jax.vmap(lambda key: ball.sample(x, key=key))(
        jax.random.split(jax.random.key(seed), n)
    )
    of_each = jax.vmap(lambda s: (ball.norm(s - x), ball.contains(s, x)))
    return samples, *of_each(samples)


@each_ball
@hypothesis.given(x=image, target=anywhere, eps=radius)
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_projection_is_in_ball_and_box_and_stays_there(ball_type, x, target, eps):
    ball = ball_type(eps)
    projected = np.asarray(project(ball, target, x))
    assert projected.min() >= 0
    assert projected.max() <= 1
    v = (projected.astype(np.float64) - x).ravel()
    norm = np.abs(v).max() if ball_type is LinfBall else np.linalg.norm(v)
    assert norm <= eps + 1e-6
    assert contains(ball, projected, x)
    np.testing.assert_allclose(project(ball, projected, x), projected, atol=5e-7)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (224, 224, 3)], ids=str)
@pytest.mark.parametrize("eps", [3.0, 8.0])
def test_a_large_ball_contains_what_is_projected_to_it(shape, eps):
    """The norm of many pixels is off by its rounding, which grows with it."""
    rng = np.random.default_rng(0)
    x, away = rng.uniform(0.3, 0.7, (2, 32, *shape)).astype(np.float32)
    inside = jax.vmap(lambda x, v: contains(L2Ball(eps), project(L2Ball(eps), x + 9 * v, x), x))
    assert inside(x, away).all()


def test_the_tolerance_for_rounding_lets_no_larger_norm_pass():
    x = np.full((28, 28, 1), 0.5, np.float32)
    v = np.full_like(x, 3.0 / 28)  # of norm 3
    assert contains(L2Ball(3.0), x + v, x)
    assert not contains(L2Ball(3.0), x + 1.0001 * v, x)


@each_ball
@hypothesis.given(
    x=image, direction=anywhere, eps=st.floats(2**-7, 2, width=32), part=st.floats(0, 1)
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_a_point_inside_stays_where_it_is(ball_type, x, direction, eps, part):
    ball = ball_type(eps)
    order = np.inf if ball_type is LinfBall else 2
    step = 0.999 * part * eps * direction / max(1e-3, np.linalg.norm(direction.ravel(), order))
    inside = np.clip(x + step, 0, 1).astype(np.float32)
    np.testing.assert_allclose(project(ball, inside, x), inside, atol=5e-7)


@pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
def test_a_projection_on_the_ball_is_the_nearest_point_of_it(ball_type):
    # Against a brute search: random points of the ball, far from the box's faces.
    rng = np.random.default_rng(0)
    x, eps = np.full((2, 1, 1), 0.5, np.float32), 0.2
    target = x + np.array([0.3, 0.45], np.float32).reshape(2, 1, 1)
    points = rng.uniform(-eps, eps, (200_000, 2))
    order = np.inf if ball_type is LinfBall else 2
    points = points[np.linalg.norm(points, ord=order, axis=1) <= eps]
    nearest = points[np.argmin(np.linalg.norm(points - [0.3, 0.45], axis=1))]
    projected = np.ravel(project(ball_type(eps), target, x) - x)
    np.testing.assert_allclose(projected, nearest, atol=5e-3)


@each_ball
def test_the_steepest_step_has_the_largest_inner_product(ball_type):
    rng = np.random.default_rng(1)
    ball = ball_type(1.0)
    gradient = rng.normal(size=SHAPE).astype(np.float32)
    step = np.asarray(steepest(ball, gradient), np.float64)
    directions = rng.normal(size=(20_000, gradient.size))
    if ball_type is LinfBall:  # corners of the cube, which is where a linear function is largest
        directions, dual = np.sign(directions), np.abs(gradient).sum()
        norm = np.abs(step).max()
    else:
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        dual, norm = np.linalg.norm(gradient), np.linalg.norm(step)
    best = np.sum(step * gradient)
    np.testing.assert_allclose(norm, 1, rtol=1e-6)
    assert (directions @ gradient.ravel() <= best + 1e-5).all()
    np.testing.assert_allclose(best, dual, rtol=1e-6)


@each_ball
def test_a_zero_gradient_gives_no_step(ball_type):
    assert (ball_type(1.0).steepest(jnp.zeros(SHAPE)) == 0).all()


@each_ball
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_steepest_step_does_not_depend_on_the_gradients_scale(ball_type, scale):
    gradient = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    ball = ball_type(1.0)
    scaled = steepest(ball, gradient * np.float32(scale))
    np.testing.assert_allclose(scaled, steepest(ball, gradient), rtol=1e-5, atol=1e-7)


@each_ball
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_samples_are_inside(ball_type, value):
    _, _, inside = draw(ball_type(0.4), np.full(SHAPE, value, np.float32), 0, 1000)
    assert np.all(inside)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_l2_samples_fill_the_ball_uniformly(n):
    # P(r <= s eps) = s^n, so (r / eps)^n is uniform.
    _, radii, _ = draw(L2Ball(0.3), np.full((n, 1, 1), 0.5, np.float32), n, 4000)
    assert kstest((np.float64(radii) / 0.3) ** n, "uniform").pvalue > 0.01


def test_linf_samples_fill_the_cube_uniformly():
    samples, _, _ = draw(LinfBall(0.3), np.full(SHAPE, 0.5, np.float32), 0, 1000)
    assert kstest((np.ravel(samples) - 0.5) / 0.6 + 0.5, "uniform").pvalue > 0.01


@each_ball
def test_eps_is_the_only_leaf(ball_type):
    (eps,) = jax.tree.leaves(ball_type(0.25))
    assert eps == 0.25
    assert eps.dtype == jnp.float32


@each_ball
def test_a_batch_of_eps_is_a_batch_of_balls(ball_type):
    eps = np.array([0.0, 0.1, 0.5], np.float32)
    x, target = np.full(SHAPE, 0.5, np.float32), np.ones(SHAPE, np.float32)
    of_all = eqx.filter_jit(eqx.filter_vmap(lambda ball: ball.project(target, x)))
    single = [project(ball_type(e), target, x) for e in eps]
    np.testing.assert_allclose(of_all(ball_type(eps)), np.stack(single), atol=1e-7)


@each_ball
@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_eps_that_is_no_radius_is_refused(ball_type, eps):
    with pytest.raises(ValueError, match=f"eps .* got {eps}"):
        ball_type(eps)


@each_ball
def test_one_bad_eps_among_good_ones_is_refused(ball_type):
    with pytest.raises(ValueError, match="eps"):
        ball_type(np.array([0.1, -0.1]))


@each_ball
@pytest.mark.parametrize("other_type", [LinfBall, L2Ball])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_covering_radius_is_the_largest_norm_found_in_the_other_ball(ball_type, other_type, n):
    # The largest norm is reached at a corner of the cube, or at a pole or diagonal of the ball.
    eps = 0.3
    rng = np.random.default_rng(0)
    points = [np.ones(n), np.eye(n)[0], *rng.normal(size=(2000, n))]
    order = np.inf if other_type is LinfBall else 2
    points = np.stack([eps * p / np.linalg.norm(p, ord=order) for p in points])
    norm = jax.jit(jax.vmap(ball_type(1.0).norm))(np.float32(points.reshape(-1, n, 1, 1)))
    covering = ball_type(1.0).covering_radius(other_type(eps), n)
    np.testing.assert_allclose(covering, norm.max(), rtol=1e-5)


@each_ball
def test_a_point_outside_ball_or_box_is_not_contained(ball_type):
    ball, x = ball_type(0.1), np.full((1, 1, 1), 0.95, np.float32)
    assert contains(ball, x + np.float32(0.04), x)
    assert not contains(ball, x - np.float32(0.11), x)
    assert not contains(ball, x + np.float32(0.06), x)  # in the ball, and brighter than white


@pytest.mark.parametrize("ball", [LinfBall(0.2), L2Ball(0.4)], ids=lambda ball: ball.name)
@pytest.mark.parametrize("at_walls", [True, False])
def test_the_largest_gain_bounds_the_best_point_of_ball_and_box(ball, at_walls):
    rng, eps = np.random.default_rng(0), float(ball.eps)
    x = np.clip(rng.uniform(-0.5, 1.5, 20), 0, 1) if at_walls else np.full(20, 0.5)
    rows = rng.normal(size=(50, 20)) * 10.0 ** rng.uniform(-25, 5, (50, 1))
    gains = np.asarray(largest_gain(ball, np.float32(x), np.float32(rows)))
    for w, gain in zip(rows, gains, strict=True):
        room = np.where(w > 0, 1 - x, x)
        best = np.minimum(eps, room)
        if ball.name == "l2":  # along w, each coordinate until its room ends: by bisection
            low, high = 0.0, 1e3 / np.abs(w).max()
            for _ in range(60):
                size = (low + high) / 2
                best = np.minimum(size * np.abs(w), room)
                low, high = (size, high) if np.linalg.norm(best) <= eps else (low, size)
        true = np.abs(w) @ best
        assert true * (1 - 1e-5) <= gain
        exact = ball.name == "linf" or not at_walls
        assert gain <= true * (1 + 1e-5 if exact else 1.5)
    one = largest_gain(ball, np.float32(x), np.float32(rows[3]))
    np.testing.assert_allclose(one, gains[3], rtol=1e-5)
