"""A robustness figure as an interval: certified <= true <= attacked."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from scipy.stats import beta

from .._mesh import on_mesh, spread, to_host
from .._predictor import MeanLogits, Predictor, batches, predict
from .._threat_model import AbstractBall
from .._types import Key, LogitsFn
from ..attacks import AutoAttack
from ..data import ArrayDataset
from .flags import Flag, is_black_box, masking_flags, sequence_flags, survivor_flags
from .robust_accuracy import robust_accuracy
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

    With certificates, everything is computed at the highest matrix precision, as they are.

    Raises `RuntimeError` if an attack breaks a certificate: one of the two is wrong.
    """
    attacks, certificates = _named(attacks), _named(certificates)
    already_broken = already_broken or {}
    if unknown := set(already_broken) - set(attacks):
        raise ValueError(f"already_broken names {sorted(unknown)}, the attacks are {list(attacks)}")
    images, labels = dataset.pixels, dataset.labels
    eps = np.asarray(ball.eps)
    if eps.shape != ():
        raise ValueError(f"a bracket is for one eps; got an array of shape {eps.shape}")
    judge_key, flag_key, key = jax.random.split(key, 3)
    judge = MeanLogits(predictor, jax.random.split(judge_key, draws))
    # Beside certificates as precise as these: what TF32 alone misclassifies is not broken.
    with jax.default_matmul_precision("highest") if certificates else nullcontext():
        logits = predict(judge, images, key=judge_key, batch_size=batch_size)
        correct = logits.argmax(axis=1) == labels
        standing, x_adv, survivors, seconds = correct.copy(), images.copy(), {}, {}
        shown = np.zeros(len(labels), bool)  # whose x_adv holds an image that broke it
        flags: list[Flag] = []
        if flag_images:
            probed = images[:flag_images], labels[:flag_images], ball
            flags += masking_flags(predictor, *probed, key=flag_key)
            flags += solver_flags(predictor, *probed, key=flag_key)
        for i, (name, attack) in enumerate(attacks.items()):
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
                progress=progress,
            )
            broken = correct & ~report.still_correct
            if name in already_broken:  # there the report holds the image itself
                broken &= ~np.asarray(already_broken[name])
            fresh = broken & ~shown
            x_adv[fresh] = report.x_adv[fresh]
            shown |= broken
            standing &= report.still_correct
            survivors[name], seconds[name] = report.still_correct, report.seconds
            if isinstance(attack, AutoAttack):
                flags += sequence_flags(attack, correct, report.broken_by)

    flags += survivor_flags(
        {name: left for name, left in survivors.items() if not is_black_box(attacks[name])},
        {name: left for name, left in survivors.items() if is_black_box(attacks[name])},
    )

    proven, radius, per_certificate = np.zeros(len(labels), bool), np.zeros(len(labels)), {}
    if certificates and not isinstance(predictor, Predictor):
        raise ValueError(f"certificates need a Predictor; got {type(predictor).__name__}")
    for name, certificate in certificates.items():
        assert isinstance(predictor, Predictor)
        started = time.perf_counter()
        radii = certified_radii(certificate, predictor, images, labels, ball, key=key)
        mine = correct & (radii >= eps) & (radii > 0)
        per_certificate[name] = float(mine.mean())
        proven |= mine
        radius = np.maximum(radius, radii)
        seconds[name] = time.perf_counter() - started
    if (proven & correct & ~standing).any():
        broken = np.flatnonzero(proven & correct & ~standing)
        raise RuntimeError(
            f"{len(broken)} certified images were broken within {type(ball).__name__}({eps}), the "
            f"first at index {broken[0]}: a certificate or an attack is wrong"
        )
    return Bracket(
        ball=ball.name,
        eps=float(f"{eps:.7g}"),  # as it was given: float32 has no more digits
        n=len(labels),
        clean=float(correct.mean()),
        certified=float(proven.mean()),
        attacked=float(standing.mean()),
        per_attack={name: float(alive.mean()) for name, alive in survivors.items()},
        per_certificate=per_certificate,
        flags=tuple(flags),
        seconds=seconds,
        standing=standing,
        survivors=survivors,
        proven=proven,
        radius=radius,
        x_adv=x_adv,
        judge=judge,
    )


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
    """The certified radius of every image in the ball's norm, 0 where the prediction is wrong."""
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
    """Clopper-Pearson's exact interval for a fraction of which `successes` of `n` were seen."""
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
