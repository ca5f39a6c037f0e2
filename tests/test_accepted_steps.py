"""AcceptedSteps: Diffrax's own gradient of the same steps, of one example or a batch at once."""

import re
from functools import cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convolution import equations, largest_intermediate

import odejax
from odejax._batch import vmap_batch
from odejax._mesh import spread
from odejax._types import BATCH_AXIS
from odejax.models import ConvODENet, DenseODENet, ODESolve
from odejax.solvers import SSPRK33, AcceptedSteps, RungeKutta
from odejax.solvers.accepted_steps import MIRRORED_DIFFRAX, _integrate, _Problem
from odejax.training import CrossEntropy, MixedPrecision

WEIGHTS = np.asarray(jax.random.normal(jax.random.key(0), (5, 5)))
STARTS = np.asarray(jax.random.normal(jax.random.key(1), (7, 5)))
ADAPTIVE = diffrax.PIDController(1e-5, 1e-5)


def field(t, y, args):
    return jnp.tanh(args @ y) * jnp.cos(3 * t)


def losses(ode, vmap=jax.vmap):
    def loss(weights, starts):
        def one(y0):
            return jnp.sum(jnp.sin(ode(field, y0, weights).ys[0]))

        return jnp.sum(vmap(one)(starts))

    return loss


def ode(adjoint, solver=None, **settings):
    settings = {"stepsize_controller": ADAPTIVE, "t1": 3.0, "max_steps": 64} | settings
    return ODESolve(solver=solver, adjoint=adjoint, **settings)


def assert_same(actual, expected, tol=1e-13):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tol)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arguments():
    return WEIGHTS.astype(np.float64), STARTS.astype(np.float64)


@cache
def theirs():
    """By Diffrax's checkpoints, where it does not matter how many states are kept."""
    loss = losses(ode(diffrax.RecursiveCheckpointAdjoint()))
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments())


@pytest.mark.parametrize(
    ("states", "vmap"),
    [
        (2, jax.vmap),
        (2, vmap_batch),
        pytest.param(32, vmap_batch, marks=pytest.mark.slow),
    ],
    ids=["2, one by one", "2, the batch at once", "32, the batch at once"],
)
def test_values_and_gradients_are_those_of_checkpointed_reverse_mode(states, vmap):
    actual = losses(ode(AcceptedSteps(states)), vmap)
    assert_same(jax.jit(jax.value_and_grad(actual, (0, 1)))(*arguments()), theirs())


@pytest.mark.parametrize(
    ("solver", "settings"),
    [
        pytest.param(diffrax.Heun(), {}, marks=pytest.mark.slow),  # Dopri5, too, is a tableau
        (SSPRK33(), {}),
        pytest.param(
            diffrax.Euler(),
            {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.11},
            marks=pytest.mark.slow,  # `test_as_many_steps_as_there_is_room_for` has constant steps
        ),
    ],
    ids=["Heun", "SSPRK33", "Euler, constant"],
)
def test_every_explicit_method_is_differentiated(solver, settings):
    settings |= {"max_steps": 4096}
    theirs = losses(ode(diffrax.RecursiveCheckpointAdjoint(), solver, **settings))
    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(*arguments())
        for f in (losses(ode(None, solver, **settings), vmap_batch), theirs)
    )
    assert_same(actual, expected, 1e-12)


def test_the_gradient_of_an_accurate_solve_is_that_of_central_differences():
    accurate = ode(None, stepsize_controller=diffrax.PIDController(1e-11, 1e-11), max_steps=4096)
    both = jax.jit(jax.value_and_grad(losses(accurate, vmap_batch)))
    weights, starts = arguments()
    _, gradient = both(weights, starts)
    for entry in ((0, 0), (2, 4)):
        h = np.zeros_like(weights)
        h[entry] = 1e-5
        difference = (both(weights + h, starts)[0] - both(weights - h, starts)[0]) / 2e-5
        assert float(gradient[entry]) == pytest.approx(float(difference), rel=1e-7)


def test_per_example_gradients_are_those_of_a_loop():
    weights, starts = arguments()
    loss = losses(ode(AcceptedSteps()))
    gradient = jax.jit(jax.grad(lambda y: loss(weights, y[None])))
    actual = jax.jit(jax.vmap(jax.grad(lambda y: loss(weights, y[None]))))(starts)
    assert_same(actual, np.stack([gradient(y) for y in starts]))


def test_a_state_may_be_a_tree():
    weights, starts = arguments()

    def paired(t, y, args):
        return field(t, y[0], args), jnp.sum(y[0] ** 2)

    def loss(adjoint, weights):
        def one(y0):
            y, total = ode(adjoint)(paired, (y0, jnp.zeros(())), weights).ys
            return jnp.sum(jnp.sin(y[0])) + total[0]

        return jnp.sum(vmap_batch(one)(starts))

    actual, expected = (
        jax.jit(jax.grad(lambda w, a=a: loss(a, w)))(weights)
        for a in (AcceptedSteps(2), diffrax.RecursiveCheckpointAdjoint())
    )
    assert_same(actual, expected, 1e-12)  # the two programs round apart


