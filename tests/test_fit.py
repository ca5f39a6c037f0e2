"""The training loop: that it learns, keeps the best, survives damage, and says when it cannot."""

import errno
import gc
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits, train

from odejax import LinfBall, Predictor, load
from odejax._checkpoints import Checkpoints
from odejax.attacks import PGD
from odejax.data import ArrayDataset, random_crop
from odejax.evaluation import robust_accuracy
from odejax.models import MLP, BatchNorm
from odejax.training import (
    Adversarial,
    CheckpointError,
    CrossEntropy,
    Hinge,
    TrainingDiverged,
    clean_accuracy,
    fit,
    steps_per_epoch,
)

fit_module = importlib.import_module("odejax.training.fit")
KEY = jax.random.key(13)


def stripes(n=96, seed=0):
    """Three classes of 5 x 5 images: which of three rows is bright, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    images = rng.integers(0, 60, (n, 5, 5, 1)).astype(np.uint8)
    images[np.arange(n), labels] += 150
    return ArrayDataset(images, labels, 3, name="stripes", split="train")


@eqx.filter_jit
def make(width, key):
    return eqx.nn.make_with_state(MLP)((5, 5, 1), 3, width=width, key=key)


def run(
    dataset=None,
    objective=None,
    optimizer=None,
    *,
    epochs=3,
    batch_size=24,
    width=8,
    seed=0,
    key=KEY,
    **settings,
):
    return fit(
        *make(width, jax.random.key(seed)),
        stripes() if dataset is None else dataset,
        CrossEntropy() if objective is None else objective,
        optax.adam(1e-2) if optimizer is None else optimizer,
        epochs=epochs,
        batch_size=batch_size,
        key=key,
        progress=False,
        **settings,
    )


def weights(result):
    return jax.tree.leaves(eqx.filter(result.model, eqx.is_array))


def assert_same_weights(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)


def same_weights(one, other):
    return all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_an_easy_set_is_learned_to_its_end():
    result = run(epochs=15)
    predictor = Predictor(result.model, result.state)
    assert clean_accuracy(predictor, stripes(seed=1), key=KEY) > 0.98
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.1 * losses[0]
    assert result.history[-1]["train_accuracy"] > 0.98


def test_float_images_train_the_same_network():
    data = stripes()
    floats = ArrayDataset(data.pixels, data.labels, 3)
    for a, b in zip(weights(run(data, epochs=1)), weights(run(floats, epochs=1)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # XLA and NumPy round x / 255 differently


def test_clean_accuracy_is_the_fraction_of_right_classes():
    result = run(epochs=1)
    data = stripes(50, seed=1)
    labels = [np.argmax(result.model(x, result.state)[0]) for x in jnp.asarray(data.pixels)]
    expected = np.mean(np.array(labels) == data.labels)
    accuracy = clean_accuracy(Predictor(result.model, result.state), data, key=KEY)
    assert accuracy == pytest.approx(expected, abs=1e-12)


def test_the_same_key_gives_the_same_weights_and_another_gives_others():
    assert_same_weights(run(), run(key=13))  # a seed is the key that it makes
    assert not same_weights(run(), run(key=jax.random.key(1)))


def test_the_first_loss_and_accuracy_are_those_of_a_hand_computation():
    # One batch holds the whole set and the learning rate is zero: the metrics are the model's own.
    result = run(epochs=1, batch_size=96, optimizer=optax.sgd(0.0))
    data = stripes()
    logits = np.stack([result.model(x, result.state)[0] for x in jnp.asarray(data.pixels)]).astype(
        np.float64
    )
    log_sum = np.log(np.exp(logits).sum(axis=1))
    (record,) = result.history
    expected = np.mean(log_sum - logits[np.arange(96), data.labels])
    np.testing.assert_allclose(record["loss"], expected, rtol=1e-5)
    assert record["train_accuracy"] == np.mean(logits.argmax(axis=1) == data.labels)


def test_history_and_metrics_file_agree(tmp_path):
    result = run(checkpoint_dir=tmp_path, validation=stripes(seed=1))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert set(result.history[0]) == {
        "epoch", "loss", "train_accuracy", "validation", "seconds", "examples_per_second",
        "peak_memory_bytes",
    }  # fmt: skip


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.9, 0.5], 2), ([0.3, 0.3, 0.2], 1)])
def test_the_model_of_the_best_validation_score_is_returned(scores, best):
    script = iter(scores)
    result = run(validation=stripes(seed=1), score=lambda *args, key: next(script))
    assert result.best_epoch == best
    assert [record["validation"] for record in result.history] == scores
    assert_same_weights(result, run(epochs=best))


def test_the_score_sees_each_epochs_model_and_the_validation_set():
    seen = []

    def score(predictor, dataset, *, key):
        seen.append((np.asarray(predictor.model.layers[0].weight), dataset))
        return 0.0

    validation = stripes(seed=1)
    result = run(validation=validation, score=score)
    assert all(dataset is validation for _, dataset in seen)
    np.testing.assert_array_equal(seen[-1][0], run().model.layers[0].weight)
    np.testing.assert_array_equal(seen[0][0], result.model.layers[0].weight)


def test_without_validation_the_last_epoch_is_returned():
    assert run(epochs=2).best_epoch == 2


@pytest.mark.parametrize(
    ("n", "batch_size", "steps"), [(10, 3, 3), (9, 3, 3), (3, 3, 1), (5, 3, 1)]
)
def test_an_epoch_is_as_many_steps_as_fill_a_batch(n, batch_size, steps):
    assert steps_per_epoch(n, batch_size) == steps
    count = optax.GradientTransformation(
        lambda params: (), lambda g, state, params: (jax.tree.map(jnp.ones_like, g), state)
    )
    start = run(stripes(n), optimizer=optax.sgd(0.0), epochs=1, batch_size=batch_size)
    end = run(stripes(n), optimizer=count, epochs=2, batch_size=batch_size)
    for before, after in zip(weights(start), weights(end), strict=True):
        np.testing.assert_allclose(after - before, 2 * steps, atol=1e-5)


def test_every_epoch_visits_every_image_once_in_another_order():
    n, batches = 8, []

    def objective(model, state, images, labels, *, key):
        jax.debug.callback(lambda batch: batches.append(np.asarray(batch)), images[:, 0, 0, 0])
        return 0.0 * jnp.sum(model.layers[0].weight), (state, jnp.asarray(0))

    ids = np.arange(n, dtype=np.uint8) * 20
    data = ArrayDataset(
        np.broadcast_to(ids[:, None, None, None], (n, 5, 5, 1)), np.zeros(n, np.int32)
    )
    run(data, objective, epochs=3, batch_size=2)
    jax.effects_barrier()
    epochs = np.concatenate(batches).reshape(3, n)
    for epoch in epochs:
        np.testing.assert_allclose(np.sort(epoch), ids / 255, atol=1e-6)
    assert not np.array_equal(epochs[0], epochs[1])


def test_augmentation_reaches_the_model():
    # Black images give the first layer no gradient at all.
    start = run(epochs=1, optimizer=optax.sgd(0.0))
    black = run(augment=lambda x, key: jnp.zeros_like(x), optimizer=optax.sgd(0.1))
    np.testing.assert_array_equal(black.model.layers[0].weight, start.model.layers[0].weight)
    plain = run(optimizer=optax.sgd(0.1))
    assert not np.array_equal(plain.model.layers[0].weight, start.model.layers[0].weight)


def test_every_image_is_augmented_with_a_draw_of_its_own():
    def objective(model, state, images, labels, *, key):
        spread = jnp.std(images[:, 0, 0, 0])
        return spread + 0.0 * jnp.sum(model.layers[0].weight), (state, jnp.asarray(0))

    result = run(
        objective=objective,
        augment=lambda x, key: jnp.full_like(x, jax.random.uniform(key)),
        epochs=10,
    )
    losses = [record["loss"] for record in result.history]
    # The standard deviation of a uniform draw is 12^-1/2 = 0.289.
    np.testing.assert_allclose(np.mean(losses), 12**-0.5, atol=0.02)
    assert len(set(losses)) == 10


def test_adversarial_training_makes_a_network_more_robust():
    def make(key):
        return eqx.nn.make_with_state(MLP)((8, 8, 1), width=32, key=key)

    ball, data = LinfBall(0.1), digits("test", 200)
    attack = PGD(steps=5, step_size=None)
    plain, adversarial = (
        robust_accuracy(
            train(make, objective=objective),
            data.pixels,
            data.labels,
            ball,
            PGD(steps=10, step_size=None),
            key=KEY,
        ).accuracy
        for objective in (CrossEntropy(), Adversarial(attack, ball))
    )
    assert adversarial > plain + 0.15


def test_an_adversary_of_radius_zero_is_no_adversary():
    adversarial = Adversarial(PGD(steps=2), LinfBall(0.0))
    model, state = eqx.nn.make_with_state(MLP)((5, 5, 1), 3, width=8, key=KEY)
    data = stripes()
    images, labels = jnp.asarray(data.pixels), jnp.asarray(data.labels)
    plain, (_, n_plain) = CrossEntropy()(model, state, images, labels, key=KEY)
    loss, (_, n_correct) = adversarial(model, state, images, labels, key=KEY)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    assert n_correct == n_plain


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature .* got {temperature}"):
        CrossEntropy(temperature)


def test_how_steps_are_cut_into_calls_does_not_change_a_bit(monkeypatch):
    results = []
    for seconds in (0.0, 1e-3, 1e9):
        monkeypatch.setattr("odejax.training.epoch._SECONDS_PER_CALL", seconds)
        results.append(run(batch_size=4))
    assert_same_weights(results[0], results[1])
    assert_same_weights(results[0], results[2])
    assert [r["loss"] for r in results[0].history] == [r["loss"] for r in results[2].history]


def diverging_in_epoch_2():
    # Four steps an epoch; in the sixth the weights jump out of float32's range.
    return optax.sgd(lambda step: jnp.where(step >= 5, 1e38, 1e-2))


def test_divergence_is_named_with_its_epoch_and_the_last_good_checkpoint_stays(tmp_path):
    with pytest.raises(TrainingDiverged, match="epoch 2") as caught:
        run(optimizer=diverging_in_epoch_2(), checkpoint_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    restored = run(optimizer=diverging_in_epoch_2(), checkpoint_dir=tmp_path, epochs=1)
    assert_same_weights(restored, run(optimizer=optax.sgd(lambda step: 1e-2), epochs=1))


def test_a_learning_rate_that_is_far_too_high_is_noticed():
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        run(optimizer=optax.sgd(1e30))


def test_weights_that_are_lost_in_an_epochs_last_step_are_noticed():
    with pytest.raises(TrainingDiverged, match=r"weights .* epoch 1, by step 4"):
        run(optimizer=optax.sgd(lambda step: jnp.where(step == 3, jnp.inf, 1e-2)))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=5)),
        optax.polyak_sgd(),
        optax.lbfgs(memory_size=2),
        optax.contrib.schedule_free_adamw(1e-2),
    ],
    ids=["plateau", "Polyak", "L-BFGS", "schedule free"],
)
def test_an_optimizer_may_ask_for_more_than_gradients(optimizer):
    result = run(optimizer=optimizer, epochs=4)
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.9 * losses[0]


def test_an_optimizers_keys_are_saved_and_restored(tmp_path):
    optimizer = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(0)), optax.sgd(0.1))
    straight = run(optimizer=optimizer, epochs=2)
    run(optimizer=optimizer, epochs=1, checkpoint_dir=tmp_path)
    again = run(optimizer=optimizer, epochs=2, checkpoint_dir=tmp_path)
    assert_same_weights(again, straight)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("a file", "checkpoint_dir: .*a file cannot be written to"),
        ("gs://bucket/run", "checkpoint_dir must be a local path; got gs://bucket/run"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_any_epoch(
    tmp_path, monkeypatch, folder, message
):
    monkeypatch.setattr(fit_module, "make_run_steps", lambda *_: pytest.fail("it trained"))
    (tmp_path / "a file").write_text("")
    with pytest.raises(ValueError, match=message):
        run(checkpoint_dir=folder if "://" in folder else tmp_path / folder)


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    code = """
import pathlib, sys
from odejax._paths import lock_folder
lock_folder("", pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="another process is at work in"):
            run(epochs=1, checkpoint_dir=tmp_path)
        other.stdin.close()
    run(epochs=1, checkpoint_dir=tmp_path)


