"""Robust accuracy under an attack or a sequence of attacks."""

import os
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_arrays, check_callable, check_count, check_key, check_labels
from .._logits import hoist
from .._mesh import agreed, to_host
from .._paths import writable_file
from .._predictor import predict
from .._progress import progress_bar
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from ..attacks import AutoAttack
from .attack_loop import AttackLoop
from .saved_state import SavedState

_SAVE_SECONDS = 5.0


class AttackReport(NamedTuple):
    """What an attack leaves of a set of images.

    - `accuracy`: the fraction still classified correctly.
    - `still_correct`: (n,) bool. Judged by evaluating `x_adv` anew, never by the attack's own word.
    - `x_adv`: (n, h, w, c), in ball and box; the image itself where it was misclassified or broken
      already.
    - `queries`: logits evaluations spent on each image, its first classification among them, the
      judge's of `x_adv` not.
    - `after`: by attack of a sequence, the accuracy once it has run; for one attack, its own.
    - `no_start`: (n,) bool, the images that stand because no attack found a point to begin at
      (`Boundary`): they were never attacked.
    - `broken_by`: (n,) the place in the sequence of the attack that broke an image, or -1.
    """

    accuracy: float
    still_correct: np.ndarray
    x_adv: np.ndarray
    queries: np.ndarray
    seconds: float
    after: dict[str, float]
    broken_by: np.ndarray
    no_start: np.ndarray


@own_promotion
def robust_accuracy(
    attack: Callable,
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 256,
    judge: LogitsFn | None = None,
    already_broken: np.ndarray | None = None,
    stop_at_first_success: bool | None = None,
    attack_misclassified: bool = False,
    state_path: str | os.PathLike | None = None,
    progress: bool = False,
) -> AttackReport:
    """Attack every image that is classified correctly, and count those that withstand.

    `images` (n, h, w, c) are floats in [0, 1], `labels` (n,) classes. Only images that still stand
    are attacked: an image leaves the batch once it is broken, and the next takes its place; an
    `AutoAttack` hands what one attack leaves to the next. Image i draws from `fold_in(key, i)`, so
    the result does not depend on `batch_size`.

    - `judge`: the classifier that decides who is correct, by default `logits_fn`. For a randomised
      network pass `MeanLogits`, which is deterministic.
    - `already_broken`: images that this attack broke within a smaller ball; they count as lost
      without another attack.
    - `stop_at_first_success`: whether an image's attack ends with its first success. By default
      only if `logits_fn` gives the judge's logits under any key; else a lucky draw would end it.
    - `attack_misclassified`: attack what is misclassified from the start as well, for the sake of
      `x_adv`, by the first attack of a sequence (to its end, with `stop_at_first_success=False`).
    - `state_path`: a file that keeps the state of the evaluation, written every few seconds. A run
      that was killed goes on from it; it is deleted at the end. Several processes must share it.

    Raises `ValueError` for images of another form, no images, pixels outside [0, 1], labels out of
    range, logits of another form, several eps; `FloatingPointError` where logits are not finite, at
    the images or at what an attack evaluates in the ball; `RuntimeError` for an attack that leaves
    ball or box; `StateError` for a state file of another evaluation.
    """
    started = time.perf_counter()
    check_key(key)
    check_count(batch_size=batch_size)
    check_callable(attack=attack)
    images, labels = check_arrays(images, labels)
    check_ball(ball)
    if state_path is not None:
        state_path = writable_file("state_path", state_path)
    if ball.eps.shape != ():
        raise ValueError(f"robust accuracy is for one eps; got shape {ball.eps.shape}")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # as jax.random.PRNGKey makes it
    parts = (attack, logits_fn, judge, images, labels, ball, key)
    logits_fn = hoist(logits_fn, images[0], key)
    judged_by = logits_fn if judge is None else hoist(judge, images[0], key)
    clean_key, attack_key, judge_key = jax.random.split(key, 3)
    logits = predict(judged_by, images, key=clean_key, batch_size=batch_size)
    check_labels(labels, logits.shape[1])
    still_correct = logits.argmax(axis=1) == labels
    others = ~still_correct & attack_misclassified
    if already_broken is not None:
        already_broken = np.asarray(already_broken)
        if already_broken.shape != labels.shape or already_broken.dtype != bool:
            raise ValueError(
                f"already_broken must be bool of shape {labels.shape}; "
                f"got {already_broken.dtype} of shape {already_broken.shape}"
            )
        still_correct &= ~already_broken
    size = min(batch_size, len(images))
    if stop_at_first_success is None:
        stop_at_first_success = _is_judge(
            logits_fn, images[:size], logits[:size], clean_key, attack_key, size
        )
    x_adv = images.copy()
    queries, no_start = np.ones(len(images), np.int64), still_correct.copy()
    broken_by = np.full(len(images), -1)

    sequence = attack.attacks if isinstance(attack, AutoAttack) else {_name(attack): attack}
    if len(sequence) > 1:  # what the last attack refuses must not come after hours of the first
        for one in sequence.values():
            _rehearse(one, images[0], labels[0], ball, logits.shape[1], key)
    state = SavedState(
        state_path, (*parts, still_correct, stop_at_first_success, attack_misclassified), logits
    )
    saved, first, keeper = state.load(), 0, _State(state)
    if saved is not None:
        first, x_adv, queries = int(saved["stage"]), saved["x_adv"], saved["queries"]
        still_correct, broken_by = saved["still_correct"], saved["broken_by"]
        no_start = saved["no_start"]
    after = {}
    shown = progress and jax.process_index() == 0
    with progress_bar(enabled=shown, transient=True) as bar:
        for stage, (name, one) in enumerate(sequence.items()):
            if stage < first:
                assert saved is not None
                after[name] = float(saved["after"][stage])
                continue
            standing = still_correct.copy()
            targets = standing | others if stage == 0 else standing
            # Never fewer rows than the full set would have: one shape, whoever still stands.
            work = AttackLoop(
                one,
                logits_fn,
                images,
                labels,
                ball,
                targets=np.flatnonzero(targets),
                x_adv=x_adv,
                queries=queries,
                no_start=no_start,
                key=attack_key if len(sequence) == 1 else jax.random.fold_in(attack_key, stage),
                batch_size=size,
                stop_at_first_success=stop_at_first_success,
            )
            if saved is not None and stage == first:
                work.restore(saved)
            task = bar.add_task(name, total=int(targets.sum()), note="")
            waiting = len(work.queue) + int((work.slots.index >= 0).sum())
            through = int(targets.sum()) - waiting
            while work.unfinished:
                through += work.advance()
                bar.update(task, completed=through + work.done)
                keeper.save(stage, still_correct, x_adv, broken_by, after, work)
            if targets.any():
                _check_inside(name, images, x_adv, ball)
                np.clip(x_adv, ball.lower, ball.upper, out=x_adv)  # what it let pass as rounding
                logits = predict(judged_by, x_adv, key=judge_key, batch_size=batch_size)
                still_correct &= logits.argmax(axis=1) == labels
                broken_by[standing & ~still_correct] = stage
                # Who stands goes into the next attack as it was.
                if stage + 1 < len(sequence):
                    x_adv[still_correct] = images[still_correct]
            after[name] = float(still_correct.mean())
            bar.update(task, note=f"{100 * after[name]:.1f} % stand")
            saved = None
    state.delete()
    no_start &= still_correct
    if no_start.any():
        warnings.warn(
            f"{_name(attack)} found no start for {no_start.sum()} of {len(images)} images: they "
            f"stand because they were never attacked",
            stacklevel=3,  # beyond `own_promotion`
        )
    return AttackReport(
        float(still_correct.mean()),
        still_correct,
        x_adv,
        queries,
        time.perf_counter() - started,
        after,
        broken_by,
        no_start,
    )


