"""Bound propagation as certificates: of every family, against attacks, samples and refusals."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NOISY, REFUSED, all_models, alternate, digits, predictor_of, trained_mlp
from scipy.optimize import linprog

from odejax import L2Ball, LinfBall, MeanLogits, Predictor
from odejax.attacks import PGD, margin_loss
from odejax.certificates import IntervalBounds, LinearRelaxation, StableMapping
from odejax.evaluation import bracket, certified_radii
from odejax.models import ConvODENet, ODESolve
from odejax.relaxation import Margins, Propagation, deterministic, kinks_of, trace
from odejax.solvers import GridSteps

KEY = jax.random.key(3)
QUICK = ("MLP", "ResNet BatchNorm", "NmODENet flow map")
FAMILIES = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in all_models
    if name not in (*NOISY, *REFUSED)
]


def on_grid(predictor, steps=3):
    """The same weights; of a neural ODE, solved in so many equal steps."""
    if not isinstance(getattr(predictor.model, "ode", None), ODESolve):
        return predictor
    return eqx.tree_at(lambda p: p.model.ode, predictor, predictor.model.ode.on_grid(steps))


@eqx.filter_jit
def bounds_and_samples(predictor, x, eps, moves):
    """Lower bounds on the margins, by certificate and ball, and the least ones among samples."""
    graph = trace(deterministic(predictor, x), x)
    label = jnp.argmax(predictor(x))
    out = {}
    for ball_type in (LinfBall, L2Ball):
        ball = ball_type(eps)
        lengths = jax.vmap(ball.norm)(moves).reshape(-1, 1, 1, 1)
        points = jnp.clip(x + eps * moves / lengths, 0, 1)

        def margins(logits):
            return logits[label] - logits

        sampled = jax.vmap(lambda p: margins(predictor(p)))(points).min(0)
        attack = PGD(20, None, loss=margin_loss)
        attacked = margins(predictor(attack(predictor, x, label, ball, key=KEY).x_adv))
        bounds = {
            type(c).__name__: c.margins(graph, x, label, ball)
            for c in (IntervalBounds(), LinearRelaxation(chunk=64))
        }
        out[ball_type.__name__] = bounds, jnp.minimum(sampled, attacked), margins(predictor(x))
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_no_sample_and_no_attack_is_below_the_bounds(name):
    predictor = on_grid(predictor_of(name))
    x = jnp.asarray(digits("test").pixels[0])
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (200, *x.shape)).astype(np.float32)
    for eps in (0.0, 1e-3, 0.05):
        results = bounds_and_samples(predictor, x, np.float32(eps), signs)
        for bounds, least, clean in results.values():
            for bound in bounds.values():
                assert not (bound > least + 1e-5).any(), eps
                assert not np.isnan(bound).any()
            crown, logits = bounds["LinearRelaxation"], np.abs(clean).max()
            assert (bounds["IntervalBounds"] <= crown + 1e-5).all()
            if eps == 0.0:  # what rounding takes off: more of WideResNet's sums of 576 terms
                most = 2e-2 if name == "WideResNet" else 1e-2
                assert (crown >= clean - most * max(1.0, float(logits))).all()
                assert crown.max() > 0


@pytest.mark.parametrize("name", NOISY)
def test_a_network_that_draws_noise_is_refused(name):
    with pytest.raises(ValueError, match="draws noise: what is proven of one draw"):
        certify_traced(LinearRelaxation(), predictor_of(name))


def certify_traced(certificate, predictor):
    """By tracing alone: a refusal needs no numbers."""
    x = digits("test").pixels[0]
    return eqx.filter_eval_shape(certificate, predictor, x, 0, LinfBall(0.1), key=KEY)


# -- slopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", alternate([LinfBall(0.06), L2Ball(0.3)]))
@pytest.mark.parametrize("name", ["MLP", pytest.param("ResNet BatchNorm", marks=pytest.mark.slow)])
def test_optimised_slopes_are_never_looser(name, ball):
    predictor, data = trained_mlp() if name == "MLP" else predictor_of(name), digits("test", 3)

    @eqx.filter_jit
    def bounds(predictor, x, moves, steps):
        graph = trace(deterministic(predictor, x), x)
        label = jnp.argmax(predictor(x))
        certificate = LinearRelaxation(slope_steps=steps)
        logits = jax.vmap(predictor)(x + moves)
        return certificate.margins(graph, x, label, ball), (logits[:, label, None] - logits).min(0)

    signs = np.random.default_rng(0).choice([-1.0, 1.0], (50, *data.pixels[0].shape))
    gained = []
    for x in jnp.asarray(data.pixels):
        moves = jax.vmap(lambda s, x=x: ball.project(x + s, x) - x)(jnp.asarray(signs))
        crown, _ = bounds(predictor, x, moves, 0)
        first, _ = bounds(predictor, x, moves, 1)  # a step that is too long for some margins
        assert (first >= crown - 1e-5).all()
        optimised, sampled = bounds(predictor, x, moves, 20)
        assert (optimised >= crown - 1e-5).all()
        gained.append((optimised - crown).max())
        assert (optimised <= sampled + 1e-5).all()
    assert max(gained) > 1e-2


def test_optimised_slopes_reach_the_linear_program():
    """The largest bound over all slopes is the least margin between the lines of the two sides.

    Salman et al. (2019), arXiv:1902.08722: the dual of the program over the neurons.
    """
    model, x, eps = trained_mlp().model, jnp.asarray(digits("test").pixels[8]), 0.08
    weights = [np.asarray(layer.weight, np.float64) for layer in model.layers]
    biases = [np.asarray(layer.bias, np.float64) for layer in model.layers]
    label, sizes = int(trained_mlp()(x).argmax()), [64, 32, 32]
    graph = trace(trained_mlp(), x)
    around = Margins(graph, x, LinfBall(eps), Propagation())
    low, high = (np.asarray(v, np.float64) for v in kinks_of(graph, around.bounds)[:2])
    starts, rows, right = np.cumsum([0, *sizes]), [], []
    for i, (w, b) in enumerate(zip(weights[:2], biases[:2], strict=True)):
        here = slice(starts[i + 1] - 64, starts[i + 2] - 64)
        upper, lower = np.maximum(high[here], 0), np.minimum(low[here], 0)
        chord = upper / (upper - lower)
        z = np.zeros((len(w), 128))
        z[:, starts[i] : starts[i + 1]] = w
        y = np.eye(128)[starts[i + 1] : starts[i + 2]]
        rows += [z - y, y - chord[:, None] * z]
        right += [-b, chord * (b - lower)]
    pixels = np.stack([np.maximum(x.ravel() - eps, 0), np.minimum(x.ravel() + eps, 1)], 1)
    box = [*map(tuple, pixels), *[(0, None)] * 64]
    crown, optimised = (around.of_label(label, stop=False, slope_steps=n) for n in (0, 50))
    gains = []
    for other in set(range(10)) - {label}:
        cost = np.concatenate([np.zeros(96), weights[2][label] - weights[2][other]])
        program = linprog(cost, np.concatenate(rows), np.concatenate(right), bounds=box)
        least = program.fun + biases[2][label] - biases[2][other]
        assert optimised[other] <= least + 1e-4
        assert optimised[other] >= least - 1e-2
        gains.append(least - crown[other])
    assert max(gains) > 0.1


def test_a_neural_ode_is_certified_on_a_grid_alone():
    predictor = predictor_of("ConvODENet")
    with pytest.raises(ValueError, match=r"on a fixed grid.*model.ode.on_grid\(n\)"):
        certify_traced(LinearRelaxation(), predictor)
    certify_traced(LinearRelaxation(), on_grid(predictor))


@pytest.mark.parametrize("name", REFUSED)
def test_a_primitive_without_a_rule_is_named(name):
    with pytest.raises(ValueError, match=f"no bounds are known for the primitive {REFUSED[name]}"):
        certify_traced(IntervalBounds(), predictor_of(name))


def test_the_mean_over_fixed_draws_is_one_function():
    """What is proven is of these draws: of the classifier that a bracket judges by."""
    mean = MeanLogits(trained_mlp(), jax.random.split(KEY, 2))
    radii = certified_radii(mean, *digits("test", 20), LinfBall(0.01), LinearRelaxation(), key=0)
    assert (radii > 0).mean() > 0.8


def test_a_plain_function_is_certified_by_bounds_alone():
    weight = np.asarray(trained_mlp().model.layers[0].weight)[:10]

    def function(x):
        return weight @ x.ravel()

    data = digits("test", 4)
    labels = jax.vmap(function)(data.pixels).argmax(axis=1)
    radii = certified_radii(
        function, data.pixels, labels, LinfBall(1e-4), LinearRelaxation(), key=0
    )
    assert (radii == np.float32(1e-4)).all()
    with pytest.raises(ValueError, match=r"needs a Predictor; got .*function"):
        certified_radii(function, data.pixels, labels, LinfBall(1e-4), StableMapping(), key=0)


def test_a_radius_is_sought_only_on_request():
    data, predictor = digits("test", 20), trained_mlp()
    ball = LinfBall(0.01)
    asked = certified_radii(predictor, *data, ball, LinearRelaxation(), key=0)
    assert set(np.unique(asked)) == {np.float32(0.0), np.float32(0.01)}
    largest = certified_radii(predictor, *data, ball, LinearRelaxation(bisections=8), key=0)
    assert (largest >= asked).all()
    assert (largest > asked).mean() > 0.8
    beyond = [
        certified_radii(
            predictor, *data.take(slice(i, i + 1)), LinfBall(1.02 * r), LinearRelaxation(), key=0
        )
        for i, r in enumerate(largest)
    ]
    assert np.concatenate(beyond).mean() < 0.2 * largest.mean()


def test_both_ends_meet_in_a_bracket():
    result = bracket(
        trained_mlp(),
        *digits("test", 60),
        LinfBall(0.02),
        attacks=PGD(20),
        certificates={
            "intervals": IntervalBounds(),
            "CROWN-IBP": LinearRelaxation("interval"),
            "CROWN": LinearRelaxation(),
        },
        key=0,
    )
    per = list(result.per_certificate.values())
    assert per == sorted(per)  # in the order of cost
    assert 0.8 < result.certified <= result.attacked


# -- the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Midpoint(), diffrax.Dopri5()])
def test_grid_steps_are_those_of_diffrax(solver):
    def field(t, y, args):
        return jnp.sin(args * y) + t

    y0, args = jnp.asarray([0.3, -0.7]), jnp.asarray([1.0, 2.0])
    grid = ODESolve(t1=2.0, solver=solver).on_grid(5)
    constant = ODESolve(
        t1=2.0,
        solver=solver,
        stepsize_controller=diffrax.ConstantStepSize(),
        dt0=0.4,
        adjoint=diffrax.DirectAdjoint(),
    )

    def value(solve, y0, args):
        return jnp.sum(solve(field, y0, args).ys[0] ** 2)

    for function in (value, jax.grad(value, argnums=(1, 2))):
        for a, b in zip(
            jax.tree.leaves(function(grid, y0, args)),
            jax.tree.leaves(function(constant, y0, args)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_network_on_a_grid_is_that_of_constant_steps():
    settings = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.25}
    make = eqx.nn.make_with_state(ConvODENet)
    model, state = make((8, 8, 1), width=4, solver=diffrax.Midpoint(), **settings, key=KEY)
    constant = Predictor(model, state)
    images = digits("test").pixels[:8]
    np.testing.assert_allclose(
        jax.vmap(on_grid(constant, 4))(images), jax.vmap(constant)(images), atol=1e-5
    )


def test_a_grid_reports_its_steps():
    solve = ODESolve(t1=3.0, solver=diffrax.Midpoint()).on_grid(6)
    assert (solve.dt0, solve.max_steps, solve.adjoint) == (0.5, 6, GridSteps(6))
    solution = solve(lambda t, y, args: -y, jnp.ones(2), None)
    statistics = {name: int(n) for name, n in solve.statistics(solution).items()}
    assert statistics == {"steps": 6, "rejected": 0, "evaluations": 12, "unsolved": 0}


def test_a_grid_needs_steps_of_an_explicit_method():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        ODESolve().on_grid(0)
    with pytest.raises(ValueError, match=r"explicit Runge-Kutta method.*got Kvaerno3"):
        ODESolve(solver=diffrax.Kvaerno3()).on_grid(4)
