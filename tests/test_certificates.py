"""Certificates against attacks, against hand computation, and against models they cannot judge."""

import itertools
from functools import lru_cache
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    _maker,
    all_certificates,
    digits,
    predictor_of,
    train,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)

from odejax import L2Ball, LinfBall, Predictor, predict
from odejax.attacks import PGD, Restarts
from odejax.certificates import (
    AbstractLipschitzCertificate,
    FiniteTimeStableMapping,
    FlowMapSlope,
    LinearRelaxation,
    LipschitzMargin,
    StableMapping,
)
from odejax.certificates.linear_relaxation import _relax
from odejax.evaluation import bracket, certified_radii
from odejax.models import MLP, NmODE, NmODENet, sin_squared

KEY = jax.random.key(9)
NMODES = [(3.0, 1.0), (3.0, 0.05), (1.5, 2.0)]
GLOBAL = {
    **{f"published lam={lam} t1={t1}": (StableMapping(), (lam, t1)) for lam, t1 in NMODES},
    **{f"finite lam={lam} t1={t1}": (FiniteTimeStableMapping(), (lam, t1)) for lam, t1 in NMODES},
    "finite lam=0.5 t1=1": (FiniteTimeStableMapping(), (0.5, 1.0)),
    "Lipschitz": (LipschitzMargin(), None),
}
LOCAL = {
    **{f"slope lam={lam} t1={t1}": (FlowMapSlope(), (lam, t1)) for lam, t1 in NMODES},
    **{f"relaxation lam={lam} t1={t1}": (LinearRelaxation(), (lam, t1)) for lam, t1 in NMODES},
    "relaxation stacked": (LinearRelaxation(), "stacked"),
    "slope stacked": (FlowMapSlope(), "stacked"),
    "finite stacked": (FiniteTimeStableMapping(), "stacked"),
    "published stacked": (StableMapping(), "stacked"),
    "relaxation tanh": (LinearRelaxation(), "tanh"),
    "relaxation ReLU": (LinearRelaxation(), "ReLU"),
}
CASES = GLOBAL | LOCAL
each_case = pytest.mark.parametrize("case", CASES)
each_global_case = pytest.mark.parametrize("case", GLOBAL)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])


TRAINED = {
    None: trained_lipschitz,
    "ReLU": trained_mlp,
    "stacked": lru_cache(lambda: train(_maker(NmODENet, width=24, depth=2))),
    "tanh": lru_cache(
        lambda: train(_maker(MLP, width=24, depth=1, activation=NmODE(activations=(jnp.tanh,))))
    ),
}


def certificate_and_predictor(case):
    certificate, network = CASES[case]
    return certificate, TRAINED[network]() if network in TRAINED else trained_nmode(*network)


@eqx.filter_jit
def certify(certificate, predictor, images, labels, ball):
    return jax.vmap(lambda x, y: certificate(predictor, x, y, ball, key=KEY))(images, labels)


@eqx.filter_jit
def attack_within(predictor, images, labels, balls):
    """PGD with restarts in a ball of its own around every image, against the predicted label."""
    attack = Restarts(PGD(steps=20, step_size=None), 3)

    def one(x, y, ball, key):
        return attack(predictor, x, y, ball, key=key)

    return eqx.filter_vmap(one)(images, labels, balls, jax.random.split(KEY, len(images)))


@each_case
@each_ball
def test_no_attack_breaks_a_certificate(case, ball_type):
    certificate, predictor = certificate_and_predictor(case)
    data = digits("test", 150)
    proven = certify(certificate, predictor, data.pixels, data.labels, ball_type(0.1))
    assert np.mean(np.asarray(proven.radius) > 0) > 0.8  # else this would prove nothing
    attacked = attack_within(predictor, data.pixels, proven.label, ball_type(0.999 * proven.radius))
    broken = np.asarray(attacked.success) & (np.asarray(proven.radius) > 0)
    assert not broken.any()


def test_the_attack_that_certificates_withstand_breaks_the_same_models_beyond_them():
    predictor, data = trained_nmode(), digits("test", 150)
    proven = certify(FiniteTimeStableMapping(), predictor, data.pixels, data.labels, LinfBall(0.1))
    attacked = attack_within(predictor, data.pixels, proven.label, LinfBall(20 * proven.radius))
    assert np.mean(attacked.success) > 0.5


