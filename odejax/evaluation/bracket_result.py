"""The result of a bracket: its numbers, what is behind each end, and its tables."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from .._ensembles import MeanLogits
from .._words import counted
from .bracket_steps import BRANCH_AND_BOUND
from .flags import FLAGS, Flag, flags_seen
from .intervals import chance_note, confidence_interval, percent
from .tables import Shown

_FEW_FLAGS = 3  # are named where none was raised


class Entry(NamedTuple):
    """One accuracy behind an end of a `Bracket`.

    - `label`: what it is, such as "under PGD"; `column`: the same in short, over a column.
    - `accuracy`: a fraction.
    - `n_run`: how many images were attacked for it; None for all correct ones.

    >>> odejax.evaluation.Entry("then AutoAttack", "then AutoAttack", 0.25, 7).n_run
    7
    """

    label: str
    column: str
    accuracy: float
    n_run: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bracket(Shown):
    """The interval of one network, set of images and ball. All accuracies are fractions of `n`.

    - `ball`: its name, "linf" or "l2"; `eps`: its radius.
    - `n_classes`: how many logits there are.
    - `clean`: accuracy without an attack; `attacked`: correct under every attack (the worst case
      for each image); `certified`: correct, and proven so by at least one certificate.
    - `per_attack`, `per_transfer`, `per_certificate`: the same for each attack, each network that
      images were crafted on, and each certificate, by name. Each certificate is run on all
      images; `in_turn`, and by branch and bound, what it or one before it proved counts.
    - `n_tried`: by certificate, how many images it was to prove: all, or those in doubt.
    - `in_turn`: whether the certificates are those of `certificates.best` (`"auto"`).
    - `uncertified`: why CROWN, or any certificate, is not among them; and where `certified` is 0,
      what was run in vain, or that nothing was run.
    - `alpha`: for each certificate that is a test (`RandomizedSmoothing`), the probability that the
      radius of an image is too large; all are right at once with confidence 1 - n alpha.
    - `last`: the name of the last attack; `after_last`: the accuracy under the attacks before it
      and it; `n_last`: how many images it was run on. None without one.
    - `flags`: why `attacked` may still be too high (`FLAGS` says what each means).
    - `flags_checked`: the names of the flags that could have been raised.
    - `seconds`: by attack, network and certificate.
    - `still_correct`, `certified_correct`: (n,) bool, of which `attacked` and `certified` are the
      means; `still_correct_under`: by attack and network, those of `per_attack`, `per_transfer`.
    - `radius`: (n,) the largest certified radius in the ball's norm, 0 where misclassified.
    - `x_adv`: (n, h, w, c), for each image an adversarial example in this ball, if an attack found
      one; else the image.
    - `judge`: the classifier that was measured: the network, or its mean over fixed draws.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])
    >>> odejax.evaluation.bracket(
    ...     first_wins, images, labels, odejax.LinfBall(0.2), attacks=odejax.attacks.FGSM, key=0
    ... )
    linf, eps 0.2, 4 images: certified 0.0 % <= robust accuracy <= 0.0 %
                          accuracy (%)
      clean                      100.0
      under FGSM                   0.0
      under all of them            0.0
      certified by CROWN           0.0
    certificates: CROWN had no image to prove: none was still correct under attack
    no flag was raised; 9 were checked (.flags_checked names them)
    """

    ball: str
    eps: float
    n: int
    n_classes: int
    clean: float
    certified: float
    attacked: float
    per_attack: dict[str, float]
    per_transfer: dict[str, float]
    per_certificate: dict[str, float]
    alpha: dict[str, float]
    n_tried: dict[str, int]
    last: str | None
    after_last: float | None
    n_last: int | None
    in_turn: bool
    uncertified: tuple[str, ...]
    flags: tuple[Flag, ...]
    flags_checked: tuple[str, ...]
    seconds: dict[str, float]
    still_correct: np.ndarray
    still_correct_under: dict[str, np.ndarray]
    certified_correct: np.ndarray
    radius: np.ndarray
    x_adv: np.ndarray
    judge: MeanLogits

    def summary(self) -> dict[str, Any]:
        """The numbers alone, each accuracy with its 95 % confidence interval, ready for JSON.

        The interval is for the images being a sample: `confidence_interval`'s.
        """
        arrays = ("still_correct", "still_correct_under", "certified_correct", "radius", "x_adv")
        out = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in (*arrays, "judge")
        }
        for name in ("clean", "certified", "attacked", "after_last"):
            out[f"{name}_interval"] = None if out[name] is None else self.interval(out[name])
        for name in ("per_attack", "per_transfer", "per_certificate"):
            out[f"{name}_interval"] = {of: self.interval(a) for of, a in out[name].items()}
        return {**out, "flags": {flag.name: flag.evidence for flag in self.flags}}

    def interval(self, accuracy: float) -> tuple[float, float]:
        """The 95 % confidence interval of one of the accuracies, as of a sample of n images."""
        return confidence_interval(round(accuracy * self.n), self.n)

    def behind_attacked(self) -> list[Entry]:
        """The accuracy under each attack, on images of each oracle, and after the last attack."""
        entries = [Entry(f"under {name}", name, a) for name, a in self.per_attack.items()]
        entries += [
            Entry(f"crafted on {name}", f"on {name}", a) for name, a in self.per_transfer.items()
        ]
        if self.last is not None and self.after_last is not None:
            then = f"then {self.last}"
            entries.append(Entry(then, then, self.after_last, self.n_last))
        return entries

    def behind_certified(self) -> list[Entry]:
        """What each certificate proved: "with" one, together with those before it."""
        entries = []
        for i, (name, accuracy) in enumerate(self.per_certificate.items()):
            with_others = (self.in_turn or name == BRANCH_AND_BOUND) and i
            column = f"{'with' if with_others else 'by'} {name}"
            label = column if with_others else f"certified {column}"
            entries.append(Entry(label, column, accuracy))
        return entries

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        certified = f"certified {percent(self.certified)} %"
        title = (
            f"{self.ball}, eps {self.eps:.3g}, {counted(self.n, 'image')}: "
            f"{certified if self.per_certificate else '0 % (no certificate)'} <= robust accuracy "
            f"<= {percent(self.attacked)} %"
        )
        rows = [["clean", percent(self.clean)]]
        for entry in self.behind_attacked():
            on = "" if entry.n_run is None else f", on {counted(entry.n_run, 'image')}"
            rows.append([entry.label + on, percent(entry.accuracy)])
        rows += [["under all of them", percent(self.attacked)]]
        rows += [[entry.label, percent(entry.accuracy)] for entry in self.behind_certified()]
        return title, ["", "accuracy (%)"], rows, Brackets([self]).notes()

    def confidences(self) -> list[str]:
        """One line for each certificate that is a test: how sure its radii are."""
        return [
            f"{name} certifies the exact vote, of infinitely many draws: with confidence "
            f"{100 * (1 - alpha):.6g} % for each image, {100 * max(0, 1 - self.n * alpha):.6g} % "
            f"for all {self.n} at once"
            for name, alpha in self.alpha.items()
        ]


class Brackets(Shown, tuple[Bracket, ...]):
    """Brackets of one network and set of images in balls of growing size: a tuple.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([x[0, 0, 0] + 0.1, x[0, 1, 0]])
    >>> balls = [odejax.LinfBall(eps) for eps in (0.04, 0.06)]
    >>> odejax.evaluation.bracket(
    ...     first_wins, images, labels, balls, attacks=odejax.attacks.FGSM, key=0
    ... )
    accuracy in %, 4 images
      linf eps  clean  certified  attacked   FGSM  by CROWN
      0.04      100.0      100.0     100.0  100.0     100.0
      0.06      100.0        0.0       0.0    0.0       0.0
    certificates, linf 0.06: CROWN had no image to prove: none was still correct under attack and
      certified in the ball before
    no flag was raised; 9 were checked (.flags_checked names them)
    """

    def summaries(self) -> list[dict[str, Any]]:
        """The numbers of each, ready for JSON."""
        return [bracket.summary() for bracket in self]

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        first, behind = self[0], [[*b.behind_attacked(), *b.behind_certified()] for b in self]
        head = [f"{first.ball} eps", "clean", "certified", "attacked"]
        head += [entry.column for entry in behind[0]]
        rows = [
            [f"{b.eps:.3g}"]
            + [percent(b.clean), percent(b.certified) if b.per_certificate else "none"]
            + [percent(b.attacked)]
            + [_cell(entry) for entry in entries]
            for b, entries in zip(self, behind, strict=True)
        ]
        return f"accuracy in %, {counted(first.n, 'image')}", head, rows, self.notes()

    def notes(self) -> list[str]:
        """What a reader of the numbers has to know."""
        return self.clean_notes() + self.certificate_notes() + self.flag_notes()

    def clean_notes(self) -> list[str]:
        """Whether the clean accuracy, the same in every ball, is hardly that of a network."""
        return chance_note(self[0].clean, self[0].n, self[0].n_classes)

    def certificate_notes(self) -> list[str]:
        """Why nothing is certified, or not all that could be; and how sure certified votes are."""
        eps_of: dict[str, list[str]] = {}
        for one in self:
            for reason in one.uncertified:
                eps_of.setdefault(reason, []).append(f"{one.eps:.3g}")
        lines = []
        for reason, eps in eps_of.items():
            where = "" if len(eps) == len(self) else f", {self[0].ball} {', '.join(eps)}"
            lines.append(f"certificates{where}: {reason}")
        return lines + self[0].confidences()

    def flag_notes(self) -> list[str]:
        """Each raised flag, in which balls, and why it matters; or that none was raised."""
        raised = flags_seen((one.ball, one.eps, one.flags) for one in self)
        if not raised:
            return [f"no flag was raised; {_checked(self[0].flags_checked)}"]
        return [f"flag: {name}, {seen}: {FLAGS[name].why}" for name, seen in raised.items()]


def _checked(names: tuple[str, ...]) -> str:
    if len(names) <= _FEW_FLAGS:
        were = "was" if len(names) == 1 else "were"
        return f"{len(names)} {were} checked: {', '.join(names)}"
    return f"{len(names)} were checked (.flags_checked names them)"


def _cell(entry: Entry) -> str:
    on = "" if entry.n_run is None else f" (on {entry.n_run})"
    return percent(entry.accuracy) + on
