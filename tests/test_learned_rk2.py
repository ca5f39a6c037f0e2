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
    values = 3 * np.random.default_rng(seed).normal(size=(2, depth)).astype(np.float32)
    return eqx.tree_at(lambda s: (s.first, s.second), step, tuple(values))


def of_layer(step, i: int):
    return jax.tree.map(lambda a: a[i], step)


@REGIONS
def test_a_step_is_the_blocks_formula(published):
    step, rng = random_step(0, published, 5), np.random.default_rng(1)
    y, matrix = np.linspace(-1.0, 1.0, 5), rng.normal(size=(5, 5))

    @jax.jit
    def stepped(step):
        def once(one):
            return one(lambda x: jnp.tanh(jnp.float32(matrix) @ x), jnp.float32(y), 1.0)

        return jax.vmap(once)(step), step.coefficients()

    actual, coefficients = stepped(step)
    for i in range(5):
        if published:
            b10, a21 = (1 / (1 + np.exp(-p[i])) for p in (step.first, step.second))
        else:
            b10, a21 = (np.asarray(c)[i] for c in (coefficients.b10, coefficients.a21))
        a20, b21 = 1 - a21, 1 / (2 * b10)
        b20 = 1 - b21 - a21 * b10
        slope = np.tanh(matrix @ y)
        x1 = y + b10 * slope
        expected = a20 * y + b20 * slope + a21 * x1 + b21 * np.tanh(matrix @ x1)
        np.testing.assert_allclose(actual[i], expected, rtol=1e-4, atol=1e-5)


@REGIONS
def test_the_order_is_two_for_any_coefficients(published):
    """One step of y' = y (1 - y) is wrong by O(h^3)."""

    @jax.jit
    def stepped(step, hs):
        after = jax.vmap(lambda h: step(lambda y: y * (1 - y), jnp.full(32, 0.1), h))(hs)
        return after, step.coefficients().b10

    hs = np.array([0.02, 0.01])
    step = jax.tree.map(np.float64, random_step(1, published, 32))
    with jax.enable_x64(True):
        after, b10 = stepped(step, hs)
    exact = 0.1 * np.exp(hs) / (0.9 + 0.1 * np.exp(hs))
    errors = np.abs(np.asarray(after) - exact[:, None])
    # Only where b10 is not so small that its two stages nearly coincide with the start.
    usual = np.asarray(b10) > 0.05
    assert usual.sum() > 20
    orders = np.log2(errors[0] / errors[1])[usual]
    assert np.abs(orders - 3).max() < 0.15


def test_inside_the_region_every_coefficient_is_positive():
    step = random_step(2, published=False, depth=1000)
    coefficients, c = jax.jit(lambda s: (s.coefficients(), s.ssp_coefficient()))(step)
    for coefficient in coefficients:
        assert (np.asarray(coefficient) >= 0).all()
    c = np.asarray(c)
    assert (c > 0).all()
    assert (c <= 1 + 1e-6).all()


def test_the_published_start_is_outside_the_region():
    start = jax.jit(lambda step: (step.coefficients().b20, step.ssp_coefficient()))
    b20, ssp = start(LearnedRK2(3, published=True))
    np.testing.assert_allclose(b20, -0.094924, atol=1e-6)
    np.testing.assert_array_equal(ssp, np.zeros(3))


@REGIONS
def test_the_second_coefficient_is_learned_unless_published(published):
    # Of the coefficient, not of a step: there a21 cancels, and its gradient is rounding.
    slopes = jax.jit(jax.grad(lambda step: jnp.sum(step.coefficients().a21)))
    actual = slopes(random_step(10, published, 3))
    assert (np.asarray(actual.second) != 0).all() == (not published)
    assert (np.asarray(actual.first) != 0).all() == (not published)