def test_a_disk_without_room_is_named_before_the_first_step(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match=r"takes .* MB, .* no room in .* \(No space"):
        run(checkpoint_dir=tmp_path, objective=never)


def never(*_, **__):
    raise AssertionError("a step was taken")


def test_a_disk_that_takes_no_more_ends_a_save_in_one_sentence(tmp_path):
    """The limit on a file's size simulates a disk that fills up within a save."""
    code = """
import pathlib, resource, signal, sys
import numpy as np
from odejax.training import CheckpointError
from odejax._checkpoints import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(sys.argv[1])
arrays = np.random.default_rng(0).normal(size=(5, 50_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.save(1, list(arrays), {})
except CheckpointError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.fullmatch(r"epoch 1 could not be saved in .*\n", ended.stdout), ended
    assert ended.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_for_the_end_of_a_save(tmp_path, monkeypatch, number):
    checkpoints = Checkpoints(tmp_path)
    save = checkpoints._manager.save

    def interrupted(*arguments, **settings):
        signal.raise_signal(number)
        save(*arguments, **settings)

    monkeypatch.setattr(checkpoints._manager, "save", interrupted)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, [np.ones(3)], {"history": []})
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    np.testing.assert_array_equal(checkpoints.restore_arrays([np.zeros(3)])[0], np.ones(3))
    checkpoints.close()


def test_a_loss_that_is_nan_is_noticed():
    def objective(model, state, images, labels, *, key):
        loss, aux = CrossEntropy()(model, state, images, labels, key=key)
        return loss * jnp.nan, aux

    with pytest.raises(TrainingDiverged, match=r"loss .* epoch 1"):
        run(objective=objective)


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epochs_are_refused(epochs):
    with pytest.raises(ValueError, match=f"epochs .* got {epochs}"):
        run(epochs=epochs)


@pytest.mark.parametrize("batch_size", [0, -1, 97])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"(between 1 and 96|at least 1); got {batch_size}"):
        run(batch_size=batch_size)


# Checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two epochs, and its result."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run(epochs=2, checkpoint_dir=folder)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_a_finished_run_is_restored_without_training(finished, copy):
    restored = run(epochs=2, checkpoint_dir=copy)
    assert_same_weights(restored, finished[1])
    assert restored.history == finished[1].history
    assert restored.best_epoch == finished[1].best_epoch


def test_a_finished_run_can_be_made_longer(copy):
    longer, straight = run(epochs=4, checkpoint_dir=copy), run(epochs=4)
    assert_same_weights(longer, straight)
    assert [r["loss"] for r in longer.history] == [r["loss"] for r in straight.history]


def test_the_best_model_survives_a_restart(tmp_path):
    script = iter([0.9, 0.1, 0.2, 0.3])
    settings = {
        "validation": stripes(seed=1),
        "score": lambda *args, key: next(script),
        "checkpoint_dir": tmp_path,
    }
    run(epochs=2, **settings)
    result = run(epochs=4, **settings)
    assert result.best_epoch == 1
    assert_same_weights(result, run(epochs=1))
    assert eqx.tree_equal(load(tmp_path), Predictor(result.model, result.state))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="score must be finite; got nan in epoch 1"):
        run(validation=stripes(seed=1), score=lambda *args, key: float("nan"))


def test_no_temporary_files_are_left(finished):
    assert {path.name for path in finished[0].iterdir()} == {"1", "2", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"key": jax.random.key(1)}, "key"),
        ({"batch_size": 12}, "batch_size"),
        ({"dataset": stripes(95)}, "dataset"),
        ({"width": 9}, "model"),
        ({"objective": CrossEntropy(temperature=0.5)}, "objective"),
        ({"augment": lambda x, key: x}, "augmentation"),
        ({"augment": partial(random_crop, padding=1)}, "augmentation"),
        ({"seed": 1}, "initialisation"),
        ({"epochs": 1}, "2 epochs; got epochs=1"),
        ({"optimizer": optax.sgd(1e-2)}, None),
        ({"optimizer": optax.sgd(1e-2, momentum=0.9)}, None),
    ],
)
def test_another_runs_checkpoint_is_refused(copy, settings, named):
    with pytest.raises(CheckpointError, match=named) as caught:
        run(**{"epochs": 2, "checkpoint_dir": copy, **settings})
    assert str(copy) in str(caught.value)


def files_of_newest(folder):
    return sorted(path for path in (folder / "2").rglob("*") if path.is_file())


def damage_one_file(finished, folder, damage):
    """Damage each file of the newest checkpoint in turn: (refused, restored unharmed, neither)."""
    refused, unharmed, harmed = [], [], []
    for path in files_of_newest(finished[0]):
        name = str(path.relative_to(finished[0]))
        copy = shutil.copytree(finished[0], folder / name.replace("/", "_"))
        damage(copy / name)
        try:
            restored = run(epochs=2, checkpoint_dir=copy)
        except CheckpointError:
            refused.append(name)
        else:
            (unharmed if same_weights(restored, finished[1]) else harmed).append(name)
    time.sleep(0.5)  # what Orbax's reader threads leave undone belongs to this test
    gc.collect()
    return refused, unharmed, harmed


# Where one read fails, Orbax abandons its others, and Python reports them as unraisable.
abandons_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@abandons_reads
@pytest.mark.slow  # each reads the checkpoint twice
def test_no_flipped_bit_of_a_checkpoint_is_used(finished, tmp_path):
    files, rng = files_of_newest(finished[0]), np.random.default_rng(0)
    sizes = np.array([file.stat().st_size for file in files])
    outcomes = Counter()
    for i in range(40):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        copy = shutil.copytree(finished[0], tmp_path / str(i))
        flip_a_bit(copy / file.relative_to(finished[0]), rng)
        try:
            restored = run(epochs=2, checkpoint_dir=copy)
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            outcomes["the same" if same_weights(restored, finished[1]) else "another"] += 1
        shutil.rmtree(copy)
    time.sleep(0.5)  # what Orbax's reader threads leave undone belongs to this test
    gc.collect()
    assert outcomes["another"] == 0
    # Else no flip met what is read. How many do depends on names that Orbax draws: 16, 20, more.
    assert outcomes["refused"] > 10


def flip_a_bit(path, rng):
    content = bytearray(path.read_bytes())
    place = rng.integers(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def test_a_damaged_array_is_detected_by_its_digest_and_the_whole_epoch_is_named(copy, monkeypatch):
    restore = Checkpoints._restore

    def one_bit_off(self, epoch, **what):
        restored = restore(self, epoch, **what)
        if epoch == 2 and "arrays" in what:
            arrays = dict(restored["arrays"])
            arrays["00000"] = jnp.asarray(np.nextafter(np.asarray(arrays["00000"]), np.inf))
            return {"arrays": arrays}
        return restored

    monkeypatch.setattr(Checkpoints, "_restore", one_bit_off)
    with pytest.raises(CheckpointError, match=r"2 is damaged: 1 of .* to go on from epoch 1$"):
        run(epochs=2, checkpoint_dir=copy)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.slow
@abandons_reads
def test_a_truncated_file_is_refused_or_was_not_needed(finished, tmp_path):
    refused, _, harmed = damage_one_file(finished, tmp_path, truncate)
    assert len(refused) >= 2
    assert harmed == []


@abandons_reads
def test_a_damaged_file_is_refused_or_was_not_needed(finished, tmp_path):
    refused, _, harmed = damage_one_file(finished, tmp_path, flip_a_byte)
    assert len(refused) >= 1
    assert harmed == []


def test_a_checkpoint_without_its_arrays_is_refused(copy):
    shutil.rmtree(copy / "2" / "arrays")
    with pytest.raises(CheckpointError, match="2"):
        run(epochs=2, checkpoint_dir=copy)


def test_a_network_is_loaded_from_the_folder_alone(finished, copy):
    before = sorted(copy.rglob("*"))
    loaded, expected = load(copy), Predictor(finished[1].model, finished[1].state)
    assert eqx.tree_equal(loaded, expected)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    assert sorted(copy.rglob("*")) == before


class Shuffled(eqx.Module):
    """A class that odejax does not know, with statistics, and an array that is not trained."""

    order: jax.Array
    norm: BatchNorm
    mlp: MLP

    def __init__(self, *, key):
        self.order, self.norm = jax.random.permutation(key, 5), BatchNorm(1)
        self.mlp = MLP((5, 5, 1), 3, width=4, key=key)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(x[self.order], state)
        return self.mlp(x, state)


def test_a_network_of_ones_own_is_loaded_from_a_folder_with_like(tmp_path):
    make = eqx.nn.make_with_state(Shuffled)
    trained = fit(
        *make(key=KEY),
        stripes(),
        CrossEntropy(),
        optax.adam(1e-2),
        epochs=1,
        batch_size=24,
        key=KEY,
        checkpoint_dir=tmp_path,
        average=0.9,
        progress=False,
    )
    with pytest.raises(ValueError, match=r"class test_fit.Shuffled, which odejax does not know"):
        load(tmp_path)
    like = eqx.filter_eval_shape(lambda key: make(key=key), KEY)
    expected = Predictor(trained.model, trained.state)
    assert eqx.tree_equal(load(tmp_path, like=like), expected)
    with pytest.raises(ValueError, match="arrays, and like has"):
        load(tmp_path, like=expected.model)


def test_the_folder_of_an_earlier_odejax_is_not_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, [np.ones(3)], {"history": []})
    checkpoints.close()
    with pytest.raises(ValueError, match=r"holds a run of an earlier odejax, .*: train it again"):
        load(tmp_path)


def test_a_damaged_folder_is_not_loaded(copy, tmp_path, monkeypatch):
    flip_a_byte(copy / "2" / "meta" / "metadata")
    with pytest.raises(ValueError, match=r"copy cannot be read: the checkpoint .*copy/2 "):
        load(copy)
    monkeypatch.setattr("odejax._checkpoints.fingerprint", lambda array: "that of another array")
    run(epochs=1, checkpoint_dir=tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"run cannot be read: .*run/1 is damaged: 6 of 6 arrays"):
        load(tmp_path / "run")


def logits_of_pixels():
    """A model whose logits are the image's pixels, so that losses can be counted by hand."""

    class Pixels(eqx.Module):
        def __call__(self, x, state, *, key=None):
            return jnp.ravel(x), state

    return eqx.nn.make_with_state(Pixels)()


