"""The one training loop: whole epochs on the device, checkpoints, the best model kept."""

import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._checks import check_callable, check_count, check_instance, check_key, check_share
from .._fingerprint import fingerprint
from .._mesh import agreed, mesh_size, replicate, shard, spread, to_host
from .._paths import written_whole
from .._predictor import Predictor, as_pixels, predict
from .._progress import progress_bar
from .._promotion import own_promotion
from .._types import Image, Key
from ..data import ArrayDataset, StreamedDataset
from .checkpoints import CheckpointError, Checkpoints, array_digest
from .feed import Resident, Streamed
from .gradients import AbstractGradientRule, Derivative
from .solve_statistics import solve_statistics

_SECONDS_PER_CALL = 0.5  # how long the device runs before the progress bar, and Ctrl-C, get a turn


class TrainingDiverged(FloatingPointError):
    """The loss or a weight is no longer finite; the last good checkpoint is kept."""


class Fit(NamedTuple):
    """A trained model, and one dictionary of metrics for each epoch.

    "loss", "train_accuracy", "validation" (where there is some), "seconds",
    "examples_per_second", "peak_memory_bytes" (so far, of the first device where it counts them,
    else of the process); for a neural ODE the means of "steps", "rejected", "evaluations" and
    "unsolved" (`ODESolve.statistics`) over the first 256 images of the validation or training set.
    `opt_state` is the optimizer's after the last epoch, for those that keep weights of their own
    (`optax.contrib.schedule_free_eval_params`); `model` is of `best_epoch`.
    """

    model: Any
    state: eqx.nn.State
    history: list[dict[str, float]]
    best_epoch: int
    opt_state: optax.OptState


def clean_accuracy(predictor: Predictor, dataset: ArrayDataset, *, key: Key) -> float:
    """The fraction of images that the predictor classifies correctly."""
    logits = predict(predictor, dataset.images, key=key)
    return float(np.mean(logits.argmax(axis=1) == dataset.labels))


class _TrainState(eqx.Module):
    params: PyTree
    state: eqx.nn.State
    opt_state: optax.OptState
    carry: PyTree  # of the gradient rule
    average: PyTree  # (steps, (weights, statistics)), or None


