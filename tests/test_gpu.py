"""What `python -m experiments.gpu` runs, in which order, and that it ends in time and goes on."""

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from benchmarks import device
from experiments.gpu import listing, run as gpu
from experiments.gpu.cost import DATA, Counts, epoch_seconds, estimate, evaluations, step_flop
from experiments.gpu.listing import Listing
from experiments.gpu.slices import Slice, is_done, slices
from experiments.ledger import claims
from experiments.ledger.printed import all_claims
from experiments.ledger.report import AS_IN_PAPER, PAPERS, kind_of
from experiments.ledger.sources import Work
from experiments.lib.recipe import Recipe, adam, constant
from odejax.attacks import EOT, FGSM, PGD, AutoAttack, Square, Targeted
from odejax.evaluation import save_result
from odejax.models import MLP

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(partial(MLP, width=8, depth=1), 10, 100, adam(constant(1e-3)))


def piece_of(script, *, result="slice", claims=1, attacks=(), images=1000):
    work = Work(("--networks", "net"), {"net_0": RECIPE}, attacks, images)
    return Slice(result, "fake", ("net",), (str(script),), "mnist", claims, work)


def test_every_claim_is_measured_on_the_list_or_said_not_to_be():
    pieces, others = slices()
    entries = claims.ledger(PAPERS)
    with_command = [bool(claims.sources(claim)) for claim in all_claims()]
    open_ones = sum(
        known and kind_of(entry) != AS_IN_PAPER
        for known, entry in zip(with_command, entries, strict=True)
    )
    assert sum(piece.claims for piece in pieces) + others == open_ones
    assert min(piece.claims for piece in pieces) > 0
    names = Counter((piece.result, piece.networks) for piece in pieces)
    assert set(names.values()) == {1}
    assert listing.FIRST in names
    assert {piece.dataset for piece in pieces} <= set(DATA)


def test_a_slice_is_the_command_of_the_ledger_limited_to_its_networks():
    pieces = {(piece.result, piece.networks): piece for piece in slices()[0]}
    command = pieces[listing.FIRST].command
    assert command[:2] == ("-m", "experiments.enresnet.cifar")
    assert command[-4:] == ("--trainings", "natural", "--networks", "ResNet20")
    assert "FOLDER" not in command
    # Both directions of a pair are one command.
    both = ("blind/ResNet20 <- En5 ResNet20", "blind/En5 ResNet20 <- ResNet20")
    pair = pieces["enresnet_cifar10_paper", both]
    assert pair.claims == 6
    assert set(pair.work.trained) == {"robust_ResNet20_0", "robust_En5ResNet20_0"}


def test_an_attack_evaluates_what_it_says():
    assert evaluations(PGD(40, 0.01)) == (41, 0)
    assert evaluations(PGD(10, 0.01, last=True)) == (10, 0)
    assert evaluations(FGSM()) == (2, 0)
    assert evaluations(EOT(Targeted(PGD(4), 3), 5)) == (3 * 5 * 5, 0)
    assert evaluations(Square(30)) == (0, 30)
    assert evaluations(AutoAttack()) == (101 + 9 * 101 + 9 * 101, 5000)


def test_a_training_step_is_counted_for_each_image(tmp_path):
    layers = 784 * 8 + 8 * 10
    # No gradient by the pixels.
    expected = 2 * (3 * layers - 784 * 8)
    assert step_flop(RECIPE, RECIPE.objective, "mnist") == expected
    counts = Counts(tmp_path / "flop.json", "one commit")
    ((*wanted,), *_) = counts.uncounted([piece_of("")])
    counts.count(*wanted)
    again = Counts(tmp_path / "flop.json", "one commit")
    assert again(*wanted) == expected
    assert not [*again.uncounted([piece_of("")])]
    assert [*Counts(tmp_path / "flop.json", "another").uncounted([piece_of("")])]