def test_the_hinge_is_that_of_pytorch():
    logits = np.array([[0.5, 0.2, 0.4, 0.1], [0.9, 0.1, 0.2, 0.3]], np.float32)
    labels, margin = np.array([0, 3], np.int32), 0.3
    model, state = logits_of_pixels()
    images = jnp.asarray(logits.reshape(2, 2, 2, 1))
    loss, (_, correct) = Hinge(margin)(model, state, images, jnp.asarray(labels), key=KEY)
    # torch.nn.MultiMarginLoss(margin=0.3): (0 + 0.2 + 0) / 4 and (0.9 + 0.1 + 0.2) / 4
    expected = np.mean([(0.0 + 0.2 + 0.0) / 4, (0.9 + 0.1 + 0.2) / 4])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(correct) == 1


def test_a_margin_in_the_cross_entropy_is_taken_from_the_label():
    logits = np.array([[0.5, 0.2, 0.4, 0.1]], np.float32)
    model, state = logits_of_pixels()
    images, labels = jnp.asarray(logits.reshape(1, 2, 2, 1)), jnp.array([0], jnp.int32)
    objective = CrossEntropy(temperature=0.1, margin=0.3)
    loss, (_, correct) = objective(model, state, images, labels, key=KEY)
    shifted = (logits[0] - 0.3 * np.eye(4)[0]) / 0.1
    assert float(loss) == pytest.approx(np.log(np.exp(shifted).sum()) - shifted[0], rel=1e-5)
    assert int(correct) == 1  # by the logits themselves


@pytest.mark.parametrize("margin", [-0.1, float("inf"), float("nan")])
@pytest.mark.parametrize("objective", [Hinge, CrossEntropy])
def test_margins_that_cannot_be_are_refused(objective, margin):
    with pytest.raises(ValueError, match=f"margin must be finite and not negative; got {margin}"):
        objective(margin=margin)


def test_adversarial_training_takes_any_objective():
    objective = Adversarial(PGD(1, 0.05), LinfBall(0.05), Hinge(1.0))
    history = run(objective=objective, epochs=4).history
    assert history[-1]["loss"] < history[0]["loss"]
