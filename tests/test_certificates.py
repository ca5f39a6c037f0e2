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
    all_models,
    digits,
    train,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)

from odejax import L2Ball, LinfBall, Predictor
from odejax.attacks import PGD, Restarts
from odejax.certificates import (
    AbstractLipschitzCertificate,
    FiniteTimeStableMapping,
    FlowMapSlope,
    IntervalBounds,
    LinearRelaxation,
    LipschitzMargin,
    LocalLipschitz,
    RandomizedSmoothing,
    StableMapping,
)
from odejax.evaluation import bracket, certified_radii
from odejax.models import MLP, NmODE, NmODENet, sin_squared

KEY = jax.random.key(9)
NMODES = [(3.0, 1.0), (3.0, 0.05), (1.5, 2.0)]
OF_NMODE = {
    "published": StableMapping(),
    "finite": FiniteTimeStableMapping(),
    "slope": FlowMapSlope(),
    "relaxation": LinearRelaxation(bisections=10),
}
# network -> what certifies it
CERTIFICATES = {
    **dict.fromkeys(NMODES, OF_NMODE),
    (0.5, 1.0): {"finite": FiniteTimeStableMapping()},
    "Lipschitz": {"Lipschitz": LipschitzMargin()},
    "ReLU": {"relaxation": LinearRelaxation(bisections=10), "local": LocalLipschitz()},
    "stacked": OF_NMODE,
    "tanh": {"relaxation": LinearRelaxation(bisections=10)},
}
# Each certificate in each norm, and each kind of network; the rest of the grid is slow.
ATTACKED = [
    ((3.0, 1.0), LinfBall),
    ((3.0, 1.0), L2Ball),
    ("Lipschitz", L2Ball),
    ("ReLU", LinfBall),
    ("stacked", L2Ball),
    ("tanh", LinfBall),
]
THE_OTHERS = [
    pytest.param(network, ball_type, marks=pytest.mark.slow)
    for network, ball_type in itertools.product(CERTIFICATES, (LinfBall, L2Ball))
    if (network, ball_type) not in ATTACKED
]
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
X = np.full((8, 8, 1), 0.5, np.float32)


@lru_cache
def predictor_for(network):
    """Weights that are trained once classify under other constants of nmODE, too."""
    if network == "Lipschitz":
        return trained_lipschitz()
    if network == "ReLU":
        return trained_mlp()
    if network == "stacked":
        return train(_maker(NmODENet, width=24, depth=2))
    trained = trained_nmode()
    if network == "tanh":
        mlp, state = build(
            _maker(MLP, width=32, depth=1, activation=NmODE(activations=(jnp.tanh,)))
        )
        layers = (*trained.model.layers, trained.model.outputs)
        return Predictor(eqx.tree_at(lambda m: tuple(m.layers), mlp, layers), state)
    model = eqx.tree_at(lambda m: m.nmode, trained.model, NmODE(*network))
    return Predictor(model, trained.state)


def build(make, key=KEY):
    return eqx.filter_jit(make)(key)


@eqx.filter_jit
def certify(certificates, predictor, images, labels, ball):
    """What each certificate proves, by one program; and the logits."""

    def one(x, y):
        proven = {name: c(predictor, x, y, ball, key=KEY) for name, c in certificates.items()}
        return proven, predictor(x, key=KEY)

    return jax.vmap(one)(images, labels)


@lru_cache
def proven_of(network, ball_type, eps=0.05, wrong=False):
    """What is proven of the first test images, and their logits."""
    data, predictor = digits("test", 100), predictor_for(network)
    labels = np.asarray(data.labels)
    if wrong:  # not the predicted one, whatever that is
        _, logits = proven_of(network, ball_type, eps)
        labels = (logits.argmax(axis=1).astype(labels.dtype) + 1) % 10
    # An array: one program for every eps.
    ball = ball_type(jnp.asarray(eps, jnp.float32))
    return jax.tree.map(
        np.asarray, certify(CERTIFICATES[network], predictor, data.pixels, labels, ball)
    )