def test_the_seconds_of_its_own_epochs_replace_the_estimate(tmp_path):
    counts = lambda recipe, objective, dataset: 3e6  # noqa: E731
    attacked = piece_of("", attacks=((PGD(9, 0.1), 50),))
    cost = estimate(attacked, tmp_path, counts, rate=1e9)
    assert (cost.epochs, cost.measured) == ((0, 10), False)
    assert cost.training == 10 * 1000 * 3e6
    assert cost.evaluation == 50 * 2 * 10 * 1e6
    assert cost.epoch_seconds == 3.0
    assert cost.seconds == pytest.approx(30 + 60 + 1)
    folder = tmp_path / "checkpoints" / "net_0"
    folder.mkdir(parents=True)
    lines = [json.dumps({"seconds": s}) + "\n" for s in (9.0, 2.0, 2.0)]  # the first compiles
    (folder / "metrics.jsonl").write_text("".join(lines))
    assert epoch_seconds(folder) == [9.0, 2.0, 2.0]
    cost = estimate(attacked, tmp_path, counts, rate=1e9)
    assert (cost.epochs, cost.measured) == ((3, 10), True)
    assert cost.trained == {"net_0": 7 * 2.0}


# A stand-in for an experiment: an epoch each 0.2 seconds, kept, then its result.
SCRIPT = """
import json, pathlib, shutil, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
assert "--resume" in sys.argv
kept = folder / "checkpoints" / "net_0" / "metrics.jsonl"
kept.parent.mkdir(parents=True, exist_ok=True)
try:
    while len(kept.read_text().splitlines() if kept.exists() else []) < {epochs}:
        time.sleep(0.2)
        with kept.open("a") as file:
            file.write(json.dumps(dict(seconds=0.2)) + "\\n")
except KeyboardInterrupt:
    (folder / "was_interrupted").touch()
    sys.exit(130)
shutil.copy({result!r}, folder / "result.json")
"""


@pytest.fixture
def script(tmp_path):
    result = tmp_path / "finished.json"
    save_result(result, "fake", {"runs": {"net/0": {}}})
    file = tmp_path / "experiment.py"
    file.write_text(SCRIPT.format(epochs=20, result=str(result)))
    return file


def spend(pieces, out, seconds):
    work, config = Listing(pieces, out), gpu.Config(minutes=seconds / 60, out=out)
    started = time.monotonic()
    failed = gpu.run_for(work, {}, config, started + seconds)
    return failed, time.monotonic() - started


@pytest.mark.slow  # time enough for a busy machine to start a process
def test_a_slice_that_is_interrupted_goes_on_in_the_next_call(tmp_path, script, capsys):
    script.write_text(script.read_text().replace("< 20", "< 60"))
    piece, out = piece_of(script), tmp_path / "runs"
    failed, took = spend([piece], out, 10.0)
    assert not failed
    assert took < 11.0
    folder = out / "slice"
    assert (folder / "was_interrupted").exists()
    assert not is_done(piece, folder)
    done = len(epoch_seconds(folder / "checkpoints" / "net_0"))
    assert 0 < done < 60
    failed, took = spend([piece], out, 60.0)
    assert (failed, is_done(piece, folder)) == ([], True)
    assert took < 50  # it did not wait for the time to be up
    assert len(epoch_seconds(folder / "checkpoints" / "net_0")) == 60
    assert Listing([piece], out).remaining() == []
    assert "slice: net: " in capsys.readouterr().out


def test_a_slice_that_does_not_stop_is_killed_when_the_time_is_up(tmp_path):
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)\n"
    )
    failed, took = spend([piece_of(stubborn)], tmp_path / "runs", 1.0)
    assert (failed, took < 3.0) == ([], True)


