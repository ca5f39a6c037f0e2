"""A robustness figure as an interval: certified <= true <= attacked."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from scipy.stats import beta

from .._checks import (
    check_arrays,
    check_callable,
    check_count,
    check_instance,
    check_key,
    check_labels,
    check_share,
)
from .._logits import count_classes, hoist
from .._mesh import on_mesh, spread, to_host
from .._paths import writable_file
from .._predictor import MeanLogits, Predictor, batches, predict
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from ..attacks import AutoAttack
from ..data import ArrayDataset
from .flags import (
    Flag,
    is_black_box,
    masking_flags,
    sequence_flags,
    start_flags,
    step_flags,
    survivor_flags,
)
from .robust_accuracy import AttackReport, robust_accuracy
from .saved_state import SavedState
from .solver_flags import solver_flags


class Bracket(NamedTuple):
    """The interval of one predictor, data set and ball. All accuracies are fractions of `n`.

    - `clean`; `attacked`: correct under every attack (worst case for each example); `certified`:
      correct, and proven so by at least one certificate.
    - `per_attack`, `per_certificate`: the same for each alone, by name.
    - `flags`: why `attacked` may still be too high (`FLAGS` says what each means).
    - `seconds`: by attack and certificate.
    - `standing`, `proven`: (n,) bool, what `attacked` and `certified` are the means of;
      `survivors`: what `per_attack` is.
    - `radius`: (n,) the largest certified radius in the ball's norm, 0 where misclassified.
    - `x_adv`: (n, h, w, c), for each example an image that broke it, if any attack made one (not
      where all that is known is `already_broken`).
    - `judge`: the classifier all of this is about: the predictor, or its mean over fixed draws.
    """

    ball: str
    eps: float
    n: int
    clean: float
    certified: float
    attacked: float
    per_attack: dict[str, float]
    per_certificate: dict[str, float]
    flags: tuple[Flag, ...]
    seconds: dict[str, float]
    standing: np.ndarray
    survivors: dict[str, np.ndarray]
    proven: np.ndarray
    radius: np.ndarray
    x_adv: np.ndarray
    judge: MeanLogits

    def summary(self) -> dict[str, Any]:
        """The numbers alone, with the sampling error of each end, ready for JSON."""
        arrays = ("standing", "survivors", "proven", "radius", "x_adv", "judge")
        out = {name: value for name, value in self._asdict().items() if name not in arrays}
        for name in ("clean", "certified", "attacked"):
            out[f"{name}_interval"] = confidence_interval(round(out[name] * self.n), self.n)
        return {**out, "flags": {flag.name: flag.evidence for flag in self.flags}}


@own_promotion
def bracket(
    predictor: LogitsFn,
    dataset: ArrayDataset,
    ball: AbstractBall,
    *,
    attacks: Mapping[str, Callable] | Sequence[Callable],
    certificates: Mapping[str, Callable] | Sequence[Callable] = (),
    key: Key,
    batch_size: int = 256,
    draws: int = 1,
    already_broken: Mapping[str, np.ndarray] | None = None,
    flag_images: int = 64,
    state_path: str | os.PathLike | None = None,
    progress: bool = False,
) -> Bracket:
    """Attack and certify every image of `dataset`, and return the interval with its reasons.

    `predictor` is a `Predictor`, or, without certificates, any `logits_fn(x, key=key)`. Attacks and
    certificates are named by their class, or by the keys of a mapping. Each attack is run on every
    image that is classified correctly, so each has a figure of its own.

    - `draws`: a randomised predictor is attacked as it is, with fresh noise, and judged by its mean
      logits over this many draws, fixed by `key` (`MeanLogits`).
    - `already_broken`: by attack, the images it broke within a smaller ball under the same `key`;
      they count as lost without another attack. Right for attacks that could repeat the old
      perturbation (PGD), not for those that could not (FGSM).
    - `flag_images`: how many images the network's gradients (and an ODE's solver) are checked on;
      0 leaves the flags that attacks raise among themselves.
    - `state_path`: a file that keeps what was found, and beside it, as `.attack`, the state of the
      attack in work. A run that was killed goes on from them; both are deleted at the end.

    With certificates, everything is computed at the highest matrix precision, as they are.

    Raises `RuntimeError` if an attack breaks a certificate: one of the two is wrong; `ValueError`,
    before any work, for certificates that say nothing about the network.
    """
    attacks, certificates = _named(attacks), _named(certificates)
    already_broken = already_broken or {}
    if unknown := set(already_broken) - set(attacks):
        raise ValueError(f"already_broken names {sorted(unknown)}, the attacks are {list(attacks)}")
    if certificates and not isinstance(predictor, Predictor):
        raise ValueError(f"certificates need a Predictor; got {type(predictor).__name__}")
    check_key(key)
    check_instance(ArrayDataset, "an ArrayDataset", dataset=dataset)
    check_count(batch_size=batch_size)
    check_count(draws=draws)
    check_count(0, flag_images=flag_images)
    check_ball(ball)
    if state_path is not None:
        state_path = writable_file("state_path", state_path)
    images, labels = dataset.pixels, dataset.labels
    eps = np.asarray(ball.eps)
    if eps.shape != ():
        raise ValueError(f"a bracket is for one eps; got an array of shape {eps.shape}")
    for certificate in certificates.values():
        # What it refuses must not come after hours of attacks.
        eqx.filter_eval_shape(certificate, predictor, images[0], labels[0], ball, key=key)
    judge_key, flag_key, key = jax.random.split(key, 3)
    parts = (predictor, attacks, certificates, images, labels, ball, key, draws, already_broken)
    predictor = hoist(predictor, images[0], key)
    judge = MeanLogits(predictor, jax.random.split(judge_key, draws))
    # Beside certificates as precise as these: what TF32 alone misclassifies is not broken.
    with jax.default_matmul_precision("highest") if certificates else nullcontext():
        logits = predict(judge, images, key=judge_key, batch_size=batch_size)
        correct = logits.argmax(axis=1) == labels
        state = SavedState(state_path, parts, logits)
        found, saved = _Found.nothing(correct, images), state.load()
        if saved is not None:
            found = _Found.restore(saved)
        elif flag_images:
            probed = images[:flag_images], labels[:flag_images], ball
            found.flags += masking_flags(predictor, *probed, key=flag_key)
            found.flags += solver_flags(predictor, *probed, key=flag_key)
        for i, (name, attack) in enumerate(attacks.items()):
            if name in found.survivors:
                continue
            report = robust_accuracy(
                attack,
                predictor,
                images,
                labels,
                ball,
                key=jax.random.fold_in(key, i),
                batch_size=batch_size,
                judge=judge,
                already_broken=already_broken.get(name),
                state_path=None if state.path is None else f"{state.path}.attack",
                progress=progress,
            )
            found.attacked(name, report, correct, already_broken.get(name))
            found.flags += step_flags(attack, ball)
            found.flags += start_flags(name, report.no_start)
            if isinstance(attack, AutoAttack):
                found.flags += sequence_flags(attack, correct, report.broken_by)
            state.save(found.arrays())

    white, black = {}, {}
    for name, left in found.survivors.items():
        (black if is_black_box(attacks[name]) else white)[name] = left
    flags = [*found.flags, *survivor_flags(white, black)]
    for name, certificate in certificates.items():
        if name in found.per_certificate:
            continue
        assert isinstance(predictor, Predictor)
        started = time.perf_counter()
        radii = certified_radii(certificate, predictor, images, labels, ball, key=key)
        found.certified(name, radii, correct & (radii >= eps) & (radii > 0))
        found.seconds[name] = time.perf_counter() - started
        state.save(found.arrays())
    if (found.proven & correct & ~found.standing).any():
        broken = np.flatnonzero(found.proven & correct & ~found.standing)
        raise RuntimeError(
            f"{len(broken)} certified images were broken within {type(ball).__name__}({eps}), the "
            f"first at index {broken[0]}: a certificate or an attack is wrong"
        )
    state.delete()
    return Bracket(
        ball=ball.name,
        eps=float(f"{eps:.7g}"),  # as it was given: float32 has no more digits
        n=len(labels),
        clean=float(correct.mean()),
        certified=float(found.proven.mean()),
        attacked=float(found.standing.mean()),
        per_attack={name: float(alive.mean()) for name, alive in found.survivors.items()},
        per_certificate=found.per_certificate,
        flags=tuple(flags),
        seconds=found.seconds,
        standing=found.standing,
        survivors=found.survivors,
        proven=found.proven,
        radius=found.radius,
        x_adv=found.x_adv,
        judge=judge,
    )


@dataclasses.dataclass
class _Found:
    """What attacks and certificates have found so far; the names are `Bracket`'s."""

    standing: np.ndarray
    x_adv: np.ndarray
    shown: np.ndarray  # whose x_adv holds an image that broke it
    proven: np.ndarray
    radius: np.ndarray
    survivors: dict[str, np.ndarray]
    per_certificate: dict[str, float]
    seconds: dict[str, float]
    flags: list[Flag]

    @staticmethod
    def nothing(correct: np.ndarray, images: np.ndarray) -> "_Found":
        nobody = np.zeros(len(correct), bool)
        radius = np.zeros(len(correct))
        return _Found(correct.copy(), images.copy(), nobody, nobody, radius, {}, {}, {}, [])

    def attacked(self, name: str, report: AttackReport, correct, already_broken):
        broken = correct & ~report.still_correct
        if already_broken is not None:  # there the report holds the image itself
            broken &= ~np.asarray(already_broken)
        fresh = broken & ~self.shown
        self.x_adv[fresh] = report.x_adv[fresh]
        self.shown = self.shown | broken
        self.standing = self.standing & report.still_correct
        self.survivors[name], self.seconds[name] = report.still_correct, report.seconds

    def certified(self, name: str, radii: np.ndarray, mine: np.ndarray):
        self.per_certificate[name] = float(mine.mean())
        self.proven = self.proven | mine
        self.radius = np.maximum(self.radius, radii)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for `restore`."""
        told = {
            "survivors": list(self.survivors),
            "per_certificate": self.per_certificate,
            "seconds": self.seconds,
            "flags": self.flags,
        }
        return {
            **{name: getattr(self, name) for name in _ARRAYS},
            **{f"survivors{i}": left for i, left in enumerate(self.survivors.values())},
            "told": np.asarray(json.dumps(told)),
        }

    @staticmethod
    def restore(saved: dict[str, np.ndarray]) -> "_Found":
        told = json.loads(str(saved["told"]))
        survivors = {name: saved[f"survivors{i}"] for i, name in enumerate(told["survivors"])}
        return _Found(
            **{name: saved[name] for name in _ARRAYS},
            survivors=survivors,
            per_certificate=told["per_certificate"],
            seconds=told["seconds"],
            flags=[Flag(*flag) for flag in told["flags"]],
        )


_ARRAYS = ("standing", "x_adv", "shown", "proven", "radius")


@own_promotion
def certified_radii(
    certificate: Callable,
    predictor: Predictor,
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 512,
) -> np.ndarray:
    """The certified radius of every image in the ball's norm, 0 where the prediction is wrong.

    Raises `ValueError` for images or labels of another form, pixels outside [0, 1], and a network
    that the certificate says nothing about.
    """
    check_key(key)
    check_ball(ball)
    check_instance(Predictor, "a Predictor", predictor=predictor)
    check_callable(certificate=certificate)
    check_count(batch_size=batch_size)
    images, labels = check_arrays(images, labels)
    check_labels(labels, count_classes(predictor, images[0], key))
    predictor, out = on_mesh(predictor), []
    for _, batch, n in batches(len(images), min(batch_size, len(images))):
        x, y = spread(images[batch]), spread(labels[batch])
        result = _certify_batch(certificate, predictor, x, y, ball, key)
        right = to_host(result.label) == labels[batch]
        out.append(np.where(right, to_host(result.radius), 0.0)[:n])
    return np.concatenate(out)


@eqx.filter_jit
def _certify_batch(certificate, predictor, images, labels, ball, key):
    return jax.vmap(lambda x, y: certificate(predictor, x, y, ball, key=key))(images, labels)


def confidence_interval(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson's exact interval for a fraction of which `successes` of `n` were seen.

    Raises `ValueError` unless 0 <= successes <= n, n >= 1 and 0 < level < 1.
    """
    check_count(n=n)
    check_count(0, successes=successes)
    if successes > n:
        raise ValueError(f"successes must be at most n = {n}; got {successes}")
    check_share(level=level)
    if level == 0:
        raise ValueError("level must be positive; got 0")
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, n - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, n - successes) if successes < n else 1.0
    return float(low), float(high)


def _named(methods) -> dict[str, Callable]:
    if isinstance(methods, Mapping):
        return dict(methods)
    names = [type(method).__name__ for method in methods]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"give a mapping with names of your own: several are {sorted(repeated)}")
    return dict(zip(names, methods, strict=True))
