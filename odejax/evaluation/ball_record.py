"""What a bracket has measured in one ball so far, and its saved form."""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from .._threat_model import AbstractBall
from .._words import counted
from .flags import Flag, is_black_box, survivor_flags
from .robust_accuracy import AttackReport


@dataclasses.dataclass
class BallRecord:
    """The images that attacks broke and certificates proved in one ball. Names are `Bracket`'s.

    - `correct`: (n,) bool, without an attack.
    - `withstood_last`: (n,) bool, still correct after the last attack in this ball.
    - `has_adversarial`: (n,) bool, whether `x_adv` holds an adversarial example of the image.
    - `probed`: whether the network's own flags are among `flags`.
    """

    ball: AbstractBall
    correct: np.ndarray
    still_correct: np.ndarray
    certified_correct: np.ndarray
    withstood_last: np.ndarray
    has_adversarial: np.ndarray
    radius: np.ndarray
    x_adv: np.ndarray
    still_correct_under: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    per_certificate: dict[str, float] = dataclasses.field(default_factory=dict)
    alpha: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    flags: list[Flag] = dataclasses.field(default_factory=list)
    n_tried: dict[str, int] = dataclasses.field(default_factory=dict)
    last: str | None = None
    after_last: float | None = None
    n_last: int | None = None
    probed: bool = False

    @staticmethod
    def empty(ball: AbstractBall, correct: np.ndarray, images: np.ndarray) -> "BallRecord":
        """Before the first attack."""
        none = np.zeros(len(correct), bool)
        radius = np.zeros(len(correct))
        return BallRecord(ball, correct, correct, none, none, none, radius, images.copy())

    def add_attack(self, name: str, report: AttackReport, already_broken: np.ndarray | None):
        """An attack on every correct image but those of `already_broken`, or a transfer."""
        attacked = self.correct if already_broken is None else self.correct & ~already_broken
        self._add(name, report, attacked)
        self.still_correct = self.still_correct & report.still_correct
        self.still_correct_under[name] = report.still_correct

    def add_last(self, name: str, report: AttackReport, attacked: np.ndarray):
        """The last attack, which was run on the images `attacked` alone."""
        self._add(name, report, attacked)
        self.withstood_last, self.n_last = report.still_correct, int(attacked.sum())
        self.last, self.after_last = name, float(self.still_correct.mean())

    def add_broken(self, indices: np.ndarray, x_adv: np.ndarray):
        """Adversarial examples, among `x_adv` (n, h, w, c), of the images at `indices`."""
        broken = np.zeros(len(self.correct), bool)
        broken[indices] = True
        self._keep_examples(broken, x_adv)
        self.still_correct = self.still_correct & ~broken

    def _add(self, name: str, report: AttackReport, attacked: np.ndarray):
        self.add_broken(np.flatnonzero(attacked & ~report.still_correct), report.x_adv)
        self.seconds[name] = self.seconds.get(name, 0.0) + report.seconds
        self.flags += report.flags

    def _keep_examples(self, adversarial: np.ndarray, x_adv: np.ndarray):
        """Adversarial examples of the images that have none yet."""
        new = adversarial & ~self.has_adversarial
        self.x_adv[new] = x_adv[new]
        self.has_adversarial = self.has_adversarial | adversarial

    def inherit(self, smaller: "BallRecord"):
        """An adversarial example in a smaller ball is one in this ball."""
        self._keep_examples(smaller.has_adversarial, smaller.x_adv)
        self.still_correct = self.still_correct & smaller.still_correct

    def proven_by(self, radius: np.ndarray) -> np.ndarray:
        """The images that certified radii, (n,), in the ball's norm, prove correct."""
        return self.correct & (radius >= np.asarray(self.ball.eps)) & (radius > 0)

    def add_certificate(
        self,
        name: str,
        radius: np.ndarray,
        seconds: float,
        alpha: float = 0.0,
        *,
        n_tried: int,
        in_turn: bool = False,
    ):
        """Certified radii.

        - `n_tried`: how many images were to be proved.
        - `alpha`: the probability that one of them is too large.
        - `in_turn`: what the certificates before it proved counts as its own.
        """
        proven = self.proven_by(radius)
        if alpha:
            self.alpha[name] = alpha
        self.certified_correct = self.certified_correct | proven
        counted = self.certified_correct if in_turn else proven
        self.per_certificate[name] = float(counted.mean())
        self.n_tried[name] = n_tried
        self.radius = np.maximum(self.radius, radius)
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def inherit_radius(self, smaller: "BallRecord"):
        """What is proven within a radius is so whichever ball it was sought in."""
        self.radius = np.maximum(self.radius, smaller.radius)
        self.certified_correct = self.proven_by(self.radius)

    def why_uncertified(
        self, limits: tuple[str, ...], smaller: "BallRecord | None"
    ) -> tuple[str, ...]:
        """Why not all certificates were run and, where nothing is certified, what ran in vain.

        - `limits`: why some were left out, as `Best` says it.
        - `smaller`: the record of the ball before, if any.
        """
        if not self.n_tried:
            return limits or ("none was run, as certificates=() asks for",)
        if self.certified_correct.any():
            return limits
        before = "" if smaller is None else " and certified in the ball before"
        in_vain = (
            f"{name} ran and proved none of {counted(n, 'image')}"
            if n
            else f"{name} had no image to prove: none was still correct under attack{before}"
            for name, n in self.n_tried.items()
        )
        return (*limits, *in_vain)

    def add_flags(self, flags: Collection[Flag]):
        """Flags, unless they are there already."""
        self.flags += [flag for flag in flags if flag not in self.flags]

    def compare_attacks(self, attacks: Mapping[str, Callable], oracles: Collection[str]):
        """The flags of attacks without gradients, or transfers, that break more images."""
        white_box, black_box, transfer = {}, {}, {}
        for name, still_correct in self.still_correct_under.items():
            if name in oracles:
                transfer[name] = still_correct
            else:
                kind = black_box if is_black_box(attacks[name]) else white_box
                kind[name] = still_correct
        self.add_flags(survivor_flags(white_box, black_box, transfer))

    def check(self):
        """Raise `RuntimeError` if an attack broke an image that a certificate proved correct."""
        broken = np.flatnonzero(self.certified_correct & ~self.still_correct)
        if len(broken):
            raise RuntimeError(
                f"{len(broken)} certified images were broken within "
                f"{type(self.ball).__name__}({np.asarray(self.ball.eps)}), the first at index "
                f"{broken[0]}: a certificate or an attack is wrong"
            )