@eqx.filter_jit
def attack_within(predictor, images, labels, balls):
    """PGD with restarts in a ball of its own around every image, against the predicted label."""
    attack = Restarts(PGD(steps=20, step_size=None), 3)

    def one(x, y, ball, key):
        return attack(predictor, x, y, ball, key=key)

    keys = jax.random.split(KEY, len(images))
    return eqx.filter_vmap(one)(images, labels, balls, keys).success


def broken_within(network, ball_type, proven, factor):
    balls = ball_type(np.float32(factor) * proven.radius)
    images = digits("test", 100).pixels
    return np.asarray(attack_within(predictor_for(network), images, proven.label, balls))


@pytest.mark.parametrize(("network", "ball_type"), [*ATTACKED, *THE_OTHERS])
def test_no_attack_breaks_a_certificate(network, ball_type):
    for proven in proven_of(network, ball_type)[0].values():
        assert np.mean(proven.radius > 0) > 0.8  # else this would prove nothing
        broken = broken_within(network, ball_type, proven, 0.999) & (proven.radius > 0)
        assert not broken.any()


def test_the_attack_that_certificates_withstand_breaks_the_same_models_beyond_them():
    proven = proven_of((3.0, 1.0), LinfBall)[0]["finite"]
    assert np.mean(broken_within((3.0, 1.0), LinfBall, proven, 20)) > 0.5


def radii_by_hand(kind, predictor, logits, lost=0.0):
    """Eq. (4), its finite-time form, and the Lipschitz margin, in NumPy and float64.

    `lost`: what is taken off each margin, as a fraction of the largest logit.
    """
    model, radii = predictor.model, []
    if kind == "Lipschitz":
        *body, head = model.layers.layers
        bound, body, rows = eqx.filter_jit(
            lambda: (
                model.lipschitz_bound(),
                jnp.prod(jnp.stack([layer.lipschitz_bound() for layer in body])),
                head.operator.freeze().matrix,
            )
        )()
        bound, body, rows = float(bound), float(body), np.asarray(rows, np.float64)
    for z in logits:
        label = z.argmax()
        if kind == "Lipschitz":
            apart = np.linalg.norm(rows[label] - rows, axis=1)
            growth = np.minimum(2**0.5 * bound, body * apart)
        else:
            w = np.asarray(model.layers[0].weight, np.float64)
            v = np.asarray(model.outputs.weight, np.float64)
            lam, t1 = model.nmode.lam, model.nmode.t1
            if kind == "published":
                growth = np.abs(v[label] - v).sum(1) * np.abs(w).sum(1).max() / (lam - 1)
            else:
                slope = (1 - np.exp(-(lam - 1) * t1)) / (lam - 1)
                growth = np.abs(v[label] - v) @ np.abs(w).sum(1) * slope
        margins = z[label] - z - lost * max(1, np.abs(z).max())
        radii.append(min(margins[j] / growth[j] for j in range(len(z)) if j != label))
    return np.array(radii)


@pytest.mark.parametrize(
    ("network", "ball_type"),  # the norm of the proof itself, or one where the radius is the same
    [
        ((3.0, 1.0), L2Ball),
        ((1.5, 2.0), LinfBall),
        ((0.5, 1.0), LinfBall),
        ("Lipschitz", L2Ball),
    ],
)
def test_the_radius_is_that_of_a_hand_computation_rounded_down(network, ball_type):
    proven, logits = proven_of(network, ball_type)
    logits = logits.astype(np.float64)
    for kind in {"published", "finite", "Lipschitz"} & set(proven):
        claimed = proven[kind].radius
        by_hand = radii_by_hand(kind, predictor_for(network), logits)
        assert (claimed <= by_hand).all()
        # What is taken off for rounding: 1e-4 of the largest logit on both sides of a margin, and
        # 1e-4 of the growth.
        largest = np.maximum(1, np.abs(logits).max(axis=1))
        ordered = np.sort(logits, axis=1)
        safe = ordered[:, -1] - ordered[:, -2] > 0.01 * largest
        assert safe.sum() > 50
        np.testing.assert_allclose(claimed[safe], by_hand[safe], rtol=0.021)
        less = radii_by_hand(kind, predictor_for(network), logits, lost=2e-4)
        assert (claimed[safe] <= less[safe]).all()


