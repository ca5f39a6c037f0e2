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
    growth_bound,
    integrate_layers,
    jacobian_norm,
    layer_states,
    layer_step,
    logarithmic_norm,
    perturbation_growth,
)

KEY = jax.random.key(0)
MATRIX = np.random.default_rng(0).normal(size=(12, 12))


def test_the_norm_of_a_matrix_is_approached_from_below():
    truth = np.linalg.norm(MATRIX, 2)

    @jax.jit
    def norms(y):
        return [
            jacobian_norm(lambda v: MATRIX @ v, y, key=KEY, iterations=n) for n in (0, 1, 10, 300)
        ]

    with jax.enable_x64(True):
        estimates = [float(norm) for norm in norms(np.ones(12))]
    assert estimates == sorted(estimates)
    assert estimates[0] < 0.9 * truth
    assert estimates[-1] == pytest.approx(truth, rel=1e-9)
    assert max(estimates) <= truth * (1 + 1e-12)


@jax.jit
def _logarithmic_norm(matrix):
    return logarithmic_norm(lambda v: matrix @ v, jnp.ones(12), key=KEY, iterations=2000)


@pytest.mark.parametrize("shift", [-10.0, 0.0, 10.0])
def test_the_logarithmic_norm_of_a_matrix_is_its_symmetric_parts_largest_eigenvalue(shift):
    matrix = MATRIX + shift * np.eye(12)
    truth = np.linalg.eigvalsh((matrix + matrix.T) / 2).max()
    with jax.enable_x64(True):
        norm = float(_logarithmic_norm(matrix))
    assert norm == pytest.approx(truth, rel=1e-6)
    assert (norm < 0) == (shift < 0)


def test_the_logarithmic_norm_of_a_flow_that_shrinks_all_alike_is_its_rate():
    norm = jax.jit(lambda y: logarithmic_norm(lambda v: -2 * v, y, key=KEY))(jnp.ones(4))
    assert float(norm) == pytest.approx(-2, abs=1e-5)


def test_an_exact_flow_grows_by_no_more_than_its_logarithmic_norm():
    matrix = MATRIX - 3 * np.eye(12)
    times = np.linspace(0.0, 2.0, 9)
    values, vectors = np.linalg.eig(matrix)
    flows = [(vectors * np.exp(t * values)) @ np.linalg.inv(vectors) for t in times]
    with jax.enable_x64(True):
        mu = float(_logarithmic_norm(matrix))
    for t, flow in zip(times, flows, strict=True):
        assert np.linalg.norm(flow, 2) <= np.exp(mu * t) * (1 + 1e-6)


def test_growth_is_the_largest_ratio_on_the_way():
    ys = np.zeros((4, 2, 3))
    zs = np.array([1.0, 5.0, 2.0, 0.5])[:, None, None] * np.ones((2, 3))
    assert float(jax.jit(perturbation_growth)(ys, zs)) == pytest.approx(5.0)


class Sine(eqx.Module):
    weight: jax.Array

    def __call__(self, y, state, *, key=None):
        return jnp.sin(self.weight @ y), state


@pytest.mark.parametrize("solver", [diffrax.Euler(), SSPRK33()], ids=["Euler", "SSPRK33"])
def test_theorem_3_1_holds_for_every_step_size(solver):
    # A field that does not change with depth, T = 1 in n steps, and the largest gradient's
    # direction: perturbation_growth <= growth_bound, and Euler's <= exp(K).
    constant = np.linalg.norm(MATRIX, 2)

    @jax.jit
    def growths_and_bounds(starts):
        pairs = []
        for n in (1, 4, 16, 64):
            layers = Sine(jnp.broadcast_to(MATRIX, (n, 12, 12)))

            def states(v, n=n, layers=layers):
                state = eqx.nn.State(layers)
                return layer_states(layers, v, state, solver=solver, step_size=1 / n)

            bound = growth_bound(layer_step(solver), constant / n, n)
            pairs.append((perturbation_growth(*jax.vmap(states)(starts)), bound))
        return pairs

    y = np.linspace(-1.0, 1.0, 12)
    z = y + 1e-3 * np.random.default_rng(1).normal(size=12)
    with jax.enable_x64(True):
        pairs = growths_and_bounds(np.stack([y, z]))
    for grown, bound in np.asarray(pairs):
        assert 1 <= grown <= bound
        if isinstance(solver, diffrax.Euler):
            assert bound <= np.exp(constant)


def test_the_states_are_those_that_integration_goes_through():
    layers = Sine(np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32))
    y = np.linspace(-1.0, 1.0, 3, dtype=np.float32)

    @jax.jit
    def all_and_each(layers, y):
        state = eqx.nn.State(Sine(jnp.ones(())))
        firsts = [jax.tree.map(lambda a, n=n: a[:n], layers) for n in range(1, 6)]
        ends = [integrate_layers(first, y, state, step_size=0.3)[0] for first in firsts]
        return layer_states(layers, y, state, step_size=0.3), jnp.stack([y, *ends])

    states, expected = all_and_each(layers, y)
    assert states.shape == (6, 3)
    np.testing.assert_allclose(states, expected, atol=1e-6)


@pytest.mark.parametrize("norm", [GroupNorm, BatchNorm])
def test_no_jacobian_of_a_residual_field_exceeds_its_proven_constant(norm):
    rng = np.random.default_rng(0)

    @jax.jit
    def norms_and_bound(scales, ys):
        field, state = eqx.nn.make_with_state(ResidualField)(8, norm, key=KEY)
        field = eqx.nn.inference_mode(field)
        field = eqx.tree_at(lambda f: [n.scale for n in f.norms], field, list(scales))
        norms = jax.vmap(lambda y, key: jacobian_norm(lambda v: field(v, state)[0], y, key=key))
        return norms(ys, jax.random.split(KEY, 16)), field.lipschitz_bound(state, (6, 6))

    # Nearly constant images are where a norm is steepest.
    spread = np.logspace(-4, 1, 16)[:, None, None, None]
    ys = (spread * rng.normal(size=(16, 6, 6, 8))).astype(np.float32)
    scales = rng.uniform(0.5, 2.0, size=(2, 8)).astype(np.float32)
    norms, bound = norms_and_bound(scales, ys)
    seen, bound = float(np.max(norms)), float(bound)
    assert 0 < seen <= bound
    if norm is BatchNorm:
        assert bound < 10 * seen
