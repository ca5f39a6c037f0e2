"""A run's folder: nothing in it is lost, and two runs do not share it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import pytest
from helpers import digits, predictor_of

import odejax
from experiments.lib import report
from experiments.lib.measure import measure
from experiments.lib.recipe import keep
from experiments.lib.run import Runs, UsageError, command_line
from odejax.attacks import FGSM, PGD
from odejax.evaluation import bracket_steps, robust_accuracy

ROOT = Path(__file__).parents[1]
NEW = SimpleNamespace(resume=False, overwrite=False)
RESUME = SimpleNamespace(resume=True, overwrite=False)
OVERWRITE = SimpleNamespace(resume=False, overwrite=True)


def opened(folder, config=NEW, settings=None):
    return Runs.open(folder, "a kind", settings or {"epochs": 3}, config, [digits("test", 3)])


def test_a_folder_that_holds_a_run_is_refused_and_nothing_in_it_changes(tmp_path):
    opened(tmp_path).record("MLP", 0, lambda: {"value": 1})
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(UsageError, match=r"holds a run: .* --resume, .* --overwrite, .* --out"):
        opened(tmp_path)
    assert (tmp_path / "result.json").read_bytes() == before


def test_a_run_is_resumed_with_what_it_has(tmp_path):
    opened(tmp_path).record("MLP", 0, lambda: {"value": 1})
    runs = opened(tmp_path, RESUME)
    assert runs.result["runs"]["MLP"]["value"] == 1
    with pytest.raises(UsageError, match="was started with epochs 3, not 4"):
        opened(tmp_path, RESUME, {"epochs": 4})


def test_without_a_run_resume_begins_one(tmp_path):
    assert "runs" not in opened(tmp_path / "new", RESUME).result


def test_overwriting_removes_what_runs_have_made_and_nothing_else(tmp_path):
    opened(tmp_path)
    made, users = tmp_path / "checkpoints" / "MLP", tmp_path / "checkpoints" / "notes"
    made.mkdir(parents=True)
    (made / "metrics.jsonl").write_text("{}")
    users.mkdir()
    (users / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError):
        opened(tmp_path)
    assert made.exists()
    opened(tmp_path, OVERWRITE)
    assert not made.exists()
    assert (users / "thesis.txt").read_text() == "years of work"


def test_checkpoints_without_a_run_are_left_alone(tmp_path):
    kept = tmp_path / "checkpoints" / "MLP" / "metrics.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    opened(tmp_path)
    assert kept.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out: .*file cannot be written to"):
        opened(tmp_path / "file")


def started(*arguments):
    command = [sys.executable, "-m", "experiments.benchmark", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def handles_sigterm(process):
    """As Linux tells it: from the first line of `experiments` on."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*([0-9a-f]+)", status).group(1), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_stopped_while_it_imports_says_so_in_one_line(number, tmp_path):
    process = started("--out", tmp_path)
    while not handles_sigterm(process):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted; nothing was kept\n")


@pytest.mark.slow
def test_a_script_that_is_stopped_while_it_trains_goes_on_where_it_was(tmp_path):
    arguments = ["--models", "MLP", "--epochs", "400", "--out", tmp_path]
    process = started(*arguments)
    metrics = tmp_path / "checkpoints" / "MLP" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
    other = started(*arguments, "--resume")  # beside the first
    _, errors = other.communicate(timeout=120)
    assert (other.returncode, errors.count("\n")) == (2, 1)
    assert "another process is at work in" in errors
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors == (
        "error: interrupted; finished epochs and models are kept, go on with --resume\n"
    )
    epochs = metrics.read_text().count("\n")
    assert os.listdir(metrics.parent)
    again = started(*arguments, "--resume")
    while metrics.read_text().count("\n") <= epochs:
        time.sleep(0.1)
        assert again.poll() is None, again.stderr.read()
    again.kill()
    again.communicate()


def test_trained_networks_are_published_as_files_that_odejax_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "KEPT", tmp_path)
    checkpoints, predictor = tmp_path / "checkpoints", predictor_of("MLP")
    assert report.published_networks(checkpoints, "some run") == []
    keep(predictor, checkpoints / "MLP" / "0")
    for _ in range(2):  # again, too
        (file,) = report.published_networks(checkpoints, "some run")
        assert file == tmp_path / "weights" / "some run" / "MLP_0.odejax"
    assert eqx.tree_equal(odejax.load(file), predictor)


def test_a_stored_command_has_no_paths_of_the_machine():
    given = ["x.py", "--dataset", "mnist", "--data-dir", "/a/b", "--out=/c", "--resume", "--seeds"]
    given += ["2", "--networks", "nmODE t=1", "--publish-weights", "--out", "/d"]
    command = command_line(given)
    said = '--dataset mnist --data-dir FOLDER --seeds 2 --networks "nmODE t=1"'
    assert command.endswith(said)
    assert command.startswith("python -m ")


def test_an_evaluation_that_is_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    predictor, state = predictor_of("MLP"), tmp_path / "net" / "evaluation"
    attacks, ran = {"first": FGSM(), "second": PGD(2)}, []

    def evaluate(stop: int):
        def counted(*arguments, **settings):
            if len(ran) == stop:
                raise KeyboardInterrupt
            ran.append(arguments[4])
            return robust_accuracy(*arguments, **settings)

        monkeypatch.setattr(bracket_steps, "robust_accuracy", counted)
        balls = {"linf": (0.01,)}
        settings = {"attacks": attacks, "flag_images": 0, "state": state}
        return measure(predictor, digits("test", 8), 8, balls, 0, **settings)

    with pytest.raises(KeyboardInterrupt):
        evaluate(stop=1)
    assert list(state.parent.iterdir())
    (bracket,) = evaluate(stop=2)["brackets"]
    assert ran == [*attacks.values()]
    assert set(bracket["per_attack"]) == set(attacks)
    assert not list(state.parent.iterdir())