def test_the_corner_of_the_region_is_ssprk22():
    """b10 -> 1 and a21 -> 1/2."""
    corner = (np.full(1, 30.0, np.float32),) * 2
    step = eqx.tree_at(lambda s: (s.first, s.second), LearnedRK2(1), corner)

    @jax.jit
    def stepped(step, y):
        learned, ssprk22 = of_layer(step, 0), layer_step(SSPRK22())
        return step.ssp_coefficient(), learned(jnp.sin, y, 0.7), ssprk22(jnp.sin, y, 0.7)

    coefficient, actual, expected = stepped(step, np.linspace(-1.0, 1.0, 5, dtype=np.float32))
    np.testing.assert_allclose(coefficient, 1.0, rtol=1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_no_total_variation_grows_up_to_the_coefficient():
    """Upwind advection, whose Euler step keeps the variation up to h = 1."""
    profiles = np.random.default_rng(3).uniform(size=(200, 32))

    def variation(u):
        return np.abs(u - np.roll(u, 1, axis=-1)).sum(axis=-1)

    @jax.jit
    @jax.vmap
    def after(one):
        h = one.ssp_coefficient()
        return jax.vmap(lambda u: one(lambda v: jnp.roll(v, 1) - v, u, h))(profiles)

    with jax.enable_x64(True):
        ends = after(jax.tree.map(np.float64, random_step(4, published=False, depth=8)))
    assert (variation(np.asarray(ends)) <= variation(profiles) + 1e-9).all()


def test_no_distance_grows_beyond_the_bound():
    rng = np.random.default_rng(5)
    matrix, starts = rng.normal(size=(6, 6)), 3 * rng.normal(size=(2, 300, 6))
    constant = np.linalg.norm(matrix, ord=2)

    @jax.jit
    def ends_and_bound(one):
        def once(v):
            return one(lambda u: jnp.sin(jnp.float32(matrix) @ u), v, 0.7)

        ends = jax.vmap(jax.vmap(once))(jnp.float32(starts))
        return ends, growth_bound(one, 0.7 * constant, 1)

    for published in (False, True):
        (y, z), bound = ends_and_bound(of_layer(random_step(8, published, 1), 0))
        apart = np.linalg.norm(starts[0] - starts[1], axis=1)
        assert (np.linalg.norm(y - z, axis=1) / apart).max() <= bound


# The published region differs in its formulas, which the tests above know.
@pytest.mark.parametrize(
    "published",
    [pytest.param(False, id="ssp"), pytest.param(True, id="published", marks=pytest.mark.slow)],
)
def test_every_layer_takes_its_own_step_and_learns_it(published):
    solver = random_step(9, published, 2)

    @jax.jit
    def logits_expected_and_gradient(solver, x):
        make = eqx.nn.make_with_state(SSPNet)
        model, state = make((8, 8, 1), width=4, depth=2, solver=solver, key=jax.random.key(0))
        y, _ = model.stem(x, state)
        for i in range(2):
            field = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, model.layers)
            y = of_layer(solver, i)(lambda v, field=field: field(v, state)[0], y, 1.0)

        def third(model):
            logits, _ = model(x, state)
            return logits[3], logits

        gradient, logits = eqx.filter_grad(third, has_aux=True)(model)
        return logits, model.head(y, state)[0], gradient.solver

    x = np.random.default_rng(1).uniform(size=(8, 8, 1)).astype(np.float32)
    logits, expected, gradient = logits_expected_and_gradient(solver, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert (np.asarray(gradient.first) != 0).all()
    if published:
        assert (np.asarray(gradient.second) == 0).all()


def test_coefficients_for_another_depth_are_refused():
    make = eqx.filter_jit(eqx.nn.make_with_state(SSPNet))
    model, state = make((8, 8, 1), width=4, depth=2, key=jax.random.key(0))
    y = jnp.zeros((6, 6, 4))
    with pytest.raises(ValueError, match=r"coefficients \(3,\) for 2 layers"):
        integrate_layers(model.layers, y, state, solver=LearnedRK2(3))
    with pytest.raises(ValueError, match="depth must be at least 1; got 0"):
        LearnedRK2(0)
