"""Robust accuracy under an attack or a sequence of attacks."""

import dataclasses
import inspect
import os
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_count, check_labels
from .._inputs import as_key, as_method, images_and_labels, method_name, warn_of_whole_box
from .._logits import hoist
from .._mesh import agreed, to_host
from .._paths import writable_file
from .._predictor import predict
from .._progress import add_stage, progress_bar
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .._warnings import warn
from .._words import counted
from ..attacks import AutoAttack
from .attack_loop import AttackLoop
from .flags import Flag, check_gradients, noise_flags, sequence_flags, start_flags, step_flags
from .intervals import confidence_interval, percent
from .saved_state import SavedState
from .tables import Shown

_SAVE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttackReport(Shown):
    """What an attack did to a set of images.

    - `accuracy`: robust accuracy, the fraction still classified correctly.
    - `still_correct`: (n,) bool. Judged by evaluating `x_adv` anew, never by the attack's own word.
    - `x_adv`: (n, h, w, c), in ball and box; the image itself where it was misclassified or broken
      already.
    - `queries`: logits evaluations spent on each image, its first classification among them, the
      judge's of `x_adv` not.
    - `seconds`: of the whole call.
    - `after`: by attack of a sequence, the accuracy once it has run; for one attack, its own.
    - `broken_by`: (n,) the place in the sequence of the attack that broke an image, or -1.
    - `no_start`: (n,) bool, the images that count as correct because no attack found a point to
      begin at (`Boundary`): they were never attacked.
    - `flags`: why the accuracy may be too high (`FLAGS` says what each means).

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])
    >>> report = odejax.evaluation.robust_accuracy(
    ...     first_wins, images, labels, odejax.LinfBall(0.2), odejax.attacks.FGSM(), key=0
    ... )
    >>> report.accuracy, report.after
    (0.0, {'FGSM': 0.0})
    """

    accuracy: float
    still_correct: np.ndarray
    x_adv: np.ndarray
    queries: np.ndarray
    seconds: float
    after: dict[str, float]
    broken_by: np.ndarray
    no_start: np.ndarray
    flags: tuple[Flag, ...]

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        n = len(self.still_correct)
        low, high = confidence_interval(int(self.still_correct.sum()), n)
        rows = [[name, percent(accuracy)] for name, accuracy in self.after.items()]
        title = (
            f"robust accuracy {percent(self.accuracy)} % of {counted(n, 'image')} "
            f"(95 % sampling interval {percent(low)} to {percent(high)} %), {self.seconds:.1f} s"
        )
        notes = [f"flag: {flag}: {flag.kind.why}" for flag in self.flags]
        return title, ["after", "accuracy (%)"], rows, notes


