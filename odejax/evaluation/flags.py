"""Signs that the attacked end of an interval is still too high.

A. Athalye, N. Carlini and D. Wagner, "Obfuscated gradients give a false sense of security", ICML
2018, arXiv:1802.00420; N. Carlini et al., "On evaluating adversarial robustness", 2019,
arXiv:1902.06705. `probes` looks at the network, `attack_flags` attacks it, and the other flags
compare the results of attacks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._black_box import NO_GRADIENT as HAS_NO_GRADIENT, has_black_box
from .._inputs import method_name
from .._threat_model import AbstractBall
from .._words import counted
from ..attacks import EOT, AbstractClimb, AutoAttack, Boundary


class FlagKind:
    """A flag that may be raised: when, why it matters, what to do. Its limits are attributes.

    - `raised_if`: a text, in which {limit} is replaced by that limit.
    - `limits`: numbers by name; shares of the images are fractions.

    >>> kind = odejax.evaluation.FLAGS["vanishing gradients"]
    >>> kind.share, kind.least
    (0.1, 1e-12)
    """

    def __init__(self, name: str, raised_if: str, why: str, what_to_do: str, **limits: float):
        self.name, self.why, self.what_to_do = name, why, what_to_do
        self.limits = {name: float(limit) for name, limit in limits.items()}
        self.raised_if = raised_if.format(**limits)

    def __getattr__(self, limit: str) -> float:
        try:
            return self.__dict__["limits"][limit]
        except KeyError:
            raise AttributeError(limit) from None

    def __call__(self, evidence: str) -> "Flag":
        return Flag(self.name, evidence)


class Flag(NamedTuple):
    """A raised flag: a name in `FLAGS`, and what was seen.

    >>> flag = odejax.evaluation.Flag("softmax output", "the outputs are probabilities")
    >>> print(flag)
    softmax output (the outputs are probabilities)
    >>> flag.kind.what_to_do
    'hand over the logits before the softmax'
    """

    name: str
    evidence: str

    @property
    def kind(self) -> FlagKind:
        return FLAGS[self.name]

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"


RANDOMISED = FlagKind(
    "randomised output",
    "an image gets other logits under another key",
    "one gradient or evaluation is a draw: a lucky one ends an attack, or counts as a success",
    "average over draws (EOT, AutoAttack.rand) and judge over many (MeanLogits, draws=)",
)
SOFTMAX = FlagKind(
    "softmax output",
    "the outputs of every image lie in [0, 1] and sum to 1, to within {rounding:g}",
    "losses that expect logits saturate on probabilities, and their gradients vanish",
    "hand over the logits before the softmax",
    rounding=1e-4,
)
VANISHING = FlagKind(
    "vanishing gradients",
    "for more than {share:.0%} of the images the cross-entropy's input gradient is below {least:g}",
    "gradient attacks on the cross-entropy do not move",
    "attack with the DLR or margin loss, which do not saturate; attack without gradients",
    share=0.1,
    least=1e-12,
)
EXPLODING = FlagKind(
    "exploding gradients",
    "for more than {share:.0%} of the images the margin's gradient is not finite, or promises over "
    "{factor:g} times the largest change along it in ball and box",
    "the gradient belongs to detail far smaller than the ball: its direction is of no use",
    "attack without gradients (Square, SPSA), or through a smoother version of the network",
    share=0.1,
    factor=100,
)
WRONG_GRADIENT = FlagKind(
    "gradient unlike finite differences",
    "for more than {share:.0%} of the images, directional derivatives of the margin to the "
    "runner-up and central differences over {width:g} disagree by more than {error:.0%} (8 "
    "directions of random signs)",
    "what is differentiated is not what is evaluated: a quantised, replaced or wrong gradient, or "
    "a network that is rough at the scale of a grey level",
    "differentiate the network, or a smooth approximation (BPDA); attack without gradients",
    share=0.1,
    width=0.002,
    error=0.25,
)
NOT_FINITE = FlagKind(
    "not finite beside the images",
    "for more than {share:.0%} of the images the logits or their gradient are not finite within "
    "{beside:g} of the image, inside the box",
    "nothing can be said of a gradient there, and attacks stop where the network does",
    "find where it diverges: a logarithm or a root at 0, overflow, an ODE's step limit",
    share=0.1,
    beside=0.02,
)
ROUGH = FlagKind(
    "rough loss landscape",
    "along its own gradient, across the ball, the margin of the median image turns at least "
    "{turns:g} times in {steps:g} steps",
    "local gradients say little about the ball",
    "many restarts, larger steps, attacks without gradients",
    turns=4,
    steps=20,
)
UNBOUNDED = FlagKind(
    "unbounded attack fails",
    "under PGD (100 steps) in a ball that holds every image more than {share:.0%} of the images "
    "are still classified correctly",
    "given any image every network can be fooled: an attack that fails there may fail anywhere",
    "do not trust gradient attacks on this network; find out why they fail",
    share=0.01,
)
NO_GRADIENT = FlagKind(
    "no gradients",
    "the network is a BlackBox, or made of one",
    "no attack follows its gradient, and those without break fewer images at any budget",
    "raise the budgets until nothing changes; transfer from networks of your own (oracles)",
)
NO_ATTACK = FlagKind(
    "no attack",
    "no attack was run",
    "the upper end of the interval is the clean accuracy, and says nothing of robustness",
    "give attacks, such as attacks=[PGD(), Square()]",
)
IGNORES_NOISE = FlagKind(
    "attack ignores the noise",
    "an AutoAttack without an average over draws (EOT) meets a network with a randomised output",
    "each of its gradients belongs to one draw of the noise (Croce and Hein 2020)",
    "AutoAttack.rand()",
)
SHORT_STEPS = FlagKind(
    "steps too short",
    "the steps of an attack add up to less than eps",
    "from the image it cannot reach the surface of the ball, where the worst images lie",
    "leave out step_size (2.5 eps / steps), or take more steps",
)
NO_START = FlagKind(
    "no start found",
    "an attack that walks along the decision boundary found no image of another class to begin at",
    "the image counts as robust because it was never attacked",
    "give it images of other classes (Boundary(starts=...)), or more queries",
)
MORE_STEPS = FlagKind(
    "more steps help",
    "APGD with {many:g} steps breaks more than {share:.0%} of the images (at least {least:g}) that "
    "it does not break with {few:g}",
    "the attack has not converged, and neither has the robust accuracy",
    "raise the steps until nothing changes",
    few=40,
    many=400,
    share=0.05,
    least=2,
)
MORE_RESTARTS = FlagKind(
    "more restarts help",
    "{many:g} runs of APGD (40 steps) break more than {share:.0%} of the images (at least "
    "{least:g}) that one does not break",
    "the result depends on where the search begins: the loss has many local maxima",
    "raise the restarts until nothing changes; attack without gradients",
    many=10,
    share=0.05,
    least=2,
)
BLACK_BOX = FlagKind(
    "black box beats white box",
    "an attack without gradients breaks more than {share:.0%} of the images (at least {least:g}) "
    "that no gradient attack breaks",
    "a gradient can only help: an attack that does better without was misled by it",
    "trust attacks without gradients, with larger budgets; find a better gradient",
    share=0.01,
    least=2,
)
TRANSFER = FlagKind(
    "transfer beats white box",
    "images crafted on another network break more than {share:.0%} of the images (at least "
    "{least:g}) that no gradient attack on the network itself breaks",
    "another network's gradient serves better than its own",
    "transfer from several networks; find a better gradient",
    share=0.01,
    least=2,
)
SOLVER_STEPS = FlagKind(
    "solver steps change with the input",
    "the number of solver steps differs within the ball for more than {share:.0%} of the images",
    "the output jumps where a step is accepted or rejected, and gradients do not show jumps",
    "attack the same equation solved with fixed steps and transfer; attack without gradients",
    share=0.1,
)
SOLVER_GRADIENT = FlagKind(
    "gradient depends on the solver",
    "for more than {share:.0%} of the images the margin's input gradient has a cosine below "
    "{cosine:g} with that of the same equation solved in fixed steps, or differentiated through "
    "the steps",
    "the gradient is that of the solver's errors rather than of the flow",
    "differentiate through the solver's own steps, at a tight tolerance or fixed",
    share=0.1,
    cosine=0.9,
)

FLAGS: dict[str, FlagKind] = {
    kind.name: kind for kind in list(globals().values()) if isinstance(kind, FlagKind)
}
"""Every `FlagKind` by its name."""


def survivor_flags(
    white_box: Mapping[str, np.ndarray],
    black_box: Mapping[str, np.ndarray],
    transfer: Mapping[str, np.ndarray] | None = None,
) -> tuple[Flag, ...]:
    """The flags from comparing attacks (see `FLAGS`).

    - `white_box`, `black_box`, `transfer`: by attack, (n,) bool, which images are still correct
      under gradient attacks, attacks without gradients, and images crafted on other networks.

    >>> pgd, square = np.array([True, True, True]), np.array([True, False, False])
    >>> print(*odejax.evaluation.survivor_flags({"PGD": pgd}, {"Square": square}))
    black box beats white box (Square breaks 2 of 3 more)
    """
    if not white_box:
        return ()
    still_correct = np.logical_and.reduce(list(white_box.values()))
    flags = []
    for kind, others in ((BLACK_BOX, black_box), (TRANSFER, transfer or {})):
        broken = {
            name: int((still_correct & ~correct_under).sum())
            for name, correct_under in others.items()
        }
        best = max(broken, key=broken.__getitem__, default=None)
        if best is None or broken[best] < kind.least:
            continue
        if broken[best] > kind.share * len(still_correct):
            flags.append(kind(f"{best} breaks {broken[best]} of {len(still_correct)} more"))
    return tuple(flags)


def flags_seen(raised: Iterable[tuple[str, float, Iterable[Flag]]]) -> dict[str, str]:
    """By name of a raised flag: in which balls, and what was seen there.

    - `raised`: a norm, an eps, and the flags in that ball.
    """
    seen: dict[str, dict[str, dict[str, list[str]]]] = {}  # eps by name, norm and evidence
    for norm, eps, flags in raised:
        for flag in flags:
            of_norm = seen.setdefault(flag.name, {}).setdefault(norm, {})
            of_norm.setdefault(flag.evidence, []).append(f"{eps:.3g}")
    return {
        name: "; ".join(
            f"{norm} " + "; ".join(f"{', '.join(eps)} ({what})" for what, eps in evidence.items())
            for norm, evidence in by_norm.items()
        )
        for name, by_norm in seen.items()
    }


def step_flags(attack: Callable, ball: AbstractBall) -> tuple[Flag, ...]:
    """Whether the steps of an attack, or of one within it, are too short to cross the ball.

    >>> attack = odejax.attacks.PGD(10, step_size=0.001)
    >>> print(*odejax.evaluation.step_flags(attack, odejax.LinfBall(0.1)))
    steps too short (PGD: 10 steps of 0.001, eps 0.1)
    """
    eps = float(ball.eps)
    for climb in parts_of(attack, AbstractClimb):
        size = float(climb.size(ball))
        if climb.steps * size < eps * (1 - 1e-6):
            steps = f"{counted(climb.steps, 'step')} of {size:.3g}"
            return (SHORT_STEPS(f"{type(climb).__name__}: {steps}, eps {eps:.3g}"),)
    return ()


def start_flags(name: str, no_start: np.ndarray) -> tuple[Flag, ...]:
    """Whether there are images that the attack `name` never attacked, an `AttackReport`'s."""
    if not no_start.any():
        return ()
    return (NO_START(f"{name}: {no_start.sum()} of {counted(len(no_start), 'image')}"),)