_ARRAYS = (
    "correct", "still_correct", "certified_correct", "withstood_last", "has_adversarial", "radius",
    "x_adv",
)  # fmt: skip
_JSON = (
    "per_certificate", "alpha", "seconds", "flags", "n_tried", "last", "after_last", "n_last",
    "probed",
)  # fmt: skip


def records_to_arrays(records: Sequence[BallRecord]) -> dict[str, np.ndarray]:
    """The records of several balls as named arrays, one of them JSON."""
    arrays, rest = {}, []
    for i, record in enumerate(records):
        arrays |= {f"{i}/{name}": getattr(record, name) for name in _ARRAYS}
        under = record.still_correct_under
        arrays |= {f"{i}/under/{j}": correct for j, correct in enumerate(under.values())}
        rest.append({name: getattr(record, name) for name in _JSON} | {"under": list(under)})
    return arrays | {"rest": np.asarray(json.dumps(rest))}


def records_from_arrays(
    saved: Mapping[str, np.ndarray], balls: Sequence[AbstractBall]
) -> list[BallRecord]:
    """What `records_to_arrays` made of the records of these balls."""
    records = []
    for i, (ball, rest) in enumerate(zip(balls, json.loads(str(saved["rest"])), strict=True)):
        under = {name: saved[f"{i}/under/{j}"] for j, name in enumerate(rest.pop("under"))}
        rest["flags"] = [Flag(*flag) for flag in rest["flags"]]
        arrays = {name: saved[f"{i}/{name}"] for name in _ARRAYS}
        records.append(BallRecord(ball, **arrays, still_correct_under=under, **rest))
    return records
