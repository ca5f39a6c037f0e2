"""The experiment of networks that Diffrax solves, small."""

import json

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from experiments.enresnet import expectation, sde
from experiments.lib.run import UsageError, execute
from odejax.attacks import PGD, AutoAttack
from odejax.models import EnResNet, NeuralSDENet

MEASURED = {
    "label": 3,
    "spread": 2.0,
    "reference": 1.0,
    "reference_error": 0.01,
    "points": [
        {
            "standard_error": 0.1,
            "plain": {"cost": 800.0, "error": 0.1},
            "multilevel": {"cost": 400.0, "error": 0.05},
        }
    ],
    "levels": [{"steps": 1.0, "paths": 64.0, "mean": 0.5, "variance": 0.25, "cost": 1.0}],
}


def bracket(ball, eps, attacked, certified=0.0, flags=(), **more):
    names = {"linf": "CROWN", "l2": "RandomizedSmoothing"} if certified else {}
    return {
        "ball": ball, "eps": eps, "n": 4, "clean": 0.9, "attacked": attacked,
        "certified": certified, "per_attack": {"PGD-20": attacked}, "per_transfer": {},
        "per_certificate": {names[ball]: certified} if names else {}, "flags": list(flags), **more,
    }  # fmt: skip


def record(attacked, **more):
    return {
        "clean_accuracy": 0.9, "parameters": 100, "vote": [bracket("l2", 0.1, 0.8, 0.6)],
        "brackets": [bracket("linf", 0.1, attacked, **more)],
    }  # fmt: skip


def result():
    noisy = record(0.5, flags=["randomised output"], uncertified=["SDE draws noise"])
    return {
        "settings": {
            "dataset": "digits", "test_images": 4, "vote_images": 2, "sigma": 0.25, "eps": [0.1]
        },
        "runs": {
            "ResNet/0": record(0.4, certified=0.3),
            "neural SDE/0": noisy | {"expectation": MEASURED},
        },
    }  # fmt: skip


def test_the_gain_is_the_ratio_of_the_costs_of_one_error():
    # At twice the cost plain Monte Carlo has twice the error, so it takes 2 x 4 times the cost.
    assert expectation.gain(MEASURED) == pytest.approx(8)


def test_the_tables_have_both_ends_and_say_why_there_is_no_certificate():
    console = Console(width=100, record=True)
    console.print(*sde.tables(result()))
    shown = console.export_text()
    rows = [line.split() for line in shown.splitlines()]
    assert ["certified", "30.0"] in rows  # of the ResNet, in L-infinity
    assert rows.count(["certified", "60.0"]) == 2  # of both votes, in l2
    assert ["neural", "SDE", "0.1", "0.1", "800", "0.05", "400"] in rows
    assert ["neural", "SDE", "1", "64", "0.5", "0.25"] in rows
    assert sde.notes(result()) == ["neural SDE: SDE draws noise."]
    listed = [(one.network, one.brackets[0][0]["ball"]) for one in sde.listed(result())]
    assert listed == [
        ("ResNet", "linf"),
        ("neural SDE", "linf"),
        ("vote of ResNet", "l2"),
        ("vote of neural SDE", "l2"),
    ]


def test_the_figures_are_drawn_of_what_was_measured():
    drawn = sde.costs(result())
    assert [line.get_xdata()[0] for line in drawn.axes[0].lines] == [800.0, 400.0]
    plt.close(drawn)
    without = result()
    del without["runs"]["neural SDE/0"]
    assert sde.costs(without) is None
    intervals = sde.intervals(result())
    assert len(intervals.axes) == 2
    plt.close(intervals)


def test_the_networks_are_the_ensembles_layers_and_one_field():
    made = {name: sde.network(name, sde.PRESETS["cpu"]["digits"]) for name in sde.NAMES}
    one, two, neural = (made[name].keywords for name in sde.NAMES[1:])
    assert (one["depth"], one["steps"]) == (sde.LAYERS, sde.LAYERS)
    assert (made["En2 ResNet"].func, two["base"], two["members"]) == (EnResNet, NeuralSDENet, 2)
    assert "depth" not in neural  # one field
    assert one["noise"].a * sde.LAYERS**-0.5 == pytest.approx(0.1)  # the paper's, in each layer


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "paper"}, "unknown preset 'paper'; accepted: cpu, smoke"),
        ({"networks": ("SDE",)}, "unknown network 'SDE'; accepted: ResNet, En1 ResNet"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        execute(sde.EXPERIMENT, sde.Config(**settings))


@pytest.mark.slow
def test_a_neural_sde_is_trained_bracketed_and_averaged(tmp_path):
    execute(
        sde.EXPERIMENT,
        sde.Config(preset="smoke", networks=("neural SDE",), out=tmp_path),
        last=lambda draws: AutoAttack({"PGD": PGD(2, None)}),
    )
    measured = json.loads((tmp_path / "result.json").read_text())["runs"]["neural SDE/0"]
    assert "randomised output" in measured["brackets"][0]["flags"]
    assert measured["brackets"][0]["certified"] == 0
    assert any("draws noise" in why for why in measured["brackets"][0]["uncertified"])
    of = measured["expectation"]
    assert of["reference_error"] == pytest.approx(of["spread"] / 8, rel=0.5)
    for point in of["points"]:
        for method in expectation.METHODS:
            assert 0 < point[method]["error"] < 6 * point["standard_error"]
    for figure in ("intervals", "costs"):
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
