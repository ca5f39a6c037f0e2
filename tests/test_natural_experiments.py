"""The experiments of *natural*, small."""

import dataclasses
import json
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import numpy as np
import pytest
from rich.console import Console

import odejax
from experiments.ledger import claims, report
from experiments.ledger.printed import all_claims
from experiments.lib.recipe import Recipe, adam, one_cycle, train
from experiments.lib.run import UsageError, execute
from experiments.natural import (
    causes as natural_causes,
    fig1 as natural_fig1,
    stability as natural_stability,
    tables as natural,
)
from odejax.attacks import FGSM, PGD, AutoAttack, Square, margin_loss
from odejax.data import ArrayDataset
from odejax.evaluation import save_result
from odejax.models import MLP, DenseODENet, PreActResNet, ResNet, RevNet


def quick_presets() -> dict:
    """Two networks that compile in a second, and three short attacks."""
    makes = {
        "ResNet": partial(MLP, width=32),
        "Neural ODE, t1 = 2": partial(DenseODENet, width=32, t1=2.0),
    }
    attacks = {"FGSM": FGSM(), "PGD-40": PGD(10, 0.04), "Square": Square(20)}
    preset = natural.Preset(
        {name: Recipe(make, 4, 64, adam(one_cycle(5e-3))) for name, make in makes.items()},
        test_images=24,
        queries=20,
        attacks=lambda dataset, queries: attacks,
        last=AutoAttack({"APGD": PGD(10, None)}),
        flag_images=0,
    )
    return {"smoke": {"digits": preset}}


def quick(out, **settings):
    config = natural.Config(preset="smoke", dataset="digits", out=out, **settings)
    return execute(natural.EXPERIMENT, config, presets=quick_presets())


@pytest.mark.slow
def test_the_worst_is_below_every_attack_and_a_run_resumes(tmp_path):
    quick(tmp_path, networks=("ResNet",))
    path = tmp_path / "result.json"
    first = json.loads(path.read_text())["runs"]
    quick(tmp_path, resume=True)
    result = json.loads(path.read_text())
    runs = result["runs"]
    assert list(runs) == ["ResNet/0", "Neural ODE, t1 = 2/0"]
    assert runs["ResNet/0"] == first["ResNet/0"]  # read, not measured again
    for name, record in runs.items():
        assert record["clean_accuracy"] > 0.8
        transfers = {"solve stopped early", "ResNet"} if "ODE" in name else set()
        worst = [b["attacked"] for b in record["brackets"]]
        assert worst == sorted(worst, reverse=True)
        for b in record["brackets"]:
            assert set(b["per_transfer"]) == transfers
            every = [*b["per_attack"].values(), *b["per_transfer"].values()]
            assert b["attacked"] <= min(every)
            low, high = b["attacked_interval"]
            assert low <= b["attacked"] <= high
        squares = [b["per_attack"]["Square"] for b in record["brackets"]]
        assert squares == sorted(squares, reverse=True)
    console = Console(width=80, record=True)
    for table in natural.tables(result):
        console.print(table)
    text = console.export_text()
    assert "transfer from solve stopped early" in text
    assert f"{100 * worst[-1]:.1f}" in text
    assert (tmp_path / "natural.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="was started with test_images 24, not 25"):
        quick(tmp_path, resume=True, test_images=25)


@pytest.mark.slow
def test_a_network_alone_still_sees_the_resnets_images(tmp_path):
    quick(tmp_path, networks=("Neural ODE, t1 = 2",))
    (record,) = json.loads((tmp_path / "result.json").read_text())["runs"].values()
    for b in record["brackets"]:
        assert set(b["per_transfer"]) == {"solve stopped early", "ResNet"}
        # Images of another network break no more than the network's own.
        assert b["per_transfer"]["ResNet"] >= b["per_attack"]["PGD-40"]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_papers_networks_are_those_of_its_tables(dataset):
    networks = natural.PRESETS["paper"][dataset].networks
    tables = ("Section 4.2", "Table 1", "Table 2")
    printed = {c.model for c in all_claims() if (c.paper, c.dataset) == ("natural", dataset)}
    assert printed == set(networks)
    shape = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[dataset]
    make = eqx.nn.make_with_state(networks["Neural ODE"].make)
    model, _ = eqx.filter_eval_shape(make, shape, 10, key=jax.random.key(0))
    sizes = {"mnist": (128, 4, 100.0), "cifar10": (256, 5, 500.0)}[dataset]
    convs = model.residual.convs
    assert (convs[0].kernel.shape[-1], len(convs), model.ode.t1) == sizes
    grid = {
        (c.attack, round(c.radius, 6))
        for c in all_claims()
        if (c.paper, c.dataset) == ("natural", dataset) and c.table in tables and c.eps
    }
    attacks = natural.attacks_of(dataset, 5000)
    for attack, eps in grid:
        assert attack in attacks
        assert eps in np.round(natural.EPS[dataset], 6)


@pytest.mark.slow
def test_yopo_takes_its_steps_through_the_first_layer_of_table_2s_network():
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    data = ArrayDataset(images, np.arange(8, dtype=np.int32), 10, "noise")
    network = natural.PRESETS["paper"]["cifar10"].networks["PreActResNet-18, YOPO-5-3"]
    small = dataclasses.replace(
        network, make=partial(PreActResNet, depth=8), epochs=1, batch_size=8, augment=None
    )
    predictor, record = train(small, data, jax.random.key(0))
    assert np.isfinite(record["last_epoch"]["loss"])
    rule: Any = network.objective
    assert rule.first(predictor.model) is predictor.model.stem
    assert (rule.m, rule.n) == (5, 3)


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (
            natural_fig1,
            {"preset": "paper", "dataset": "digits"},
            "unknown dataset for the preset paper 'digits'; accepted: cifar10",
        ),
        (natural_fig1, {"seeds": 0}, "seeds must be at least 1; got 0"),
        (natural_stability, {"eps": -0.1}, "eps must be finite and positive; got -0.1"),
        (natural_stability, {"width": 15}, "width must be even, for RevNet's halves; got 15"),
        (natural_causes, {"fields": ()}, "no fields; accepted: convolutional, fully connected"),
        (natural_causes, {"queries": 0}, "queries must be at least 1; got 0"),
    ],
)
def test_the_other_scripts_name_wrong_arguments(script, settings, message):
    with pytest.raises(UsageError, match=message):
        execute(script.EXPERIMENT, script.Config(**settings))