def _name(attack: Callable) -> str:
    return getattr(attack, "__name__", type(attack).__name__)


def _is_judge(logits_fn, images, judged, first_key, second_key, batch_size) -> bool:
    """Whether the attacked network is deterministic and says what the judge says."""
    first, second = (
        predict(logits_fn, images, key=key, batch_size=batch_size)
        for key in (first_key, second_key)
    )
    scale = 1e-5 * np.abs(judged[np.isfinite(judged)]).max()
    return np.array_equal(first, second) and np.allclose(first, judged, rtol=0, atol=scale)


@eqx.filter_jit
def _inside(x_adv, x, ball):
    return jax.vmap(ball.contains)(x_adv, x)


def _check_inside(name, images, x_adv, ball):
    outside = np.flatnonzero(~to_host(_inside(x_adv, images, ball)))
    if len(outside):
        raise RuntimeError(
            f"{name} returned an image outside the ball or the box, the first at index {outside[0]}"
        )


def _rehearse(attack, x, y, ball, n_classes, key):
    """Trace an attack on a stand-in for the network, for the errors it raises."""

    def stand_in(x, *, key):
        return jnp.sum(x) * jnp.arange(n_classes, dtype=x.dtype)

    eqx.filter_eval_shape(lambda x, y: attack(stand_in, x, y, ball, key=key), x, y)


class _State:
    """An evaluation's state, saved every few seconds."""

    def __init__(self, state: SavedState):
        self.state, self.saved, self.pause = state, time.perf_counter(), _SAVE_SECONDS

    def save(self, stage, still_correct, x_adv, broken_by, after, work: AttackLoop):
        if self.state.path is None or agreed(time.perf_counter() - self.saved) < self.pause:
            return
        started = time.perf_counter()
        self.state.save(
            {
                "stage": np.asarray(stage),
                "still_correct": still_correct,
                "x_adv": x_adv,
                "queries": work.queries,
                "no_start": work.no_start,
                "broken_by": broken_by,
                "after": np.asarray(list(after.values())),
            }
            | work.save()
        )
        self.saved = time.perf_counter()
        # Saving must stay a small part of the work.
        self.pause = max(_SAVE_SECONDS, 20 * agreed(self.saved - started))