def noise_flags(attack: Callable, deterministic: bool) -> tuple[Flag, ...]:
    """Whether an `AutoAttack` for deterministic networks meets one that draws noise."""
    if deterministic or not isinstance(attack, AutoAttack) or parts_of(attack, EOT):
        return ()
    return (IGNORES_NOISE(f"{', '.join(attack.attacks)}: no average over draws"),)


def sequence_flags(
    attack: AutoAttack, targets: np.ndarray, broken_by: np.ndarray
) -> tuple[Flag, ...]:
    """Whether black-box attacks at the end of a sequence broke images that no white-box one did.

    - `attack`: the sequence.
    - `targets` (n,) bool: which images were attacked.
    - `broken_by` (n,): an `AttackReport`'s.

    >>> attack = odejax.attacks.AutoAttack(
    ...     {"PGD": odejax.attacks.PGD(), "Square": odejax.attacks.Square()}
    ... )
    >>> targets, broken_by = np.ones(4, bool), np.array([0, 1, 1, -1])
    >>> print(*odejax.evaluation.sequence_flags(attack, targets, broken_by))
    black box beats white box (Square breaks 2 of 4 more)
    """
    black = [is_black_box(one) for one in attack.attacks.values()]
    last_white = max((i for i, one in enumerate(black) if not one), default=-1)
    if last_white < 0:
        return ()
    survivors = targets & ((broken_by < 0) | (broken_by > last_white))
    late = {name: i for i, name in enumerate(attack.attacks) if i > last_white}
    return survivor_flags(
        {"before": survivors}, {name: survivors & (broken_by != i) for name, i in late.items()}
    )