def test_a_tighter_tolerance_takes_more_steps():
    make = eqx.filter_jit(eqx.nn.make_with_state(DenseODENet))
    predictor = odejax.Predictor(*make((8, 8, 1), width=8, key=jax.random.key(0)))
    x = np.random.default_rng(1).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    tight = natural_causes._solved_to(predictor, 1e-7)
    _, _, steps = natural_causes._flow(predictor, x, x[::-1])
    _, _, more = natural_causes._flow(tight, x, x[::-1])
    assert (np.asarray(more) > np.asarray(steps)).all()


@pytest.mark.parametrize("make", [ResNet, RevNet])
def test_the_walk_is_the_networks_own(make):
    """The states of which growth is measured end where the network's head begins."""
    walk: Any = natural_stability._reversible_walk if make is RevNet else natural_stability._walk

    @jax.jit
    def logits(x):
        made = eqx.nn.make_with_state(make)
        model, state = made((8, 8, 1), width=4, depth=2, key=jax.random.key(0))
        states, visits = walk(model, state, x)
        assert len(states) == 3
        assert len(visits) == (4 if make is RevNet else 2)
        return model.head(states[-1], state)[0], model(x, state)[0]

    x = np.random.default_rng(1).uniform(size=(8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(*logits(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; accepted: paper, cpu, smoke"),
        (
            {"preset": "paper", "dataset": "digits"},
            "unknown dataset for the preset paper 'digits'; accepted: mnist, cifar10",
        ),
        ({"networks": ("ResNet-50",)}, "unknown network 'ResNet-50'; accepted: ResNet, Neural"),
        ({"test_images": 0}, "test-images must be at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        execute(natural.EXPERIMENT, natural.Config(**settings))


def test_the_ledger_reads_the_papers_preset(tmp_path):
    brackets = [
        {
            "eps": eps,
            "n": 1000,
            "attacked": 0.01,
            "certified": 0.0,
            "per_attack": {"FGSM": 0.5, "PGD-40": 0.25},
            "per_certificate": {},
            "flags": {"vanishing gradients": "many"},
        }
        for eps in natural.EPS["mnist"]
    ]
    runs = {"Neural ODE/0": {"device": "gpu", "clean_accuracy": 0.99, "brackets": brackets}}
    networks = natural.PRESETS["paper"]["mnist"].networks
    epochs = {name: network.epochs for name, network in networks.items()}

    def save(epochs):
        result = {"settings": {"epochs": epochs}, "runs": runs}
        save_result(tmp_path / "natural_mnist_paper.json", "natural", result)

    save(epochs | {"Neural ODE": 1})  # not the paper's training
    assert all("not_measured" in entry for entry in claims.ledger(["natural"], tmp_path))
    save(epochs)
    entries = {
        (e["model"], e["dataset"], e["attack"], e.get("eps")): e
        for e in claims.ledger(["natural"], tmp_path)
    }
    entry = entries["Neural ODE", "mnist", "PGD-40", "0.5"]
    assert entry["papers_attack"] == 25.0
    assert (entry["worst_attack"], entry["certified"]) == (1.0, 0.0)
    assert entry["flags"] == ["vanishing gradients"]
    assert report.not_reached(entry)
    assert entries["Neural ODE", "mnist", "clean", None]["papers_attack"] == 99.0
    assert "not_measured" in entries["ResNet-50", "mnist", "clean", None]
    assert "not_measured" in entries["Neural ODE", "cifar10", "clean", None]


@pytest.mark.slow
def test_growth_stays_below_its_bounds(tmp_path):
    """The constant of the bounds is seen along the way: they are no proofs, and yet far away."""

    def untrained(recipe, dataset, key, folder):
        make = eqx.nn.make_with_state(recipe.make)
        return odejax.Predictor(*make(dataset.image_shape, key=key)), {}

    execute(
        natural_stability.EXPERIMENT,
        natural_stability.Config(width=4, test_images=12, eps=0.2, out=tmp_path),
        train=untrained,
        steps=(2,),
        solvers={"Euler": diffrax.Euler(), "Heun": diffrax.Heun()},
        networks={"RevNet, h = 1": partial(RevNet, depth=2)},
    )
    result = json.loads((tmp_path / "result.json").read_text())
    theorems = result["theorems"]
    assert theorems["logarithmic_norm"] <= theorems["constant"]
    for rows in theorems["methods"].values():
        for row in rows:
            for kind in ("PGD-40", "random"):
                assert 1 <= row[kind]["median"] <= row[kind]["largest"] <= row["bound"]
    for name, network in result["networks"].items():
        assert len(network["bound"]) == 3
        for kind in ("PGD-40", "random"):
            assert network[kind]["median"][0] == 1
            for largest, bound in zip(network[kind]["largest"], network["bound"], strict=True):
                assert largest <= bound * (1 + 1e-5), name
    assert (tmp_path / "stability.png").stat().st_size > 10_000
    console = Console(width=80, record=True)
    for table in natural_stability.tables(result):
        console.print(table)
    assert "RevNet, h = 1" in console.export_text()


@pytest.mark.slow
def test_fig1_has_a_network_for_every_step_and_resumes(tmp_path):
    make = partial(ResNet, width=8, depth=2)
    given = {"step_sizes": (1.0, 1e-10), "make": lambda *a, depth, **k: make(*a, **k)}
    config = natural_fig1.Config(epochs=6, test_images=16, out=tmp_path)
    execute(natural_fig1.EXPERIMENT, config, **given)
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["runs"]) == ["1/0", "1e-10/0"]
    # A step of 1e-10 leaves no more than the stem and the head.
    clean = [record["clean_accuracy"] for record in result["runs"].values()]
    assert clean[0] > clean[1] + 0.1
    for record in result["runs"].values():
        assert set(record["transfer"]) == {"0.1", "0.3", "0.5"}
        assert list(record["own"]) == ["0.02", "0.1"]
        assert record["own"]["0.1"] <= record["own"]["0.02"] <= 1
    execute(natural_fig1.EXPERIMENT, dataclasses.replace(config, resume=True), **given)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "fig1.png").stat().st_size > 10_000
    console = Console(width=80, record=True)
    console.print(*natural_fig1.tables(result))
    assert "own PGD 0.02" in console.export_text()


@pytest.mark.slow
def test_what_hides_gradients_is_told_apart(tmp_path):
    """Multiplied logits decide as before, and withstand the cross-entropy's gradient alone."""
    attacks = {"PGD-40": PGD(10, 0.04), "PGD-40, margin": PGD(10, 0.04, loss=margin_loss)}
    given = {
        "times": (1.0, 2.0),
        "tolerances": (),
        "factors": (1e4,),
        "stopped": (0.3,),
        "attacks": lambda queries: attacks,
    }
    config = natural_causes.Config(fields=("settling",), epochs=4, test_images=30, out=tmp_path)
    execute(natural_causes.EXPERIMENT, config, **given)
    result = json.loads((tmp_path / "result.json").read_text())
    plain, multiplied = natural_causes._records(result, "factor")["settling"]
    assert plain["clean_accuracy"] == multiplied["clean_accuracy"]
    before, after = plain["robust_accuracy"], multiplied["robust_accuracy"]
    assert after["PGD-40"] > before["PGD-40"] + 0.2
    for name in ("PGD-40, margin", "solve stopped early"):
        assert abs(after[name] - before[name]) <= 0.04  # one image
    (own,) = natural_causes._records(result, "tolerance")["settling"]
    last = result["runs"]["settling/time=2"]
    assert (own["value"], own["robust_accuracy"]) == (1e-3, last["robust_accuracy"])
    once, twice = natural_causes._records(result, "training")["settling"]
    assert (once["value"], twice["value"]) == (4, 8)
    assert twice["clean_accuracy"] > once["clean_accuracy"]
    for record in result["runs"].values():
        assert record["robust_accuracy"]["all attacks"] <= min(record["robust_accuracy"].values())
    execute(natural_causes.EXPERIMENT, dataclasses.replace(config, resume=True), **given)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "causes.png").stat().st_size > 10_000
    console = Console(width=80, record=True)
    for table in natural_causes.tables(result):
        console.print(table)
    assert max(map(len, console.export_text().splitlines())) <= 80
