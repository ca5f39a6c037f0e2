"""Masking flags: each is raised by a network built to raise it, and none by an ordinary one."""

import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits, predictor_of, trained_mlp

from odejax import L2Ball, LinfBall, Predictor, predict
from odejax.attacks import APGD, EOT, IFGSM, PGD, AutoAttack, Square
from odejax.evaluation import (
    FLAGS,
    Flag,
    attack_flags,
    bracket,
    gradient_cosines,
    masking_flags,
    solver_flags,
    solver_variants,
    step_flags,
    survivor_flags,
)
from odejax.models import DenseODENet, HopfieldField
from odejax.training import in_precision

KEY = jax.random.key(3)
BALL = LinfBall(0.1)
NAMES = set(FLAGS)
BY_LOOKING = {
    "randomised output",
    "softmax output",
    "vanishing gradients",
    "exploding gradients",
    "gradient unlike finite differences",
    "rough loss landscape",
    "not finite beside the images",
}
BY_ATTACKING = {"unbounded attack fails", "more steps help", "more restarts help"}
BY_SURVIVORS = {"black box beats white box", "transfer beats white box"}
BY_SETTINGS = {"steps too short", "attack ignores the noise", "no attack", "no gradients"}
BY_STARTS = {"no start found"}  # tested where its attack is
BY_SOLVING = {"solver steps change with the input", "gradient depends on the solver"}


class Bent(eqx.Module):
    """A network seen through `ways[which](network, x, key)`: one program for all ways."""

    ways: tuple[Callable, ...] = eqx.field(static=True)
    which: jax.Array
    network: Predictor | None = None

    def __call__(self, x, *, key):
        ways = [functools.partial(way, self.network) for way in self.ways]
        return jax.lax.switch(self.which, ways, x, key)


def with_gradient_of(value, gradient_from):
    """`value(x)` whose gradient is that of `gradient_from(x)`."""
    return gradient_from + jax.lax.stop_gradient(value - gradient_from)


def noisy(network, x, key):
    return network(x) + 0.1 * jax.random.normal(key, (10,))


def softmax(network, x, key):
    return jax.nn.softmax(network(x))


def loud(network, x, key):
    return 1000 * network(x)


def rippled(network, x, key):
    """A ripple too small to matter, whose slope dominates the gradient."""
    return network(x) + 1e-4 * jnp.sin(1e8 * jnp.mean(x)) * jnp.arange(10)


def quantised(network, x, key):
    """Grey levels rounded to tenths, the gradient handed through."""
    return network(with_gradient_of(jnp.round(10 * x) / 10, x))


def waves(network, x, key):
    phase = 2000 * jnp.mean(x) + 300 * jnp.arange(10) * x[4, 4, 0]
    return network(x) + 4 * jnp.sin(phase)


def cracked(network, x, key):
    """Finite at grey levels of 8 bits alone."""
    whole = jnp.all(jnp.abs(255 * x - jnp.round(255 * x)) < 1e-3)
    return network(x) + jnp.where(whole, 0.0, jnp.nan)


def quantised_in_the_box(network, x, key):
    """A wrong gradient behind a logarithm, which no probe outside the box would get past."""
    return network(with_gradient_of(jnp.round(10 * x) / 10, x) + 0 * jnp.log(x + 1e-6))


TRIPS = {
    "randomised output": noisy,
    "softmax output": softmax,
    "vanishing gradients": loud,
    "exploding gradients": rippled,
    "gradient unlike finite differences": quantised,
    "rough loss landscape": waves,
    "not finite beside the images": cracked,
}


def as_it_is(network, x, key):
    return network(x)


def constant(network, x, key):
    return jnp.zeros(10) + 0 * jnp.sum(x)


WAYS = (*TRIPS.values(), as_it_is, constant, quantised_in_the_box)


def seen(way):
    return Bent(WAYS, jnp.asarray(WAYS.index(way)), trained_mlp())


def names(flags):
    return {flag.name for flag in flags}


def looked_at(logits_fn, ball=BALL):
    data = digits("test", 40)
    return masking_flags(logits_fn, data.pixels, data.labels, ball, key=KEY)