def logits_in_float64(predictor, images):
    return np.asarray(predict(predictor, images, key=KEY), np.float64)


def radii_by_hand(kind, predictor, images):
    """Eq. (4), its finite-time form, and the Lipschitz margin, in NumPy and float64."""
    logits = logits_in_float64(predictor, images)
    radii = []
    for z in logits:
        label = z.argmax()
        if kind == "Lipschitz":
            growth = np.full(len(z), 2**0.5 * float(predictor.model.lipschitz_bound()))
        else:
            model = predictor.model
            w = np.asarray(model.layers[0].weight, np.float64)
            v = np.asarray(model.outputs.weight, np.float64)
            lam, t1 = model.nmode.lam, model.nmode.t1
            if kind == "published":
                growth = np.abs(v[label] - v).sum(1) * np.abs(w).sum(1).max() / (lam - 1)
            else:
                slope = (1 - np.exp(-(lam - 1) * t1)) / (lam - 1)
                growth = np.abs(v[label] - v) @ np.abs(w).sum(1) * slope
        radii.append(min((z[label] - z[j]) / growth[j] for j in range(len(z)) if j != label))
    return np.array(radii)


@each_global_case
def test_the_radius_is_that_of_a_hand_computation_rounded_down(case):
    certificate, predictor = certificate_and_predictor(case)
    data = digits("test", 20)
    kind = case.split()[0]
    ball_type = L2Ball if kind == "Lipschitz" else LinfBall  # the norm of the proof itself
    claimed = np.asarray(
        certify(certificate, predictor, data.pixels, data.labels, ball_type(0.1)).radius
    )
    by_hand = radii_by_hand(kind, predictor, data.pixels)
    assert (claimed <= by_hand).all()
    # What is taken off for rounding: 1e-4 of the largest logit on both sides of a margin, and
    # 1e-4 of the growth.
    largest = np.maximum(1, np.abs(logits_in_float64(predictor, data.pixels)).max(axis=1))
    logits = np.sort(logits_in_float64(predictor, data.pixels), axis=1)
    margin = logits[:, -1] - logits[:, -2]
    safe = margin > 0.01 * largest
    assert safe.sum() > 10
    np.testing.assert_allclose(claimed[safe], by_hand[safe], rtol=0.021)


@pytest.mark.parametrize("other_ball", [True, False])
def test_a_radius_in_the_other_norm_is_carried_over_safely(other_ball):
    # A proof in l-infinity says the same of the smaller l2 ball; one in l2 loses sqrt(64) = 8.
    data = digits("test", 20)
    if other_ball:
        certificate, predictor, factor = FiniteTimeStableMapping(), trained_nmode(), 1.0
        own, other = LinfBall(0.1), L2Ball(0.1)
    else:
        certificate, predictor, factor = LipschitzMargin(), trained_lipschitz(), 1 / 8
        own, other = L2Ball(0.1), LinfBall(0.1)
    in_own = certify(certificate, predictor, data.pixels, data.labels, own).radius
    in_other = certify(certificate, predictor, data.pixels, data.labels, other).radius
    np.testing.assert_allclose(in_other, factor * in_own, rtol=1e-5)


@each_ball
@pytest.mark.parametrize(("lam", "t1"), NMODES)
def test_each_certificate_proves_at_least_what_the_one_before_it_does(lam, t1, ball_type):
    predictor, data = trained_nmode(lam, t1), digits("test", 150)
    certificates = (StableMapping(), FiniteTimeStableMapping(), FlowMapSlope(), LinearRelaxation())
    radii = [
        np.asarray(certify(c, predictor, data.pixels, data.labels, ball_type(0.05)).radius)
        for c in certificates
    ]
    for weaker, stronger in itertools.pairwise(radii):
        # The last is found by bisection, and its rounding margin is a little larger.
        assert (stronger >= 0.995 * weaker - 1e-4).all()
    assert radii[-1].mean() > 1.5 * radii[0].mean()


