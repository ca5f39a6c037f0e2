"""The learned Runge-Kutta step: its formula, its order, what it preserves, and that it learns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.models import SSPNet
from odejax.solvers import SSPRK22, LearnedRK2, growth_bound, integrate_layers, layer_step

REGIONS = pytest.mark.parametrize("published", [False, True], ids=["ssp", "published"])


def random_step(seed: int, published: bool, depth: int = 64) -> LearnedRK2:
    """Coefficients anywhere that learning may take them."""
    step = LearnedRK2(depth, published=published)
    keys = jax.random.split(jax.random.key(seed))
    values = tuple(3 * jax.random.normal(key, (depth,)) for key in keys)
    return eqx.tree_at(lambda s: (s.first, s.second), step, values)


def of_layer(step, i: int):
    return jax.tree.map(lambda a: a[i], step)


@REGIONS
def test_a_step_is_the_blocks_formula(published):
    step = random_step(0, published)
    y, matrix = jnp.linspace(-1.0, 1.0, 5), jax.random.normal(jax.random.key(1), (5, 5))

    def f(x):
        return jnp.tanh(matrix @ x)

    for i in range(5):
        one = of_layer(step, i)
        if published:
            b10, a21 = (1 / (1 + np.exp(-np.asarray(p))) for p in (one.first, one.second))
        else:
            b10, a21 = (np.asarray(c) for c in (one.coefficients().b10, one.coefficients().a21))
        a20, b21 = 1 - a21, 1 / (2 * b10)
        b20 = 1 - b21 - a21 * b10
        x1 = y + b10 * f(y)
        expected = a20 * y + b20 * f(y) + a21 * x1 + b21 * f(x1)
        np.testing.assert_allclose(one(f, y, 1.0), expected, rtol=1e-4, atol=1e-5)


@REGIONS
def test_the_order_is_two_for_any_coefficients(published):
    """One step of y' = y (1 - y) is wrong by O(h^3)."""
    with jax.enable_x64(True):
        step = jax.tree.map(lambda a: a.astype(jnp.float64), random_step(1, published, 32))
        y = jnp.full(32, 0.1)
        errors = []
        for h in (0.02, 0.01):
            exact = 0.1 * np.exp(h) / (0.9 + 0.1 * np.exp(h))
            errors.append(np.abs(step(lambda y: y * (1 - y), y, h) - exact))
        # Only where b10 is not so small that its two stages nearly coincide with the start.
        usual = np.asarray(step.coefficients().b10) > 0.05
        assert usual.sum() > 20
        orders = np.log2(errors[0] / errors[1])[usual]
        assert np.abs(orders - 3).max() < 0.15


def test_inside_the_region_every_coefficient_is_positive():
    step = random_step(2, published=False, depth=1000)
    for coefficient in step.coefficients():
        assert (np.asarray(coefficient) >= 0).all()
    c = np.asarray(step.ssp_coefficient())
    assert (c > 0).all()
    assert (c <= 1 + 1e-6).all()


def test_the_published_start_is_outside_the_region():
    step = LearnedRK2(3, published=True)
    np.testing.assert_allclose(step.coefficients().b20, -0.094924, atol=1e-6)
    np.testing.assert_array_equal(step.ssp_coefficient(), np.zeros(3))


def test_the_corner_of_the_region_is_ssprk22():
    """b10 -> 1 and a21 -> 1/2."""
    step = eqx.tree_at(lambda s: (s.first, s.second), LearnedRK2(1), 2 * (jnp.full(1, 30.0),))
    np.testing.assert_allclose(step.ssp_coefficient(), 1.0, rtol=1e-6)
    y = jnp.linspace(-1.0, 1.0, 5)
    found = of_layer(step, 0)(jnp.sin, y, 0.7)
    np.testing.assert_allclose(found, layer_step(SSPRK22())(jnp.sin, y, 0.7), rtol=1e-6, atol=1e-7)


def test_no_total_variation_grows_up_to_the_coefficient():
    """Upwind advection, whose Euler step keeps the variation up to h = 1."""
    profiles = jax.random.uniform(jax.random.key(3), (200, 32))

    def variation(u):
        return jnp.abs(u - jnp.roll(u, 1)).sum()

    step = random_step(4, published=False, depth=8)
    with jax.enable_x64(True):
        for i in range(8):
            one = jax.tree.map(lambda a: a.astype(jnp.float64), of_layer(step, i))
            h = one.ssp_coefficient()
            after = jax.vmap(lambda u, one=one, h=h: one(lambda v: jnp.roll(v, 1) - v, u, h))(
                profiles.astype(jnp.float64)
            )
            assert (jax.vmap(variation)(after) <= jax.vmap(variation)(profiles) + 1e-9).all()


def test_no_distance_grows_beyond_the_bound():
    matrix = jax.random.normal(jax.random.key(5), (6, 6))
    constant = jnp.linalg.norm(matrix, ord=2)
    y, z = (3 * jax.random.normal(jax.random.key(k), (300, 6)) for k in (6, 7))
    for published in (False, True):
        one = of_layer(random_step(8, published, 1), 0)
        ends = [
            jax.vmap(lambda v, one=one: one(lambda u: jnp.sin(matrix @ u), v, 0.7))(v)
            for v in (y, z)
        ]
        grown = jnp.linalg.norm(ends[0] - ends[1], axis=1) / jnp.linalg.norm(y - z, axis=1)
        assert grown.max() <= growth_bound(one, 0.7 * constant, 1)


@REGIONS
def test_every_layer_takes_its_own_step_and_learns_it(published):
    make = eqx.nn.make_with_state(SSPNet)
    solver = random_step(9, published, 3)
    whole, state = make((8, 8, 1), width=4, depth=3, solver=solver, key=jax.random.key(0))
    model = whole.net
    x = jax.random.uniform(jax.random.key(1), (8, 8, 1))
    y, _ = model.stem(x, state)
    for i in range(3):
        field = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, model.layers)
        y = of_layer(solver, i)(lambda v, field=field: field(v, state)[0], y, 1.0)
    logits, _ = whole(x, state)
    np.testing.assert_allclose(logits, model.head(y, state)[0], rtol=1e-4, atol=1e-5)

    gradient = eqx.filter_grad(lambda m: m(x, state)[0][3])(model).solver
    assert (np.asarray(gradient.first) != 0).all()
    assert (np.asarray(gradient.second) != 0).all() == (not published)


def test_coefficients_for_another_depth_are_refused():
    make = eqx.nn.make_with_state(SSPNet)
    model, state = make((8, 8, 1), width=4, depth=2, key=jax.random.key(0))
    y = jnp.zeros((6, 6, 4))
    with pytest.raises(ValueError, match=r"coefficients \(3,\) for 2 layers"):
        integrate_layers(model.net.layers, y, state, solver=LearnedRK2(3))
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        LearnedRK2(0)