def test_every_flag_has_a_network_here_that_raises_it():
    assert set(TRIPS) == BY_LOOKING
    assert BY_LOOKING | BY_ATTACKING | BY_SURVIVORS | BY_SOLVING | BY_SETTINGS | BY_STARTS == NAMES


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_says_when_why_and_what_to_do(name):
    kind = FLAGS[name]
    assert min(map(len, (kind.raised_if, kind.why, kind.what_to_do))) > 10
    assert Flag(name, "").kind is kind
    assert kind("seen") == Flag(name, "seen")


def test_a_flag_says_its_limits_as_they_are_used():
    kind = FLAGS["more steps help"]
    assert kind.share == 0.05
    assert "more than 5% of the images (at least 2)" in kind.raised_if
    with pytest.raises(AttributeError, match="shares"):
        _ = kind.shares


@pytest.mark.parametrize("name", TRIPS)
def test_a_network_built_to_raise_a_flag_raises_it(name):
    assert name in names(looked_at(seen(TRIPS[name])))


def test_a_network_that_nothing_was_done_to_raises_no_flag():
    assert looked_at(seen(as_it_is)) == ()


@pytest.mark.parametrize(
    ("network", "ball"),
    [
        ("ResNet", L2Ball(0.6)),
        pytest.param("ResNet", BALL, marks=pytest.mark.slow),
        pytest.param("trained MLP", BALL, marks=pytest.mark.slow),
        pytest.param("trained MLP", L2Ball(0.6), marks=pytest.mark.slow),
    ],
    ids=["ResNet-l2", "ResNet-linf", "trained MLP-linf", "trained MLP-l2"],
)
def test_an_ordinary_network_raises_no_flag(network, ball):
    logits_fn = trained_mlp() if network == "trained MLP" else predictor_of(network)
    assert looked_at(logits_fn, ball) == ()


@pytest.mark.parametrize("ball", [BALL, L2Ball(0.6)], ids=["linf", "l2"])
def test_a_gradient_that_the_box_blocks_raises_no_flag(ball):
    """Black and white images are corners of the box, and a linear function is its gradient."""
    images = np.asarray(jax.random.bernoulli(KEY, 0.5, (40, 8, 8, 1)), np.float32)
    labels = np.zeros(40, int)
    assert masking_flags(lambda x: x.ravel()[:10], images, labels, ball, key=KEY) == ()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_to_half_precision_raises_no_flag(dtype):
    """Its steps are larger than the differences that the probes look for."""
    trained = trained_mlp()
    rounded = Predictor(in_precision(trained.model, dtype), trained.state)
    assert looked_at(rounded) == ()
    pixels = digits("test", 40).pixels
    moved = predict(rounded, pixels, key=KEY) - predict(trained, pixels, key=KEY)
    assert 1e-3 < np.abs(moved).max() < 0.2


def test_a_constant_network_has_vanishing_gradients_and_no_others():
    assert names(looked_at(seen(constant))) == {"vanishing gradients"}


def test_probes_stay_in_the_box_so_that_a_wrong_gradient_behind_a_logarithm_is_seen():
    assert "gradient unlike finite differences" in names(looked_at(seen(quantised_in_the_box)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (255 * x, y), r"pixels must lie in \[0.0, 1.0\]; got \[0.0, 255.0\]"),
        (lambda x, y: ((255 * x).astype(np.int32), y), "images must be uint8, or floats in"),
        (lambda x, y: (x, y + 10), "labels must be classes 0 to 9; got 1"),
        (lambda x, y: (x, y[:1]), r"labels must be integers of shape \(4,\)"),
    ],
    ids=["0 to 255", "int32", "no classes", "too few"],
)
def test_images_and_labels_are_checked(change, message, unchecked):
    data = digits("test", 4)
    images, labels = change(data.pixels, data.labels)
    with pytest.raises(ValueError, match=message):
        masking_flags(seen(as_it_is), images, labels, BALL, key=KEY)


def test_the_flags_of_solvers_check_pixels_too(unchecked):
    data = digits("test", 4)
    with pytest.raises(ValueError, match="pixels must lie in"):
        solver_flags(predictor_of("ConvODENet"), 255 * data.pixels, data.labels, BALL, key=KEY)


# The flag of too short steps.