@pytest.mark.parametrize("name", ["slope", "relaxation"])
@each_ball
def test_on_an_almost_linear_network_the_local_radius_is_the_true_one(name, ball_type):
    # So short a time that y is t1 sin^2(gamma); around gamma = pi / 4 that is a line, and with
    # small weights the network is linear: its radius is the margin over the dual norm.
    rng = np.random.default_rng(0)
    model, state = _maker(NmODENet, width=16, nmode=NmODE(3.0, 1e-3))(jax.random.key(0))
    small = jnp.asarray(1e-4 * rng.normal(size=(16, 64)), jnp.float32)
    model = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.outputs.weight, m.outputs.bias),
        model,
        (small, jnp.full(16, np.pi / 4), 1e6 * model.outputs.weight, model.outputs.bias * 0),
    )
    x = jnp.full((8, 8, 1), 0.5)
    # So that the margin is reached well inside the box.
    model = eqx.tree_at(lambda m: m.outputs.bias, model, -0.995 * Predictor(model, state)(x))
    predictor = Predictor(model, state)
    certificate = {"slope": FlowMapSlope(), "relaxation": LinearRelaxation(bisections=16)}[name]
    radius = float(certificate(predictor, x, 0, ball_type(0.05), key=KEY).radius)
    logits = np.asarray(predictor(x), np.float64)
    gradients = np.asarray(jax.jacobian(predictor)(x), np.float64).reshape(10, -1)
    label = logits.argmax()
    dual = {LinfBall: 1, L2Ball: 2}[ball_type]
    true = min(
        (logits[label] - logits[j]) / np.linalg.norm(gradients[label] - gradients[j], dual)
        for j in range(10)
        if j != label
    )
    assert radius <= true * 1.001
    if name == "relaxation":
        assert radius > 0.9 * true


ACTIVATIONS = {
    "short": lambda: NmODE(3.0, 0.05),
    "t = 1": lambda: NmODE(3.0, 1.0),
    "steep": lambda: NmODE(1.5, 5.0),
    "tanh": lambda: NmODE(3.0, 1.0, activations=(jnp.tanh,)),
    "ReLU": lambda: jax.nn.relu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("nodes", [1, 4, 16])
def test_both_pairs_of_lines_enclose_the_activation(name, nodes):
    activation = ACTIVATIONS[name]()
    rng = np.random.default_rng(0)
    lower = jnp.asarray(rng.uniform(-8, 8, 300), jnp.float32)
    upper = lower + jnp.asarray(10 ** rng.uniform(-4, 1, 300), jnp.float32)
    inside = lower + (upper - lower) * jnp.linspace(0, 1, 2001)[:, None]
    y = activation(inside)
    widths = []
    for slope, low, high in _relax(activation, lower, upper, nodes):
        assert (y >= slope * inside + low - 1e-6).all()
        assert (y <= slope * inside + high + 1e-6).all()
        widths.append(np.asarray(high - low))
    if nodes == 16:  # and tightly: the chord's error, which is quadratic in a short interval
        short = np.asarray(upper - lower) < 0.1
        assert widths[0][short].max() < 0.1 * widths[1][short].max()


def test_a_perturbation_that_the_box_forbids_is_not_counted():
    # Black pixels cannot become darker: a network that only darkness could mislead is certain.
    model, state = _maker(MLP, width=4, depth=1)(jax.random.key(0))
    model = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight, m.layers[1].bias),
        model,
        (jnp.ones((4, 64)), jnp.zeros(4), jnp.zeros((10, 4)).at[3].set(1.0),
         jnp.zeros(10).at[3].set(1.0)),
    )  # fmt: skip
    predictor, x = Predictor(model, state), jnp.zeros((8, 8, 1))
    for ball in (LinfBall(0.5), L2Ball(2.0)):
        assert LinearRelaxation()(predictor, x, 3, ball, key=KEY).certified
        assert not LinearRelaxation()(predictor, x + 0.5, 4, ball, key=KEY).certified


def one_pixel(layers, activation):
    """A fully connected net on images of one pixel, with these weights and biases."""
    model, state = eqx.nn.make_with_state(MLP)(
        (1, 1, 1), 2, width=len(layers[0][1]), depth=len(layers) - 1, activation=activation, key=KEY
    )
    linears = [
        eqx.tree_at(
            lambda m: (m.weight, m.bias),
            eqx.nn.Linear(np.shape(w)[1], np.shape(w)[0], key=KEY),
            (jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)),
        )
        for w, b in layers
    ]
    return Predictor(eqx.tree_at(lambda m: m.layers, model, linears), state)