@pytest.mark.parametrize("other_ball", [True, False])
def test_a_radius_in_the_other_norm_is_carried_over_safely(other_ball):
    # A proof in l-infinity says the same of the smaller l2 ball; one in l2 loses sqrt(64) = 8.
    if other_ball:
        network, name, factor, own, other = (3.0, 1.0), "finite", 1.0, LinfBall, L2Ball
    else:
        network, name, factor, own, other = "Lipschitz", "Lipschitz", 1 / 8, L2Ball, LinfBall
    in_own, in_other = (proven_of(network, ball)[0][name].radius for ball in (own, other))
    np.testing.assert_allclose(in_other, factor * in_own, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "ball_type"),
    [
        ((3.0, 1.0), LinfBall),
        ((3.0, 1.0), L2Ball),
        ((3.0, 0.05), L2Ball),
        ((1.5, 2.0), LinfBall),
    ],
)
def test_each_certificate_proves_at_least_what_the_one_before_it_does(network, ball_type):
    proven = proven_of(network, ball_type)[0]
    radii = [proven[name].radius for name in OF_NMODE]
    for weaker, stronger in itertools.pairwise(radii):
        # The last is found by bisection, and its rounding margin is a little larger.
        assert (stronger >= 0.995 * weaker - 1e-4).all()
    assert radii[-1].mean() > 1.5 * radii[0].mean()
    published, finite = radii[:2]
    assert (finite >= published).all()
    assert finite.sum() > 1.1 * published.sum()


@each_ball
def test_on_an_almost_linear_network_the_local_radius_is_the_true_one(ball_type):
    # So short a time that y is t1 sin^2(gamma); around gamma = pi / 4 that is a line, and with
    # small weights the network is linear: its radius is the margin over the dual norm.
    rng = np.random.default_rng(0)
    model, state = build(_maker(NmODENet, width=16, nmode=NmODE(3.0, 1e-3)), jax.random.key(0))
    small = np.asarray(1e-4 * rng.normal(size=(16, 64)), np.float32)
    v = np.float32(1e6) * np.asarray(model.outputs.weight)
    model = eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.outputs.weight, m.outputs.bias),
        model,
        (small, np.full(16, np.pi / 4, np.float32), v, np.zeros(10, np.float32)),
    )
    certificates = {"slope": FlowMapSlope(), "relaxation": LinearRelaxation(bisections=16)}

    @eqx.filter_jit
    def judge(model):
        predictor = Predictor(model, state)
        # So that the margin is reached well inside the box.
        predictor = eqx.tree_at(lambda p: p.model.outputs.bias, predictor, -0.995 * predictor(X))
        radii = {
            name: c(predictor, X, 0, ball_type(0.05), key=KEY).radius
            for name, c in certificates.items()
        }
        return radii, predictor(X), jax.jacrev(predictor)(X)

    radii, logits, gradients = judge(model)
    logits = np.asarray(logits, np.float64)
    gradients = np.asarray(gradients, np.float64).reshape(10, -1)
    label = logits.argmax()
    dual = {LinfBall: 1, L2Ball: 2}[ball_type]
    true = min(
        (logits[label] - logits[j]) / np.linalg.norm(gradients[label] - gradients[j], dual)
        for j in range(10)
        if j != label
    )
    assert max(radii.values()) <= true * 1.001
    assert radii["relaxation"] > 0.9 * true


def test_a_perturbation_that_the_box_forbids_is_not_counted():
    # Black pixels cannot become darker: a network that only darkness could mislead is certain.
    # Its margin is h_0 - h_1 + 1 = sum(x) + 1, which intervals of h_0 and h_1 alone do not show.
    model, state = build(_maker(MLP, width=4, depth=1), jax.random.key(0))
    third, rows = np.eye(10, dtype=np.float32)[3], np.array([2, 1, 0, 0], np.float32)
    first = np.tile(rows[:, None], 64), np.array([100, 100, 0, 0], np.float32)
    second = np.outer(third, np.array([1, -1, 0, 0], np.float32)), third
    model = eqx.tree_at(
        lambda m: [a for layer in m.layers for a in (layer.weight, layer.bias)],
        model,
        [*first, *second],
    )
    images = np.stack([np.zeros_like(X), X])
    for ball in (LinfBall(0.5), L2Ball(2.0)):
        certificates = {"relaxation": LinearRelaxation(bisections=10)}
        proven, _ = certify(certificates, Predictor(model, state), images, np.array([3, 4]), ball)
        np.testing.assert_array_equal(proven["relaxation"].certified, [True, False])