@pytest.mark.parametrize(
    ("attack", "ball", "raised"),
    [
        (PGD(40, 0.01), LinfBall(0.3), False),
        (PGD(40, 0.01), L2Ball(1.5), True),
        (PGD(), L2Ball(1.5), False),
        (IFGSM(20, 2 / 255), L2Ball(0.5), True),
        (EOT(PGD(10, 0.001), 2), LinfBall(0.1), True),
        (AutoAttack({"PGD": PGD(10, 0.001), "APGD": APGD(4)}), LinfBall(0.1), True),
        (APGD(4), L2Ball(9.0), False),
        (PGD(10, 0.01), LinfBall(0.1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_steps_that_cannot_reach_the_surface_raise_a_flag(attack, ball, raised):
    flags = step_flags(attack, ball)
    assert [flag.name for flag in flags] == ["steps too short"] * raised
    if raised:
        assert "steps of" in flags[0].evidence


# Flags that attacks raise. Two classes, by which half of the image is brighter.


def halves(n, seed=0, size=8):
    """Images with one bright half, and which half it is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n).astype(np.int32)
    bright = (np.arange(size) < size // 2) == (labels == 0)[:, None]
    rows = np.where(bright, 0.8, 0.2)[:, None, :, None]
    noise = rng.uniform(-0.05, 0.05, (n, size, size, 1))
    return (rows + noise).astype(np.float32), labels


def brighter_half(x):
    left, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    return 10 * jnp.stack([jnp.mean(left), jnp.mean(right)])


def honest(network, x, key):
    return brighter_half(x)


def reversed_gradient(network, x, key):
    logits = brighter_half(x)
    return with_gradient_of(logits, -logits)


def sparse(network, x, key):
    where = jax.random.uniform(key, x.shape) < 0.02
    logits = brighter_half(x)
    return with_gradient_of(logits, brighter_half(jnp.where(where, x, jax.lax.stop_gradient(x))))


def two_sided(network, x, key):
    """Of one pixel: a run stays on the side of the hill that it starts at."""
    z = x[0, 0, 0] - 0.5
    margin = jnp.where(z > 0, 0.2 - z, 0.4 + z)
    margin = margin + jnp.where(z > 0, -0.18, 0.0)
    return jnp.stack([margin, jnp.zeros(())])


TWO_CLASSES = (honest, reversed_gradient, sparse, two_sided)


def attacked(way, ball, images_and_labels):
    logits_fn = Bent(TWO_CLASSES, jnp.asarray(TWO_CLASSES.index(way)))
    return attack_flags(logits_fn, *images_and_labels, ball, key=KEY)


def test_an_honest_gradient_raises_no_flag_of_attacks():
    assert attacked(honest, LinfBall(0.35), halves(40)) == ()


@pytest.mark.slow
def test_a_trained_network_raises_no_flag_of_attacks():
    data = digits("test", 60)
    assert attack_flags(trained_mlp(), data.pixels, data.labels, BALL, key=KEY) == ()


def test_a_reversed_gradient_fails_in_a_ball_that_holds_every_image():
    flags = attacked(reversed_gradient, LinfBall(0.35), halves(40))
    assert "unbounded attack fails" in names(flags)


def test_a_gradient_of_one_pixel_at_a_time_makes_more_steps_help():
    assert "more steps help" in names(attacked(sparse, LinfBall(0.33), halves(40)))


def test_a_valley_on_one_side_only_makes_more_restarts_help():
    grey = np.full((40, 8, 8, 1), 0.5, np.float32), np.zeros(40, np.int32)
    assert "more restarts help" in names(attacked(two_sided, LinfBall(0.1), grey))


# Flags among survivors.


def mask(*broken, n=100):
    still_correct = np.ones(n, bool)
    still_correct[list(broken)] = False
    return still_correct


def test_a_black_box_that_breaks_more_raises_its_flag_and_one_image_is_chance():
    white = {"PGD": mask(0, 1, 2), "APGD": mask(0, 3)}
    assert survivor_flags(white, {"Square": mask(0, 1, 2, 3)}) == ()
    assert survivor_flags(white, {"Square": mask(4)}) == ()
    (flag,) = survivor_flags(white, {"Square": mask(4, 5, 6), "SPSA": mask(1)})
    assert flag == ("black box beats white box", "Square breaks 3 of 100 more")


def test_a_transfer_that_breaks_more_raises_its_flag():
    assert survivor_flags({"PGD": mask(0)}, {}, {"oracle": mask(0)}) == ()
    assert names(survivor_flags({"PGD": mask(0)}, {}, {"oracle": mask(1, 2)})) == {
        "transfer beats white box"
    }


class Hidden(eqx.Module):
    """A network whose gradient is all zeros, or, by the same program, its own."""

    network: Predictor
    hide: jax.Array

    def __call__(self, x, *, key):
        return self.network(jnp.where(self.hide, jax.lax.stop_gradient(x), x))


@pytest.mark.parametrize(
    "attacks",
    [
        {"APGD": APGD(10), "Square": Square(n_queries=300)},
        {"AutoAttack": AutoAttack({"APGD": APGD(10), "Square": Square(n_queries=300)})},
    ],
    ids=["side by side", "in sequence"],
)
def test_the_bracket_flags_that_square_beats_a_hidden_gradient(attacks):
    data = digits("test", 80)

    def flags(hide):
        network = Hidden(trained_mlp(), jnp.asarray(hide))
        interval = bracket(
            network,
            *data,
            BALL,
            attacks=attacks,
            certificates=(),
            key=KEY,
            batch_size=80,
            flag_images=0,
        )
        return names(interval.flags)

    assert flags(True) == {"black box beats white box"}
    assert flags(False) == set()


# Flags of neural ODEs.


def neural_ode(**settings):
    make = eqx.nn.make_with_state(DenseODENet)
    settings = {"width": 16, "field": HopfieldField} | settings
    model, state = eqx.filter_jit(lambda key: make((8, 8, 1), key=key, **settings))(KEY)
    return Predictor(model, state)


def solved(predictor):
    data = digits("test", 20)
    return solver_flags(predictor, data.pixels, data.labels, LinfBall(0.3), key=KEY)


FIXED = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 1 / 8}


def test_a_fixed_step_solve_raises_no_flag():
    # To t1 = 4 as those below, so that "fixed steps" is one program.
    assert solved(neural_ode(t1=4.0, solver=diffrax.Heun(), **FIXED)) == ()


def test_a_network_that_is_no_solve_raises_no_flag():
    assert solved(trained_mlp()) == ()


def test_a_solve_in_half_precision_is_probed_where_dtypes_may_not_mix():
    """Images are float32: the solve itself mixes them with its weights."""
    network = neural_ode(t1=4.0, solver=diffrax.Heun(), **FIXED)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, network)
    data = digits("test", 2)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        flags = solver_flags(half, data.pixels, data.labels, LinfBall(0.3), key=KEY)
    assert "solver steps change with the input" not in names(flags)


def test_an_adaptive_solver_takes_other_steps_for_other_inputs():
    controller = diffrax.PIDController(rtol=1e-4, atol=1e-4)
    flags = solved(neural_ode(t1=4.0, stepsize_controller=controller))
    assert names(flags) == {"solver steps change with the input"}


def test_a_continuous_adjoint_of_a_coarse_solve_has_another_gradient():
    coarse = neural_ode(
        t1=4.0,
        solver=diffrax.Euler(),
        adjoint=diffrax.BacksolveAdjoint(),
        stepsize_controller=diffrax.ConstantStepSize(),
        dt0=1.0,
    )
    assert "gradient depends on the solver" in names(solved(coarse))


def test_an_equation_is_solved_in_three_other_ways():
    variants = solver_variants(neural_ode(**FIXED), steps=4)
    assert set(variants) == {"fixed steps", "own steps", "continuous adjoint"}
    assert variants["fixed steps"].model.ode.dt0 == 1 / 4
    assert variants["own steps"].model.ode.dt0 == 1 / 8
    assert isinstance(variants["continuous adjoint"].model.ode.adjoint, diffrax.BacksolveAdjoint)


@pytest.mark.slow
def test_a_tight_solve_has_one_gradient_however_it_is_computed():
    tight = neural_ode(stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5))
    data = digits("test", 10)
    cosines = gradient_cosines(tight, data.pixels, data.labels, solver_variants(tight), key=KEY)
    assert set(cosines) == {"fixed steps", "own steps", "continuous adjoint"}
    for cosine in cosines.values():
        assert np.median(cosine) > 0.999


def test_variants_of_a_network_that_is_no_solve_are_refused():
    with pytest.raises(ValueError, match="MLP has no ode"):
        solver_variants(trained_mlp())
