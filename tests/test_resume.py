"""A run that is killed and continued ends where an uninterrupted one does, bit for bit.

Run as a program, this file trains that network: `python test_resume.py FOLDER OUT PAUSE`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import odejax
from odejax.data import load, random_crop
from odejax.models import BatchNorm, EnResNet
from odejax.training import CrossEntropy, clean_accuracy, fit

EPOCHS = 4


def train(checkpoint_dir=None, pause=0.0):
    # All that has a state or draws: batch statistics, noise in every layer, augmentation.
    model, state = eqx.nn.make_with_state(EnResNet)(
        (8, 8, 1), width=4, depth=1, members=2, norm=BatchNorm, key=jax.random.key(0)
    )

    def score(predictor, dataset, *, key):
        time.sleep(pause)  # so that there is time to kill this run
        return clean_accuracy(predictor, dataset, key=key)

    return fit(
        model,
        state,
        load("digits", "train").take(slice(256)),
        CrossEntropy(),
        optax.adam(1e-2),
        epochs=EPOCHS,
        batch_size=64,
        key=jax.random.key(1),
        checkpoint_dir=checkpoint_dir,
        validation=load("digits", "test").take(slice(64)),
        score=score,
        augment=random_crop,
        progress=False,
    )


def arrays(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(result[:2], eqx.is_array))]


def launch(program, *arguments, **variables):
    """`python program arguments`, with what compiled programs there are (see conftest.py)."""
    env = os.environ | variables | {"PYTHONPATH": str(Path(odejax.__file__).parents[1])}
    command = [sys.executable, program, *map(str, arguments)]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def epochs_in(folder):
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def without_timings(history):
    timings = ("seconds", "examples_per_second", "peak_memory_bytes")
    return [{k: v for k, v in record.items() if k not in timings} for record in history]


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    # Sums over a batch are split among the threads, of which XLA has one for each device.
    devices = {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    process = launch(__file__, folder, out, 1.0, **devices)
    try:
        deadline = time.monotonic() + 240
        while epochs_in(folder) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors  # it had not ended by itself
    assert 2 <= epochs_in(folder) < EPOCHS

    resumed = launch(__file__, folder, out, 0.0, **devices)
    _, errors = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, errors

    uninterrupted = train()
    with np.load(f"{out}.npz") as saved:
        actual = [saved[name] for name in saved.files]
    expected = arrays(uninterrupted)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    metadata = json.loads(out.with_suffix(".json").read_text())
    assert metadata["best_epoch"] == uninterrupted.best_epoch
    assert without_timings(metadata["history"]) == without_timings(uninterrupted.history)
    assert epochs_in(folder) == EPOCHS


def main(folder, out, pause):
    result = train(folder, float(pause))
    np.savez(out, *arrays(result))
    metadata = {"history": result.history, "best_epoch": result.best_epoch}
    Path(out).with_suffix(".json").write_text(json.dumps(metadata))


if __name__ == "__main__":
    main(*sys.argv[1:])
