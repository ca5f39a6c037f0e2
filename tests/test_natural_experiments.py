"""The experiments of *natural*, small."""

import dataclasses
import json
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import _natural_report, claims, natural, natural_stability
from experiments._claims import all_claims
from experiments._cli import UsageError
from odejax.attacks import FGSM, PGD, Square
from odejax.data import ArrayDataset, load
from odejax.evaluation import save_result
from odejax.models import MLP, DenseODENet, FractalNet, PreActResNet, ResNet, RevNet


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Two networks that compile in a second, and three short attacks."""
    digits = load("digits", "train"), load("digits", "test")
    monkeypatch.setattr(natural, "load_data", lambda config, n: digits)
    makes = {"ResNet": partial(MLP, width=32), "Neural ODE, t1 = 2": partial(DenseODENet, t1=2.0)}
    networks = {
        name: natural.Network(make, 4, 64, natural._one_cycle(5e-3)) for name, make in makes.items()
    }
    preset = natural.Preset(lambda dataset: networks, 40, 20)
    monkeypatch.setitem(natural.PRESETS, "smoke", preset)
    attacks = {"FGSM": FGSM(), "PGD-40": PGD(10, 0.04), "Square": Square(20)}
    monkeypatch.setattr(natural, "_attacks", lambda dataset, preset: attacks)
    monkeypatch.setattr(natural, "FLAG_IMAGES", 0)
    return {"preset": "smoke", "dataset": "digits", "out": tmp_path}


def test_the_worst_is_below_every_attack_and_a_run_resumes(quick, tmp_path):
    natural.main(natural.Config(**quick, networks=("ResNet",)))
    path = tmp_path / "result.json"
    first = json.loads(path.read_text())["runs"]
    natural.main(natural.Config(**quick, resume=True))
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
            assert set(b["transfers"]) == transfers
            every = [*b["per_attack"].values(), *b["transfers"].values()]
            assert b["attacked"] <= min(every)
            low, high = b["attacked_interval"]
            assert low <= b["attacked"] <= high
        squares = [b["per_attack"]["Square"] for b in record["brackets"]]
        assert squares == sorted(squares, reverse=True)
    console = Console(width=80, record=True)
    for table in _natural_report.tables(result):
        console.print(table)
    text = console.export_text()
    assert "from: solve stopped early" in text
    assert f"{100 * worst[-1]:.1f}" in text
    assert (tmp_path / "natural.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="was started with n 40, not 41"):
        natural.main(natural.Config(**quick, resume=True, test_images=41))


def test_images_of_the_stopped_solve_are_judged_by_the_whole_one(quick, tmp_path):
    """A solve stopped after a tenth of the time is another network: by its own word it is broken
    sooner than what it stands for."""
    natural.main(natural.Config(**quick, networks=("Neural ODE, t1 = 2",)))
    (record,) = json.loads((tmp_path / "result.json").read_text())["runs"].values()
    for b in record["brackets"]:
        # The first network is the one itself here: there is no other whose images to show.
        assert set(b["transfers"]) == {"solve stopped early"}
        assert b["transfers"]["solve stopped early"] >= b["per_attack"]["PGD-40"]


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_papers_networks_are_those_of_its_tables(dataset):
    networks = natural.PRESETS["paper"].networks(dataset)
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
    attacks = natural._attacks(dataset, natural.PRESETS["paper"])
    for attack, eps in grid:
        assert attack in attacks
        assert eps in np.round(natural.EPS[dataset], 6)


def test_yopo_takes_its_steps_through_the_first_layer_of_table_2s_network():
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    data = ArrayDataset(images, np.arange(8, dtype=np.int32), 10, "noise")
    network = natural.PRESETS["paper"].networks("cifar10")["PreActResNet-18, YOPO-5-3"]
    small = dataclasses.replace(
        network, make=partial(PreActResNet, depth=8), epochs=1, batch_size=8, augment=None
    )
    _, record = natural.train_network(small, data, 0, None)
    assert np.isfinite(record["last_epoch"]["loss"])


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
        natural.main(natural.Config(**settings))


def test_the_ledger_reads_the_papers_preset(tmp_path, monkeypatch):
    brackets = [
        {
            "eps": eps,
            "n": 1000,
            "attacked": 0.01,
            "per_attack": {"FGSM": 0.5, "PGD-40": 0.25},
            "per_certificate": {},
            "flags": {"vanishing gradients": "many"},
        }
        for eps in natural.EPS["mnist"]
    ]
    runs = {"Neural ODE/0": {"device": "gpu", "clean_accuracy": 0.99, "brackets": brackets}}
    save_result(tmp_path / "natural_mnist_paper.json", "natural", {"settings": {}, "runs": runs})
    entries = {
        (e["model"], e["dataset"], e["attack"], e.get("eps")): e
        for e in claims.ledger(["natural"], tmp_path)
    }
    entry = entries["Neural ODE", "mnist", "PGD-40", "0.5"]
    assert entry["papers_attack"] == 25.0
    assert entry["worst_attack"] == 1.0
    assert entry["flags"] == ["vanishing gradients"]
    assert claims.not_reached(entry)
    assert entries["Neural ODE", "mnist", "clean", None]["papers_attack"] == 99.0
    assert "not_measured" in entries["ResNet-50", "mnist", "clean", None]
    assert "not_measured" in entries["Neural ODE", "cifar10", "clean", None]


def test_growth_stays_below_its_bounds(monkeypatch, tmp_path):
    """The constant of the bounds is seen along the way: they are no proofs, and yet far away."""
    digits = load("digits", "train").take(slice(256)), load("digits", "test")
    monkeypatch.setattr(natural_stability, "load_data", lambda config, n: digits)
    monkeypatch.setattr(natural_stability, "STEPS", (1, 4))
    solvers = {name: natural_stability.SOLVERS[name] for name in ("Euler", "Heun")}
    monkeypatch.setattr(natural_stability, "SOLVERS", solvers)
    networks = {
        "ResNet, h = 1": partial(ResNet, depth=2),
        "FractalNet": partial(FractalNet, depth=2, columns=2),
        "RevNet, h = 1": partial(RevNet, depth=2),
    }
    monkeypatch.setattr(natural_stability, "NETWORKS", networks)
    config = natural_stability.Config(epochs=4, width=4, test_images=40, eps=0.2, out=tmp_path)
    natural_stability.main(config)
    result = json.loads((tmp_path / "result.json").read_text())
    theorems = result["theorems"]
    assert theorems["logarithmic_norm"] <= theorems["constant"]
    for rows in theorems["methods"].values():
        for row in rows:
            for kind in ("PGD-40", "random"):
                assert 1 <= row[kind]["median"] <= row[kind]["largest"] <= row["bound"]
    for name, told in result["networks"].items():
        assert len(told["bound"]) == 3
        for kind in ("PGD-40", "random"):
            assert told[kind]["median"][0] == 1
            for largest, bound in zip(told[kind]["largest"], told["bound"], strict=True):
                assert largest <= bound * (1 + 1e-5), name
    assert (tmp_path / "stability.png").stat().st_size > 10_000
    console = Console(width=80, record=True)
    for table in natural_stability.tables(result):
        console.print(table)
    assert "RevNet, h = 1" in console.export_text()