def test_statistics_and_results_are_each_examples_own():
    weights, starts = arguments()
    few = ode(AcceptedSteps(), max_steps=10)
    theirs = ode(diffrax.RecursiveCheckpointAdjoint(), max_steps=10)

    def successes_and_steps(vmap, solver):
        def one(y):
            solution = solver(field, y, weights)
            return solution.result == diffrax.RESULTS.successful, solution.stats["num_steps"]

        return [np.asarray(a) for a in jax.jit(vmap(one))(starts)]

    for vmap in (jax.vmap, vmap_batch):
        actual, expected = successes_and_steps(vmap, few), successes_and_steps(jax.vmap, theirs)
        assert 0 < actual[0].sum() < len(starts)
        for one, expected_one in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, expected_one)


@pytest.mark.parametrize(
    ("solver", "controller", "dt0"),
    [
        (diffrax.Dopri5(), ADAPTIVE, None),
        # A first step that is rejected; integral and derivative parts; a largest and a least step.
        (
            diffrax.Bosh3(),
            diffrax.PIDController(
                1e-6, 1e-6, pcoeff=0.2, icoeff=0.5, dcoeff=0.1, dtmax=0.2, dtmin=0.03
            ),
            2.5,
        ),
        (SSPRK33(), diffrax.ConstantStepSize(), 0.13),
    ],
    ids=["Dopri5", "Bosh3, PID", "SSPRK33, constant"],
)
def test_steps_are_those_of_diffrax_one_by_one(solver, controller, dt0):
    weights, starts = arguments()
    n = 128  # as many states are kept as there may be steps, so all of them are
    problem = _Problem(field, RungeKutta(solver), solver, controller, 3.0, dt0 or 0.01, n, n)
    end, kept = jax.jit(lambda y: _integrate(problem, (y,), weights, keep=True))(starts)

    def plain(y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), solver, 0.0, 3.0, dt0, y0, weights,
            saveat=diffrax.SaveAt(steps=True), stepsize_controller=controller, max_steps=n,
        )  # fmt: skip

    theirs = jax.jit(jax.vmap(plain))(starts)
    np.testing.assert_array_equal(end.steps, theirs.stats["num_steps"])
    np.testing.assert_array_equal(end.accepted, theirs.stats["num_accepted_steps"])
    adaptive = isinstance(controller, diffrax.PIDController)
    assert bool((end.steps > end.accepted).any()) == adaptive  # some steps were rejected
    for i, accepted in enumerate(np.asarray(end.accepted)):
        # The state before step j is that after step j - 1.
        after = np.concatenate([kept.states[i, 1:accepted], end.y[i, None]])
        assert_same(kept.times[i, :accepted], theirs.ts[i, :accepted], 1e-12)
        assert_same(after, theirs.ys[i, :accepted], 1e-12)


def test_the_loop_is_compared_with_the_diffrax_that_is_installed():
    version = tuple(map(int, re.findall(r"\d+", diffrax.__version__)[:3]))
    first, beyond = MIRRORED_DIFFRAX
    assert first <= version < beyond, (
        f"odejax.solvers.accepted_steps._integrate mirrors the loop of Diffrax {first} to below "
        f"{beyond}, and {version} is installed. Compare it with `loop` (t1_clip_floor, "
        f"cond_fun, body_fun_aux, _clip_to_end) and with the call of stepsize_controller.init in "
        f"`diffeqsolve`, both in diffrax/_integrate.py, run this file, and widen MIRRORED_DIFFRAX"
    )


def test_in_a_batch_no_example_has_a_weight_gradient_of_its_own():
    # The weights are far larger than all states together.
    n, steps = 60, 4
    weights, starts = np.ones((n, n)) / n, np.ones((7, n))
    settings = {"max_steps": steps}
    alone, at_once = (
        jax.grad(losses(ode(AcceptedSteps(), **settings), vmap)) for vmap in (jax.vmap, vmap_batch)
    )
    assert largest_intermediate(lambda w: at_once(w, starts), weights) < 7 * weights.size
    assert largest_intermediate(lambda w: alone(w, starts), weights) >= 7 * weights.size


def test_a_gradient_of_each_example_is_its_own_where_batch_statistics_are_taken():
    # As in an attack on a model in training: the axis has its name, and no example may be solved,
    # or differentiated, with all others.
    weights, starts = jnp.ones((5, 5)), jnp.ones((60, 5))

    def one(y0):
        return jnp.sum(ode(AcceptedSteps(), max_steps=4)(field, y0, weights).ys[0])

    gradients = jax.vmap(jax.grad(one), axis_name=BATCH_AXIS)
    assert largest_intermediate(gradients, starts) < 60 * starts.size


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"solver": diffrax.Kvaerno3()}, "got Kvaerno3 and PIDController"),
        (
            {"stepsize_controller": diffrax.StepTo(jnp.linspace(0.0, 3.0, 9))},
            "got Dopri5 and StepTo",
        ),
        (
            {"stepsize_controller": diffrax.PIDController(1e-3, 1e-3, dtmin=1, force_dtmin=False)},
            "got Dopri5 and PIDController",
        ),
    ],
    ids=["implicit", "other controller", "gives up"],
)
def test_what_it_cannot_take_keeps_the_checkpointed_gradient(settings, named):
    assert isinstance(ODESolve().adjoint, AcceptedSteps)
    assert isinstance(ODESolve(**settings).adjoint, diffrax.RecursiveCheckpointAdjoint)
    with pytest.raises(ValueError, match=named):
        ode(AcceptedSteps(), **settings)(field, STARTS[0], WEIGHTS)


