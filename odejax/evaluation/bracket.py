"""A robustness figure as an interval: certified <= true <= attacked."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .._checks import check_arrays, check_count, check_labels
from .._inputs import as_key, as_method, as_methods, method_name
from .._logits import hoist
from .._paths import writable_file
from .._predictor import MeanLogits, Predictor, predict
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from ..attacks import FGSM, PGD, margin_loss
from .certified_radii import certified_radii
from .flags import NO_ATTACK, Flag, is_black_box, parts_of, survivor_flags
from .intervals import confidence_interval, percent
from .probes import masking_flags
from .robust_accuracy import AttackReport, robust_accuracy
from .saved_state import SavedState
from .solver_flags import solver_flags
from .tables import Shown

TRANSFER_ATTACK = PGD(40, loss=margin_loss)
_LAST_BATCH = 32  # few images are left for the last attack, and a batch is never smaller


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bracket(Shown):
    """The interval of one network, set of images and ball. All accuracies are fractions of `n`.

    - `ball`: its name, "linf" or "l2"; `eps`: its radius.
    - `clean`: accuracy without an attack; `attacked`: correct under every attack (the worst case
      for each image); `certified`: correct, and proven so by at least one certificate.
    - `per_attack`, `per_transfer`, `per_certificate`: the same for each attack, each network that
      images were crafted on, and each certificate, by name.
    - `n_last`: how many images the last attack was run on; None without one.
    - `flags`: why `attacked` may still be too high (`FLAGS` says what each means).
    - `seconds`: by attack, network and certificate.
    - `still_correct`, `certified_correct`: (n,) bool, of which `attacked` and `certified` are the
      means; `still_correct_under`: by attack and network, those of `per_attack`, `per_transfer`.
    - `radius`: (n,) the largest certified radius in the ball's norm, 0 where misclassified.
    - `x_adv`: (n, h, w, c), for each image one that broke it, if any attack found one in this ball.
    - `judge`: the classifier that all of this is about: the network, or its mean over fixed draws.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])
    >>> odejax.evaluation.bracket(
    ...     first_wins, images, labels, odejax.LinfBall(0.2), attacks=odejax.attacks.FGSM, key=0
    ... )
    linf, eps 0.2, 4 images: 0 % (no certificate) <= robust accuracy <= 0.0 %
                         accuracy (%)
      clean                     100.0
      under FGSM                  0.0
      under all of them           0.0
    """

    ball: str
    eps: float
    n: int
    clean: float
    certified: float
    attacked: float
    per_attack: dict[str, float]
    per_transfer: dict[str, float]
    per_certificate: dict[str, float]
    n_last: int | None
    flags: tuple[Flag, ...]
    seconds: dict[str, float]
    still_correct: np.ndarray
    still_correct_under: dict[str, np.ndarray]
    certified_correct: np.ndarray
    radius: np.ndarray
    x_adv: np.ndarray
    judge: MeanLogits

    def summary(self) -> dict[str, Any]:
        """The numbers alone, with the sampling error of each end, ready for JSON."""
        arrays = ("still_correct", "still_correct_under", "certified_correct", "radius", "x_adv")
        out = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in (*arrays, "judge")
        }
        for name in ("clean", "certified", "attacked"):
            out[f"{name}_interval"] = confidence_interval(round(out[name] * self.n), self.n)
        return {**out, "flags": {flag.name: flag.evidence for flag in self.flags}}

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        certified = f"certified {percent(self.certified)} %"
        title = (
            f"{self.ball}, eps {self.eps:.3g}, {self.n} images: "
            f"{certified if self.per_certificate else '0 % (no certificate)'} <= robust accuracy "
            f"<= {percent(self.attacked)} %"
        )
        rows = [["clean", percent(self.clean)]]
        rows += [[f"under {name}", percent(a)] for name, a in self.per_attack.items()]
        rows += [[f"crafted on {name}", percent(a)] for name, a in self.per_transfer.items()]
        rows += [["under all of them", percent(self.attacked)]]
        rows += [[f"certified by {name}", percent(a)] for name, a in self.per_certificate.items()]
        return title, ["", "accuracy (%)"], rows, [str(flag) for flag in self.flags]


class Brackets(Shown, tuple[Bracket, ...]):
    """Brackets of one network and set of images in balls of growing size: a tuple.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])
    >>> balls = [odejax.LinfBall(eps) for eps in (0.04, 0.06)]
    >>> odejax.evaluation.bracket(
    ...     first_wins, images, labels, balls, attacks=odejax.attacks.FGSM, key=0
    ... )
    accuracy in %, 4 images
      linf eps  clean  certified  attacked   FGSM
      0.04      100.0       none     100.0  100.0
      0.06      100.0       none       0.0    0.0
    """

    def summaries(self) -> list[dict[str, Any]]:
        """The numbers of each, ready for JSON."""
        return [bracket.summary() for bracket in self]

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        first = self[0]
        names = [*first.per_attack, *(f"on {name}" for name in first.per_transfer)]
        head = [f"{first.ball} eps", "clean", "certified", "attacked", *names]
        rows = [
            [f"{b.eps:.3g}"]
            + [percent(b.clean), percent(b.certified) if b.per_certificate else "none"]
            + [percent(b.attacked)]
            + [percent(a) for a in (*b.per_attack.values(), *b.per_transfer.values())]
            for b in self
        ]
        raised = sorted({flag.name for bracket in self for flag in bracket.flags})
        return f"accuracy in %, {first.n} images", head, rows, raised


@own_promotion
def bracket(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    balls: AbstractBall | Sequence[AbstractBall],
    *,
    attacks: Mapping[str, Callable] | Sequence[Callable] | Callable = (),
    certificates: Mapping[str, Callable] | Sequence[Callable] | Callable = (),
    last: Callable | None = None,
    oracles: Mapping[str, LogitsFn] | None = None,
    transfer_attack: Callable = TRANSFER_ATTACK,
    anew: Collection[str] | None = None,
    key: Key | int,
    batch_size: int = 256,
    draws: int = 1,
    bits: int | None = None,
    flag_images: int = 64,
    state_path: str | os.PathLike | None = None,
    progress: bool | None = None,
) -> Any:  # of the one ball a Bracket, of several Brackets
    """Attack and certify every image, and return the interval with its reasons: a `Bracket`.

    certified <= true <= attacked: the true robust accuracy is that of a perfect adversary. Of
    several balls each has a `Bracket`, together they are `Brackets`: an image that is broken in
    one ball is broken in all larger ones, and is not attacked there again.

    - `logits_fn`: a `Predictor`, or, without certificates, any function of one image.
    - `images` (n, h, w, c): floats in [0, 1], or uint8; `labels` (n,): classes. `*dataset` gives
      both.
    - `balls`: one ball, or several of one norm and growing eps.
    - `attacks`: by name, or named by their class. Each is run on every correctly classified image,
      so each has a robust accuracy of its own.
    - `certificates`: likewise; they need a `Predictor`.
    - `last`: an attack for what is left, `AutoAttack()` as a rule: it is run on the images that no
      attack breaks and no certificate proves, in the largest ball first. What withstands it there
      is taken to do so in the smaller balls. It has no robust accuracy of its own.
    - `oracles`: networks by name, on which `transfer_attack` crafts images for this one.
    - `anew`: the attacks, by name, that are run in every ball on images that they broke in a
      smaller one as well, by default those of one step (FGSM), which cannot repeat a smaller
      perturbation. They count in `attacked` all the same.
    - `key`: of `jax.random`, or an integer seed; the same in every ball.
    - `draws`: a randomised network is attacked as it is, with fresh noise, and judged by its mean
      logits over this many draws, fixed by `key` (`MeanLogits`).
    - `bits`: judge adversarial examples rounded to so many bits a pixel (`robust_accuracy`).
    - `flag_images`: how many images the network's gradients (and an ODE's solver) are checked on;
      0 leaves the flags that attacks raise.
    - `state_path`: a file that keeps what is known, and beside it, as `.attack`, the state of the
      attack in work. A run that was killed goes on from them; both are deleted at the end.
    - `progress`: as for `robust_accuracy`.

    With certificates, everything is computed at the highest matrix precision, as they are.

    Raises `RuntimeError` if an attack breaks a certificate: one of the two is wrong; `ValueError`,
    before any work, for certificates that say nothing about the network, and for balls of several
    norms or out of order.

    >>> from odejax import LinfBall, attacks, data, evaluation
    >>> few = data.load("digits", "test").take(slice(20))
    >>> linear = lambda x: x.ravel()[:10]
    >>> brackets = evaluation.bracket(
    ...     linear, *few, [LinfBall(0.01), LinfBall(0.1)], attacks=attacks.PGD(5), key=0
    ... )
    >>> [found.attacked <= found.clean for found in brackets]
    [True, True]
    """
    key = as_key(key)
    attacks, certificates = as_methods("attacks", attacks), as_methods("certificates", certificates)
    last = None if last is None else as_method("last", last)
    transfer_attack, oracles = as_method("transfer_attack", transfer_attack), dict(oracles or {})
    several = not isinstance(balls, AbstractBall)
    balls = _in_order(balls if several else (balls,))
    anew = _runs_anew(attacks) if anew is None else frozenset(anew)
    if unknown := sorted(anew - set(attacks)):
        raise ValueError(f"anew names {unknown}; the attacks are {list(attacks)}")
    if both := sorted(set(attacks) & set(oracles)):
        raise ValueError(f"attacks and oracles must have different names; both have {both}")
    if certificates and not isinstance(logits_fn, Predictor):
        raise ValueError(f"certificates need a Predictor; got {method_name(logits_fn)}")
    check_count(batch_size=batch_size, draws=draws)
    check_count(0, flag_images=flag_images)
    images, labels = check_arrays(images, labels)
    if state_path is not None:
        state_path = writable_file("state_path", state_path)
    for certificate in certificates.values():
        # What it refuses must not come after hours of attacks.
        eqx.filter_eval_shape(certificate, logits_fn, images[0], labels[0], balls[0], key=key)
    judge_key, flag_key, run_key = jax.random.split(key, 3)
    parts = (logits_fn, attacks, certificates, last, oracles, transfer_attack, sorted(anew))
    parts += (images, labels, balls, run_key, draws, bits)
    logits_fn = hoist(logits_fn, images[0], run_key)
    judge = MeanLogits(logits_fn, jax.random.split(judge_key, draws))
    settings: dict[str, Any] = {"judge": judge, "bits": bits, "progress": progress}
    if state_path is not None:
        settings["state_path"] = f"{state_path}.attack"
    run = _Runs(logits_fn, images, labels, run_key, batch_size, settings)
    # Beside certificates as precise as these: what TF32 alone misclassifies is not broken.
    with jax.default_matmul_precision("highest") if certificates else nullcontext():
        logits = predict(judge, images, key=judge_key, batch_size=batch_size)
        check_labels(labels, logits.shape[1])
        correct = logits.argmax(axis=1) == labels
        state = SavedState(state_path, parts, logits)
        saved = state.load()
        if saved is None:
            known = [_Known.nothing(correct, images) for _ in balls]
        else:
            known = _restore(saved)

        def keep():
            state.save(_arrays(known))

        for at, (ball, here) in enumerate(zip(balls, known, strict=True)):
            smaller = known[at - 1] if at else None
            if flag_images and not here.probed:
                probed = images[:flag_images], labels[:flag_images], ball
                here.flags += masking_flags(logits_fn, *probed, key=flag_key)
                here.flags += solver_flags(logits_fn, *probed, key=flag_key)
                here.probed = True
            for i, (name, attack) in enumerate(attacks.items()):
                if name not in here.still_correct_under:
                    before = None if name in anew else smaller
                    run.attack(here, name, attack, ball, jax.random.fold_in(run_key, i), before)
                    keep()
            for name, oracle in oracles.items():
                if name not in here.still_correct_under:
                    run.transfer(here, name, oracle, transfer_attack, ball, smaller)
                    keep()
            if smaller is not None:
                here.inherit(smaller)
            if not (attacks or oracles or last or NO_ATTACK.name in dict(here.flags)):
                here.flags.append(NO_ATTACK("attacked is the clean accuracy"))
            here.compare(attacks, oracles)
            for name, certificate in certificates.items():
                if name not in here.per_certificate:
                    started = time.perf_counter()
                    assert isinstance(logits_fn, Predictor)
                    radius = certified_radii(
                        logits_fn, images, labels, ball, certificate, key=run_key
                    )
                    seconds = time.perf_counter() - started
                    here.certify(name, radius, np.asarray(ball.eps), seconds)
                    keep()
        if last is not None:
            withstood = np.zeros(len(labels), bool)
            for ball, here in zip(reversed(balls), reversed(known), strict=True):
                if here.n_last is None:
                    run.last(here, last, ball, withstood)
                    keep()
                withstood = withstood | here.withstood_last
            for smaller, here in itertools.pairwise(known):
                here.inherit(smaller)
    for ball, here in zip(balls, known, strict=True):
        here.check(ball)
    state.delete()
    found = Brackets(
        here.bracket(ball, attacks, oracles, judge) for ball, here in zip(balls, known, strict=True)
    )
    return found if several else found[0]


def _in_order(balls: Any) -> tuple[AbstractBall, ...]:
    """The balls, or a `ValueError` unless they are of one norm and grow."""
    if isinstance(balls, str) or not hasattr(balls, "__iter__"):
        check_ball(balls)
    balls = tuple(balls)
    if not balls:
        raise ValueError("balls must hold at least one ball, such as LinfBall(0.1); got none")
    for ball in balls:
        check_ball(ball)
        if ball.eps.shape != ():
            raise ValueError(f"a bracket is for one eps; got an array of shape {ball.eps.shape}")
    kinds = sorted({type(ball).__name__ for ball in balls})
    if len(kinds) > 1:
        raise ValueError(f"balls must be of one norm, each in a call of its own; got {kinds}")
    eps = [float(ball.eps) for ball in balls]
    if any(b <= a for a, b in itertools.pairwise(eps)):
        raise ValueError(f"balls must grow; got eps {eps}")
    return balls


def _runs_anew(attacks: Mapping[str, Callable]) -> frozenset[str]:
    return frozenset(name for name, attack in attacks.items() if parts_of(attack, FGSM))


@dataclasses.dataclass
class _Runs:
    """Runs attacks with the settings that they share, and adds what they find to what is known."""

    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray
    key: Key
    batch_size: int
    settings: dict[str, Any]

    def attack(self, here: "_Known", name, attack, ball, key, smaller: "_Known | None"):
        broken = None if smaller is None else ~smaller.still_correct_under[name]
        here.add(name, self._report(self.logits_fn, attack, ball, key, broken), broken)

    def transfer(self, here: "_Known", name, oracle, attack, ball, smaller: "_Known | None"):
        """Images crafted on `oracle`, to the attack's end: they are to fool another network."""
        broken = None if smaller is None else ~smaller.still_correct_under[name]
        report = self._report(oracle, attack, ball, self.key, broken, stop_at_first_success=False)
        here.add(name, report, broken)

    def last(self, here: "_Known", attack, ball, withstood: np.ndarray):
        """`attack` on what is in doubt in this ball; `withstood` a larger one, and so this."""
        in_doubt = here.still_correct & ~here.certified_correct & ~withstood
        size = min(self.batch_size, _LAST_BATCH)
        report = self._report(self.logits_fn, attack, ball, self.key, ~in_doubt, batch_size=size)
        here.add_last(method_name(attack), report, in_doubt)

    def _report(self, logits_fn, attack, ball, key, already_broken, **settings) -> AttackReport:
        settings = {"batch_size": self.batch_size, **self.settings, **settings}
        return robust_accuracy(
            logits_fn,
            self.images,
            self.labels,
            ball,
            attack,
            key=key,
            already_broken=already_broken,
            **settings,
        )