@own_promotion
def fit(
    model: Any,
    state: eqx.nn.State,
    dataset: ArrayDataset | StreamedDataset,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    key: Key,
    checkpoint_dir: str | os.PathLike | None = None,
    validation: ArrayDataset | None = None,
    score: Callable[..., float] = clean_accuracy,
    augment: Callable[[Image, Key], Image] | None = None,
    average: float | None = None,
    shard_weights: bool = False,
    progress: bool = True,
) -> Fit:
    """Train `model` and return it, from the epoch with the best validation score.

    - `dataset`: lives on the device as uint8, or is read as it is used (`StreamedDataset`); each
      epoch shuffles it and leaves out what does not fill a batch.
    - `objective(model, state, images, labels, key=key) -> (loss, (state, n_correct))`, which is
      differentiated, or a rule that makes gradients in another way: `YOPO`, `FreeAdversarial`,
      `Derivative(objective, parts)` for batches that do not fit into memory.
    - `optimizer`: any Optax transformation; a schedule counts steps (`steps_per_epoch`). One that
      asks for more than gradients is told `value`, `grad` and `value_fn` of the batch
      (`optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`, `optax.lbfgs`).
    - `validation`: scored by `score(predictor, validation, key=key)` after every epoch; without
      it the last epoch is returned.
    - `augment(image, key)`: applied on the device to each float image.
    - `average`: validate and return not the weights but their exponential moving average, which
      keeps this share of itself in every step (0.999, say); batch statistics too. In its first
      steps it keeps less, (1 + step) / (10 + step), so as to forget the initial weights.
    - `shard_weights`: under a mesh (`odejax.batch_mesh`) each batch is spread over its devices,
      which must divide it; the weights, with all that the optimizer keeps for them, are whole on
      every device, or cut into as many parts where an axis allows it. A run may go on with other
      devices.
    - `checkpoint_dir`: after every epoch the run is saved there (atomically), with its metrics in
      `metrics.jsonl`. A run found there is continued, and ends bit for bit where an
      uninterrupted one would (on a CPU with as many cores: sums are split among them); raises
      `CheckpointError` if it is another run's (another key, data, initial weights, model,
      objective, augmentation or batch size, functions told apart by their code; the optimizer's
      constants and `score` are not stored), or one of more epochs.

    Raises `TrainingDiverged` when the loss or a weight stops being finite, naming the epoch and
    the last good checkpoint. Warns where solves of a neural ODE hit their step limit.
    """
    check_key(key)
    check_instance((ArrayDataset, StreamedDataset), "a data set", dataset=dataset)
    check_count(epochs=epochs, batch_size=batch_size)
    check_callable(objective=objective, score=score)
    if batch_size > len(dataset):
        raise ValueError(f"batch_size must be between 1 and {len(dataset)}; got {batch_size}")
    if batch_size % mesh_size():
        raise ValueError(f"{mesh_size()} devices must divide the batch_size; got {batch_size}")
    if average is not None:
        check_share(average=average)
    optimizer = optax.with_extra_args_support(optimizer)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rule = objective if isinstance(objective, AbstractGradientRule) else Derivative(objective)
    carry = rule.init((batch_size, *dataset.image_shape))
    averaged = None if average is None else (jnp.zeros((), jnp.int32), (params, state))
    lay_out = partial(_lay_out, shard if shard_weights else replicate, batch_size)
    train = lay_out(_TrainState(params, state, jax.jit(optimizer.init)(params), carry, averaged))
    best = (train.params, train.state)
    history: list[dict[str, float]] = []
    best_epoch, best_score = 0, -np.inf

    checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
    ours = {}
    if checkpoints is not None:
        ours = {
            "key": to_host(jax.random.key_data(key)).tolist(),
            "batch_size": batch_size,
            "dataset": _describe(dataset),
            "validation": None if validation is None else _describe(validation),
            "model": fingerprint(static),
            "objective": fingerprint(objective),
            "augmentation": fingerprint(augment),
            "average": average,
            "arrays": array_digest(train),
            "initialisation": _sums((params, state)),
        }
        meta = checkpoints.restore_meta()
        if meta is not None:
            _check_fingerprint(meta.get("fingerprint", {}), ours, checkpoints.folder)
            train, best = checkpoints.restore_arrays((train, best))
            history = meta["history"]
            if len(history) > epochs:
                raise CheckpointError(
                    f"{checkpoint_dir} holds a run of {len(history)} epochs; got epochs={epochs}"
                )
            best_epoch, best_score = meta["best_epoch"], meta["best_score"]
            _write_metrics(checkpoints.folder / "metrics.jsonl", history)
        checkpoints.check_room((train, best))

    streamed = isinstance(dataset, StreamedDataset)
    feed = Streamed(dataset, batch_size) if streamed else Resident(dataset, batch_size)
    run_steps = _make_run_steps(static, rule, optimizer, augment, average, feed, lay_out)
    steps = steps_per_epoch(len(dataset), batch_size) * rule.replays
    first_epoch = len(history) + 1
    shown = progress and jax.process_index() == 0
    with progress_bar(enabled=shown) as bar, ExitStack() as stack:
        total = max(0, epochs - len(history)) * steps
        task = bar.add_task(f"epoch {len(history)}/{epochs}", total=total, note=_note(history))
        for epoch in range(first_epoch, epochs + 1):
            started = time.perf_counter()
            shuffle_key, step_key, score_key = jax.random.split(jax.random.fold_in(key, epoch), 3)
            order = jax.random.permutation(shuffle_key, len(dataset))
            sums = (jnp.zeros(()), jnp.zeros((), jnp.int32))
            done, length = 0, 1
            windows = stack.enter_context(closing(feed.windows(order)))  # and its reader
            for data, first_batch, last_batch in windows:
                while done < last_batch * rule.replays:
                    last = min(done + length, last_batch * rule.replays)
                    call_started = time.perf_counter()
                    train, sums = run_steps(train, sums, data, first_batch, done, last, step_key)
                    loss = float(sums[0]) / last
                    if not np.isfinite(loss):
                        raise _diverged("loss", epoch, last, checkpoints)
                    # Adapted slowly, since the first call compiles. It changes no result.
                    speed = (last - done) / agreed(time.perf_counter() - call_started)
                    length = int(np.clip(speed * _SECONDS_PER_CALL, 1, 4 * length))
                    bar.update(
                        task,
                        advance=last - done,
                        description=f"epoch {epoch}/{epochs}",
                        note=f"loss {loss:.4f}",
                    )
                    done = last
            if not _finite(train.params):
                raise _diverged("weights", epoch, steps, checkpoints)
            seconds = time.perf_counter() - started
            record = {
                "epoch": epoch,
                "loss": float(sums[0]) / steps,
                "train_accuracy": int(sums[1]) / (steps * batch_size),
                "seconds": seconds,
                "examples_per_second": steps * batch_size / seconds,
                "peak_memory_bytes": _peak_memory(),
            }
            value = float(epoch)  # without validation data the latest epoch is the best
            current = (train.params, train.state) if train.average is None else train.average[1]
            trained = eqx.combine(current[0], static)
            sample = dataset if validation is None else validation
            record |= solve_statistics(trained, current[1], sample, epoch=epoch)
            if validation is not None:
                predictor = Predictor(trained, current[1])
                value = record["validation"] = score(predictor, validation, key=score_key)
                if not np.isfinite(value):
                    raise ValueError(f"the score must be finite; got {value} in epoch {epoch}")
            if value > best_score:
                best, best_epoch, best_score = current, epoch, value
            history = [*history, record]
            if checkpoints is not None:
                meta = {
                    "fingerprint": ours,
                    "history": history,
                    "best_epoch": best_epoch,
                    "best_score": best_score,
                }
                checkpoints.save(epoch, (train, best), meta)
                _write_metrics(checkpoints.folder / "metrics.jsonl", history)
            bar.update(task, note=_note(history))
    if checkpoints is not None:
        checkpoints.close()
    params, state = best
    return Fit(eqx.combine(params, static), state, history, best_epoch, train.opt_state)