def test_under_vmap_kept_states_are_not_copied_one_example_at_a_time():
    # In the loops both batches are one: the states have no axis for each.
    weights, starts = jnp.ones((5, 5)), jnp.ones((6, 4, 5))
    loss = losses(ode(AcceptedSteps()))
    gradients = jax.vmap(jax.grad(lambda y: loss(weights, y)))
    shapes = {
        tuple(v.aval.shape)
        for equation in equations(jax.make_jaxpr(gradients)(starts).jaxpr)
        if equation.primitive.name == "while"
        for v in equation.outvars
    }
    assert (24, 32, 5) in shapes
    assert not any(shape[-2:] == (32, 5) and len(shape) > 3 for shape in shapes)


@pytest.mark.parametrize("states", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_as_many_steps_as_there_is_room_for(states):
    # 16 steps fill 4 states at a stride of 4, or all of 16 at a stride of 1.
    h = 3 / 16
    settings = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": h, "max_steps": 16}

    def by_hand(weights, starts):
        def heun(y, t):
            slope = jax.vmap(field, (None, 0, None))(t, y, weights)
            return y + h / 2 * (
                slope + jax.vmap(field, (None, 0, None))(t + h, y + h * slope, weights)
            ), None

        return jnp.sum(jnp.sin(jax.lax.scan(heun, starts, h * jnp.arange(16))[0]))

    actual, expected = (
        jax.jit(jax.grad(loss))(*arguments())
        for loss in (losses(ode(AcceptedSteps(states), diffrax.Heun(), **settings)), by_hand)
    )
    assert_same(actual, expected)


def test_weights_may_be_vmapped_too():
    weights, starts = arguments()
    many = np.stack([weights, 2 * weights, weights.T])
    gradient = jax.grad(losses(ode(AcceptedSteps(2))), (0, 1))
    actual = jax.jit(jax.vmap(gradient, (0, None)))(many, starts)
    gradient = jax.jit(gradient)
    each = [gradient(one, starts) for one in many]
    assert_same(actual, jax.tree.map(lambda *a: np.stack(a), *each), 1e-12)  # of two programs


def test_states_of_16_bits_are_solved_for_in_32():
    solve = ODESolve(stepsize_controller=diffrax.PIDController(1e-3, 1e-6), t1=2.0)

    def decay(t, y, args):
        assert y.dtype == jnp.bfloat16
        return -3 * y

    def end(y):
        solution = solve(decay, y, None)
        return solution.ys[0], solution

    y = jnp.ones(3, jnp.bfloat16)
    actual, solution = eqx.filter_jit(end)(y)
    assert actual.dtype == jnp.bfloat16
    assert solution.result == diffrax.RESULTS.successful
    assert solution.stats["num_rejected_steps"] < 5
    np.testing.assert_allclose(np.asarray(actual, float), np.exp(-6.0), rtol=0.02)
    gradient = jax.jit(jax.grad(lambda y: end(y)[0][0].astype(jnp.float32)))(y)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, float), [np.exp(-6.0), 0, 0], rtol=0.03)


@pytest.mark.parametrize("make", [pytest.param(ConvODENet, marks=pytest.mark.slow), DenseODENet])
def test_neural_odes_train_in_bfloat16(make):
    key = jax.random.key(0)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(4, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(4)

    @eqx.filter_jit
    def build(key):
        model, state = eqx.nn.make_with_state(make)((8, 8, 1), width=8, key=key)
        params, rest = eqx.partition(model, eqx.is_inexact_array)
        params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        return eqx.combine(params, rest), state

    @eqx.filter_jit
    def both(model, state):
        def half(model):
            return MixedPrecision(CrossEntropy())(model, state, images, labels, key=key)[0]

        exact = CrossEntropy()(model, state, images, labels, key=key)[0]
        return exact, *eqx.filter_value_and_grad(half)(model)

    exact, loss, gradient = both(*build(key))
    assert float(loss) == pytest.approx(float(exact), rel=0.05)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_no_states_cannot_be_kept():
    with pytest.raises(ValueError, match=r"states .* got 0"):
        AcceptedSteps(0)


@pytest.mark.slow
def test_a_batch_spread_over_devices_has_the_same_gradient():
    gradient = jax.jit(jax.grad(losses(ode(AcceptedSteps()), vmap_batch), (0, 1)))
    weights, starts = arguments()
    starts = np.concatenate([starts, starts[:1]])
    expected = gradient(weights, starts)
    with jax.set_mesh(odejax.batch_mesh()):
        actual = gradient(weights, spread(starts))
    assert len(actual[1].sharding.device_set) == 8
    assert_same(actual, expected, 1e-12)