@dataclasses.dataclass
class _Known:
    """What attacks and certificates have found so far in one ball; the names are `Bracket`'s."""

    correct: np.ndarray  # without an attack
    still_correct: np.ndarray
    certified_correct: np.ndarray
    withstood_last: np.ndarray
    has_adversarial: np.ndarray  # whether x_adv holds an image that broke it
    radius: np.ndarray
    x_adv: np.ndarray
    still_correct_under: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    per_certificate: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    flags: list[Flag] = dataclasses.field(default_factory=list)
    n_last: int | None = None
    probed: bool = False

    @staticmethod
    def nothing(correct: np.ndarray, images: np.ndarray) -> "_Known":
        none = np.zeros(len(correct), bool)
        return _Known(correct, correct, none, none, none, np.zeros(len(correct)), images.copy())

    def add(self, name: str, report: AttackReport, already_broken: np.ndarray | None):
        attacked = self.correct if already_broken is None else self.correct & ~already_broken
        self._take(name, report, attacked)
        self.still_correct = self.still_correct & report.still_correct
        self.still_correct_under[name] = report.still_correct

    def add_last(self, name: str, report: AttackReport, in_doubt: np.ndarray):
        self._take(name, report, in_doubt)
        self.withstood_last, self.n_last = report.still_correct, int(in_doubt.sum())

    def _take(self, name: str, report: AttackReport, attacked: np.ndarray):
        broken = attacked & ~report.still_correct
        fresh = broken & ~self.has_adversarial
        self.x_adv[fresh] = report.x_adv[fresh]
        self.has_adversarial = self.has_adversarial | broken
        self.still_correct = self.still_correct & ~broken
        self.seconds[name] = self.seconds.get(name, 0.0) + report.seconds
        self.flags += report.flags

    def inherit(self, smaller: "_Known"):
        """What is broken in a smaller ball is broken in this one, by the same image."""
        fresh = smaller.has_adversarial & ~self.has_adversarial
        self.x_adv[fresh] = smaller.x_adv[fresh]
        self.has_adversarial = self.has_adversarial | fresh
        self.still_correct = self.still_correct & smaller.still_correct

    def compare(self, attacks: Mapping[str, Callable], oracles: Collection[str]):
        """Add the flags that attacks raise among themselves."""
        white, black, transfer = {}, {}, {}
        for name, left in self.still_correct_under.items():
            if name in oracles:
                transfer[name] = left
            else:
                (black if is_black_box(attacks[name]) else white)[name] = left
        raised = survivor_flags(white, black, transfer)
        self.flags += [flag for flag in raised if flag not in self.flags]

    def certify(self, name: str, radius: np.ndarray, eps: np.ndarray, seconds: float):
        proven = self.correct & (radius >= eps) & (radius > 0)
        self.per_certificate[name] = float(proven.mean())
        self.certified_correct = self.certified_correct | proven
        self.radius = np.maximum(self.radius, radius)
        self.seconds[name] = seconds

    def check(self, ball: AbstractBall):
        """Raise `RuntimeError` where an attack broke what a certificate has proven."""
        broken = np.flatnonzero(self.certified_correct & ~self.still_correct)
        if len(broken):
            raise RuntimeError(
                f"{len(broken)} certified images were broken within "
                f"{type(ball).__name__}({np.asarray(ball.eps)}), the first at index {broken[0]}: a "
                f"certificate or an attack is wrong"
            )

    def bracket(self, ball: AbstractBall, attacks, oracles, judge: MeanLogits) -> Bracket:
        def accuracies(names):
            return {name: float(self.still_correct_under[name].mean()) for name in names}

        return Bracket(
            ball=ball.name,
            eps=float(f"{np.asarray(ball.eps):.7g}"),  # as given: float32 has no more digits
            n=len(self.correct),
            clean=float(self.correct.mean()),
            certified=float(self.certified_correct.mean()),
            attacked=float(self.still_correct.mean()),
            per_attack=accuracies(attacks),
            per_transfer=accuracies(oracles),
            per_certificate=self.per_certificate,
            n_last=self.n_last,
            flags=tuple(self.flags),
            seconds=self.seconds,
            still_correct=self.still_correct,
            still_correct_under=self.still_correct_under,
            certified_correct=self.certified_correct,
            radius=self.radius,
            x_adv=self.x_adv,
            judge=judge,
        )


