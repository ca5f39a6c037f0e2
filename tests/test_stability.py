"""Growth and its bounds: matrices, whose norms are known, and fields, which must stay below."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.models import BatchNorm, GroupNorm, ResidualField
from odejax.solvers import (
    SSPRK33,
    growth,
    growth_bound,
    integrate_layers,
    jacobian_norm,
    layer_states,
    layer_step,
    logarithmic_norm,
)

KEY = jax.random.key(0)
MATRIX = np.random.default_rng(0).normal(size=(12, 12))


def test_the_norm_of_a_matrix_is_approached_from_below():
    truth = np.linalg.norm(MATRIX, 2)
    with jax.enable_x64(True):
        y = jnp.ones(12)
        found = [
            float(jacobian_norm(lambda v: MATRIX @ v, y, key=KEY, iterations=n))
            for n in (0, 1, 10, 300)
        ]
    assert found == sorted(found)
    assert found[0] < 0.9 * truth
    assert found[-1] == pytest.approx(truth, rel=1e-9)
    assert max(found) <= truth * (1 + 1e-12)


@pytest.mark.parametrize("shift", [-10.0, 0.0, 10.0])
def test_the_logarithmic_norm_of_a_matrix_is_its_symmetric_parts_largest_eigenvalue(shift):
    matrix = MATRIX + shift * np.eye(12)
    truth = np.linalg.eigvalsh((matrix + matrix.T) / 2).max()
    with jax.enable_x64(True):
        found = float(
            logarithmic_norm(lambda v: matrix @ v, jnp.ones(12), key=KEY, iterations=2000)
        )
    assert found == pytest.approx(truth, rel=1e-6)
    assert (found < 0) == (shift < 0)


def test_an_exact_flow_grows_by_no_more_than_its_logarithmic_norm():
    matrix = MATRIX - 3 * np.eye(12)
    times = np.linspace(0.0, 2.0, 9)
    values, vectors = np.linalg.eig(matrix)
    flows = [(vectors * np.exp(t * values)) @ np.linalg.inv(vectors) for t in times]
    with jax.enable_x64(True):
        mu = float(logarithmic_norm(lambda v: matrix @ v, jnp.ones(12), key=KEY, iterations=2000))
    for t, flow in zip(times, flows, strict=True):
        assert np.linalg.norm(flow, 2) <= np.exp(mu * t) * (1 + 1e-6)


def test_growth_is_the_largest_ratio_on_the_way():
    ys = jnp.zeros((4, 2, 3))
    zs = jnp.asarray([1.0, 5.0, 2.0, 0.5])[:, None, None] * jnp.ones((2, 3))
    assert float(growth(ys, zs)) == pytest.approx(5.0)


class Sine(eqx.Module):
    weight: jax.Array

    def __call__(self, y, state, *, key=None):
        return jnp.sin(self.weight @ y), state


@pytest.mark.parametrize("solver", [diffrax.Euler(), SSPRK33()], ids=["Euler", "SSPRK33"])
def test_theorem_3_1_holds_for_every_step_size(solver):
    # A field that does not change with depth, T = 1 in n steps, and the largest gradient's
    # direction: growth <= growth_bound, and Euler's <= exp(K).
    constant = np.linalg.norm(MATRIX, 2)
    with jax.enable_x64(True):
        y = jnp.linspace(-1.0, 1.0, 12)
        z = y + 1e-3 * jax.random.normal(KEY, (12,))
        for n in (1, 4, 16, 64):
            layers = Sine(jnp.broadcast_to(jnp.asarray(MATRIX), (n, 12, 12)))
            runs = [
                layer_states(layers, v, eqx.nn.State(layers), solver=solver, step_size=1 / n)
                for v in (y, z)
            ]
            bound = float(growth_bound(layer_step(solver), constant / n, n))
            assert 1 <= float(growth(*runs)) <= bound
            if isinstance(solver, diffrax.Euler):
                assert bound <= np.exp(constant)


def test_the_states_are_those_that_integration_goes_through():
    layers = Sine(jax.random.normal(KEY, (5, 3, 3)))
    y, state = jnp.linspace(-1.0, 1.0, 3), eqx.nn.State(Sine(jnp.ones(())))
    states = layer_states(layers, y, state, step_size=0.3)
    assert states.shape == (6, 3)
    for n in range(6):
        first = jax.tree.map(lambda a, n=n: a[:n], layers)
        expected = integrate_layers(first, y, state, step_size=0.3)[0] if n else y
        np.testing.assert_allclose(states[n], expected, atol=1e-6)


@pytest.mark.parametrize("norm", [GroupNorm, BatchNorm])
def test_no_jacobian_of_a_residual_field_exceeds_its_proven_constant(norm):
    field, state = eqx.nn.make_with_state(ResidualField)(8, norm, key=KEY)
    field = eqx.nn.inference_mode(field)
    scales = jax.random.uniform(KEY, (2, 8), minval=0.5, maxval=2.0)
    field = eqx.tree_at(lambda f: [n.scale for n in f.norms], field, list(scales))
    bound = float(field.lipschitz_bound(state, (6, 6)))

    def f(y):
        return field(y, state)[0]

    @jax.jit
    @jax.vmap
    def norms(y, key):
        return jacobian_norm(f, y, key=key)

    keys = jax.random.split(KEY, 16)
    # Nearly constant images are where a norm is steepest.
    spread = jnp.logspace(-4, 1, 16)[:, None, None, None]
    seen = float(norms(spread * jax.random.normal(KEY, (16, 6, 6, 8)), keys).max())
    assert 0 < seen <= bound
    if norm is BatchNorm:
        assert bound < 10 * seen