def kinds_checked(
    attacks: Sequence[Callable], last: Callable | None, transfer_attack: Callable | None
) -> tuple[FlagKind, ...]:
    """The flags that the attacks of a bracket, and comparing them, can raise.

    - `transfer_attack`: what crafts images on other networks; None without these.
    """
    run = [attack for attack in (*attacks, last, transfer_attack) if attack is not None]
    sequences = [attack for attack in run if isinstance(attack, AutoAttack)]
    black = [is_black_box(attack) for attack in attacks]
    in_sequence = [[is_black_box(one) for one in s.attacks.values()] for s in sequences]
    possible = {
        NO_ATTACK: True,
        SHORT_STEPS: any(parts_of(attack, AbstractClimb) for attack in run),
        NO_START: any(parts_of(attack, Boundary) for attack in run),
        IGNORES_NOISE: bool(sequences),
        BLACK_BOX: any(any(of) and not all(of) for of in (black, *in_sequence)),
        TRANSFER: transfer_attack is not None and not all(black),
    }
    return tuple(kind for kind, can_be in possible.items() if can_be)


def is_black_box(attack: Callable) -> bool:
    return getattr(attack, "black_box", False)


def check_gradients(logits_fn: Any, attacks: Iterable[Callable]):
    """Raise `ValueError` where an attack needs gradients, which the network does not have."""
    if not has_black_box(logits_fn):
        return
    for attack in attacks:
        parts = attack.attacks.values() if isinstance(attack, AutoAttack) else [attack]
        for part in parts:
            if getattr(part, "black_box", True) is False:
                raise ValueError(f"{method_name(part)} needs gradients, and {HAS_NO_GRADIENT}")


def parts_of(attack: Callable, kind: type) -> list[Any]:
    """The attacks of this kind that `attack` is, or is made of."""
    parts = jax.tree.leaves(attack, is_leaf=lambda part: isinstance(part, kind))
    return [part for part in parts if isinstance(part, kind)]
