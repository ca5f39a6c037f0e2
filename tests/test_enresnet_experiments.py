"""The experiments of *enresnet*, small."""

import json
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from experiments import _enresnet, _enresnet_report, enresnet_cifar, enresnet_fig4
from experiments._cli import UsageError
from odejax import LinfBall
from odejax.attacks import PGD, AutoAttack
from odejax.data import load
from odejax.models import EnResNet, PreActResNet, ResNet
from odejax.solvers import RelativeNoise


def test_fig4_keeps_its_principles_where_the_grid_resolves_the_solution(tmp_path):
    config = enresnet_fig4.Config(points=32, steps=120, out=tmp_path)
    enresnet_fig4.main(config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "fig4.png").stat().st_size > 10_000
    solutions = result["solutions"]
    # Diffusion makes every solution flatter.
    for records in solutions.values():
        gradients = [r["gradient"] for r in records if r["finite"]]
        assert gradients == sorted(gradients, reverse=True)
        assert records[-1]["finite"]
    for record in solutions["smooth"]:
        assert record["gradient"] < record["bound"]
        assert record["min"] > -0.03
        assert record["max"] < 1.03


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="steps must be at least 1; got 0"):
        enresnet_fig4.main(enresnet_fig4.Config(steps=0))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """The smoke preset on digits, with short attacks and networks that compile in a second."""
    small = {"depth": 1, "width": 4}
    monkeypatch.setitem(_enresnet.NETWORKS, "ResNet20", lambda _: partial(ResNet, **small))
    ensemble = partial(EnResNet, members=2, noise=RelativeNoise(0.1), **small)
    monkeypatch.setitem(_enresnet.NETWORKS, "En2 ResNet20", lambda _: ensemble)
    attacks = {name: PGD(1, None) for name in enresnet_cifar.ATTACKS}
    monkeypatch.setattr(enresnet_cifar, "ATTACKS", attacks)
    monkeypatch.setattr(enresnet_cifar, "IFGSM", attacks["IFGSM-20"])
    monkeypatch.setattr(AutoAttack, "rand", lambda draws: AutoAttack({"APGD": PGD(2, None)}))
    digits = load("digits", "train"), load("digits", "test")
    monkeypatch.setattr(enresnet_cifar, "load_data", lambda config, n: digits)
    monkeypatch.setattr(_enresnet, "BATCH_SIZE", 64)
    for module in (_enresnet, enresnet_cifar):
        monkeypatch.setattr(module, "BALL", LinfBall(0.3))
    return {"preset": "smoke", "out": tmp_path, "test_images": 40}


def test_the_tables_are_of_what_was_trained_and_resume(quick, tmp_path):
    config = enresnet_cifar.Config(**quick, epochs=3)
    enresnet_cifar.main(config)
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    pair = ("ResNet20", "En2 ResNet20")
    trained = {f"{training}/{name}/0" for training in ("natural", "robust") for name in pair}
    blind = {f"blind/{a} <- {b}/0" for a, b in (pair, pair[::-1])}
    assert set(runs) == trained | blind | {"integrated/ResNet20 + En2 ResNet20/0"}
    for name, record in runs.items():
        assert all(0 <= left <= 1 for left in record["per_attack"].values())
        if name in trained:
            assert len(record["history"]) == 3
            best = max(record["history"], key=lambda epoch: epoch["validation"])
            assert record["history"][record["best_epoch"] - 1] == best
            assert max(record["per_attack"].values()) <= record["clean"]
            # Noise was seen where there is some, and nowhere else.
            assert ("randomised output" in record["flags"]) == ("En2" in name)

    result = json.loads((tmp_path / "result.json").read_text())
    console = Console(width=200, record=True)
    for table in _enresnet_report.tables(result):
        console.print(table)
    shown = console.export_text()
    assert all(f"Table{number}" in shown for number in (" 1", "s 2", " 3", " 7"))
    assert "En2 ResNet8" in shown
    row = next(line for line in shown.splitlines() if "paper, En2 ResNet20" in line)
    assert row.split()[-1:] == ["92.6"]
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("fig5", "fig6"))

    before = (tmp_path / "result.json").stat().st_mtime_ns
    enresnet_cifar.main(enresnet_cifar.Config(**quick, epochs=3, resume=True))
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


def test_every_network_of_the_paper_is_built_with_its_depth():
    preset = enresnet_cifar.PRESETS["paper"]
    assert set(preset.networks) == set(_enresnet.NETWORKS)
    for figures in (*_enresnet.PAPER_NATURAL.values(), *_enresnet.PAPER_ROBUST.values()):
        assert set(figures) <= set(_enresnet.NETWORKS)
    base = _enresnet.NETWORKS["ResNet110"](preset)
    assert (base.func, base.keywords) == (PreActResNet, {"depth": 110})
    ensemble = _enresnet.NETWORKS["En5 ResNet20"](preset).keywords
    assert (ensemble["members"], ensemble["depth"]) == (5, 20)
    silent = _enresnet.NETWORKS["2 ResNet20, no noise"](preset).keywords
    assert (silent["members"], float(np.asarray(silent["noise"].a))) == (2, 0.0)
    wide = _enresnet.NETWORKS["En1 WRN-34-10"](preset).keywords
    assert (wide["depth"], wide["width"], wide["members"]) == (34, 10, 1)
    small = {str(paper): ours for paper, ours in enresnet_cifar.PRESETS["cpu"].depths.items()}
    assert _enresnet.shown("En1 ResNet20 & En1 ResNet32", small) == "En1 ResNet8 & En1 ResNet14"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "large"}, "unknown preset 'large'; accepted: paper, cpu, smoke"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'; accepted: cifar10, cifar100"),
        ({"networks": ("ResNet18",)}, "unknown network 'ResNet18'"),
        ({"trainings": ()}, "no trainings; accepted: natural, robust"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        enresnet_cifar.main(enresnet_cifar.Config(**settings))