@eqx.filter_jit
def first_flip(predictor, x):
    """The distance at which the prediction first changes, on a fine grid of the box."""
    grid = jnp.linspace(0, 1, 20_001)
    logits = jax.vmap(lambda p: predictor(p.reshape(1, 1, 1)))(grid)
    label = jnp.argmax(predictor(x))
    distance = jnp.where(jnp.argmax(logits, axis=1) != label, jnp.abs(grid - x[0, 0, 0]), jnp.inf)
    return jnp.min(distance)


@eqx.filter_jit
def radius_of(certificate, predictor, x):
    return certificate(predictor, x, 0, LinfBall(1e-3), key=KEY).radius


def nmode_net(layers):
    """The same with nmODE, as the network of its certificates."""
    model, state = eqx.nn.make_with_state(NmODENet)((1, 1, 1), 2, width=1, key=KEY)
    *hidden, outputs = one_pixel(layers, model.nmode).model.layers
    parts = (tuple(hidden), outputs)
    return Predictor(eqx.tree_at(lambda m: (m.layers, m.outputs), model, parts), state)


@pytest.mark.parametrize("bias", [1e4, 1e5])
@pytest.mark.parametrize("margin", [2.5e-4, 1e-3, 1e-2])
def test_rounding_of_a_large_preactivation_is_counted(bias, margin):
    # At 1e5 neighbouring float32 numbers are 0.008 apart: the network is a staircase.
    x = jnp.full((1, 1, 1), 0.5038)
    certificates = (LinearRelaxation(), FlowMapSlope(), FiniteTimeStableMapping(), StableMapping())
    for shift in np.linspace(0, 3, 13):
        layers = [([[1.0]], [bias + shift]), ([[1.0], [0.0]], [0.0, 0.0])]
        value = float(nmode_net(layers)(x)[0])
        layers[1] = ([[1.0], [0.0]], [0.0, value - margin])
        predictor = nmode_net(layers)
        flip = first_flip(predictor, x) + 1e-6
        for certificate in certificates:
            assert radius_of(certificate, predictor, x) <= flip


def test_a_ball_larger_than_the_box_is_tried_first_too():
    constant = one_pixel([([[0.0]], [0.0]), ([[0.0], [0.0]], [1.0, 0.0])], jax.nn.relu)
    x = jnp.full((1, 1, 1), 0.5)
    assert LinearRelaxation()(constant, x, 0, LinfBall(5.0), key=KEY).certified


@pytest.mark.parametrize("certificate", [LinearRelaxation(), FlowMapSlope()])
def test_logits_that_are_no_numbers_are_not_certified(certificate):
    broken = nmode_net([([[1.0]], [0.0]), ([[1.0], [0.0]], [float("nan"), 0.0])])
    x = jnp.full((1, 1, 1), 0.5)
    assert not certificate(broken, x, 0, LinfBall(0.0), key=KEY).certified


def test_cancellation_between_large_hidden_activations_is_counted():
    rng, x = np.random.default_rng(0), jnp.full((1, 1, 1), 0.5)
    for _ in range(30):
        a1, a2, v1 = rng.uniform(0.5, 1.5, 3).astype(np.float32)
        v2 = np.float32(v1 * a1 / a2)
        layers = [
            ([[1e6], [0.0]], [0.0, 0.0]),
            ([[a1, 0.0], [a2, 0.0]], [0.0, 0.0]),
            ([[v1, -v2], [0.0, 0.0]], [5e-3, 0.0]),
        ]
        predictor = one_pixel(layers, jax.nn.relu)
        assert radius_of(LinearRelaxation(), predictor, x) <= first_flip(predictor, x) + 1e-6


@pytest.mark.parametrize("certificate", [StableMapping(), FiniteTimeStableMapping()], ids=str)
def test_the_theorem_is_not_applied_to_other_activations(certificate):
    nmode = NmODE(3.0, 5.0, activations=(sin_squared, sin_squared))
    model, state = _maker(NmODENet, width=4, nmode=nmode)(KEY)
    with pytest.raises(ValueError, match=r"nmODE's, with sin\^2"):
        certificate(Predictor(model, state), jnp.zeros((8, 8, 1)), 0, LinfBall(0.1), key=KEY)


@pytest.mark.parametrize("name", all_certificates)
def test_half_precision_is_refused(name):
    certificate, make = all_certificates[name]
    model, state = make(KEY)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, model)
    with pytest.raises(ValueError, match="float64; got bfloat16"):
        certificate(Predictor(half, state), jnp.zeros((8, 8, 1)), 0, LinfBall(0.1), key=KEY)