@jax.jit
def _finite(arrays) -> Array:
    return jax.tree.reduce(
        lambda so_far, a: so_far & jnp.isfinite(a).all(), arrays, jnp.asarray(True)
    )


def _peak_memory() -> int:
    """Bytes, the most so far: of a device that counts them, else of this process."""
    told = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in told:
        return int(told["peak_bytes_in_use"])
    import resource  # which not every system has

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def steps_per_epoch(n_examples: int, batch_size: int) -> int:
    """How many steps `fit` takes in an epoch, for learning-rate schedules.

    (`FreeAdversarial` takes each of them `replays` times.)
    """
    return n_examples // batch_size


def _describe(dataset: ArrayDataset | StreamedDataset):
    if isinstance(dataset, StreamedDataset):
        return [dataset.name, dataset.split, len(dataset), dataset.digest]
    digest = zlib.crc32(dataset.labels.tobytes(), zlib.crc32(dataset.images.tobytes()))
    return [dataset.name, dataset.split, len(dataset), digest]


def _sums(arrays) -> list[float]:
    """A number for each array: another device, which may round otherwise, has nearly the same."""
    leaves = [to_host(leaf) for leaf in jax.tree.leaves(arrays) if eqx.is_inexact_array(leaf)]
    return [float(np.dot(np.linspace(1, 2, x.size), np.ravel(x).astype(float))) for x in leaves]


def _lay_out(weights: Callable, batch_size: int, train: _TrainState) -> _TrainState:
    """Everything where the mesh wants it; `weights` is `shard` or `replicate`."""

    def of_the_batch(leaf):
        return spread(leaf) if leaf.shape[:1] == (batch_size,) else replicate(leaf)

    return _TrainState(
        weights(train.params),
        replicate(train.state),
        weights(train.opt_state),
        jax.tree.map(of_the_batch, train.carry),
        weights(train.average),
    )


def _make_run_steps(static, rule, optimizer, augment, average, feed, lay_out):
    """A jitted function that takes steps `first` to `last` of an epoch.

    Both are arguments, not constants: one program serves calls of any length. `data` begins with
    batch `first_batch`.
    """

    @jax.jit
    def run_steps(train, sums, data, first_batch, first, last, key):
        def step(i, carry):
            train, (loss_sum, correct_sum) = carry
            batch = i // rule.replays
            augment_key, _ = jax.random.split(jax.random.fold_in(key, batch))
            _, rule_key = jax.random.split(jax.random.fold_in(key, i))
            images, y = feed.batch(data, batch - first_batch)
            x = as_pixels(images)
            if augment is not None:
                x = jax.vmap(augment)(x, spread(jax.random.split(augment_key, len(x))))

            def derivative(params):
                return rule(params, static, train.state, train.carry, x, y, key=rule_key)

            (value, (state, correct)), gradient, carry = derivative(train.params)
            updates, opt_state = optimizer.update(
                gradient,
                train.opt_state,
                train.params,
                # For those that ask: a plateau or Polyak's step; a line search on the same batch.
                value=value,
                grad=gradient,
                value_fn=lambda params: derivative(params)[0][0],
            )
            params = eqx.apply_updates(train.params, updates)
            averaged = None if average is None else _move(train.average, (params, state), average)
            train = lay_out(_TrainState(params, state, opt_state, carry, averaged))
            return train, (loss_sum + value, correct_sum + correct)

        return jax.lax.fori_loop(first, last, step, (train, sums))

    return run_steps


def _move(average, new, share):
    steps, old = average
    share = jnp.minimum(share, (1 + steps) / (10 + steps))

    def mean(a, b):
        if not eqx.is_inexact_array(b):
            return b
        kept = share.astype(b.dtype)
        return kept * a + (1 - kept) * b

    return steps + 1, jax.tree.map(mean, old, new)


def _check_fingerprint(saved, ours, folder):
    def same(name):
        if name == "initialisation" and name in saved and len(saved[name]) == len(ours[name]):
            return np.allclose(saved[name], ours[name], rtol=1e-3, atol=1e-6)
        return saved.get(name) == ours[name]

    different = [name for name in ours if not same(name)]
    if different:
        name = different[0]
        raise CheckpointError(
            f"{folder} holds a run with another {name}: {str(saved.get(name))[:80]}, "
            f"not {str(ours[name])[:80]}; give another folder, or the arguments it was started with"
        )


def _diverged(what, epoch, step, checkpoints):
    kept = "no checkpoint was asked for"
    if checkpoints is not None:
        kept = f"the last good checkpoint is in {checkpoints.folder}"
        checkpoints.close()
    return TrainingDiverged(
        f"the {what} became NaN or infinite in epoch {epoch}, by step {step}: "
        f"lower the learning rate or clip gradients, or let an ODE solve take more steps; {kept}"
    )


def _write_metrics(path: Path, history):
    if jax.process_index() != 0:
        return
    with written_whole(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in history))


def _note(history):
    if not history:
        return ""
    last = history[-1]
    shown = {name: last[name] for name in ("loss", "validation", "steps") if name in last}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