@images_and_labels
@own_promotion
def robust_accuracy(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    attack: Callable,
    *,
    key: Key | int,
    batch_size: int = 256,
    judge: LogitsFn | None = None,
    bits: int | None = None,
    already_broken: np.ndarray | None = None,
    stop_at_first_success: bool | None = None,
    attack_misclassified: bool = False,
    name: str | None = None,
    state_path: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> AttackReport:
    """Attack every correctly classified image, and count those that are still correct.

    Only correctly classified images are attacked. When an attack succeeds on an image, the next
    image takes its slot in the batch. An `AutoAttack` runs each attack on the images that the ones
    before it did not break.
    Image i draws from `fold_in(key, i)`, so the result does not depend on `batch_size`.

    - `logits_fn(x, key=key)` or `logits_fn(x)`: one image (h, w, c) to its logits (k,).
    - `images` (n, h, w, c): floats in [0, 1], or uint8; `labels` (n,): classes 0 to k - 1. A data
      set gives both: `*dataset`.
    - `ball`: the threat model, such as `LinfBall(0.1)`.
    - `attack`: an attack, an `AutoAttack`, or an attack's class.
    - `key`: of `jax.random`, or an integer seed.
    - `judge`: the classifier that decides what is correct, by default `logits_fn`. For a randomised
      network pass `MeanLogits`, which is deterministic.
    - `bits`: judge adversarial examples as images of so many bits a pixel, 8 as a rule: they are
      rounded within the ball first. The images must be such themselves.
    - `already_broken`: (n,) bool, images that this attack broke within a smaller ball; they count
      as broken and are not attacked again.
    - `stop_at_first_success`: whether an image's attack ends with its first success. By default
      only if `logits_fn` gives the judge's logits under any key, and nothing is rounded: else a
      lucky draw would end it.
    - `attack_misclassified`: attack what is misclassified from the start as well, for the sake of
      `x_adv`, by the first attack of a sequence (to its end, with `stop_at_first_success=False`).
    - `state_path`: a file that keeps the state of the evaluation, written every few seconds. A run
      that was killed goes on from it; it is deleted at the end. Several processes must share it.
    - `name`: what the report and the progress call the attack, by default its class.
    - `progress`: a bar, or a line every half minute in a log file; by default in a terminal, and
      elsewhere from the first half minute on.

    Raises `ValueError` for images of another form, no images, pixels outside [0, 1], labels out of
    range, logits of another form, several eps, and an attack on a `BlackBox` that needs gradients;
    `FloatingPointError` where logits are not finite, at the images or at what an attack evaluates
    in the ball; `RuntimeError` for an attack whose images lie outside ball or box; `StateError` for
    a state file of another evaluation.

    >>> few = odejax.data.load("digits", "test").take(slice(20))
    >>> ink_on_the_left = lambda x: jnp.stack([x[:, :4].sum(), x[:, 4:].sum()])
    >>> labels = jax.vmap(ink_on_the_left)(few.pixels).argmax(axis=1)
    >>> report = odejax.evaluation.robust_accuracy(
    ...     ink_on_the_left, few.images, labels, odejax.LinfBall(0.05), odejax.attacks.PGD(5), key=0
    ... )
    >>> report.accuracy
    0.4
    """
    started = time.perf_counter()
    key, attack = as_key(key), as_method("attack", attack)
    check_count(batch_size=batch_size)
    images, labels = check_arrays(images, labels)
    check_ball(ball)
    if state_path is not None:
        state_path = writable_file("state_path", state_path)
    if ball.eps.shape != ():
        raise ValueError(f"robust accuracy is for one eps; got shape {ball.eps.shape}")
    warn_of_whole_box(ball, images[0].size)
    if bits is not None:
        _check_bits(bits, images)
    check_gradients(logits_fn, [attack])
    parts = (attack, logits_fn, judge, images, labels, ball, key, bits)
    logits_fn = hoist(logits_fn, images[0], key)
    judged_by = logits_fn if judge is None else hoist(judge, images[0], key)
    clean_key, attack_key, judge_key = jax.random.split(key, 3)
    logits = predict(judged_by, images, key=clean_key, batch_size=batch_size)
    check_labels(labels, logits.shape[1])
    still_correct = logits.argmax(axis=1) == labels
    misclassified = ~still_correct
    if already_broken is not None:
        still_correct &= ~_bools("already_broken", already_broken, labels.shape)
    attacked = still_correct.copy()
    size = min(batch_size, len(images))
    deterministic, is_judge = _is_judge(
        logits_fn, images[:size], logits[:size], clean_key, attack_key, size
    )
    if stop_at_first_success is None:
        stop_at_first_success = is_judge and bits is None
    x_adv = images.copy()
    queries, no_start = np.ones(len(images), np.int64), still_correct.copy()
    broken_by = np.full(len(images), -1)

    called = method_name(attack) if name is None else name
    sequence = attack.attacks if isinstance(attack, AutoAttack) else {called: attack}
    if len(sequence) > 1:  # what the last attack refuses must not come after hours of the first
        for one in sequence.values():
            rehearse(one, images[0], labels[0], ball, logits.shape[1], key)
    state = SavedState(
        state_path, (*parts, still_correct, stop_at_first_success, attack_misclassified), logits
    )
    saved, first, keeper = state.load(), 0, _PeriodicState(state)
    if saved is not None:
        first, x_adv, queries = int(saved["stage"]), saved["x_adv"], saved["queries"]
        still_correct, broken_by = saved["still_correct"], saved["broken_by"]
        no_start = saved["no_start"]
    after = {}
    with progress_bar(enabled=progress, transient=True) as bar:
        for stage, (name, one) in enumerate(sequence.items()):
            if stage < first:
                assert saved is not None
                after[name] = float(saved["after"][stage])
                continue
            before = still_correct.copy()
            targets = before | misclassified if attack_misclassified and stage == 0 else before
            # As many rows as for the full set, however few the targets are: one shape.
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
            total, waiting = int(targets.sum()), len(work.queue)
            finished = total - waiting - int((work.slots.index >= 0).sum())
            task = add_stage(
                bar, f"{ball.in_words()}, {name}", total, "images", finished + work.done
            )
            while work.unfinished:
                finished += work.advance()
                bar.update(task, completed=finished + work.done)
                keeper.save(stage, still_correct, x_adv, broken_by, after, work)
            if targets.any():
                _check_inside(name, images, x_adv, ball)
                np.clip(x_adv, ball.lower, ball.upper, out=x_adv)  # what it let pass as rounding
                if bits is not None:
                    x_adv[targets] = to_host(_rounded(x_adv, images, ball, bits))[targets]
                logits = predict(judged_by, x_adv, key=judge_key, batch_size=batch_size)
                still_correct &= logits.argmax(axis=1) == labels
                broken_by[before & ~still_correct] = stage
                # What is still correct goes into the next attack as it was.
                if stage + 1 < len(sequence):
                    x_adv[still_correct] = images[still_correct]
            after[name] = float(still_correct.mean())
            bar.update(task, note=f"{(before & ~still_correct).sum()} broken")
            saved = None
    state.delete()
    no_start &= still_correct
    if no_start.any():
        warn(
            f"{called} found no start for {no_start.sum()} of {counted(len(images), 'image')}: "
            f"they count as correct because they were never attacked",
        )
    flags = [*step_flags(attack, ball), *start_flags(called, no_start)]
    flags += noise_flags(attack, deterministic)
    if isinstance(attack, AutoAttack):
        flags += sequence_flags(attack, attacked, broken_by)
    return AttackReport(
        float(still_correct.mean()),
        still_correct,
        x_adv,
        queries,
        time.perf_counter() - started,
        after,
        broken_by,
        no_start,
        tuple(flags),
    )


def _bools(name: str, values, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape or values.dtype != bool:
        raise ValueError(
            f"{name} must be bool of shape {shape}; got {values.dtype} of shape {values.shape}"
        )
    return values


def _check_bits(bits: int, images: np.ndarray):
    check_count(bits=bits)
    levels = images.astype(np.float64) * (2**bits - 1)
    if np.abs(levels - np.round(levels)).max() > 1e-2:
        raise ValueError(f"bits={bits} is for images of {bits} bits a pixel; these have other ones")


def _is_judge(logits_fn, images, judged, first_key, second_key, batch_size) -> tuple[bool, bool]:
    """Whether the attacked network is deterministic; and whether its logits are the judge's."""
    first, second = (
        predict(logits_fn, images, key=key, batch_size=batch_size)
        for key in (first_key, second_key)
    )
    deterministic = np.array_equal(first, second)
    scale = 1e-5 * np.abs(judged[np.isfinite(judged)]).max()
    return deterministic, deterministic and np.allclose(first, judged, rtol=0, atol=scale)


@eqx.filter_jit
def _inside(x_adv, x, ball):
    return jax.vmap(ball.contains)(x_adv, x)


@eqx.filter_jit
def _rounded(x_adv, x, ball, bits):
    return jax.vmap(lambda x_adv, x: ball.to_grey_levels(x_adv, x, bits))(x_adv, x)


def _check_inside(name, images, x_adv, ball):
    outside = np.flatnonzero(~to_host(_inside(x_adv, images, ball)))
    if len(outside):
        raise RuntimeError(
            f"{name} returned an image outside the ball or the box, the first at index {outside[0]}"
        )


def rehearse(attack: Callable, x, y, ball: AbstractBall, n_classes: int, key: Key):
    """Trace an attack on a stand-in for the network, for the `ValueError` it may raise.

    Other errors may be the stand-in's, which is no `Predictor`.
    """
    try:
        inspect.signature(attack).bind(None, x, y, ball, key=key)
    except TypeError as error:
        name = method_name(attack)
        raise ValueError(
            f"an attack is called as attack(logits_fn, x, y, ball, key=key); {name}: {error}"
        ) from None

    def stand_in(x, *, key=None):
        return jnp.sum(x) * jnp.arange(n_classes, dtype=x.dtype)

    try:
        eqx.filter_eval_shape(lambda x, y: attack(stand_in, x, y, ball, key=key), x, y)
    except ValueError:
        raise
    except Exception:
        return


class _PeriodicState:
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