@lru_cache
def pixel_net(sizes, activation):
    """A fully connected net on images of one pixel, of these sizes; without one, of nmODE."""
    cls, settings = NmODENet, {"width": sizes[0]}
    if activation is not None:
        cls, settings = MLP, settings | {"depth": len(sizes) - 1, "activation": activation}
    return build(lambda key: eqx.nn.make_with_state(cls)((1, 1, 1), sizes[-1], key=key, **settings))


def one_pixel(layers, activation=None):
    """The same with these weights and biases."""
    model, state = pixel_net(tuple(len(b) for _, b in layers), activation)

    def linears(m):
        return [*m.layers, m.outputs] if activation is None else m.layers

    weights = [np.asarray(a, np.float32) for layer in layers for a in layer]
    model = eqx.tree_at(
        lambda m: [a for layer in linears(m) for a in (layer.weight, layer.bias)], model, weights
    )
    return Predictor(model, state)


@eqx.filter_jit
def radii_and_first_flip(certificates, predictor, x):
    """What is proven; and where the prediction first changes, on a fine grid of the box."""
    grid = jnp.linspace(0, 1, 20_001)
    logits = jax.vmap(lambda p: predictor(p.reshape(1, 1, 1)))(grid)
    here = predictor(x)
    label = jnp.argmax(here)
    distance = jnp.where(jnp.argmax(logits, axis=1) != label, jnp.abs(grid - x[0, 0, 0]), jnp.inf)
    proven = [c(predictor, x, 0, LinfBall(1e-3), key=KEY) for c in certificates]
    return jnp.stack([p.radius for p in proven]), jnp.min(distance), here


@pytest.mark.parametrize("bias", [1e4, 1e5])
def test_rounding_of_a_large_preactivation_is_counted(bias):
    # At 1e5 neighbouring float32 numbers are 0.008 apart: the network is a staircase.
    x = np.full((1, 1, 1), 0.5038, np.float32)
    certificates = tuple(OF_NMODE.values())
    for shift in np.linspace(0, 3, 13):
        layers = [([[1.0]], [bias + shift]), ([[1.0], [0.0]], [0.0, 0.0])]
        *_, value = radii_and_first_flip(certificates, one_pixel(layers), x)
        for margin in (2.5e-4, 1e-3, 1e-2):
            layers[1] = ([[1.0], [0.0]], [0.0, float(value[0]) - margin])
            radii, flip, _ = radii_and_first_flip(certificates, one_pixel(layers), x)
            assert (np.asarray(radii) <= float(flip) + 1e-6).all()


GREY = np.full((1, 1, 1), 0.5, np.float32)


def test_a_ball_larger_than_the_box_is_tried_first_too():
    constant = one_pixel([([[0.0]], [0.0]), ([[0.0], [0.0]], [1.0, 0.0])], jax.nn.relu)
    proven = eqx.filter_jit(LinearRelaxation(bisections=10))(
        constant, GREY, 0, LinfBall(5.0), key=KEY
    )
    assert proven.certified


@pytest.mark.parametrize("certificate", [LinearRelaxation(bisections=10), FlowMapSlope()])
def test_logits_that_are_no_numbers_are_not_certified(certificate):
    broken = one_pixel([([[1.0]], [0.0]), ([[1.0], [0.0]], [float("nan"), 0.0])])
    assert not eqx.filter_jit(certificate)(broken, GREY, 0, LinfBall(0.0), key=KEY).certified


