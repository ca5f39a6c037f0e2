"""The main job, as a user runs it: results on disk, resuming, and wrong command lines."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import pytest

from experiments import benchmark
from experiments.lib import run as cli
from experiments.lib.run import Runs
from odejax.commands.command_line import enable_compilation_cache
from odejax.data import load
from odejax.evaluation import load_result, save_result
from odejax.solvers import GridSteps

SMALL = ["--models", "MLP", "LipschitzNet", "--epochs", "2", "--test-images", "40"]
SMALL += ["--eps", "0.02", "0.1", "--eps-l2", "0.2"]


def run(capsys, monkeypatch, *arguments, experiment=benchmark.EXPERIMENT):
    """Run the command line in this process: (exit code, captured output)."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    code = 0
    try:
        cli.run(experiment)
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_writes_table_result_and_figures_and_resume_repeats_nothing(tmp_path, capsys, monkeypatch):
    code, output = run(capsys, monkeypatch, *SMALL, "--out", str(tmp_path))
    assert code == 0
    assert "MLP" in output.out
    assert "LipschitzNet" in output.out
    first = result(tmp_path)
    for model in first["models"].values():
        assert {"seed", "commit", "versions", "device", "processor", "time"} <= set(model)
        assert 0 < model["clean_accuracy"] <= 1
        for curves in model["balls"].values():
            attacked = [b["attacked"] for b in curves["brackets"]]
            assert attacked == sorted(attacked, reverse=True)
            assert all(b["certified"] <= b["attacked"] <= b["clean"] for b in curves["brackets"])
    for figure in ("curves.png", "images.png"):
        assert (tmp_path / figure).read_bytes()[:4] == b"\x89PNG"

    code, output = run(capsys, monkeypatch, *SMALL, "--out", str(tmp_path), "--resume")
    assert code == 0
    assert "already in" in output.out
    assert result(tmp_path) == first


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(tmp_path, capsys, monkeypatch):
    arguments = ["--models", "MLP", "--epochs", "40", "--test-images", "20"]
    arguments += ["--eps", "0.1", "--eps-l2", "0.2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.benchmark", *arguments, "--out", str(killed)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = killed / "checkpoints" / "MLP" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "models" not in result(killed)

    assert run(capsys, monkeypatch, *arguments, "--out", str(killed), "--resume")[0] == 0
    assert run(capsys, monkeypatch, *arguments, "--out", str(whole))[0] == 0
    resumed, at_once = (result(folder)["models"]["MLP"] for folder in (killed, whole))
    assert [h["loss"] for h in resumed["history"]] == [h["loss"] for h in at_once["history"]]
    assert resumed["balls"]["linf"]["radii"] == at_once["balls"]["linf"]["radii"]
    for ball in ("linf", "l2"):
        for one, other in zip(
            resumed["balls"][ball]["brackets"], at_once["balls"][ball]["brackets"], strict=True
        ):
            assert one | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "imagenet"], "accepted: digits, mnist"),
        (["--models", "VGG"], "accepted: MLP, ResNet"),
        (["--models"], "accepted: MLP, ResNet"),
        (["--eps", "-0.1"], "eps must be finite and positive"),
        (["--eps", "nan"], "eps must be finite and positive"),
        (["--eps-l2", "0"], "eps-l2 must be finite and positive"),
        (["--eps", "big"], "big"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--test-images", "0"], "test-images must be at least 1"),
        (["--test-images", "100000"], "digits has 500 test images"),
        (["--data-dir", "no/such/folder"], "no/such/folder"),
        (["--dataset", "mnist", "--data-dir", "."], "mnist is not prepared in"),
        (["--frobnicate"], "frobnicate"),
        (["--seed", "99999999999999999999"], "seed must be between"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_and_code_2(
    arguments, said, tmp_path, capsys, monkeypatch
):
    code, output = run(capsys, monkeypatch, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert output.err.startswith("error: ")
    assert said in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def stored(certified, uncertified=()):
    """A network's record as `result.json` has it, of two balls of one norm."""
    per = dict.fromkeys(["CROWN"] * bool(certified), 0.0)
    ends = {"clean": 0.9, "clean_interval": [0.8, 1.0], "attacked_interval": [0.8, 1.0]}
    brackets = [
        ends
        | {"ball": "linf", "eps": eps, "attacked": 0.8, "per_attack": {"FGSM": 0.85, "PGD-40": 0.8}}
        | {"certified": share, "certified_interval": [share, share], "per_certificate": per}
        | {"flags": {}, "uncertified": list(uncertified)}
        for eps, share in zip((0.005, 0.1), certified or (0.0, 0.0), strict=True)
    ]
    ball = {"brackets": brackets, "radii": [0.005], "certificates": len(per)}
    return {"balls": {"linf": ball}, "clean_accuracy": 0.9, "examples": None}


def test_what_is_proven_is_the_finding_and_what_is_not_has_a_reason():
    networks = {
        "A": stored((0.75, 0.0)),
        "B": stored((0.5, 0.25)),
        "C": stored((), ["it is noisy"]),
    }
    result = {"settings": {"dataset": "digits", "test_images": 9}, "models": networks}
    assert benchmark.proven(result) == (
        "certificates prove 50 to 75 % of the images within L-infinity 0.005, 0 to 25 % within "
        "0.1 (none for C)"
    )
    notes = benchmark.notes(result)
    assert "C: it is noisy." in notes
    assert not any(note.startswith("A: ") for note in notes)
    _, table = benchmark.tables(result)
    cells = [list(column.cells) for column in table.columns]
    assert cells[2:] == [
        ["75.0-80.0", "50.0-80.0", "<= 80.0"],
        ["0.0-80.0", "25.0-80.0", "<= 80.0"],
    ]
    nothing = benchmark.proven(result | {"models": {"C": networks["C"]}})
    assert nothing == "no network is certified"


def test_the_neural_ode_is_made_on_its_grid():
    family = benchmark.FAMILIES["ConvODENet-grid"]
    model, _ = jax.eval_shape(
        lambda key: eqx.nn.make_with_state(family.make)((8, 8, 1), 10, key=key), jax.random.key(0)
    )
    assert isinstance(model.ode.solver, diffrax.Midpoint)
    assert model.ode.adjoint == GridSteps(2)


def test_a_cache_of_compiled_programs_that_is_set_already_stays():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    enable_compilation_cache()
    assert getattr(jax.config, name) == before != 0.2


def test_a_file_in_place_of_the_run_folder_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "out").write_text("mine")
    code, output = run(capsys, monkeypatch, *SMALL, "--out", str(tmp_path / "out"))
    assert (code, output.err.count("\n")) == (2, 1)
    assert "is a file" in output.err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.slow
def test_resume_refuses_other_settings_versions_and_broken_files(tmp_path, capsys, monkeypatch):
    arguments = ["--models", "MLP", "--epochs", "1", "--test-images", "20"]
    arguments += ["--eps", "0.1", "--eps-l2", "0.2", "--out", str(tmp_path)]
    # What was measured has no part in this: no look at the gradients.
    plan = partial(benchmark.plan, flag_images=0)
    quick = dataclasses.replace(benchmark.EXPERIMENT, plan=plan)
    assert run(capsys, monkeypatch, *arguments, experiment=quick)[0] == 0
    good = (tmp_path / "result.json").read_text()

    code, output = run(capsys, monkeypatch, *arguments, "--resume", "--seed", "3")
    assert (code, output.err.count("\n")) == (2, 1)
    assert "seed 0, not 3" in output.err

    (tmp_path / "result.json").write_text(good.replace('"format": 2', '"format": 99'))
    code, output = run(capsys, monkeypatch, *arguments, "--resume")
    assert (code, output.err.count("\n")) == (2, 1)
    assert "99" in output.err

    (tmp_path / "result.json").write_text(good[: len(good) // 2])
    code, output = run(capsys, monkeypatch, *arguments, "--resume")
    assert (code, output.err.count("\n")) == (2, 1)

    (tmp_path / "result.json").unlink()
    for file in (tmp_path / "checkpoints" / "MLP").rglob("*"):
        if file.is_file() and file.name != "metrics.jsonl":
            file.write_bytes(b"broken")
    code, output = run(capsys, monkeypatch, *arguments, "--resume")
    assert (code, output.err.count("\n")) == (2, 1)
    assert "checkpoint" in output.err


def test_a_result_names_its_data_and_resume_refuses_other(tmp_path):
    train, test = (load("digits", split) for split in ("train", "test"))
    config = cli.RunConfig(resume=True)
    path = tmp_path / "result.json"

    def opened(*data):
        return Runs.open(tmp_path, "digits", {"seed": 0}, config, data)

    begun = opened(train, test)  # there is nothing to go on with yet
    assert load_result(path, "digits")["data"] == [train.provenance(), test.provenance()]
    assert opened(train, test).result["data"] == begun.result["data"]

    negatives = dataclasses.replace(test, images=255 - test.images)
    shifted = dataclasses.replace(test, labels=(test.labels + 1) % 10)
    for other in (negatives, shifted, test.take(slice(100))):
        digests = (one.provenance()["digest"][:12] for one in (test, other))
        said = "other test images of digits .digest {}, not {}.; give the same data"
        with pytest.raises(cli.UsageError, match=said.format(*digests)):
            opened(train, other)

    silent = load_result(path, "digits")
    for data in ({"data": "the digits, of old"}, {}):
        save_result(path, "digits", {"settings": silent["settings"]} | data)
        with pytest.raises(cli.UsageError, match="does not say which data it used"):
            opened(train, test)


def test_results_on_data_that_is_not_known_or_not_as_published_say_so():
    results = Path(benchmark.__file__).parent / "results"
    said = {path.name: json.loads(path.read_text()).get("data") for path in results.glob("*.json")}
    of_cifar = {name: data for name, data in said.items() if "cifar10" in name}
    assert of_cifar
    assert all("re-encoded as JPEG" in str(data) for data in of_cifar.values())
    assert said["nmode_mnist_fashion_mnist.json"] is not None