def test_a_slice_that_fails_is_named_and_others_run(tmp_path, script):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(2)\n")
    script.write_text(script.read_text().replace("< 20", "< 1"))
    pieces = [piece_of(broken, result="broken"), piece_of(script)]
    failed, _ = spend(pieces, tmp_path / "runs", 30.0)
    assert failed == ["broken: net"]
    assert is_done(pieces[1], tmp_path / "runs" / "slice")
    # Where nothing works, it does not try all.
    all_broken = [piece_of(broken, result=f"broken {i}") for i in range(5)]
    assert len(spend(all_broken, tmp_path / "others", 30.0)[0]) == 2


class Known:
    """Counts by the commands of slices."""

    def __init__(self, per_image):
        self.per_image = per_image

    def uncounted(self, pieces):
        return iter(())

    def __call__(self, recipe, objective, dataset):
        return self.per_image


def test_most_claims_a_minute_come_first_and_an_epoch_must_have_time(tmp_path):
    few, many = piece_of("", result="few"), piece_of("", result="many", claims=9)
    work = Listing([few, many], tmp_path, Known(1e9))  # type: ignore[arg-type]
    assert [piece.result for piece, _ in work.remaining()] == ["many", "few"]
    first = dataclasses.replace(few, result=listing.FIRST[0], networks=listing.FIRST[1])
    work = dataclasses.replace(work, slices=[many, first])
    assert work.remaining()[0][0] is first
    assert gpu._next(work, [], time.monotonic() + 600) is first
    assert gpu._next(work, [first.name], time.monotonic() + 600) is many
    assert gpu._next(work, [], time.monotonic() + 30) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "minutes must be finite and positive; got 0"),
        (["--preset", "cpu"], "unknown preset 'cpu'; accepted: paper, smoke"),
        (["--data-dir", "no such folder"], "--data-dir: no such folder is no folder"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(gpu.UsageError, match=said):
        gpu._main(time.monotonic())


def test_without_a_gpu_it_says_what_it_would_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu, "device_of_jax", lambda: ("cpu", "cpu"))
    monkeypatch.setattr(gpu, "slices", lambda: ([piece_of("", claims=7)], 3))
    monkeypatch.setattr(gpu, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(gpu, "attempt", None)  # nothing is run
    gpu._main(time.monotonic())
    said = " ".join(capsys.readouterr().out.split())
    assert "slice: net 7 0/10" in said
    assert "minutes on NVIDIA H100" in said
    assert "4.95 TFLOP/s, assumed: 1% of the peak of NVIDIA H100, 494.7 TFLOP/s" in said
    assert "nothing was run" in said


def test_the_rate_is_measured_or_assumed_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "RESULTS", tmp_path)
    rate, said = listing.rate_of("NVIDIA H100 PCIe")
    assert rate == 0.01 * 378e12
    assert "assumed" in said
    assert "the peak of Some GPU is not known here" in listing.rate_of("Some GPU")[1]
    rows = {device.TRAINING: {"flop": 1e9, "seconds": 1e-3, "flop_per_second": 1e12}}
    save_result(device.result_path("NVIDIA H100 PCIe"), device.KIND, {"jobs": rows})
    assert listing.rate_of("NVIDIA H100 PCIe") == (1e12, "1 TFLOP/s, measured by benchmarks.device")


def test_the_share_is_that_of_the_peak_of_the_precision():
    job = device.Job(66.9e9, device.HIGHEST, lambda: 1e-2)
    row = device.measured(job, "NVIDIA H100 80GB HBM3")
    assert row["share"] == pytest.approx(0.1)
    assert "share" not in device.measured(job, "cpu")
    assert "flop" not in device.measured(device.Job(None, device.HIGHEST, lambda: 1.0), "cpu")


@pytest.mark.slow
def test_all_of_it_runs_in_small(tmp_path):
    command = [sys.executable, "-m", "experiments.gpu", "--preset", "smoke", "--minutes", "4"]
    done = subprocess.run(
        [*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CROWN" in done.stdout
    assert "remaining: " in done.stdout
    assert (tmp_path / "structured_cifar10_smoke" / "result.json").exists()