def test_cancellation_between_large_hidden_activations_is_counted():
    rng = np.random.default_rng(0)
    for _ in range(30):
        a1, a2, v1 = rng.uniform(0.5, 1.5, 3).astype(np.float32)
        v2 = np.float32(v1 * a1 / a2)
        layers = [
            ([[1e6], [0.0]], [0.0, 0.0]),
            ([[a1, 0.0], [a2, 0.0]], [0.0, 0.0]),
            ([[v1, -v2], [0.0, 0.0]], [5e-3, 0.0]),
        ]
        predictor = one_pixel(layers, jax.nn.relu)
        radii, flip, _ = radii_and_first_flip((LinearRelaxation(bisections=10),), predictor, GREY)
        assert float(radii[0]) <= float(flip) + 1e-6


def check_refused(certificate, make, match):
    """By tracing alone: a refusal needs no numbers."""
    predictor = make if isinstance(make, Predictor) else Predictor(*shapes_of(make))
    with pytest.raises(ValueError, match=match):
        eqx.filter_eval_shape(certificate, predictor, X, 0, LinfBall(0.1), key=KEY)


def shapes_of(make):
    return eqx.filter_eval_shape(make, KEY)


def test_the_theorem_is_not_applied_to_other_activations():
    nmode = NmODE(3.0, 1.0, activations=(sin_squared, sin_squared))
    for certificate in (StableMapping(), FiniteTimeStableMapping()):
        check_refused(certificate, _maker(NmODENet, width=4, nmode=nmode), r"nmODE's, with sin\^2")


def test_half_precision_is_refused():
    half = jax.tree.map(
        lambda a: np.zeros(a.shape, jnp.bfloat16) if hasattr(a, "dtype") else a,
        shapes_of(_maker(NmODENet, width=4)),
    )
    for certificate, _ in all_certificates.values():
        check_refused(certificate, Predictor(*half), "float64; got bfloat16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bisections": -1}, "bisections must be at least 0"),
        ({"chunk": 1}, "chunk must be at least 2"),
        ({"intermediate": "none"}, "linear or interval; got 'none'"),
    ],
)
def test_a_relaxation_with_other_settings_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LinearRelaxation(**settings)


def test_a_certificate_judges_a_model_of_its_own():
    labels, judged = digits("test", 100).labels, set()
    for network in ((3.0, 1.0), "Lipschitz"):
        for name, result in proven_of(network, LinfBall, 0.001)[0].items():
            judged.add(type(CERTIFICATES[network][name]))
            assert result.radius.shape == result.label.shape == result.certified.shape == (100,)
            assert (result.radius >= 0).all()
            np.testing.assert_array_equal(
                result.certified,
                (result.label == labels) & (result.radius >= np.float32(0.001)),
            )
    # In `test_relaxation.py`, `test_local_lipschitz.py` and `test_smoothing.py`.
    judged |= {IntervalBounds, LocalLipschitz, RandomizedSmoothing}
    assert judged == {type(certificate) for certificate, _ in all_certificates.values()}


def test_a_model_that_the_proof_says_nothing_about_is_refused():
    resnet = Predictor(*shapes_of(all_models["ResNet"]))
    for name, (certificate, _) in all_certificates.items():
        # These are about any program.
        if name not in ("IntervalBounds", "LinearRelaxation", "LocalLipschitz"):
            check_refused(certificate, resnet, "ResNet")


class Doubled(eqx.Module):
    """A network that proves its Lipschitz constant, and says nothing of its rounding errors."""

    def __call__(self, x, state, *, key=None):
        return 2 * jnp.ravel(x)[:10], state

    def lipschitz_bound(self):
        return jnp.asarray(2.0)


def test_a_lipschitz_constant_without_its_rounding_error_is_refused():
    match = r"Doubled has a lipschitz_bound\(\) but no float32_error\(x, radius\): add this method"
    check_refused(LipschitzMargin(), lambda key: (Doubled(), None), match)


@pytest.mark.parametrize("certificate", [StableMapping(), FiniteTimeStableMapping()], ids=str)
def test_a_network_that_is_solved_and_not_exact_is_refused(certificate):
    # Its steps are chosen by error estimates, so it can jump where the exact flow cannot.
    make = _maker(NmODENet, width=4, nmode=NmODE(solver=diffrax.Dopri5()))
    check_refused(certificate, make, "Dopri5")


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_published_mapping_needs_lambda_above_one(lam):
    make = _maker(NmODENet, width=4, nmode=NmODE(lam, 1.0))
    check_refused(StableMapping(), make, f"lam > 1; got {lam}")