_ARRAYS = (
    "correct", "still_correct", "certified_correct", "withstood_last", "has_adversarial", "radius",
    "x_adv",
)  # fmt: skip
_REST = ("per_certificate", "seconds", "flags", "n_last", "probed")


def _arrays(known: Sequence[_Known]) -> dict[str, np.ndarray]:
    """All that is known of every ball, as arrays."""
    arrays, rest = {}, []
    for i, here in enumerate(known):
        arrays |= {f"{i}/{name}": getattr(here, name) for name in _ARRAYS}
        under = here.still_correct_under
        arrays |= {f"{i}/under/{j}": left for j, left in enumerate(under.values())}
        rest.append({name: getattr(here, name) for name in _REST} | {"under": list(under)})
    return arrays | {"rest": np.asarray(json.dumps(rest))}


def _restore(saved: Mapping[str, np.ndarray]) -> list[_Known]:
    known = []
    for i, rest in enumerate(json.loads(str(saved["rest"]))):
        under = {name: saved[f"{i}/under/{j}"] for j, name in enumerate(rest.pop("under"))}
        rest["flags"] = [Flag(*flag) for flag in rest["flags"]]
        arrays = {name: saved[f"{i}/{name}"] for name in _ARRAYS}
        known.append(_Known(**arrays, still_correct_under=under, **rest))
    return known
