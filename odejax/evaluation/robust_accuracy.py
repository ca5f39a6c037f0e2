"""Robust accuracy under an attack or a sequence of attacks."""

import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._fingerprint import fingerprint
from .._mesh import agreed, to_host
from .._predictor import predict
from .._progress import progress_bar
from .._threat_model import AbstractBall
from .._types import Key, LogitsFn
from ..attacks import AutoAttack, check_labels, check_pixels
from .survivors import Survivors

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
    - `broken_by`: (n,) the place in the sequence of the attack that broke an image, or -1.
    """

    accuracy: float
    still_correct: np.ndarray
    x_adv: np.ndarray
    queries: np.ndarray
    seconds: float
    after: dict[str, float]
    broken_by: np.ndarray


class StateError(ValueError):
    """A saved state that is of another evaluation, or cannot be read."""


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
    stop: bool | None = None,
    everyone: bool = False,
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
    - `stop`: whether an image's attack ends with its first success. By default only if `logits_fn`
      gives the judge's logits under any key; else a lucky draw would end it.
    - `everyone`: attack what is misclassified from the start as well, for the sake of `x_adv`, by
      the first attack of a sequence (to its end, with `stop=False`).
    - `state_path`: a file that keeps the state of the evaluation, written every few seconds. A run
      that was killed goes on from it; it is deleted at the end. Several processes must share it.

    Raises `ValueError` for images of another form, no images, pixels outside [0, 1], labels out of
    range, several eps; `FloatingPointError` where logits are not finite, at the images or at what
    an attack evaluates; `RuntimeError` for an attack that leaves ball or box; `StateError` for a
    state file of another evaluation.
    """
    started = time.perf_counter()
    images, labels = check_arrays(images, labels)
    if ball.eps.shape != ():
        raise ValueError(f"robust accuracy is for one eps; got shape {ball.eps.shape}")
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)  # as jax.random.PRNGKey makes it
    judged_by = logits_fn if judge is None else judge
    clean_key, attack_key, judge_key = jax.random.split(key, 3)
    logits = predict(judged_by, images, key=clean_key, batch_size=batch_size)
    if logits.shape[1] < 2:
        raise ValueError(f"a classifier has at least 2 logits; this network has {logits.shape[1]}")
    check_labels(labels, logits.shape[1])
    still_correct = logits.argmax(axis=1) == labels
    others = ~still_correct & everyone
    if already_broken is not None:
        already_broken = np.asarray(already_broken)
        if already_broken.shape != labels.shape or already_broken.dtype != bool:
            raise ValueError(
                f"already_broken must be bool of shape {labels.shape}; "
                f"got {already_broken.dtype} of shape {already_broken.shape}"
            )
        still_correct &= ~already_broken
    size = min(batch_size, len(images))
    if stop is None:
        stop = _is_judge(logits_fn, images[:size], logits[:size], clean_key, attack_key, size)
    x_adv = images.copy()
    queries = np.ones(len(images), np.int64)
    broken_by = np.full(len(images), -1)

    sequence = attack.attacks if isinstance(attack, AutoAttack) else {_name(attack): attack}
    parts = (attack, logits_fn, judge, images, labels, ball, key, still_correct, stop, everyone)
    if len(sequence) > 1:  # what the last attack refuses must not come after hours of the first
        for one in sequence.values():
            _rehearse(one, images[0], labels[0], ball, logits.shape[1], key)
    state = _State(state_path, parts, logits)
    saved, first = state.load(), 0
    if saved is not None:
        first, x_adv, queries = int(saved["stage"]), saved["x_adv"], saved["queries"]
        still_correct, broken_by = saved["still_correct"], saved["broken_by"]
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
            work = Survivors(
                one,
                logits_fn,
                images,
                labels,
                ball,
                targets=np.flatnonzero(targets),
                x_adv=x_adv,
                queries=queries,
                key=attack_key if len(sequence) == 1 else jax.random.fold_in(attack_key, stage),
                batch_size=size,
                stop=stop,
            )
            if saved is not None and stage == first:
                work.restore(saved)
            task = bar.add_task(name, total=int(targets.sum()), note="")
            waiting = len(work.queue) + int((work.slots.index >= 0).sum())
            through = int(targets.sum()) - waiting
            while work.unfinished:
                through += work.advance()
                bar.update(task, completed=through + work.done)
                state.save(stage, still_correct, x_adv, queries, broken_by, after, work)
            if targets.any():
                _check_inside(name, images, x_adv, ball)
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
    return AttackReport(
        float(still_correct.mean()),
        still_correct,
        x_adv,
        queries,
        time.perf_counter() - started,
        after,
        broken_by,
    )


