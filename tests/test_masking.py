"""The experiment on masked gradients: its committed result, its pictures, and wrong arguments."""

import io
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.lib import run as cli
from experiments.natural import masking
from odejax.evaluation import FLAGS, load_result

RESULTS = sorted((Path(masking.__file__).parents[1] / "results").glob("masking_*.json"))


@pytest.fixture(params=RESULTS, ids=lambda path: path.stem)
def result(request):
    return load_result(request.param, masking.KIND)


def test_the_short_solve_raises_no_flag_and_the_long_one_hides(result):
    short, long = result["models"].values()
    assert short["flags"] == {}
    assert {"gradient depends on the solver", "transfer beats white box"} <= set(long["flags"])
    for model in (short, long):
        assert set(model["flags"]) <= set(FLAGS)
        under_all = np.array(model["robust_accuracy"]["all attacks"])
        for accuracies in model["robust_accuracy"].values():
            assert (under_all <= np.array(accuracies) + 1e-9).all()
    robust = long["robust_accuracy"]
    gap = np.array(robust[masking.OWN]) - robust["all attacks"]
    assert gap.max() > 0.1


def test_tables_and_figure_are_drawn_from_the_result(result, tmp_path):
    console = Console(record=True, width=80, file=io.StringIO())
    for table in masking.tables(result):
        console.print(table)
    text = console.export_text()
    for attack in next(iter(result["models"].values()))["robust_accuracy"]:
        assert attack in text
    drawn = masking.figure(json.loads(json.dumps(result)))
    long = result["models"]["t = 30"]["robust_accuracy"]
    gap = 100 * (np.array(long[masking.OWN]) - long["all attacks"]).max()
    assert f"by up to {gap:.1f} points at t = 30" in drawn.get_suptitle().replace("\n", " ")
    drawn.savefig(tmp_path / "masking.png")
    plt.close("all")
    assert (tmp_path / "masking.png").read_bytes()[:4] == b"\x89PNG"
    console.file.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar10"], "unknown dataset 'cifar10'; accepted: digits, mnist"),
        (["--epochs", "0"], "epochs must be at least 1; got 0"),
        (["--budget", "-5"], "budget must be at least 1; got -5"),
        (["--test-images", "100000"], "test images; got 100000"),
    ],
)
def test_wrong_arguments_end_with_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["masking", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(masking.EXPERIMENT)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
