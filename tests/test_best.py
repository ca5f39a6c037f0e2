"""Which certificates apply to a network, and how a bracket uses them by default."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    NoisyLogits,
    all_models,
    digits,
    predictor_of,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)

from odejax import L2Ball, LinfBall, Predictor, predict
from odejax.attacks import PGD
from odejax.certificates import (
    FiniteTimeStableMapping,
    FlowMapSlope,
    IntervalBounds,
    LinearRelaxation,
    StableMapping,
    best,
)
from odejax.certificates.best import count_neurons
from odejax.evaluation import bracket, certified_radii
from odejax.models import ConvODENet, ODESolve

KEY = jax.random.key(5)
SHAPE = (8, 8, 1)
BOUNDS = ["CROWN"]
OF_THEIR_OWN = {
    "NmODENet flow map": ["FlowMapSlope"],
    "LipschitzNet": ["LipschitzMargin"],
    "LipschitzNet SLL": ["LipschitzMargin"],
    "OrthogonalNet": ["LipschitzMargin"],
    "StructuredNet": ["LipschitzMargin"],
    "StructuredNet switching": ["LipschitzMargin"],
}
WITHOUT_BOUNDS = {
    "EnResNet": "EnResNet draws noise",
    "MixedEnResNet": "MixedEnResNet draws noise",
    "NeuralSDENet": "NeuralSDENet draws noise",
    "ConvODENet": "solved by Diffrax's ConstantStepSize: make the network on a grid",
    "ConvODENet in time": "on a fixed grid",
    "AugmentedODENet": "on a fixed grid",
    "DenseODENet": "solved by Diffrax's PIDController",
    "DenseODENet Hopfield": "on a fixed grid",
    "NmODENet solver": "no bounds are known for the primitive while",
    "SpherePreservingNet": "no bounds are known for the primitive lu",
}
QUICK = ("MLP", "NmODENet flow map", "LipschitzNet", "DenseODENet", "EnResNet")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in all_models]
)
def test_every_family_has_the_certificates_that_apply_to_it(name):
    chosen = best(predictor_of(name))
    own = OF_THEIR_OWN.get(name, [])
    assert list(chosen) == own + ([] if name in WITHOUT_BOUNDS else BOUNDS)
    assert list(chosen.left_out) == [
        n for n in ("LipschitzMargin", "FlowMapSlope") if n not in own
    ] + (["CROWN", "CROWN-IBP"] if name in WITHOUT_BOUNDS else [])
    if name in WITHOUT_BOUNDS:
        (reason,) = chosen.limits
        assert WITHOUT_BOUNDS[name] in reason
    else:
        assert chosen.limits == ()


def test_a_neural_ode_on_a_grid_has_bounds():
    make = eqx.nn.make_with_state(ConvODENet)
    model, state = eqx.filter_jit(lambda key: make(SHAPE, width=2, layers=1, key=key))(KEY)
    assert list(best(Predictor(model, state))) == []
    on_grid = eqx.tree_at(lambda m: m.ode, model, ODESolve().on_grid(1))
    assert list(best(Predictor(on_grid, state))) == BOUNDS


def test_a_function_has_bounds_alone():
    weight = np.ones((3, 64), np.float32)
    chosen = best(lambda x: weight @ x.ravel(), SHAPE)
    assert list(chosen) == BOUNDS
    assert chosen.left_out["FlowMapSlope"].startswith("FlowMapSlope needs a Predictor; got ")
    noisy = best(lambda x, key: weight @ x.ravel() + jax.random.normal(key, (3,)), SHAPE)
    assert list(noisy) == []
    assert "draws noise" in noisy.limits[0]


def test_neurons_are_counted_and_limit_crown_alone():
    network = trained_mlp()
    width = network.model.layers[0].weight.shape[0]
    hidden = width * (len(network.model.layers) - 1)
    x = jnp.zeros(SHAPE)
    assert count_neurons(network, x) == hidden

    def turns(x):  # seven turns of three neurons
        def turn(y, _):
            return jax.nn.relu(y - 0.1), None

        return jax.lax.scan(turn, x.ravel()[:3], None, length=7)[0]

    assert count_neurons(turns, x) == 21
    assert list(best(network, max_neurons=hidden)) == BOUNDS
    chosen = best(network, max_neurons=hidden - 1)
    assert list(chosen) == ["CROWN-IBP"]
    assert chosen.limits == (
        f"CROWN is left out for its cost: {hidden} neurons are more than max_neurons = "
        f"{hidden - 1}",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits_fn": 3}, "logits_fn must be a function; got 3"),
        ({"logits_fn": jnp.ravel}, "image_shape must be given: ravel does not state it"),
        ({"image_shape": (8, 8)}, r"image_shape must be \(height, width, .*got \(8, 8\)"),
        ({"max_neurons": -1}, "max_neurons must be at least 0; got -1"),
    ],
    ids=["no function", "no shape", "shape of two", "negative limit"],
)
def test_what_cannot_be_meant_is_refused(arguments, message, unchecked):
    arguments = {"logits_fn": trained_mlp()} | arguments
    with pytest.raises(ValueError, match=message):
        best(**arguments)


@pytest.mark.parametrize("ball", [LinfBall(0.01), L2Ball(0.02)], ids=["linf", "l2"])
def test_what_is_not_listed_proves_no_more(ball):
    """At the radius asked for, and of nmODE in closed form."""
    network, data = trained_nmode(), digits("test", 60)

    def radii(certificate):
        return certified_radii(network, *data, ball, certificate, key=0)

    slope = radii(FlowMapSlope())
    assert slope.max() > 0
    assert (radii(FiniteTimeStableMapping()) <= slope).all()
    assert (radii(StableMapping()) <= slope).all()
    crown_ibp = radii(LinearRelaxation(intermediate="interval"))
    assert (radii(IntervalBounds()) <= crown_ibp).all()
    assert (crown_ibp <= radii(LinearRelaxation())).all()


# -- by default in a bracket ---------------------------------------------------------------------

EPS = (0.002, 0.03, 0.04)


@pytest.fixture
def sought(monkeypatch):
    """What each certificate was to run on, and its radii, in the order of the calls."""
    calls, module = [], sys.modules["odejax.evaluation.bracket_steps"]
    original = module.certified_radii

    def recorded(*arguments, **settings):
        radii = original(*arguments, **settings)
        calls.append((settings.get("order"), radii))
        return radii

    monkeypatch.setattr(module, "certified_radii", recorded)
    return calls


def test_by_default_a_bracket_runs_what_applies_on_images_in_doubt(sought):
    network, data = trained_nmode(), digits("test", 60)
    balls = [LinfBall(eps) for eps in EPS]
    measured = bracket(network, *data, balls, attacks=PGD(5), key=KEY, flag_images=0)
    assert len(sought) == 3 * 2
    calls, before = iter(sought), np.ones(60, bool)
    logits = np.sort(predict(network, data.images, key=KEY), axis=1)
    margins = logits[:, -1] - logits[:, -2]
    for ball, one in zip(balls, measured, strict=True):
        proven = np.zeros(60, bool)
        for i, (name, accuracy) in enumerate(one.per_certificate.items()):
            order, radii = next(calls)
            assert name == ["FlowMapSlope", *BOUNDS][i]
            if i:
                in_doubt = np.flatnonzero(one.still_correct & ~proven & before)
                np.testing.assert_array_equal(np.sort(order), in_doubt)
                assert (np.diff(margins[order]) <= 0).all()
            else:
                assert order is None
            proven = proven | (radii >= np.asarray(ball.eps))
            assert accuracy == proven.mean()
        np.testing.assert_array_equal(one.certified_correct, proven)
        assert one.certified == proven.mean()
        before = proven
    assert (measured[2].still_correct & ~measured[1].certified_correct).any()  # not sought again
    assert measured[0].certified > measured[1].certified > measured[2].certified
    assert len({tuple(one.per_certificate.values()) for one in measured}) == 3
    assert (measured[1].radius >= measured[0].radius).all()


def test_what_is_proven_in_turn_is_what_all_certificates_prove():
    network, data = trained_nmode(), digits("test", 60)
    settings = {"attacks": PGD(5), "key": KEY, "flag_images": 0}
    ball = LinfBall(0.02)
    in_turn = bracket(network, *data, ball, **settings)
    every = bracket(network, *data, ball, certificates=dict(best(network)), **settings)
    assert in_turn.certified > 0.5
    np.testing.assert_array_equal(in_turn.certified_correct, every.certified_correct)
    assert (in_turn.in_turn, every.in_turn) == (True, False)
    assert "\n  with CROWN  " in repr(in_turn)
    assert "\n  certified by CROWN  " in repr(every)


@pytest.mark.slow
def test_a_radius_of_a_closed_form_is_not_lost_in_doubt():
    network, data = trained_lipschitz(), digits("test", 20)
    settings = {"certificates": "auto", "key": KEY, "flag_images": 0}
    chosen = bracket(network, *data, L2Ball(5.0), **settings)
    alone = certified_radii(network, *data, L2Ball(5.0), best(network)["LipschitzMargin"], key=KEY)
    assert chosen.certified == 0
    np.testing.assert_array_equal(chosen.radius, alone)


def test_the_limit_of_neurons_can_be_given_to_a_bracket():
    network, data = trained_mlp(), digits("test", 10)
    chosen = best(network, max_neurons=1)
    settings = {"key": KEY, "flag_images": 0}
    result = bracket(network, *data, LinfBall(1e-4), certificates=chosen, **settings)
    assert list(result.per_certificate) == ["CROWN-IBP"]
    assert result.in_turn
    assert "more than max_neurons = 1" in result.uncertified[0]
    assert "certificates: CROWN is left out for its cost" in repr(result)


def test_where_nothing_applies_the_lower_end_is_nothing_and_says_why():
    network, data = NoisyLogits(trained_mlp()), digits("test", 10)
    result = bracket(
        network, *data, [LinfBall(0.01), LinfBall(0.02)], attacks=PGD(2), key=KEY, flag_images=0
    )
    for one in result:
        assert (one.certified, one.per_certificate) == (0.0, {})
        (reason,) = one.uncertified
        assert "NoisyLogits draws noise" in reason
        assert "0 % (no certificate) <= robust accuracy" in repr(one)
        for shown in (repr(one), one._repr_html_(), repr(result)):
            assert f"certificates: {reason}" in " ".join(shown.split())
        assert json.loads(json.dumps(one.summary()))["uncertified"] == [reason]


def test_a_bracket_without_certificates_has_none():
    result = bracket(
        trained_mlp(), *digits("test", 5), LinfBall(0.1), certificates=(), key=KEY, flag_images=0
    )
    assert (result.per_certificate, result.in_turn) == ({}, False)
    assert "none was run" in result.uncertified[0]


def test_only_some_radii_are_sought():
    network, data, ball = trained_mlp(), digits("test", 20), LinfBall(0.01)
    settings = {"certificate": LinearRelaxation(), "key": 0, "batch_size": 8}
    every, order = certified_radii(network, *data, ball, **settings), np.arange(19, 0, -2)
    some = certified_radii(network, *data, ball, order=order, **settings)
    np.testing.assert_array_equal(some, np.where(np.isin(np.arange(20), order), every, 0.0))
    assert some.any()
    assert not certified_radii(network, *data, ball, order=np.arange(0), **settings).any()
    for wrong in ([20], [1, 1], [0.5], True):
        with pytest.raises(ValueError, match="order must be different integers from 0 to 19; got"):
            certified_radii(network, *data, ball, order=wrong, **settings)


def test_a_search_ends_with_a_batch_of_which_nothing_is_proven():
    """Of images at growing distances from the boundary, in an order that is not theirs."""
    images = np.linspace(0.5, 0.7, 12, dtype=np.float32)[:, None, None, None]
    order = np.array([11, 0, 9, 10, 8, 1, 2, 3, 4, 7, 6])

    def mean(x):
        return jnp.stack([x[0, 0, 0] - 0.5, 0.5 - x[0, 0, 0]])

    settings = {"certificate": LinearRelaxation(), "key": 0, "batch_size": 3, "order": order}
    found = {
        until: certified_radii(
            mean, images, np.zeros(12, int), LinfBall(0.09), until_none=until, **settings
        )
        for until in (False, True)
    }
    np.testing.assert_array_equal(np.flatnonzero(found[False]), [6, 7, 8, 9, 10, 11])
    np.testing.assert_array_equal(np.flatnonzero(found[True]), [8, 9, 10, 11])