def _name(attack: Callable) -> str:
    return getattr(attack, "__name__", type(attack).__name__)


def _is_judge(logits_fn, images, judged, first_key, second_key, batch_size) -> bool:
    """Whether the attacked network is deterministic and says what the judge says."""
    first, second = (
        predict(logits_fn, images, key=key, batch_size=batch_size)
        for key in (first_key, second_key)
    )
    scale = 1e-5 * np.abs(judged).max()
    return np.array_equal(first, second) and bool((np.abs(first - judged) <= scale).all())


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
    """The file that a killed evaluation of `parts` goes on from; nothing without a path.

    `logits`, of the clean images, tell apart networks of the same fingerprint.
    """

    def __init__(self, path: str | os.PathLike | None, parts: tuple, logits: np.ndarray):
        self.path, self.logits = None if path is None else Path(path), logits
        self.fingerprint = None if path is None else fingerprint(*parts)
        self.saved, self.pause = time.perf_counter(), _SAVE_SECONDS

    def load(self) -> dict[str, np.ndarray] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            # Read whole before it is parsed: NumPy leaves a file that is none of its own open.
            file = np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False)
            arrays = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else {}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise StateError(f"the state {self.path} cannot be read: {error}") from None
        if "fingerprint" not in arrays:
            raise StateError(f"the state {self.path} cannot be read: it is no archive of ours")
        if str(arrays["fingerprint"]) != self.fingerprint or not np.allclose(
            arrays["logits"], self.logits, rtol=1e-3, atol=1e-4
        ):
            raise StateError(
                f"{self.path} is the state of another evaluation (other attack, network, images, "
                f"ball or key); delete it, or give another state_path"
            )
        return arrays

    def save(self, stage, still_correct, x_adv, queries, broken_by, after, work: Survivors):
        if self.path is None or agreed(time.perf_counter() - self.saved) < self.pause:
            return
        started, in_work = time.perf_counter(), work.save()
        if jax.process_index() == 0:
            self._write(
                {
                    "fingerprint": np.asarray(self.fingerprint),
                    "logits": self.logits,
                    "stage": np.asarray(stage),
                    "still_correct": still_correct,
                    "x_adv": x_adv,
                    "queries": queries,
                    "broken_by": broken_by,
                    "after": np.asarray(list(after.values())),
                }
                | in_work
            )
        self.saved = time.perf_counter()
        # Saving must stay a small part of the work.
        self.pause = max(_SAVE_SECONDS, 20 * agreed(self.saved - started))

    def _write(self, arrays: dict[str, np.ndarray]):
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, self.path)

    def delete(self):
        if self.path is None:
            return
        if jax.process_index() == 0:
            self.path.unlink(missing_ok=True)
        agreed(0.0)  # nobody begins anew under this path before it is gone


def check_arrays(images, labels) -> tuple[np.ndarray, np.ndarray]:
    """`images` and `labels` as arrays of the form that evaluation takes, or a `ValueError`."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not np.issubdtype(images.dtype, np.floating):
        hint = "; divide uint8 pixels by 255" if images.dtype == np.uint8 else ""
        raise ValueError(
            f"images must be floats of shape (n, h, w, c); "
            f"got {images.dtype} of shape {images.shape}{hint}"
        )
    if len(images) == 0:
        raise ValueError("there are no images: got an empty array")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({len(images)},); "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    check_pixels(images)
    return images.astype(np.float32), labels.astype(np.int32)
