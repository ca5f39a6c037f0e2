"""The steps of a bracket: probe, attack, transfer, certify, the last attack, and verify."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._inputs import method_name
from .._predictor import predict
from .._smoothing import Smoothed
from .._types import Key, LogitsFn
from ..certificates.bound_propagation import AbstractBoundPropagation
from .ball_record import BallRecord
from .certified_radii import certified_radii
from .probes import masking_flags
from .robust_accuracy import AttackReport, robust_accuracy
from .solver_flags import solver_flags
from .verify import verify

BRANCH_AND_BOUND = "branch and bound"  # among the certificates

_LAST_BATCH = 32  # few images are attacked last, and a batch is never smaller
_CHANCE = 1e-6  # an attack refutes a certified vote if chance turns it as far less often than this


@dataclasses.dataclass(frozen=True)
class BracketSteps:
    """Each step adds to a ball's record what it does not hold yet, and saves the records.

    - `margins`: (n,) by how much the largest logit exceeds the next.
    - `key`: of attacks, transfers and certificates.
    - `settings`: of `robust_accuracy`, the same for every attack.
    - `save`: called without arguments.
    """

    logits_fn: LogitsFn
    images: np.ndarray
    labels: np.ndarray
    margins: np.ndarray
    key: Key
    batch_size: int
    settings: Mapping[str, Any]
    save: Callable[[], None]

    def probe(self, record: BallRecord, n_images: int, *, key: Key):
        """The flags of the network itself, on the first `n_images`."""
        if n_images and not record.probed:
            first = self.images[:n_images], self.labels[:n_images], record.ball
            record.flags += masking_flags(self.logits_fn, *first, key=key)
            record.flags += solver_flags(self.logits_fn, *first, key=key)
            record.probed = True

    def attack(
        self,
        record: BallRecord,
        attacks: Mapping[str, Callable],
        anew: frozenset[str],
        smaller: BallRecord | None,
    ):
        """Every attack, on images that it did not break in the ball of `smaller`; `anew` on all."""
        for i, (name, attack) in enumerate(attacks.items()):
            if name not in record.still_correct_under:
                broken = _broken(name, None if name in anew else smaller)
                key = jax.random.fold_in(self.key, i)
                report = self._report(self.logits_fn, attack, record, broken, key=key, name=name)
                record.add_attack(name, report, broken)
                self.save()

    def transfer(
        self,
        record: BallRecord,
        oracles: Mapping[str, LogitsFn],
        attack: Callable,
        smaller: BallRecord | None,
    ):
        """Images crafted on every oracle, by all the steps of the attack: they are to transfer."""
        for name, oracle in oracles.items():
            if name not in record.still_correct_under:
                broken = _broken(name, smaller)
                settings: dict[str, Any] = dict(stop_at_first_success=False, name=f"from {name}")
                report = self._report(oracle, attack, record, broken, **settings)
                record.add_attack(name, report, broken)
                self.save()

    def certify(
        self,
        record: BallRecord,
        certificates: Mapping[str, Callable],
        smaller: BallRecord | None,
        *,
        in_turn: bool,
    ):
        """Every certificate, on all images; `in_turn` bound propagation, and those after the first,
        on images in doubt.

        In doubt is what is certified in the ball of `smaller`, still correct and not certified yet.
        The largest margins come first, and a batch of which nothing is proven is the last.
        """
        network: Any = self.logits_fn
        for i, (name, certificate) in enumerate(certificates.items()):
            if name not in record.per_certificate:
                chosen: dict[str, Any] = {}
                if in_turn and (i > 0 or isinstance(certificate, AbstractBoundPropagation)):
                    in_doubt = record.still_correct & ~record.certified_correct
                    in_doubt &= True if smaller is None else smaller.certified_correct
                    order = np.argsort(-self.margins, kind="stable")
                    order = order[in_doubt[order]]
                    chosen = dict(order=order, until_none=True)
                started = time.perf_counter()
                radius = certified_radii(
                    network,
                    self.images,
                    self.labels,
                    record.ball,
                    certificate,
                    key=self.key,
                    name=name,
                    progress=self.settings["progress"],
                    **chosen,
                )
                alpha = getattr(certificate, "alpha_per_image", 0.0)
                if alpha:
                    radius = np.where(self._turned_by_chance(record, radius), 0.0, radius)
                seconds = time.perf_counter() - started
                n_tried = len(chosen.get("order", radius))
                record.add_certificate(
                    name, radius, seconds, alpha, n_tried=n_tried, in_turn=in_turn
                )
                self.save()

    def _turned_by_chance(self, record: BallRecord, radius: np.ndarray) -> np.ndarray:
        """The certified images, (n,) bool, whose vote an attack turned no further than chance may.

        A certificate of a `Smoothed` is about the exact vote, in which the class has at least half
        of the probability at x', and an attack is judged by the vote of finitely many draws.
        """
        turned = record.proven_by(radius) & ~record.still_correct
        network, judge = self.logits_fn, self.settings["judge"]
        if turned.any() and isinstance(network, Smoothed):
            from scipy.stats import binom

            i, draws = np.flatnonzero(turned), network.draws * len(judge.keys)
            logits = predict(judge, record.x_adv[i], key=self.key, batch_size=self.batch_size)
            share = logits[np.arange(len(i)), self.labels[i]] + 1 / logits.shape[1]
            turned[i] = binom.cdf(np.round(draws * share), draws, 0.5) > _CHANCE
        return turned

    def last_attack(self, records: Sequence[BallRecord], attack: Callable):
        """`attack` on the images that are neither broken nor certified, in the largest ball first.

        An image that is still correct there is not attacked in the smaller balls.
        """
        batch_size = min(self.batch_size, _LAST_BATCH)
        withstood = np.zeros(len(self.labels), bool)
        for record in reversed(records):
            if record.n_last is None:
                in_doubt = record.still_correct & ~record.certified_correct & ~withstood
                report = self._report(
                    self.logits_fn, attack, record, ~in_doubt, batch_size=batch_size
                )
                record.add_last(method_name(attack), report, in_doubt)
                self.save()
            withstood = withstood | record.withstood_last

    def verify(self, record: BallRecord, smaller: BallRecord | None, time_limit: float):
        """Branch and bound of the images that are neither broken nor certified.

        - `smaller`: the record of a smaller ball; what is open there is not tried.
        - `time_limit`: seconds for each image.
        """
        if BRANCH_AND_BOUND in record.per_certificate:
            return
        in_doubt = record.still_correct & ~record.certified_correct
        in_doubt &= True if smaller is None else smaller.certified_correct
        started, chosen = time.perf_counter(), np.flatnonzero(in_doubt)
        radius, x_adv = np.zeros(len(self.labels)), self.images.copy()
        if len(chosen):
            found = verify(
                self.logits_fn,
                self.images[chosen],
                self.labels[chosen],
                record.ball,
                time_limit=time_limit,
                key=self.key,
                progress=self.settings["progress"],
            )
            radius[chosen[found.status == "proven"]] = np.asarray(record.ball.eps)
            x_adv[chosen] = found.x_adv
            record.add_broken(chosen[found.status == "broken"], x_adv)
        seconds = time.perf_counter() - started
        record.add_certificate(BRANCH_AND_BOUND, radius, seconds, n_tried=len(chosen), in_turn=True)
        self.save()

    def _report(
        self,
        logits_fn: LogitsFn,
        attack: Callable,
        record: BallRecord,
        already_broken: np.ndarray | None,
        **settings: Any,
    ) -> AttackReport:
        settings = {**self.settings, "key": self.key, "batch_size": self.batch_size, **settings}
        return robust_accuracy(
            logits_fn,
            self.images,
            self.labels,
            record.ball,
            attack,
            already_broken=already_broken,
            **settings,
        )


def _broken(name: str, smaller: BallRecord | None) -> np.ndarray | None:
    """The images that the attack or oracle `name` broke in a smaller ball."""
    return None if smaller is None else ~smaller.still_correct_under[name]