@pytest.mark.parametrize("settings", [{"nodes": 0}, {"bisections": 0}], ids=str)
def test_a_relaxation_without_nodes_is_refused(settings):
    with pytest.raises(ValueError, match="at least 1"):
        LinearRelaxation(**settings)


@pytest.mark.parametrize(("lam", "t1"), NMODES)
def test_the_finite_time_radius_is_never_smaller_than_the_published_one(lam, t1):
    predictor, data = trained_nmode(lam, t1), digits("test", 150)
    published, finite = (
        np.asarray(certify(c, predictor, data.pixels, data.labels, LinfBall(0.1)).radius)
        for c in (StableMapping(), FiniteTimeStableMapping())
    )
    assert (finite >= published).all()
    assert finite.sum() > 1.1 * published.sum()


@pytest.mark.parametrize("name", all_certificates)
def test_a_certificate_judges_a_model_of_its_own(name):
    certificate, make = all_certificates[name]
    data = digits("test", 20)
    predictor = Predictor(*make(jax.random.key(0)))
    result = certify(certificate, predictor, data.pixels, data.labels, LinfBall(0.001))
    assert result.radius.shape == result.label.shape == result.certified.shape == (20,)
    assert (result.radius >= 0).all()
    np.testing.assert_array_equal(
        result.certified, (result.label == data.labels) & (result.radius >= 0.001)
    )


@pytest.mark.parametrize("name", all_certificates)
def test_a_model_that_the_proof_says_nothing_about_is_refused(name):
    certificate, _ = all_certificates[name]
    with pytest.raises(ValueError, match="ResNet"):
        certificate(
            predictor_of("ResNet"), jnp.asarray(digits().pixels[0]), 0, LinfBall(0.1), key=KEY
        )


@pytest.mark.parametrize("certificate", [StableMapping(), FiniteTimeStableMapping()], ids=str)
def test_a_network_that_is_solved_and_not_exact_is_refused(certificate):
    # Its steps are chosen by error estimates, so it can jump where the exact flow cannot.
    model, state = eqx.nn.make_with_state(NmODENet)(
        (8, 8, 1), width=4, nmode=NmODE(solver=diffrax.Dopri5()), key=jax.random.key(0)
    )
    with pytest.raises(ValueError, match="Dopri5"):
        certificate(Predictor(model, state), jnp.zeros((8, 8, 1)), 0, LinfBall(0.1), key=KEY)


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_published_mapping_needs_lambda_above_one(lam):
    model, state = eqx.nn.make_with_state(NmODENet)(
        (8, 8, 1), width=4, nmode=NmODE(lam, 1.0), key=KEY
    )
    with pytest.raises(ValueError, match=f"lam > 1; got {lam}"):
        StableMapping()(
            Predictor(model, state), jnp.asarray(digits().pixels[0]), 0, LinfBall(0.1), key=KEY
        )


@each_case
def test_a_wrong_prediction_is_never_certified(case):
    certificate, predictor = certificate_and_predictor(case)
    data = digits("test", 50)
    right = certify(certificate, predictor, data.pixels, data.labels, LinfBall(0.0))
    wrong_labels = (np.asarray(right.label) + 1) % 10
    wrong = certify(certificate, predictor, data.pixels, wrong_labels, LinfBall(0.0))
    assert not wrong.certified.any()
    np.testing.assert_array_equal(wrong.label, right.label)
    np.testing.assert_array_equal(
        certified_radii(certificate, predictor, data.pixels, wrong_labels, LinfBall(0.0), key=KEY),
        np.zeros(50),
    )


class Liar(AbstractLipschitzCertificate):
    """Claims that margins hardly fall at all."""

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_growth(self, predictor, label):
        return jnp.full(10, 1e-3)


def test_a_bracket_refuses_a_certificate_that_an_attack_breaks():
    data = digits("test", 50)
    with pytest.raises(RuntimeError, match=r"certified images were broken within LinfBall\(0\.2"):
        bracket(
            trained_mlp(),
            data,
            LinfBall(0.2),
            attacks=[PGD(steps=10, step_size=None)],
            certificates=[Liar()],
            key=KEY,
        )
