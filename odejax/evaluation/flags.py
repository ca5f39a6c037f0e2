"""Signs that the attacked end of an interval is still too high (Athalye et al. 2018)."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_arrays, check_count, check_key, check_labels
from .._logits import hoist
from .._mesh import on_mesh, to_host
from .._predictor import predict
from .._promotion import own_promotion
from .._threat_model import AbstractBall, LinfBall, check_ball
from .._types import Key, LogitsFn
from ..attacks import (
    APGD,
    PGD,
    AbstractClimb,
    AutoAttack,
    Restarts,
    cross_entropy,
    margin_loss,
)
from .robust_accuracy import robust_accuracy


class Meaning(NamedTuple):
    """What a flag says: when it is raised, why it matters, what to do."""

    raised_if: str
    why: str
    what_to_do: str


FLAGS = {
    "randomised output": Meaning(
        "an image gets other logits under another key",
        "one gradient or evaluation is a draw: a lucky one ends an attack, or counts as a success",
        "average over draws (EOT, AutoAttack.rand) and judge over many (MeanLogits, draws=)",
    ),
    "softmax output": Meaning(
        "the outputs of every image lie in [0, 1] and sum to 1",
        "losses that expect logits saturate on probabilities, and their gradients vanish",
        "hand over the logits before the softmax",
    ),
    "vanishing gradients": Meaning(
        "for more than a tenth of the images the cross-entropy's input gradient is below 1e-12",
        "gradient attacks on the cross-entropy stand still",
        "attack with the DLR or margin loss, which do not saturate; attack without gradients",
    ),
    "exploding gradients": Meaning(
        "for more than a tenth of the images the margin's gradient is not finite, or promises over "
        "100 times the change that is found anywhere along it in the ball",
        "the gradient belongs to detail far smaller than the ball and points nowhere useful",
        "attack without gradients (Square, SPSA), or through a smoother version of the network",
    ),
    "gradient unlike finite differences": Meaning(
        "for more than a tenth of the images, directional derivatives of the margin and central "
        "differences over 0.002 disagree by more than a quarter (8 directions of random signs)",
        "what is differentiated is not what is evaluated: a quantised, replaced or wrong gradient, "
        "or a network that is rough at the scale of a grey level",
        "differentiate the network, or a smooth approximation (BPDA); attack without gradients",
    ),
    "not finite beside the images": Meaning(
        "for more than a tenth of the images the logits or their gradient are not finite within "
        "0.02 of the image, inside the box",
        "nothing can be said of a gradient there, and attacks stop where the network does",
        "find where it diverges: a logarithm or a root at 0, overflow, an ODE's step limit",
    ),
    "rough loss landscape": Meaning(
        "along its own gradient, across the ball, the margin of the median image turns at least 4 "
        "times in 20 steps",
        "local gradients say little about the ball",
        "many restarts, larger steps, attacks without gradients",
    ),
    "unbounded attack fails": Meaning(
        "PGD (100 steps) in a ball that holds every image leaves more than 1 % standing",
        "given any image every network can be fooled: an attack that fails there may fail anywhere",
        "do not trust gradient attacks on this network; find out why they fail",
    ),
    "steps too short": Meaning(
        "the steps of an attack add up to less than eps",
        "from the image it cannot reach the surface of the ball, where the worst images lie",
        "leave out step_size (2.5 eps / steps), or take more steps",
    ),
    "no start found": Meaning(
        "an attack that walks along the decision boundary found no image of another class to begin "
        "at",
        "the image stands because it was never attacked",
        "give it images of other classes (Boundary(starts=...)), or more queries",
    ),
    "more steps help": Meaning(
        "400 steps of APGD break more than 5 % of the images (at least 2) that 40 steps leave",
        "the attack has not converged, and neither has the robust accuracy",
        "raise the steps until nothing changes",
    ),
    "more restarts help": Meaning(
        "10 runs of APGD (40 steps) break more than 5 % of the images (at least 2) that one leaves",
        "what is found depends on where the search begins: the loss has many local maxima",
        "raise the restarts until nothing changes; attack without gradients",
    ),
    "black box beats white box": Meaning(
        "an attack without gradients breaks more than 1 % of the images (at least 2) that every "
        "gradient attack leaves",
        "a gradient can only help: an attack that does better without was misled by it",
        "trust attacks without gradients, with larger budgets; find a better gradient",
    ),
    "transfer beats white box": Meaning(
        "images made for another network break more than 1 % of the images (at least 2) that every "
        "gradient attack on the network itself leaves",
        "another network's gradient serves better than its own",
        "transfer from several networks; find a better gradient",
    ),
    "solver steps change with the input": Meaning(
        "the number of solver steps differs within the ball for more than a tenth of the images",
        "to accept or reject a step is a jump of the output, and no gradient knows of it",
        "attack the same equation solved with fixed steps and transfer; attack without gradients",
    ),
    "gradient depends on the solver": Meaning(
        "for more than a tenth of the images the margin's input gradient has a cosine below 0.9 "
        "with that of the same equation solved in fixed steps, or differentiated through the steps",
        "the gradient is that of the solver's errors rather than of the flow",
        "differentiate through the solver's own steps, at a tight tolerance or fixed",
    ),
}


class Flag(NamedTuple):
    """A raised flag: a name in `FLAGS`, and what was seen."""

    name: str
    evidence: str

    @property
    def meaning(self) -> Meaning:
        return FLAGS[self.name]

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"


_PROBES = 8  # directions of the finite differences
_H = 1e-3  # their half width
_BESIDE = 0.02  # how far from the image they are taken
_RAY = 20  # steps along the gradient


@own_promotion
def masking_flags(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 64,
) -> tuple[Flag, ...]:
    """The flags that a look at the network's outputs and gradients raises (see `FLAGS`).

    Costs about 40 evaluations and 3 gradients of every image. `attack_flags`, `survivor_flags` and
    `step_flags` know the others; a neural ODE's own are `solver_flags`. Raises `ValueError` for
    images, labels or logits of another form.
    """
    check_key(key)
    check_ball(ball)
    check_count(batch_size=batch_size)
    images, labels = check_arrays(images, labels)
    first_key, second_key, key = jax.random.split(key, 3)
    logits_fn = on_mesh(hoist(logits_fn, images[0], key))
    logits = predict(logits_fn, images, key=first_key, batch_size=batch_size)
    again = predict(logits_fn, images, key=second_key, batch_size=batch_size)
    check_labels(labels, logits.shape[1])
    flags = []
    if not np.array_equal(logits, again):
        moved = np.abs(np.where(np.isfinite(logits), again - logits, 0.0))
        flags.append(Flag("randomised output", f"logits move by up to {moved.max():.2g}"))
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(axis=1), 1, atol=1e-4):
        flags.append(Flag("softmax output", "the outputs are probabilities"))
    precision = jnp.asarray(_precision(logits_fn, images[0]))
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
    probes = [_probe(logits_fn, images[p], labels[p], ball, precision, key) for p in parts]
    size, wrong, promised, found, turns, finite = (
        np.concatenate([to_host(p) for p in part]) for part in zip(*probes, strict=True)
    )

    def raise_if(name, bad, what):
        if bad.mean() > 0.1:
            flags.append(Flag(name, f"{bad.sum()} of {len(bad)} images{what}"))

    raise_if("vanishing gradients", size < 1e-12, "")
    explodes = ~np.isfinite(promised) | (promised > 100 * found)
    raise_if("exploding gradients", explodes & (promised != 0), "")
    raise_if("gradient unlike finite differences", wrong > 0.25, f", median {np.median(wrong):.2g}")
    raise_if("not finite beside the images", ~finite, "")
    if np.median(turns) >= 4:
        flags.append(Flag("rough loss landscape", f"{np.median(turns):.0f} turns in {_RAY} steps"))
    return tuple(flags)


def _precision(logits_fn, image) -> float:
    """What rounding may make of a logit, as a fraction of the largest: 8 units in its last place.

    A network that computes in half precision anywhere is taken for one that does so throughout.
    """
    program = str(jax.make_jaxpr(lambda x: logits_fn(x, key=jax.random.key(0)))(image))
    halves = {r"\bbf16\[": jnp.bfloat16, r"\bf16\[": jnp.float16}  # as a program prints them
    dtypes = [jnp.float32, *(half for text, half in halves.items() if re.search(text, program))]
    return 8 * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


@eqx.filter_jit
def _probe(logits_fn, images, labels, ball, precision, key):
    def one(x, y, key):
        draw_key, beside_key, signs_key = jax.random.split(key, 3)

        def margin(x):
            return margin_loss(logits_fn(x, key=draw_key), y)

        def gradients(x):
            """The logits, and the gradients of cross-entropy and of the margin."""
            z, pull_back = jax.vjp(lambda x: logits_fn(x, key=draw_key), x)
            cotangents = [jax.grad(loss)(z, y) for loss in (cross_entropy, margin_loss)]
            return z, jax.vmap(lambda c: pull_back(c)[0])(jnp.stack(cotangents))

        # Beside the image, since on its flat black a ReLU may sit exactly on its kink; and so far
        # inside the box that the differences stay in it.
        beside = x + _BESIDE * jax.random.uniform(beside_key, x.shape, x.dtype, -1.0, 1.0)
        beside = jnp.clip(beside, ball.lower + _H, ball.upper - _H)
        # Mapped, not unrolled: what takes time here is compiling the network.
        (z, _), ((cross, gradient), (_, there)) = jax.lax.map(gradients, jnp.stack([x, beside]))
        signs = jax.random.rademacher(signs_key, (_PROBES, *x.shape), x.dtype)
        along = ball.eps * ball.steepest(gradient)
        ray = jnp.linspace(0, 1, _RAY + 1).reshape(-1, 1, 1, 1)
        ends = (beside + _H * signs, beside - _H * signs)
        values = jax.lax.map(margin, jnp.concatenate([*ends, jax.vmap(ball.clip)(x + ray * along)]))
        ups, downs, values = jnp.split(values, [_PROBES, 2 * _PROBES])

        differences = (ups - downs) / (2 * _H)
        slopes = jnp.sum(signs * there, axis=(1, 2, 3))
        # Rounding of the logits alone moves the differences by this much.
        noise = precision * jnp.max(jnp.where(jnp.isfinite(z), jnp.abs(z), 0.0)) / _H
        scale = jnp.maximum(jnp.max(jnp.abs(differences)), jnp.max(jnp.abs(slopes)))
        error = jnp.max(jnp.abs(differences - slopes))
        finite = jnp.isfinite(error)
        wrong = jnp.where(finite & (error > 5 * noise), error / scale, 0.0)

        rises = jnp.sign(jnp.diff(values) * (jnp.abs(jnp.diff(values)) > noise * _H))
        turns = jnp.sum(rises[1:] * rises[:-1] < 0)
        found = jnp.max(jnp.abs(values - values[0]))
        promised = ball.eps * ball.dual_norm(gradient)
        return jnp.max(jnp.abs(cross)), wrong, promised, found, turns, finite

    return jax.vmap(one)(images, labels, jax.random.split(key, len(images)))


def attack_flags(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    ball: AbstractBall,
    *,
    key: Key,
    batch_size: int = 64,
    judge: LogitsFn | None = None,
) -> tuple[Flag, ...]:
    """The flags that take attacks of their own: unbounded, more steps, more restarts (`FLAGS`).

    Costs up to 40 + 400 + 400 + 100 gradients of every image, less where they fall early.
    """

    def standing(attack, ball, already_broken=None):
        return robust_accuracy(
            attack,
            logits_fn,
            images,
            labels,
            ball,
            key=key,
            batch_size=batch_size,
            judge=judge,
            already_broken=already_broken,
        ).still_correct

    flags, n = [], len(images)
    short = standing(APGD(40), ball)
    for name, stronger in (
        ("more steps help", APGD(400)),
        ("more restarts help", Restarts(APGD(40), 10)),
    ):
        fallen = int((short & ~standing(stronger, ball, ~short)).sum())
        if fallen >= 2 and fallen > 0.05 * n:
            flags.append(Flag(name, f"{fallen} of {n} images more"))
    diameter = ball.covering_radius(LinfBall(1.0), images[0].size)
    everything = eqx.tree_at(lambda ball: ball.eps, ball, jnp.asarray(diameter))
    left = int(standing(PGD(100, None), everything).sum())
    if left > 0.01 * n:
        flags.append(Flag("unbounded attack fails", f"{left} of {n} images stand"))
    return tuple(flags)


def survivor_flags(
    white_box: Mapping[str, np.ndarray],
    black_box: Mapping[str, np.ndarray],
    transfer: Mapping[str, np.ndarray] | None = None,
) -> tuple[Flag, ...]:
    """The flags that the survivors of attacks raise, (n,) bool by attack (see `FLAGS`)."""
    if not white_box:
        return ()
    standing = np.logical_and.reduce(list(white_box.values()))
    flags = []
    for name, others in (
        ("black box beats white box", black_box),
        ("transfer beats white box", transfer or {}),
    ):
        fallen = {other: int((standing & ~left).sum()) for other, left in others.items()}
        best = max(fallen, key=fallen.__getitem__, default=None)
        if best is not None and fallen[best] >= 2 and fallen[best] > 0.01 * len(standing):
            flags.append(Flag(name, f"{best} breaks {fallen[best]} of {len(standing)} more"))
    return tuple(flags)


def step_flags(attack: Callable, ball: AbstractBall) -> tuple[Flag, ...]:
    """Whether the steps of an attack, or of one within it, are too short to cross the ball."""
    eps = float(ball.eps)
    for part in jax.tree.leaves(attack, is_leaf=lambda part: isinstance(part, AbstractClimb)):
        if isinstance(part, AbstractClimb):
            size = float(part.size(ball))
            if part.steps * size < eps * (1 - 1e-6):
                evidence = f"{type(part).__name__}: {part.steps} steps of {size:.3g}, eps {eps:.3g}"
                return (Flag("steps too short", evidence),)
    return ()


def start_flags(name: str, no_start: np.ndarray) -> tuple[Flag, ...]:
    """Whether there are images that the attack `name` never attacked, an `AttackReport`'s."""
    if not no_start.any():
        return ()
    return (Flag("no start found", f"{name}: {no_start.sum()} of {len(no_start)} images"),)


def sequence_flags(
    attack: AutoAttack, targets: np.ndarray, broken_by: np.ndarray
) -> tuple[Flag, ...]:
    """Whether the black-box attacks at the end of a sequence broke what its white-box ones left.

    `targets` (n,) bool: who was attacked; `broken_by` (n,): an `AttackReport`'s.
    """
    black = [is_black_box(one) for one in attack.attacks.values()]
    last_white = max((i for i, one in enumerate(black) if not one), default=-1)
    if last_white < 0:
        return ()
    left = targets & ((broken_by < 0) | (broken_by > last_white))
    late = {name: i for i, name in enumerate(attack.attacks) if i > last_white}
    return survivor_flags(
        {"before": left}, {name: left & (broken_by != i) for name, i in late.items()}
    )


def is_black_box(attack: Callable) -> bool:
    return getattr(attack, "black_box", False)
