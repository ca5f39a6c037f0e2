"""The one training loop: whole epochs on the device, checkpoints, the best model kept."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from equinox.nn import State
from jaxtyping import Array

from .._checkpoints import Checkpoints
from .._checks import check_callable, check_count, check_instance, check_share
from .._inputs import as_key
from .._mesh import mesh_size, replicate, shard
from .._predictor import Predictor, predict
from .._progress import progress_bar
from .._promotion import own_promotion
from .._types import Key, LogitsFn
from .._warnings import warn
from ..data import ArrayDataset, StreamedDataset
from ..data.augment import Augmentation
from .certified import CertifiedTraining
from .epoch import make_run_steps, run_epoch
from .feed import Resident, Streamed
from .gradients import AbstractGradientRule, Derivative
from .objectives import Objective
from .run_bar import RunBar
from .run_record import RunFolder, RunRecord, epoch_metrics, run_fingerprint
from .solve_statistics import solve_statistics
from .train_state import TrainState, lay_out


class TrainingDiverged(FloatingPointError):
    """The loss or a weight is no longer finite; the last good checkpoint is kept."""


class Fit(NamedTuple):
    """A trained model, and one dictionary of metrics for each epoch.

    - `model`, `state`: of `best_epoch`.
    - `history`: for each epoch "epoch", "loss", "train_accuracy", "validation" (where there is
      some), "seconds", "examples_per_second", "peak_memory_bytes" (so far, of the first device
      where it counts them, else of the process); for a neural ODE the means of "steps", "rejected",
      "evaluations" and "unsolved" (`ODESolve.statistics`) over the first 256 images of the
      validation or training set.
    - `best_epoch`: that of the best validation score; without validation data the last.
    - `opt_state`: the optimizer's after the last epoch, for those that keep weights of their own
      (`optax.contrib.schedule_free_eval_params`).

    >>> data = odejax.data.ArrayDataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    >>> net = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 1), 2, key=jax.random.key(0))
    >>> settings = {"epochs": 2, "batch_size": 4, "key": jax.random.key(1), "progress": False}
    >>> objective = odejax.training.CrossEntropy()
    >>> trained = odejax.training.fit(*net, data, objective, optax.sgd(0.1), **settings)
    >>> [metrics["train_accuracy"] for metrics in trained.history][-1]
    1.0
    """

    model: Any
    state: State
    history: list[dict[str, float]]
    best_epoch: int
    opt_state: optax.OptState


def clean_accuracy(predictor: LogitsFn, dataset: ArrayDataset, *, key: Key | int) -> float:
    """The fraction of images that the predictor classifies correctly, in [0, 1].

    - `predictor`: a `Predictor`, or any `logits_fn(x, key=key)`.
    - `dataset`: an `ArrayDataset`.
    - `key`: of the network's noise, or an integer seed.

    >>> images = np.array([255, 0, 255, 0], np.uint8).reshape(2, 1, 2, 1)
    >>> data = odejax.data.ArrayDataset(images, np.array([0, 1], np.int32))
    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> predictor = odejax.Predictor(model, eqx.nn.State(None))
    >>> odejax.training.clean_accuracy(predictor, data, key=jax.random.key(0))
    0.5
    """
    logits = predict(predictor, dataset.images, key=key)
    return float(np.mean(logits.argmax(axis=1) == dataset.labels))


@own_promotion
def fit(
    model: Any,
    state: State,
    dataset: ArrayDataset | StreamedDataset,
    objective: Objective | AbstractGradientRule,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    key: Key | int,
    checkpoint_dir: str | os.PathLike | None = None,
    validation: ArrayDataset | None = None,
    score: Callable[..., float] = clean_accuracy,
    augment: Augmentation | None = None,
    average: float | None = None,
    shard_weights: bool = False,
    progress: bool = True,
) -> Fit:
    """Train `model` and return it, from the epoch with the best validation score.

    - `model`, `state`: from `eqx.nn.make_with_state`; called as
      `model(x, state, key=key) -> (logits, state)`.
    - `dataset`: lives on the device as uint8, or is read as it is used (`StreamedDataset`); each
      epoch shuffles it and leaves out what does not fill a batch.
    - `objective(model, state, images, labels, key=key) -> (loss, (state, n_correct))`, which is
      differentiated, or a rule that makes gradients in another way: `YOPO`, `FreeAdversarial`,
      `Derivative(objective, parts)` for batches that do not fit into memory.
    - `optimizer`: any Optax transformation; a schedule counts steps (`steps_per_epoch`). One that
      asks for more than gradients is given `value`, `grad` and `value_fn` of the batch
      (`optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`, `optax.lbfgs`).
    - `epochs`, `batch_size`: at least 1; a batch is at most the data set.
    - `key`: of the order, the augmentation and all noise, or an integer seed.
    - `validation`: scored by `score(predictor, validation, key=key)` after every epoch; without
      it the last epoch is returned.
    - `score`: `clean_accuracy` by default; larger is better.
    - `augment(image, key)`: applied on the device to each float image; None by default.
    - `average`: validate and return not the weights but their exponential moving average, which
      keeps this share of itself in every step (0.999, say); batch statistics too. In its first
      steps it keeps less, (1 + step) / (10 + step), so as to forget the initial weights. None by
      default.
    - `shard_weights`: under a mesh (`odejax.batch_mesh`) each batch is spread over its devices,
      which must divide it; the weights, with all that the optimizer keeps for them, are whole on
      every device (the default), or cut into as many parts where an axis allows it. A run may go on
      with other devices.
    - `checkpoint_dir`: after every epoch the run is saved there (atomically), with its metrics in
      `metrics.jsonl`. `odejax.load` reads the network from there. A run that is there already is
      continued, and ends bit for bit where an uninterrupted one would (on a CPU with as many cores:
      sums are split among them). None by default.
    - `progress`: whether a bar is shown; True by default.

    Raises `TrainingDiverged` when the loss or a weight stops being finite, naming the epoch and the
    last good checkpoint. Raises `CheckpointError` if `checkpoint_dir` holds another run (another
    key, data, initial weights, model, objective, augmentation or batch size, functions compared
    by their code; the optimizer's constants and `score` are not stored), or one of more epochs.
    Warns where solves of a neural ODE hit their step limit.

    >>> data = odejax.data.ArrayDataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    >>> net = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 1), 2, key=jax.random.key(0))
    >>> settings = {"epochs": 2, "batch_size": 4, "key": jax.random.key(1), "progress": False}
    >>> objective = odejax.training.CrossEntropy()
    >>> trained = odejax.training.fit(*net, data, objective, optax.sgd(0.1), **settings)
    >>> trained.best_epoch, trained.history[1]["loss"] < trained.history[0]["loss"]
    (2, True)
    """
    key = as_key(key)
    _check_arguments(dataset, objective, score, epochs, batch_size, average)
    optimizer = optax.with_extra_args_support(optimizer)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rule = objective if isinstance(objective, AbstractGradientRule) else Derivative(objective)
    if isinstance(rule, Derivative) and isinstance(rule.objective, CertifiedTraining):
        warn(
            "CertifiedTraining bounds the whole ball from the first step, at which a fresh network "
            "often learns nothing: give RisingEps(objective, steps), in which the ball grows"
        )
    carry = rule.init((batch_size, *dataset.image_shape))
    averaged = None if average is None else (jnp.zeros((), jnp.int32), (params, state))
    arrange = partial(lay_out, shard if shard_weights else replicate, batch_size)
    train = arrange(TrainState(params, state, jax.jit(optimizer.init)(params), carry, averaged))
    record = RunRecord.initial(train)

    run_folder = None
    if checkpoint_dir is not None:
        checkpoints = Checkpoints(checkpoint_dir)
        data, functions = (dataset, validation), (objective, augment)
        own = run_fingerprint(
            train, static, data, functions, batch_size=batch_size, average=average, key=key
        )
        run_folder = RunFolder(checkpoints, own, static)
        train, record = run_folder.restore(train, record, epochs=epochs)

    streamed = isinstance(dataset, StreamedDataset)
    feed = Streamed(dataset, batch_size) if streamed else Resident(dataset, batch_size)
    run_steps = make_run_steps(static, rule, optimizer, augment, average, feed, arrange)
    steps = steps_per_epoch(len(dataset), batch_size) * rule.replays
    with progress_bar(enabled=progress and jax.process_index() == 0) as bar:
        run_bar = RunBar(bar, record.history, epochs=epochs, steps=steps)
        for epoch in range(len(record.history) + 1, epochs + 1):
            started = time.perf_counter()
            shuffle_key, step_key, score_key = jax.random.split(jax.random.fold_in(key, epoch), 3)
            order = jax.random.permutation(shuffle_key, len(dataset))
            calls = run_epoch(run_steps, train, feed, order, replays=rule.replays, key=step_key)
            with closing(calls):
                # Not in a function, whose argument would keep the arrays of an epoch ago.
                for so_far in calls:
                    train, sums, step = so_far
                    loss = float(sums[0]) / step
                    if not np.isfinite(loss):
                        raise _diverged("loss", epoch, step, run_folder)
                    run_bar.show_step(epoch, step, loss)
            if not _finite(train.params):
                raise _diverged("weights", epoch, steps, run_folder)
            seconds = time.perf_counter() - started
            metrics = epoch_metrics(
                epoch, sums, steps=steps, batch_size=batch_size, seconds=seconds
            )
            weights, statistics = train.validated()
            trained = eqx.combine(weights, static)
            sample = dataset if validation is None else validation
            metrics |= solve_statistics(trained, statistics, sample, epoch=epoch)
            value = float(epoch)  # without validation data the latest epoch is the best
            if validation is not None:
                value = score(Predictor(trained, statistics), validation, key=score_key)
                if not np.isfinite(value):
                    raise ValueError(f"the score must be finite; got {value} in epoch {epoch}")
                metrics["validation"] = value
            record = record.after_epoch(train, metrics, epoch=epoch, score=value)
            if run_folder is not None:
                run_folder.save(train, record)
            run_bar.show_epoch(record.history)
    if run_folder is not None:
        run_folder.checkpoints.close()
    params, state = record.best
    best_model = eqx.combine(params, static)
    return Fit(best_model, state, record.history, record.best_epoch, train.opt_state)


def steps_per_epoch(n_examples: int, batch_size: int) -> int:
    """How many steps `fit` takes in an epoch, for learning-rate schedules.

    (`FreeAdversarial` takes each of them `replays` times.)

    - `n_examples`: images of the data set; what does not fill a batch is left out.
    - `batch_size`: images of a step.

    >>> odejax.training.steps_per_epoch(1297, 128)
    10
    """
    return n_examples // batch_size


def _check_arguments(dataset, objective, score, epochs, batch_size, average):
    check_instance((ArrayDataset, StreamedDataset), "a data set", dataset=dataset)
    check_count(epochs=epochs, batch_size=batch_size)
    check_callable(objective=objective, score=score)
    if batch_size > len(dataset):
        raise ValueError(f"batch_size must be between 1 and {len(dataset)}; got {batch_size}")
    if batch_size % mesh_size():
        raise ValueError(f"{mesh_size()} devices must divide the batch_size; got {batch_size}")
    if average is not None:
        check_share(average=average)


@jax.jit
def _finite(arrays) -> Array:
    return jax.tree.reduce(
        lambda so_far, a: so_far & jnp.isfinite(a).all(), arrays, jnp.asarray(True)
    )


def _diverged(what: str, epoch: int, step: int, run_folder: RunFolder | None) -> TrainingDiverged:
    kept = "no checkpoint was asked for"
    if run_folder is not None:
        kept = f"the last good checkpoint is in {run_folder.path}"
        run_folder.checkpoints.close()
    return TrainingDiverged(
        f"the {what} became NaN or infinite in epoch {epoch}, by step {step}: "
        f"lower the learning rate or clip gradients, or let an ODE solve take more steps; {kept}"
    )
