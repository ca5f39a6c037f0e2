"""Two processes with two devices each train and measure what one device does; one is killed.

Run as a program, this file is one of them: `python test_processes.py ID PORT FOLDER OUT PAUSE`.
"""

import json
import signal
import socket
import sys
import time

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

if __name__ == "__main__":  # before anything makes an array
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))

from test_mesh import Rows, train, weights
from test_resume import epochs_in, launch

import odejax
from odejax.attacks import PGD
from odejax.certificates import FlowMapSlope
from odejax.data import StreamedDataset, load
from odejax.evaluation import bracket, robust_accuracy
from odejax.models import NmODENet
from odejax.training import CrossEntropy, clean_accuracy, fit

EPOCHS = 3
HELD = load("digits", "test").take(slice(40))
BALL = odejax.LinfBall(0.01)


def job(folder, *, pause=0.0, state_path=None):
    """The trained weights, the losses, and which images are still correct."""

    def score(predictor, dataset, *, key):
        time.sleep(pause)  # so that there is time to kill this run
        return clean_accuracy(predictor, dataset, key=key)

    model, state = eqx.nn.make_with_state(NmODENet)((8, 8, 1), width=16, key=jax.random.key(0))
    result = fit(
        model,
        state,
        StreamedDataset(Rows(), 10),
        CrossEntropy(),
        optax.adam(1e-2),
        epochs=EPOCHS,
        batch_size=64,
        key=jax.random.key(1),
        checkpoint_dir=folder,
        validation=HELD,
        score=score,
        shard_weights=True,
        progress=False,
    )
    predictor = odejax.Predictor(result.model, result.state)
    attack, key = PGD(5, None), jax.random.key(2)
    slope = [FlowMapSlope()]
    interval = bracket(
        predictor, *HELD, BALL, attacks=[attack], certificates=slope, key=key, flag_images=0
    )
    images, labels = HELD.pixels, HELD.labels
    report = robust_accuracy(
        predictor, images, labels, BALL, attack, key=key, state_path=state_path
    )
    return result, {
        "losses": [record["loss"] for record in result.history],
        "validation": [record["validation"] for record in result.history],
        "interval": interval.still_correct.tolist(),
        "certified_correct": interval.certified_correct.tolist(),
        "still_correct": report.still_correct.tolist(),
    }


def main(index, port, folder, out, pause):
    with jax.set_mesh(odejax.batch_mesh()):
        result, summary = job(folder, pause=float(pause), state_path=f"{out}.state")
        arrays = weights(result)
    np.savez(f"{out}_{index}.npz", *arrays, summary=json.dumps(summary))


def start(folder, out, pause=0.0):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = {"JAX_NUM_CPU_DEVICES": "2"}
    return [launch(__file__, i, port, folder, out, pause, **devices) for i in (0, 1)]


def finish(processes):
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()


def outcome(out, index=0):
    with np.load(f"{out}_{index}.npz") as arrays:
        summary = json.loads(str(arrays["summary"]))
        return [arrays[name] for name in arrays if name != "summary"], summary


@pytest.mark.slow
def test_two_processes_are_one_device_and_survive_a_kill(tmp_path):
    whole, again, folder = tmp_path / "whole", tmp_path / "again", tmp_path / "again_run"
    finish(start(tmp_path / "whole_run", whole))
    arrays, summary = outcome(whole)

    result, expected = job(None)
    np.testing.assert_allclose(summary["losses"], expected["losses"], rtol=1e-4)
    for actual, reference in zip(arrays, weights(result), strict=True):
        np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-4)
    assert {**summary, "losses": 0} == {**expected, "losses": 0}
    assert 0 < np.mean(summary["interval"]) < 1
    others, other_summary = outcome(whole, 1)
    assert other_summary == summary
    for actual, reference in zip(others, arrays, strict=True):
        np.testing.assert_array_equal(actual, reference)

    processes = start(folder, again, pause=2.0)
    deadline = time.monotonic() + 240
    while epochs_in(folder) == 0:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    time.sleep(0.5)
    processes[0].kill()  # a survivor waits for the dead one until a timeout of JAX's
    processes[0].communicate()
    assert 0 < epochs_in(folder) < EPOCHS
    finish(start(folder, again))
    resumed, resumed_summary = outcome(again)
    assert resumed_summary == summary
    for actual, reference in zip(resumed, arrays, strict=True):
        np.testing.assert_array_equal(actual, reference)


def test_processes_without_a_mesh_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes need a mesh in common"):
        train()


if __name__ == "__main__":
    main(*sys.argv[1:])
