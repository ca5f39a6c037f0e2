"""integrate_layers is Diffrax where the layers share weights, and a plain loop where not."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax._types import BATCH_AXIS
from odejax.models import BatchNorm, ResidualField
from odejax.solvers import SSPRK22, SSPRK33, ConstantNoise, integrate_layers, stack_layers


def name(solver):
    return type(solver).__name__


class Tanh(eqx.Module):
    """dy = scale tanh(W y + b)."""

    weight: jax.Array
    bias: jax.Array
    scale: float = eqx.field(static=True, default=1.0)

    def __init__(self, key, n=6, scale=1.0):
        keys = jax.random.split(key)
        self.weight = jax.random.normal(keys[0], (n, n)) / n**0.5
        self.bias = jax.random.normal(keys[1], (n,))
        self.scale = scale

    def __call__(self, y, state, *, key=None):
        return self.scale * jnp.tanh(self.weight @ y + self.bias), state


def repeated(layer, depth):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (depth, *a.shape)), layer)


def layer_of(layers, i):
    return jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, layers)


def step(field, y, h, solver):
    """One explicit Runge-Kutta step, written out, for a field(y, state) -> (dy, state)."""
    if isinstance(solver, diffrax.Euler):
        rows, weights = [], [1.0]
    else:
        rows, weights = solver.tableau.a_lower, solver.tableau.b_sol
    slopes = [field(y)]
    for row in rows:
        slopes.append(field(y + h * sum(float(a) * k for a, k in zip(row, slopes, strict=True))))
    return y + h * sum(float(b) * k for b, k in zip(weights, slopes, strict=True))


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("solver", "x64"),
    [
        (diffrax.Euler(), False), (SSPRK22(), True), (SSPRK33(), False), (diffrax.Ralston(), True),
        (diffrax.Bosh3(), False), (diffrax.Dopri5(), True),
        # The other of the two types; and one more Runge-Kutta scheme that Diffrax has.
        slow(diffrax.Euler(), True), slow(SSPRK22(), False), slow(SSPRK33(), True),
        slow(diffrax.Ralston(), False), slow(diffrax.Bosh3(), True), slow(diffrax.Dopri5(), False),
        slow(diffrax.Heun(), False), slow(diffrax.Heun(), True),
    ],
    ids=lambda case: ("float64" if case else "float32") if isinstance(case, bool) else name(case),
)  # fmt: skip
def test_shared_weights_are_diffrax_with_constant_steps(solver, x64):
    h, depth = 0.25, 8

    @jax.jit
    def both(key):
        layer = Tanh(key)
        y0 = jnp.linspace(-1.0, 1.0, 6)
        layers = repeated(layer, depth)
        actual, _ = integrate_layers(layers, y0, eqx.nn.State(layers), solver=solver, step_size=h)
        expected = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: layer(y, None)[0]), solver, 0.0, h * depth, h, y0
        ).ys[0]
        return actual, expected

    with jax.enable_x64(x64):
        actual, expected = both(jax.random.key(0))
        assert actual.dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=16 * jnp.finfo(actual.dtype).eps)


@pytest.mark.parametrize("solver", [slow(diffrax.Euler()), SSPRK33(), diffrax.Dopri5()], ids=name)
def test_layers_with_weights_of_their_own_are_a_loop_in_values_and_gradients(solver):
    h, depth = 0.5, 3
    with jax.enable_x64(True):
        layers = eqx.filter_jit(stack_layers)(Tanh, depth, key=jax.random.key(1))
        y0 = np.linspace(-1.0, 1.0, 6)

        def integrated(layers, y, h):
            y, _ = integrate_layers(layers, y, eqx.nn.State(layers), solver=solver, step_size=h)
            return jnp.sum(y**3)

        def looped(layers, y, h):
            for i in range(depth):
                y = step(lambda y, i=i: layer_of(layers, i)(y, None)[0], y, h, solver)
            return jnp.sum(y**3)

        @jax.jit
        def both(*args):
            return [jax.value_and_grad(f, (0, 1, 2))(*args) for f in (integrated, looped)]

        actual, expected = both(layers, y0, h)
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-13)


def test_stacked_layers_have_different_weights():
    layers = stack_layers(Tanh, 4, key=jax.random.key(2))
    assert layers.weight.shape == (4, 6, 6)
    assert len(np.unique(layers.weight)) == layers.weight.size


def statistics(layer, state):
    """Every array that the BatchNorm layers of one residual field hold."""
    return [array for norm in layer.norms for array in state.get(norm.statistics)]


def batch_normed(depth, width=4):
    """The same layers twice: stacked, and one by one with a state each."""

    def field(key):
        return ResidualField(width, BatchNorm, key=key)

    @eqx.filter_jit
    def make(key):
        stacked = eqx.nn.make_with_state(lambda: stack_layers(field, depth, key=key))()
        return stacked, [eqx.nn.make_with_state(field)(k) for k in jax.random.split(key, depth)]

    return make(jax.random.key(3))


@eqx.filter_jit
def run(layers, state, ys, solver):
    return jax.vmap(
        lambda y: integrate_layers(layers, y, state, solver=solver, step_size=0.5),
        axis_name=BATCH_AXIS,
        out_axes=(0, None),
    )(ys)


@eqx.filter_jit
def run_loop(single, ys, solver):
    states = []
    for layer, state in single:
        holder = [state]

        def field(ys, layer=layer, holder=holder):
            dy, holder[0] = jax.vmap(
                lambda y: layer(y, holder[0]), axis_name=BATCH_AXIS, out_axes=(0, None)
            )(ys)
            return dy

        ys = step(field, ys, 0.5, solver)
        states.append(holder[0])
    return ys, states


@pytest.mark.parametrize("solver", [slow(diffrax.Euler()), SSPRK33()], ids=name)
def test_batch_norm_state_goes_through_layers_and_stages(solver):
    (layers, state), single = batch_normed(3)
    for seed in range(2):  # twice: the second call starts from the state of the first
        ys = np.random.default_rng(seed).normal(size=(5, 4, 4, 4)).astype(np.float32)
        out, state = run(layers, state, ys, solver)
        expected, states = run_loop(single, ys, solver)
        single = [(layer, s) for (layer, _), s in zip(single, states, strict=True)]
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
        for i, (layer, s) in enumerate(single):
            pairs = zip(statistics(layers, state), statistics(layer, s), strict=True)
            for actual, expected in pairs:
                np.testing.assert_allclose(actual[i], expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_in_inference_uses_and_keeps_the_running_statistics():
    (layers, state), single = batch_normed(3)
    ys = 2 + np.random.default_rng(4).normal(size=(5, 4, 4, 4)).astype(np.float32)
    _, state = run(layers, state, ys, SSPRK33())
    _, states = run_loop(single, ys, SSPRK33())
    single = [
        (eqx.nn.inference_mode(layer), s) for (layer, _), s in zip(single, states, strict=True)
    ]
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    out, state = run(eqx.nn.inference_mode(layers), state, ys, SSPRK33())
    expected, _ = run_loop(single, ys, SSPRK33())
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    for old, new in zip(before, jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old, new)


class Zero(eqx.Module):
    """dy = 0, so that only the noise moves."""

    nothing: jax.Array

    def __call__(self, y, state, *, key=None):
        return self.nothing * y, state


def diffuse(key, depth=1, h=1.0, sigma=0.5, n=100_000):
    layers = Zero(jnp.zeros(depth))
    y, _ = integrate_layers(
        layers, jnp.zeros(n), eqx.nn.State(layers), step_size=h, noise=ConstantNoise(sigma), key=key
    )
    return y


def test_noise_needs_a_key():
    with pytest.raises(ValueError, match="needs a key"):
        diffuse(None)


def test_the_key_decides_the_noise():
    a, b, c = diffuse(jax.random.key(0)), diffuse(jax.random.key(0)), diffuse(jax.random.key(1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.99


@pytest.mark.parametrize(("depth", "h"), [(1, 1.0), (1, 0.25), (16, 0.25)])
def test_noise_is_gaussian_and_independent_in_every_layer(depth, h):
    y = np.asarray(diffuse(jax.random.key(5), depth, h)) / (0.5 * (depth * h) ** 0.5)
    se = len(y) ** -0.5
    assert abs(y.mean()) < 5 * se
    assert abs(y.var() - 1) < 5 * 2**0.5 * se
    assert abs((y**4).mean() - 3) < 5 * 96**0.5 * se


@pytest.mark.parametrize("solver", [diffrax.Kvaerno3(), diffrax.ImplicitEuler()], ids=name)
def test_implicit_solvers_are_refused(solver):
    layers = Zero(jnp.zeros(2))
    with pytest.raises(ValueError, match=type(solver).__name__):
        integrate_layers(layers, jnp.zeros(3), eqx.nn.State(layers), solver=solver)


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="depth"):
        stack_layers(Tanh, 0, key=jax.random.key(0))


def inner_jaxprs(value):
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from inner_jaxprs(value.jaxpr)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from inner_jaxprs(item)


def count_equations(jaxpr):
    inner = (j for e in jaxpr.eqns for j in inner_jaxprs(list(e.params.values())))
    return len(jaxpr.eqns) + sum(count_equations(j) for j in inner)


def test_the_traced_program_does_not_grow_with_depth():
    def size(depth):
        layers = stack_layers(Tanh, depth, key=jax.random.key(0))

        def loss(layers, y):
            y, _ = integrate_layers(layers, y, eqx.nn.State(layers), solver=SSPRK33())
            return jnp.sum(y**2)

        return count_equations(jax.make_jaxpr(jax.grad(loss))(layers, jnp.zeros(6)).jaxpr)

    assert size(4) == size(40) > 10
