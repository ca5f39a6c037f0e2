"""One epoch: a jitted function of several steps, called until every batch has been used."""

import time
from collections.abc import Callable, Generator
from contextlib import closing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PyTree

from .._mesh import agreed, spread
from .._predictor import as_pixels
from .._types import Key
from ..data.augment import Augmentation
from .feed import Resident, Streamed
from .gradients import AbstractGradientRule
from .train_state import Sums, TrainState

_SECONDS_PER_CALL = 0.5  # how long the device runs before the progress bar, and Ctrl-C, get a turn


def run_epoch(
    run_steps: Callable,
    train: TrainState,
    feed: Resident | Streamed,
    order: Int[Array, " n"],
    *,
    replays: int,
    key: Key,
) -> Generator[tuple[TrainState, Sums, int]]:
    """(state, sums over the steps, number of steps) of an epoch, after each call of the device.

    - `run_steps`: from `make_run_steps`.
    - `order`: the rows of the data set, shuffled.
    - `replays`: how many steps each batch gives.
    """
    sums = (jnp.zeros(()), jnp.zeros((), jnp.int32))
    done, length = 0, 1
    with closing(feed.windows(order)) as windows:  # and its reader
        for data, first_batch, last_batch in windows:
            while done < last_batch * replays:
                last = min(done + length, last_batch * replays)
                started = time.perf_counter()
                train, sums = run_steps(train, sums, data, first_batch, done, last, key)
                jax.block_until_ready(sums)
                # Adapted slowly, since the first call compiles. It changes no result.
                speed = (last - done) / agreed(time.perf_counter() - started)
                length = int(np.clip(speed * _SECONDS_PER_CALL, 1, 4 * length))
                done = last
                yield train, sums, done


def make_run_steps(
    static: PyTree,
    rule: AbstractGradientRule,
    optimizer: optax.GradientTransformationExtraArgs,
    augment: Augmentation | None,
    average: float | None,
    feed: Resident | Streamed,
    lay_out: Callable[[TrainState], TrainState],
) -> Callable:
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
            train = lay_out(TrainState(params, state, opt_state, carry, averaged))
            return train, (loss_sum + value, correct_sum + correct)

        return jax.lax.fori_loop(first, last, step, (train, sums))

    return run_steps


def _move(average, new, share):
    """The exponential moving average after one more step."""
    steps, old = average
    share = jnp.minimum(share, (1 + steps) / (10 + steps))

    def mean(a, b):
        if not eqx.is_inexact_array(b):
            return b
        kept = share.astype(b.dtype)
        return kept * a + (1 - kept) * b

    return steps + 1, jax.tree.map(mean, old, new)
