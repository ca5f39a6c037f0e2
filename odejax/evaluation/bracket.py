"""A robustness figure as an interval: certified <= true <= attacked."""

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_count, check_labels, check_not_negative
from .._ensembles import MeanLogits
from .._inputs import as_key, as_method, as_methods, images_and_labels
from .._logits import check_network, count_classes, hoist
from .._paths import writable_file
from .._predictor import predict
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from ..attacks import FGSM, PGD, margin_loss
from ..certificates import Best, best
from ..certificates.kink_splitting import operations_without_kinks
from .ball_record import BallRecord, records_from_arrays, records_to_arrays
from .bracket_result import Bracket, Brackets
from .bracket_steps import BracketSteps
from .flags import NO_ATTACK, check_gradients, kinds_checked, parts_of
from .probes import kinds_probed
from .robust_accuracy import rehearse
from .saved_state import SavedState
from .solver_flags import kinds_of_solver

TRANSFER_ATTACK = PGD(40, loss=margin_loss)


@images_and_labels
@own_promotion
def bracket(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    balls: AbstractBall | Sequence[AbstractBall],
    *,
    attacks: Mapping[str, Callable] | Sequence[Callable] | Callable = (),
    certificates: Mapping[str, Callable] | Sequence[Callable] | Callable | Literal["auto"] = "auto",
    last: Callable | None = None,
    verify_seconds: float = 0.0,
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

    certified <= true <= attacked: the true robust accuracy is that of a perfect adversary. Each of
    several balls has a `Bracket`, and together they are `Brackets`: an image that is broken in one
    ball is broken in all larger ones, and is not attacked there again.

    - `logits_fn`: a `Predictor`, or any function of one image.
    - `images` (n, h, w, c): floats in [0, 1], or uint8; `labels` (n,): classes. `*dataset` gives
      both.
    - `balls`: one ball, or several of one norm and growing eps.
    - `attacks`: by name, or named by their class. Each is run on every correctly classified image,
      so each has a robust accuracy of its own.
    - `certificates`: likewise. All but bound propagation need a `Predictor`, and
      `RandomizedSmoothing` a `Smoothed`: it is about the exact vote, and attacks are judged by that
      of finitely many draws. A certified image whose vote an attack turned no further than chance
      may is not counted as certified.

      By default, `"auto"`, those that apply to the network, `certificates.best(logits_fn)`: one in
      closed form on all images, then bound propagation on those that are not yet certified, still
      correct, and certified in the ball before, those of large margins first, until it proves
      nothing of a batch. Where none applies the lower end is 0 %. `()` certifies nothing. Where
      nothing is certified, `uncertified` says why, and so does the table.
    - `last`: a last attack, `AutoAttack()` as a rule, on the images that no attack broke and no
      certificate proved, in the largest ball first. An image that is still correct there is not
      attacked in the smaller balls. It has no robust accuracy of its own; the table shows it as
      "then AutoAttack": the accuracy after it, and on how many images it was run.
    - `verify_seconds`: of branch and bound (`verify`) for each image that all of this neither broke
      nor proved, in the smallest ball first; 0 (the default) for none. What is open in a ball is
      not tried in larger ones. It is listed among the certificates, as "branch and bound", and
      counts what those before it proved; an image that it breaks counts in `attacked`.
    - `oracles`: networks by name, on which `transfer_attack` crafts images for this one.
    - `anew`: the attacks, by name, that are run in every ball on images that they broke in a
      smaller one as well, by default those of one step (FGSM), which cannot repeat a smaller
      perturbation. They count in `attacked` all the same.
    - `key`: of `jax.random`, or an integer seed; the same in every ball.
    - `draws`: a randomised network is attacked as it is, with fresh noise, and judged by its mean
      logits over this many draws, fixed by `key` (`MeanLogits`); a `Smoothed` by the vote of
      `draws` times its own.
    - `bits`: judge adversarial examples rounded to so many bits a pixel (`robust_accuracy`).
    - `flag_images`: how many images the network's gradients (and an ODE's solver) are checked on;
      0 for none of these flags.
    - `state_path`: a file for what has been measured, and beside it, as `.attack`, one for the
      attack that is running. A run that was killed goes on from them; both are deleted at the end.
    - `progress`: as for `robust_accuracy`.

    With certificates, everything is computed at the highest matrix precision, as they are.

    Raises `RuntimeError` if an attack breaks a certificate: one of the two is wrong; `ValueError`,
    before any work, for attacks that refuse the ball or the number of classes, certificates that
    say nothing about the network, and balls of several norms or out of order.

    >>> from odejax import LinfBall, attacks, data, evaluation
    >>> few = data.load("digits", "test").take(slice(20))
    >>> linear = lambda x: x.ravel()[:10]
    >>> brackets = evaluation.bracket(
    ...     linear, *few, [LinfBall(0.01), LinfBall(0.1)], attacks=attacks.PGD(5), key=0
    ... )
    >>> [one.attacked <= one.clean for one in brackets]
    [True, True]
    """
    key, several = as_key(key), not isinstance(balls, AbstractBall)
    balls = _in_order(balls if several else (balls,))
    attacks = as_methods("attacks", attacks)
    last = None if last is None else as_method("last", last)
    transfer_attack, oracles = as_method("transfer_attack", transfer_attack), dict(oracles or {})
    anew = _single_step(attacks) if anew is None else frozenset(anew)
    _check_names(attacks, oracles, anew)
    check_count(batch_size=batch_size, draws=draws)
    check_count(0, flag_images=flag_images)
    check_not_negative(verify_seconds=verify_seconds)
    for network in (logits_fn, *oracles.values()):
        check_network(network)
    check_gradients(logits_fn, [*attacks.values(), *([] if last is None else [last])])
    images, labels = check_arrays(images, labels)
    if state_path is not None:
        state_path = writable_file("state_path", state_path)
    if isinstance(certificates, str):
        if certificates != "auto":
            raise ValueError(f'certificates must be methods or "auto"; got {certificates!r}')
        certificates = best(logits_fn, images.shape[1:])
    in_turn = isinstance(certificates, Best)
    limits = certificates.limits if in_turn else ()
    if not in_turn:  # those of `best` have been traced
        certificates = as_methods("certificates", certificates)
        _try_out(certificates, logits_fn, images[0], labels[0], balls[0], key)
    # With certificates as precise as these: an image that TF32 alone misclassifies is not broken.
    precision = partial(jax.default_matmul_precision, "highest") if certificates else nullcontext
    n_classes = count_classes(logits_fn, images[0], key)
    with precision():
        for attack in (*attacks.values(), *([] if last is None else [last])):
            rehearse(attack, images[0], labels[0], balls[0], n_classes, key)
    if verify_seconds:
        _check_verified(logits_fn, images[0], draws, bits)

    judge_key, flag_key, run_key = jax.random.split(key, 3)
    arguments = (logits_fn, attacks, certificates, last, oracles, transfer_attack, sorted(anew))
    arguments += (images, labels, balls, run_key, draws, bits, in_turn, bool(verify_seconds))
    logits_fn = hoist(logits_fn, images[0], run_key)
    judge = MeanLogits(logits_fn, jax.random.split(judge_key, draws))
    with precision():
        logits = predict(judge, images, key=judge_key, batch_size=batch_size)
        check_labels(labels, logits.shape[1])
        correct = logits.argmax(axis=1) == labels
        state = SavedState(state_path, arguments, logits)
        if (saved := state.load()) is not None:
            records = records_from_arrays(saved, balls)
        else:
            records = [BallRecord.empty(ball, correct, images) for ball in balls]

        attack_path = None if state_path is None else f"{state_path}.attack"
        settings = dict(judge=judge, bits=bits, state_path=attack_path, progress=progress)
        steps = BracketSteps(
            logits_fn,
            images,
            labels,
            np.diff(np.partition(logits, -2, axis=1)[:, -2:], axis=1)[:, 0],
            run_key,
            batch_size,
            settings,
            save=lambda: state.save(records_to_arrays(records)),
        )
        for smaller, record in zip([None, *records[:-1]], records, strict=True):
            steps.probe(record, flag_images, key=flag_key)
            steps.attack(record, attacks, anew, smaller)
            steps.transfer(record, oracles, transfer_attack, smaller)
            if smaller is not None:
                record.inherit(smaller)
            if not (attacks or oracles or last):
                record.add_flags([NO_ATTACK("attacked is the clean accuracy")])
            record.compare_attacks(attacks, oracles)
            steps.certify(record, certificates, smaller, in_turn=in_turn)
            if in_turn and smaller is not None:
                record.inherit_radius(smaller)
        if last is not None:
            steps.last_attack(records, last)
            for smaller, record in itertools.pairwise(records):
                record.inherit(smaller)
        for smaller, record in zip([None, *records[:-1]], records, strict=True):
            if verify_seconds:
                if smaller is not None:
                    record.inherit(smaller)
                steps.verify(record, smaller, verify_seconds)
    for record in records:
        record.check()
    state.delete()
    crafted = transfer_attack if oracles else None
    checked = kinds_checked([*attacks.values()], last, crafted)
    if flag_images:
        checked = (*kinds_probed(logits_fn), *kinds_of_solver(logits_fn), *checked)
    brackets = Brackets(
        _bracket_of(
            record,
            attacks,
            oracles,
            judge=judge,
            n_classes=n_classes,
            in_turn=in_turn,
            uncertified=record.why_uncertified(limits, smaller),
            flags_checked=tuple(kind.name for kind in checked),
        )
        for smaller, record in zip([None, *records[:-1]], records, strict=True)
    )
    return brackets if several else brackets[0]


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


def _single_step(attacks: Mapping[str, Callable]) -> frozenset[str]:
    """The attacks that cannot repeat a smaller perturbation."""
    return frozenset(name for name, attack in attacks.items() if parts_of(attack, FGSM))


def _check_names(attacks: Collection[str], oracles: Collection[str], anew: frozenset[str]):
    if unknown := sorted(anew - set(attacks)):
        raise ValueError(f"anew names {unknown}; the attacks are {list(attacks)}")
    if both := sorted(set(attacks) & set(oracles)):
        raise ValueError(f"attacks and oracles must have different names; both have {both}")


def _try_out(certificates: Mapping[str, Callable], logits_fn: LogitsFn, x, y, ball, key: Key):
    """Trace the certificates: what one refuses must not come after hours of attacks."""
    for certificate in certificates.values():
        eqx.filter_eval_shape(certificate, logits_fn, x, y, ball, key=key)


def _check_verified(logits_fn: LogitsFn, x, draws: int, bits: int | None):
    """Refuse what branch and bound is not about; it raises by itself for noise."""
    if draws != 1 or bits is not None:
        raise ValueError(
            f"verify_seconds is about one deterministic network and any pixels: draws must be 1 "
            f"and bits None; got {draws} and {bits}"
        )
    operations_without_kinks(logits_fn, x)


def _bracket_of(
    record: BallRecord,
    attacks: Collection[str],
    oracles: Collection[str],
    **of_all: Any,
) -> Bracket:
    def accuracies(names):
        return {name: float(record.still_correct_under[name].mean()) for name in names}

    return Bracket(
        ball=record.ball.name,
        eps=float(f"{np.asarray(record.ball.eps):.7g}"),  # as given: float32 has no more digits
        n=len(record.correct),
        clean=float(record.correct.mean()),
        certified=float(record.certified_correct.mean()),
        attacked=float(record.still_correct.mean()),
        per_attack=accuracies(attacks),
        per_transfer=accuracies(oracles),
        per_certificate=record.per_certificate,
        alpha=record.alpha,
        n_tried=record.n_tried,
        last=record.last,
        after_last=record.after_last,
        n_last=record.n_last,
        flags=tuple(record.flags),
        seconds=record.seconds,
        still_correct=record.still_correct,
        still_correct_under=record.still_correct_under,
        certified_correct=record.certified_correct,
        radius=record.radius,
        x_adv=record.x_adv,
        **of_all,
    )
