"""Layer steps are the formulas of *natural* Section 3 and enlarge no distance beyond the bound."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE

from odejax.models import FractalField, FractalNet, GroupNorm
from odejax.solvers import (
    SSPRK33,
    Composition,
    NeumannSeries,
    integrate_layers,
    layer_step,
    stack_layers,
)

STEPS = {
    "Euler": diffrax.Euler(),
    "Heun": diffrax.Heun(),
    "SSPRK33": SSPRK33(),
    "Dopri5": diffrax.Dopri5(),
    "PolyNet": NeumannSeries(2),
    "PolyNet 3": NeumannSeries(3),
    "FractalNet": Composition(),
}
# A second of a kind is left to the slow pass.
SECOND = ("Heun", "PolyNet 3")
each_step = pytest.mark.parametrize(
    "solver",
    [
        pytest.param(solver, id=name, marks=pytest.mark.slow if name in SECOND else [])
        for name, solver in STEPS.items()
    ],
)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_neumann_series_is_the_polynomial_of_a_linear_field(order):
    h, matrix = 0.3, np.random.default_rng(0).normal(size=(5, 5))
    y = np.linspace(-1.0, 1.0, 5)
    expected = sum(np.linalg.matrix_power(h * matrix, k) @ y for k in range(order + 1))
    with jax.enable_x64(True):
        actual = jax.jit(lambda y: NeumannSeries(order)(lambda v: matrix @ v, y, h))(y)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_a_long_neumann_series_is_a_backward_euler_step():
    h, matrix = 0.1, np.random.default_rng(1).normal(size=(5, 5))
    y = np.linspace(-1.0, 1.0, 5)
    with jax.enable_x64(True):
        actual = NeumannSeries(40)(lambda v: matrix @ v, jnp.asarray(y), h)
    np.testing.assert_allclose(actual, np.linalg.solve(np.eye(5) - h * matrix, y), rtol=1e-13)


def test_a_polynomial_step_applies_the_field_to_its_own_value():
    y, h = jnp.linspace(-1.0, 1.0, 5), 0.5
    first = h * jnp.tanh(3 * y)
    expected = y + first + h * jnp.tanh(3 * first)
    np.testing.assert_allclose(NeumannSeries()(lambda v: jnp.tanh(3 * v), y, h), expected)


def test_a_composition_has_no_identity_mapping():
    y = jnp.linspace(-1.0, 1.0, 5)
    np.testing.assert_array_equal(Composition()(jnp.sin, y, 0.1), jnp.sin(y))


@each_step
def test_no_distance_grows_beyond_the_bound(solver):
    step, h = layer_step(solver), 0.7
    rng = np.random.default_rng(0)
    matrix, starts = rng.normal(size=(6, 6)), 3 * rng.normal(size=(2, 500, 6))
    constant = np.linalg.norm(matrix, ord=2)

    @jax.jit
    @jax.vmap
    @jax.vmap
    def stepped(v):
        return step(lambda u: jnp.sin(matrix @ u), v, h)

    with jax.enable_x64(True):
        y, z = np.asarray(stepped(starts))
    grown = np.linalg.norm(y - z, axis=1) / np.linalg.norm(starts[0] - starts[1], axis=1)
    assert grown.max() <= step.lipschitz_factor(h * constant)


@each_step
def test_the_bound_is_attained_by_growth_itself(solver):
    # f(y) = K y: every stage grows as fast as a K-Lipschitz field allows, unless, as in Dopri5,
    # coefficients of both signs cancel.
    step, constant, h = layer_step(solver), 2.0, 0.7
    scale = constant * h if isinstance(step, Composition) else constant
    grown = float(jax.jit(lambda y: step(lambda v: scale * v, y, h))(1.0))
    bound = float(step.lipschitz_factor(h * constant))
    if isinstance(solver, diffrax.Dopri5):
        assert grown < bound
    else:
        assert bound == pytest.approx(grown, rel=1e-6)


def test_euler_grows_less_than_the_exponential_of_theorem_3_1():
    factor = layer_step(None).lipschitz_factor
    for hk in (1e-3, 0.1, 1.0, 10.0):
        assert factor(hk) == pytest.approx(1 + hk)
        assert factor(hk) <= np.exp(hk)


def test_what_is_not_an_explicit_method_is_refused():
    with pytest.raises(ValueError, match="got ImplicitEuler"):
        layer_step(diffrax.ImplicitEuler())


# Two columns are those of the network below.
@pytest.mark.parametrize("columns", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_fractal_is_the_rule_written_out(columns):
    make = eqx.filter_jit(eqx.nn.make_with_state(FractalField))
    field, state = make(4, GroupNorm, columns=columns, key=jax.random.key(0))
    y = np.random.default_rng(1).normal(size=(5, 5, 4)).astype(np.float32)

    def path(field, y):
        short = field.conv(jax.nn.relu(field.norm(y, state)[0]))
        if field.halves is None:
            return short
        return 0.5 * path(field.halves[1], path(field.halves[0], y)) + 0.5 * short

    both = eqx.filter_jit(lambda field, y: (field(y, state)[0], path(field, y)))
    np.testing.assert_allclose(*both(field, y), atol=1e-6)
    convs = jax.tree.leaves(field, is_leaf=lambda node: hasattr(node, "kernel"))
    assert sum(hasattr(node, "kernel") for node in convs) == 2**columns - 1


def test_a_fractal_net_is_its_blocks_one_after_the_other():
    @jax.jit
    def logits(x):
        make = eqx.nn.make_with_state(FractalNet)
        model, state = make(IMAGE_SHAPE, width=4, depth=2, columns=2, key=jax.random.key(2))
        y, _ = model.stem(x, state)
        for i in range(2):
            block = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, model.layers)
            y, _ = block(y, state)
        return model(x, state)[0], model.head(y, state)[0]

    x = np.random.default_rng(3).uniform(size=IMAGE_SHAPE).astype(np.float32)
    np.testing.assert_allclose(*logits(x), atol=1e-6)


def test_layers_of_any_step_are_a_loop():
    class Scaled(eqx.Module):
        weight: jax.Array

        def __call__(self, y, state, *, key=None):
            return jnp.sin(self.weight * y), state

    layers = stack_layers(
        lambda key: Scaled(jax.random.normal(key, (3,))), 4, key=jax.random.key(4)
    )
    y, h = jnp.linspace(0.1, 1.0, 3), 0.5
    actual, _ = integrate_layers(
        layers, y, eqx.nn.State(layers), solver=NeumannSeries(), step_size=h
    )
    for weight in layers.weight:
        first = h * jnp.sin(weight * y)
        y = y + first + h * jnp.sin(weight * first)
    np.testing.assert_allclose(actual, y, rtol=1e-6)
