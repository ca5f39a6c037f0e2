"""Networks trained to be proven robust: the experiment, small."""

import json
from functools import partial
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.certified import families, l2, networks, vote
from experiments.certified.families import FAMILIES
from experiments.lib import accuracy, report
from experiments.lib.run import UsageError, execute
from odejax import load
from odejax.attacks import APGD, PGD, AutoAttack
from odejax.models import LipschitzNet, OrthogonalNet
from odejax.training import RadiusCrossEntropy

SHAPE = (28, 28, 1)
KEY = jax.random.key(0)
SMALL = {"channels": (4, 8), "width": 16, "neurons": 32}


def made(name):
    """The shapes of a network and of its state."""
    make = eqx.nn.make_with_state(families.family(name, **SMALL))
    return eqx.filter_eval_shape(lambda key: make(SHAPE, 10, key=key), jax.random.key(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_maps_an_image_to_logits(name):
    def logits(model, state):
        images = jnp.zeros((2, *SHAPE))
        return jax.vmap(lambda x: model(x, state)[0], axis_name="batch")(images)

    assert eqx.filter_eval_shape(logits, *made(name)).shape == (2, 10)


def test_residual_networks_have_equal_weights_and_the_ode_those_of_one_field():
    sizes = {
        name: sum(getattr(x, "size", 0) for x in jax.tree.leaves(made(name)[0]))
        for name in FAMILIES
    }
    assert sizes["ResNet"] == sizes["SSP-2"] == sizes["SSP-3"]
    field = 2 * (3 * 3 * 8 * 8 + 8)
    assert sizes["ResNet"] - sizes["neural ODE"] == sizes["neural ODE"] - sizes["CNN"] == field


def test_only_training_by_bounds_draws_weights_for_intervals():
    preset = networks.PRESETS["smoke"]["digits"]
    trainings = networks.trainings_of(preset.eps)
    assert list(trainings) == [
        "plain", "decay", "PGD 0.05", "PGD 0.1", "bounds 0.05", "bounds 0.1",
    ]  # fmt: skip
    weights = {}
    for training, eps in trainings.items():
        recipe = networks.recipe("CNN", training, eps, preset)
        model, _ = eqx.nn.make_with_state(recipe.make)((8, 8, 1), 10, key=jax.random.key(0))
        weights[training] = float(jnp.std(model.linears[0].weight))
        objective = recipe.over(10)
        assert getattr(getattr(objective, "objective", None), "ball", None) is None or eps
    assert weights["plain"] == weights["PGD 0.1"] != weights["bounds 0.1"]
    assert weights["bounds 0.1"] == pytest.approx((2 * np.pi) ** 0.5 / 64, rel=0.1)


@pytest.mark.slow
def test_intervals_are_measured_resumed_and_drawn(tmp_path):
    config = partial(
        networks.Config,
        preset="smoke",
        out=tmp_path,
        networks=("CNN", "nmODE"),
        trainings=("plain", "bounds 0.07"),
    )
    given = {"attacks": {"PGD-40": PGD(2)}, "last": AutoAttack({"APGD": APGD(3)})}
    execute(networks.EXPERIMENT, config(), **given)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]) == {
        f"{training}/{name}/0" for training in ("plain", "bounds 0.07") for name in ("CNN", "nmODE")
    }
    for name, record in result["runs"].items():
        n = 16 if name.startswith("bounds") else 8
        assert record["images"] == {"linf": n, "l2": 4}
        assert len(record["balls"]["linf"]) == (1 if name.startswith("bounds") else 2)
        for bracket in record["balls"]["linf"] + record["balls"]["l2"]:
            assert bracket["certified"] <= bracket["attacked"]
            assert set(bracket["per_certificate"]) == set(networks.CERTIFICATES)
    execute(networks.EXPERIMENT, config(resume=True), recipe_of=None)  # nothing is trained again
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert all((tmp_path / f"{name}.png").exists() for name in networks.FIGURES)


def test_a_network_may_be_trained_for_any_radius():
    eps = (2 / 255, 8 / 255)
    assert networks.radius_of("plain", eps) is None
    assert networks.radius_of("bounds 0.0314", eps) == 8 / 255  # the ball's own, not its name's
    assert networks.radius_of("PGD 0.05", eps) == 0.05
    for wrong in ("IBP", "bounds", "bounds -0.1", "bounds nan", "decay 0.1", "PGD 8"):
        with pytest.raises(UsageError, match=f"unknown training '{wrong}'; accepted: plain, decay"):
            networks.radius_of(wrong, eps)
    config = networks.Config(preset="smoke", dataset="digits", trainings=())
    with pytest.raises(UsageError, match="no trainings"):
        networks.plan(config)


def test_before_and_after_has_the_first_radius_and_networks_of_every_training(monkeypatch):
    both, one = {"CNN": "a", "nmODE": "b"}, {"CNN": "c"}
    names = ("plain", "PGD 0.1", "PGD 0.2", "bounds 0.1")
    trainings = dict(zip(names, (both, both, both, one), strict=True))
    monkeypatch.setattr(networks, "_by_training", lambda result, norm: trainings)
    monkeypatch.setattr(networks, "_drawn", lambda result, shown, panels: shown)
    shown = networks.before_and_after({"settings": {"eps": [0.1, 0.2]}})
    assert shown == {"plain": {"CNN": "a"}, "PGD 0.1": {"CNN": "a"}, "bounds 0.1": one}


