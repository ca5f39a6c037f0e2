"""Structure-preserving layers keep their invariant, over a thousand of them and for any weights."""

from functools import lru_cache, partial

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


def layers(kind, depth, scale=1.0):
    made = stack_layers(
        lambda key: LAYERS[kind](N, width=8, step_size=0.05, key=key), depth, key=KEY
    )
    return jax.tree.map(lambda a: scale * a, made)


def state(seed=0, n=N):
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 2))
def one(kind, seed=0, step_size=0.3):
    return LAYERS[kind](N, width=8, step_size=step_size, key=jax.random.key(seed))


@partial(jax.jit, static_argnums=0)
def jacobian_of(kind, seed, y):
    return jax.jacfwd(one(kind, seed))(y)


def area_form(n=N):
    half = np.eye(n // 2)
    return np.block([[np.zeros_like(half), half], [-half, np.zeros_like(half)]])


@partial(jax.jit, static_argnums=0)
def apply_a_thousand(kind, scale, y):
    return apply_layers(layers(kind, 1000, scale), y)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_thousand_mass_layers_keep_the_sum(scale):
    y = state()
    end = np.asarray(apply_a_thousand("mass", scale, y))
    assert np.linalg.norm(end - y) > 0.5  # they do move it
    assert float(np.sum(end)) == pytest.approx(float(np.sum(y)), abs=3e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_thousand_sphere_layers_keep_the_norm(scale):
    y = state()
    end = np.asarray(apply_a_thousand("sphere", scale, y))
    assert np.linalg.norm(end - y) > 0.5
    assert float(np.linalg.norm(end)) == pytest.approx(float(np.linalg.norm(y)), rel=1e-4)


@lru_cache
def a_thousand(kind):
    """Their end in double precision, what the inverses make of it, and the Jacobian."""

    @jax.jit
    def run(y):
        many = jax.tree.map(lambda a: a.astype(jnp.float64), layers(kind, 1000))
        end = apply_layers(many, y)
        back, _ = jax.lax.scan(lambda y, layer: (layer.inverse(y), None), end, many, reverse=True)
        return end, back, jax.jacfwd(lambda y: apply_layers(many, y))(y)

    with jax.enable_x64(True):
        return tuple(map(np.asarray, run(np.float64(state()))))


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_a_thousand_layers_are_undone_by_their_inverses(kind):
    end, back, _ = a_thousand(kind)
    assert np.linalg.norm(end - state()) > 0.5
    np.testing.assert_allclose(back, state(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_symplectic_layers_keep_the_area_form(seed):
    jacobian = np.asarray(jacobian_of("symplectic", seed, state(seed)), np.float64)
    np.testing.assert_allclose(jacobian.T @ area_form() @ jacobian, area_form(), atol=1e-5)
    assert np.abs(jacobian - np.eye(N)).max() > 0.05


def test_a_thousand_symplectic_layers_keep_the_area_form():
    _, _, slope = a_thousand("symplectic")
    # As large as the entries that cancel in it allow.
    rounding = 1e-12 * np.linalg.norm(slope, 2) ** 2
    np.testing.assert_allclose(slope.T @ area_form() @ slope, area_form(), rtol=0, atol=rounding)
    assert np.abs(slope - np.eye(N)).max() > 0.5


def test_volume_layers_keep_the_area_form_only_by_chance():
    jacobian = np.asarray(jacobian_of("volume", 0, state()), np.float64)
    assert np.abs(jacobian.T @ area_form() @ jacobian - area_form()).max() > 0.01


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_a_thousand_layers_keep_the_volume(kind):
    assert np.linalg.det(a_thousand(kind)[2]) == pytest.approx(1, rel=1e-6)


def test_the_sphere_step_is_the_cayley_transform():
    y = state()

    @jax.jit
    def stepped(y):
        layer = one("sphere")
        return layer(y), layer.first(y), layer.second(y)

    actual, u, v = stepped(y)
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    skew = 0.15 * (np.outer(u, v) - np.outer(v, u))  # h / 2 times S
    expected = np.linalg.solve(np.eye(N) - skew, (np.eye(N) + skew) @ np.asarray(y, np.float64))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


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

    @jax.jit
    def end_and_slope(y):
        layer = one(kind, 3, h)
        return layer(y), slope(kind, layer, y)

    end, expected = end_and_slope(y)
    np.testing.assert_allclose((end - y) / h, expected, atol=0.01)


@jax.jit
def of_its_parts(seed, y):
    layer = one("symplectic", seed)
    return [jax.jacfwd(part)(y) for part in (layer.potential, layer.kinetic)]


@pytest.mark.parametrize("seed", range(3))
def test_potentials_are_gradients(seed):
    """Of K and V: their Jacobians are symmetric."""
    for jacobian in map(np.asarray, of_its_parts(seed, state(seed, N // 2))):
        np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-6)


@pytest.mark.parametrize("kind", ["symplectic", "volume"])
def test_states_without_two_halves_are_refused(kind):
    with pytest.raises(ValueError, match="n must be even; got 5"):
        LAYERS[kind](5, key=KEY)


NETS = {
    HamiltonianNet: None,
    VolumePreservingNet: None,
    MassPreservingNet: np.sum,
    SpherePreservingNet: np.linalg.norm,
}


@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_the_flow_of_a_network_has_the_invariant(net):
    invariant = NETS[net]

    @jax.jit
    def end_or_jacobian(y):
        model, _ = eqx.nn.make_with_state(net)((8, 8, 1), features=N, depth=3, width=8, key=KEY)
        return (jax.jacfwd(model.flow) if invariant is None else model.flow)(y)

    y = state()
    result = np.asarray(end_or_jacobian(y))
    if invariant is None:
        assert np.linalg.det(result) == pytest.approx(1, abs=1e-4)
    else:
        assert float(invariant(result)) == pytest.approx(float(invariant(y)), abs=1e-5)
