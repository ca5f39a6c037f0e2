"""Certificates against attacks, against hand computation, and against models they cannot judge."""

from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    all_certificates,
    digits,
    predictor_of,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)

from odejax import L2Ball, LinfBall, Predictor, predict
from odejax.attacks import PGD, Restarts
from odejax.certificates import (
    AbstractCertificate,
    FiniteTimeStableMapping,
    LipschitzMargin,
    StableMapping,
)
from odejax.evaluation import bracket, certified_radii
from odejax.models import NmODE, NmODENet

KEY = jax.random.key(9)
NMODES = [(3.0, 1.0), (3.0, 0.05), (1.5, 2.0)]
CASES = {
    **{f"published lam={lam} t1={t1}": (StableMapping(), (lam, t1)) for lam, t1 in NMODES},
    **{f"finite lam={lam} t1={t1}": (FiniteTimeStableMapping(), (lam, t1)) for lam, t1 in NMODES},
    "finite lam=0.5 t1=1": (FiniteTimeStableMapping(), (0.5, 1.0)),
    "Lipschitz": (LipschitzMargin(), None),
}
each_case = pytest.mark.parametrize("case", CASES)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])


def certificate_and_predictor(case):
    certificate, nmode = CASES[case]
    return certificate, trained_lipschitz() if nmode is None else trained_nmode(*nmode)


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
            w = np.asarray(model.inputs.weight, np.float64)
            v = np.asarray(model.outputs.weight, np.float64)
            lam, t1 = model.nmode.lam, model.nmode.t1
            if kind == "published":
                growth = np.abs(v[label] - v).sum(1) * np.abs(w).sum(1).max() / (lam - 1)
            else:
                slope = (1 - np.exp(-(lam - 1) * t1)) / (lam - 1)
                growth = np.abs(v[label] - v) @ np.abs(w).sum(1) * slope
        radii.append(min((z[label] - z[j]) / growth[j] for j in range(len(z)) if j != label))
    return np.array(radii)


@each_case
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
    with pytest.raises(ValueError, match="MLP"):
        certificate(predictor_of("MLP"), jnp.asarray(digits().pixels[0]), 0, LinfBall(0.1), key=KEY)


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


class Liar(AbstractCertificate):
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