def test_the_finding_of_the_figure_is_about_the_first_radius():
    def measured(certified, attacked):  # clean, and at each radius
        ends = {accuracy.CERTIFIED: certified, accuracy.ATTACKED: attacked}
        return SimpleNamespace(mean=ends.__getitem__)

    bounds = {
        "CNN": measured([99, 80, 20], [99, 84, 60]),
        "MLP": measured([98, 70, 9], [98, 76, 50]),
    }
    trainings = {"bounds 0.1": bounds, "PGD 0.1": {"CNN": measured([99, 5, 0], [99, 90, 80])}}
    assert networks._finding(trainings, [0.1, 0.2]) == (  # pyright: ignore[reportArgumentType]
        "Trained by bounds: 70.0 to 80.0 % certified within L-infinity 0.1, in intervals 5.0 "
        "points wide; trained against PGD: 85 points wide"
    )


@pytest.mark.slow
def test_lipschitz_networks_are_measured_in_l2_and_published(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "KEPT", tmp_path)
    config = partial(
        l2.Config,
        preset="smoke",
        out=tmp_path,
        networks=("SDP-based", "orthogonal"),
        publish_weights=True,
    )
    execute(l2.EXPERIMENT, config(), last=AutoAttack({"APGD": APGD(3)}))
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]) == {"SDP-based/0", "orthogonal/0"}
    (folder,) = (tmp_path / "weights").iterdir()
    for name, record in result["runs"].items():
        predictor = load(folder / f"{name.replace('/', '_')}.odejax")
        assert float(predictor.model.lipschitz_bound()) == record["lipschitz_bound"]
        assert len(record["certified_of_all"]) == 2
        assert all(b["certified"] <= b["attacked"] for b in record["brackets"])
    assert (tmp_path / "intervals.png").exists()


def test_every_l2_network_is_trained_for_a_radius():
    preset = l2.PRESETS["smoke"]["digits"]
    for name in l2.NAMES:
        recipe = l2.recipe(name, preset)
        assert recipe.objective == RadiusCrossEntropy(preset.radius, preset.temperature)
        model, _ = eqx.nn.make_with_state(recipe.make)((8, 8, 1), 10, key=jax.random.key(0))
        assert isinstance(model, OrthogonalNet if name == "orthogonal" else LipschitzNet)


def test_networks_that_vote_have_equal_weights():
    preset = vote.PRESETS["cpu"]["mnist"]

    def size(name):
        make = eqx.nn.make_with_state(vote.network(name, preset))
        model, _ = eqx.filter_eval_shape(lambda key: make(SHAPE, 10, key=key), jax.random.key(0))
        arrays = jax.tree.leaves(eqx.filter(model, lambda leaf: hasattr(leaf, "shape")))
        return sum(leaf.size for leaf in arrays)

    sizes = [size(name) for name in vote.NAMES]
    assert max(sizes) < 1.02 * min(sizes)


@pytest.mark.slow
def test_votes_are_certified_and_attacked(tmp_path):
    config = partial(vote.Config, preset="smoke", out=tmp_path, networks=("SSP-3", "En2 ResNet"))
    execute(vote.EXPERIMENT, config())
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]) == {"SSP-3/0", "En2 ResNet/0"}
    for record in result["runs"].values():
        assert all(b["certified"] <= b["attacked"] <= b["clean"] for b in record["brackets"])
        assert record["brackets"][0]["alpha"] == {"RandomizedSmoothing": 0.001}
    assert (tmp_path / "intervals.png").exists()


def traced(recipe):
    """How many weights a gradient of the recipe's objective has, for CIFAR-10's images: nothing is
    computed."""
    make = eqx.nn.make_with_state(recipe.make)
    model, state = eqx.filter_eval_shape(lambda key: make((32, 32, 3), 10, key=key), KEY)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((4,), jnp.int32)
    gradient = eqx.filter_grad(partial(recipe.objective, key=KEY), has_aux=True)
    of_weights, _ = eqx.filter_eval_shape(gradient, model, state, images, labels)
    return sum(leaf.size for leaf in jax.tree.leaves(of_weights))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_training_at_the_papers_size_is_traced(name):
    preset = networks.PRESETS["paper"]["cifar10"]
    for training, eps in networks.trainings_of(preset.eps).items():
        assert traced(networks.recipe(name, training, eps, preset)) > 1e6


@pytest.mark.slow
def test_training_at_the_papers_size_in_l2_is_traced():
    preset = l2.PRESETS["paper"]["cifar10"]
    assert all(traced(l2.recipe(name, preset)) > 1e5 for name in l2.NAMES)
    preset = vote.PRESETS["paper"]["cifar10"]
    assert all(traced(vote.recipe(name, preset)) > 1e6 for name in vote.NAMES)