# One of each that computes a radius in its own way; `certified` is said in one place for all.
@pytest.mark.parametrize("network", [(3.0, 1.0), "Lipschitz"])
def test_a_wrong_prediction_is_never_certified(network):
    right, logits = proven_of(network, LinfBall, 0.0)
    wrong, _ = proven_of(network, LinfBall, 0.0, wrong=True)
    for name in right:
        np.testing.assert_array_equal(right[name].label, logits.argmax(axis=1))
        np.testing.assert_array_equal(wrong[name].label, right[name].label)
        assert not wrong[name].certified.any()
    images, labels = digits("test", 50).pixels, (logits.argmax(axis=1)[:50] + 1) % 10
    certificate, *_ = CERTIFICATES[network].values()
    radii = certified_radii(
        predictor_for(network), images, labels, LinfBall(0.0), certificate, key=KEY
    )
    np.testing.assert_array_equal(radii, np.zeros(50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x - 0.13) / 0.31, "pixels must lie in"),
        (lambda x: 255 * x, r"pixels must lie in \[0.0, 1.0\]; got \[0.0, 255.0\]"),
        (lambda x: (255 * x).astype(np.int32), "floats in"),
        (lambda x: x[:0], "there are no images"),
    ],
    ids=["normalised", "0 to 255", "int32", "none"],
)
def test_no_certificate_believes_any_pixels(change, message, unchecked):
    data, predictor = digits("test", 4), trained_mlp()
    images, certificate = change(data.pixels), LinearRelaxation(bisections=10)
    with pytest.raises(ValueError, match=message):
        certified_radii(
            predictor, images, data.labels[: len(images)], LinfBall(0.1), certificate, key=KEY
        )
    if len(images):
        with pytest.raises(ValueError, match=message):
            certificate(predictor, images[0], data.labels[0], LinfBall(0.1), key=KEY)


def test_no_certificate_takes_a_label_that_is_no_class(unchecked):
    data = digits("test", 1)
    with pytest.raises(ValueError, match="labels must be classes 0 to 9; got 10"):
        LinearRelaxation(bisections=10)(trained_mlp(), data.pixels[0], 10, LinfBall(0.1), key=KEY)


def test_a_bracket_refuses_what_a_certificate_says_nothing_about_before_any_attack():
    def attack(*arguments, **settings):
        pytest.fail("an attack ran")

    with pytest.raises(ValueError, match="StableMapping certifies an NmODENet; got MLP"):
        bracket(
            trained_mlp(),
            *digits("test", 5),
            LinfBall(0.1),
            attacks=[attack],
            certificates=[StableMapping()],
            key=KEY,
        )


class OneConstant(eqx.Module):
    """Logits A x of a matrix of norm 2, of which it states the norm alone."""

    def __call__(self, x, state, *, key=None):
        return 2 * jnp.ravel(x)[:3], state

    def lipschitz_bound(self):
        return jnp.asarray(2.0)

    def float32_error(self, x, radius):
        return jnp.zeros_like(radius)


def test_one_constant_for_all_logits_holds_for_a_difference_times_the_root_of_two():
    x = jnp.asarray([[[0.9], [0.2]], [[0.4], [0.0]]])
    predictor = Predictor(OneConstant(), eqx.nn.State(OneConstant()))
    result = LipschitzMargin()(predictor, x, 0, L2Ball(0.1), key=KEY)
    distance = (0.9 - 0.4) / 2**0.5  # of the two pixels becoming equal
    assert 0.999 * distance < float(result.radius) < distance


class Liar(AbstractLipschitzCertificate):
    """Claims that margins hardly fall at all."""

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_lipschitz(self, predictor, label):
        return jnp.full(10, 1e-3)


def test_a_bracket_refuses_a_certificate_that_an_attack_breaks():
    data = digits("test", 50)
    with pytest.raises(RuntimeError, match=r"certified images were broken within LinfBall\(0\.2"):
        bracket(
            trained_mlp(),
            *data,
            LinfBall(0.2),
            attacks=[PGD(steps=10, step_size=None)],
            certificates=[Liar()],
            key=KEY,
        )
