"""Structure-preserving layers keep their invariant, over a thousand of them and for any weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.models import (
    HamiltonianNet,
    MassLayer,
    MassPreservingNet,
    SphereLayer,
    SpherePreservingNet,
    SymplecticLayer,
    VolumeLayer,
    VolumePreservingNet,
)
from odejax.solvers import apply_layers, stack_layers

N = 6
KEY = jax.random.key(3)
LAYERS = {
    "symplectic": SymplecticLayer,
    "volume": VolumeLayer,
    "mass": MassLayer,
    "sphere": SphereLayer,
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def layers(kind, depth, scale=1.0, n=N):
    made = stack_layers(
        lambda key: LAYERS[kind](n, width=8, step_size=0.05, key=key), depth, key=KEY
    )
    return jax.tree.map(lambda a: scale * a, made)


def state(seed=0, n=N):
    return jnp.asarray(np.random.default_rng(seed).normal(size=n), jnp.float32)


def one(kind, seed=0):
    return LAYERS[kind](N, width=8, step_size=0.3, key=jax.random.key(seed))


def area_form(n=N):
    half = np.eye(n // 2)
    return np.block([[np.zeros_like(half), half], [-half, np.zeros_like(half)]])


apply = eqx.filter_jit(apply_layers)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_thousand_mass_layers_keep_the_sum(scale):
    y = state()
    end = apply(layers("mass", 1000, scale), y)
    assert float(jnp.linalg.norm(end - y)) > 0.5  # they do move it
    assert float(jnp.sum(end)) == pytest.approx(float(jnp.sum(y)), abs=3e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_thousand_sphere_layers_keep_the_norm(scale):
    y = state()
    end = apply(layers("sphere", 1000, scale), y)
    assert float(jnp.linalg.norm(end - y)) > 0.5
    assert float(jnp.linalg.norm(end)) == pytest.approx(float(jnp.linalg.norm(y)), rel=1e-4)


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_a_thousand_layers_are_undone_by_their_inverses(kind):
    with jax.enable_x64(True):
        many = jax.tree.map(lambda a: a.astype(jnp.float64), layers(kind, 1000))
        y = jnp.asarray(state(), jnp.float64)
        end = apply(many, y)
        backwards = jax.tree.map(lambda a: a[::-1], many)
        undo = eqx.filter_jit(
            lambda layers, y: jax.lax.scan(lambda y, layer: (layer.inverse(y), None), y, layers)[0]
        )
        assert float(jnp.linalg.norm(end - y)) > 0.5
        np.testing.assert_allclose(undo(backwards, end), y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_symplectic_layers_keep_the_area_form(seed):
    jacobian = np.asarray(jax.jacfwd(one("symplectic", seed))(state(seed)), np.float64)
    np.testing.assert_allclose(jacobian.T @ area_form() @ jacobian, area_form(), atol=1e-5)
    assert np.abs(jacobian - np.eye(N)).max() > 0.05


def test_a_thousand_symplectic_layers_keep_the_area_form():
    with jax.enable_x64(True):
        many = jax.tree.map(lambda a: a.astype(jnp.float64), layers("symplectic", 1000))
        jacobian = jax.jit(jax.jacfwd(lambda y: apply_layers(many, y)))
        found = np.asarray(jacobian(jnp.asarray(state(), jnp.float64)))
    # As large as the entries that cancel in it allow.
    rounding = 1e-12 * np.linalg.norm(found, 2) ** 2
    np.testing.assert_allclose(found.T @ area_form() @ found, area_form(), rtol=0, atol=rounding)
    assert np.abs(found - np.eye(N)).max() > 0.5


def test_volume_layers_keep_the_area_form_only_by_chance():
    jacobian = np.asarray(jax.jacfwd(one("volume"))(state()), np.float64)
    assert np.abs(jacobian.T @ area_form() @ jacobian - area_form()).max() > 0.01


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_a_thousand_layers_keep_the_volume(kind):
    with jax.enable_x64(True):
        many = jax.tree.map(lambda a: a.astype(jnp.float64), layers(kind, 1000))
        jacobian = jax.jit(jax.jacfwd(lambda y: apply_layers(many, y)))
        assert np.linalg.det(jacobian(jnp.asarray(state(), jnp.float64))) == pytest.approx(
            1, rel=1e-6
        )


def test_the_sphere_step_is_the_cayley_transform():
    layer, y = one("sphere"), state()
    u, v = np.asarray(layer.first(y), np.float64), np.asarray(layer.second(y), np.float64)
    skew = 0.15 * (np.outer(u, v) - np.outer(v, u))  # h / 2 times S
    expected = np.linalg.solve(np.eye(N) - skew, (np.eye(N) + skew) @ np.asarray(y, np.float64))
    np.testing.assert_allclose(layer(y), expected, rtol=1e-5, atol=1e-6)


def slope(kind, layer, y):
    """The vector field that the layer takes a step along."""
    first, second = jnp.split(y, 2)
    match kind:
        case "symplectic":
            return jnp.concatenate([layer.kinetic(second), -layer.potential(first)])
        case "volume":
            return jnp.concatenate([layer.first(second), layer.second(first)])
        case "mass":
            return layer.field(y) - jnp.mean(layer.field(y))
        case "sphere":
            u, v = layer.first(y), layer.second(y)
            return u * jnp.vdot(v, y) - v * jnp.vdot(u, y)


@each_layer
def test_a_layer_is_a_short_step_along_its_field(kind):
    h, y = 1e-3, state()
    layer = LAYERS[kind](N, width=8, step_size=h, key=KEY)
    np.testing.assert_allclose((layer(y) - y) / h, slope(kind, layer, y), atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_potentials_are_gradients(seed):
    """Of K and V: their Jacobians are symmetric."""
    layer = one("symplectic", seed)
    for part in (layer.potential, layer.kinetic):
        jacobian = jax.jacfwd(part)(state(seed, N // 2))
        np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_states_without_two_halves_are_refused(kind):
    with pytest.raises(ValueError, match="n must be even; got 5"):
        LAYERS[kind](5, key=KEY)


NETS = {
    HamiltonianNet: None,
    VolumePreservingNet: None,
    MassPreservingNet: jnp.sum,
    SpherePreservingNet: jnp.linalg.norm,
}


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_the_flow_of_a_network_has_the_invariant(net):
    model, _ = eqx.nn.make_with_state(net)((8, 8, 1), features=N, depth=3, width=8, key=KEY)
    y = state()
    invariant = NETS[net]
    if invariant is None:
        assert np.linalg.det(jax.jacfwd(model.flow)(y)) == pytest.approx(1, abs=1e-4)
    else:
        assert float(invariant(model.flow(y))) == pytest.approx(float(invariant(y)), abs=1e-5)
