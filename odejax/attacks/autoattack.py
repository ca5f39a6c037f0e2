"""Sequences of attacks, and the AutoAttack suite."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_instance
from .._threat_model import AbstractBall
from .._types import Image, Key, Label, LogitsFn
from .apgd import APGD
from .base import AbstractAttack, logit_margin
from .compose import EOT, Restarts, Targeted
from .fab import FAB
from .iterative import Loss
from .losses import dlr
from .square import Square


class AutoAttack(AbstractAttack):
    """Several attacks in turn, by default the `standard` suite.

    `evaluation.robust_accuracy` runs each only on the examples that are still classified correctly.
    Called on one example, all of them run, and the image with the smallest margin is returned.

    - `attacks`: a mapping from names to attacks. None, the default, is `standard()`.

    Ready-made suites (`classes`: the number of target classes; `loss`: what the DLR attacks climb):

    - `standard()`: APGD-CE, APGD-T on the DLR loss and FAB-T (9 target classes, 100 steps), Square
      (5,000 queries).
    - `rand()`: APGD-CE and APGD-DLR, averaged over 20 draws, for networks that draw noise.
    - `plus()`: APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, APGD-T, FAB-T.

    The targeted DLR loss needs 4 classes, the other 3: with fewer, pass `loss=margin_loss`. Raises
    `ValueError` for an empty mapping.

    >>> from odejax.attacks import APGD, AutoAttack, Square
    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.LinfBall(0.1), jax.random.key(0)
    >>> suite = AutoAttack({"APGD-CE": APGD(steps=5), "Square": Square(n_queries=10)})
    >>> bool(suite(logits_fn, x, 0, ball, key=key).success), list(AutoAttack.standard().attacks)
    (True, ['APGD-CE', 'APGD-T', 'FAB-T', 'Square'])

    Croce and Hein 2020, arXiv:2003.01690.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    parts: tuple[AbstractAttack, ...]

    def __init__(self, attacks: Mapping[str, AbstractAttack] | None = None):
        attacks = _standard(9, dlr) if attacks is None else attacks
        check_instance(Mapping, "a mapping from names to attacks", attacks=attacks)
        if not attacks:
            raise ValueError("a sequence of attacks needs at least one")
        # Not a dictionary, whose order `jit` would change.
        self.names, self.parts = tuple(attacks), tuple(attacks.values())

    @property
    def attacks(self) -> dict[str, AbstractAttack]:
        """The attacks by name, in order."""
        return dict(zip(self.names, self.parts, strict=True))

    @staticmethod
    def standard(classes: int = 9, *, loss: Loss = dlr) -> "AutoAttack":
        """The standard suite, for deterministic networks."""
        return AutoAttack(_standard(classes, loss))

    @staticmethod
    def rand(draws: int = 20, *, loss: Loss = dlr) -> "AutoAttack":
        """The suite for networks that draw noise: gradients are means over 20 draws of it."""
        return AutoAttack({"APGD-CE": EOT(APGD(), draws), "APGD-DLR": EOT(APGD(loss=loss), draws)})

    @staticmethod
    def plus(classes: int = 9, *, loss: Loss = dlr) -> "AutoAttack":
        """The standard suite, and restarts: for deterministic networks, at a higher cost."""
        return AutoAttack(
            {
                "APGD-CE": Restarts(APGD(), 5),
                "APGD-DLR": Restarts(APGD(loss=loss), 5),
                "FAB": Restarts(FAB(), 5),
                "Square": Square(),
                "APGD-T": Targeted(APGD(loss=loss), classes),
                "FAB-T": Targeted(FAB(), classes),
            }
        )

    def perturb(
        self, logits_fn: LogitsFn, x: Image, y: Label, ball: AbstractBall, *, key: Key
    ) -> tuple[Image, Int[Array, ""]]:
        judge_key, key = jax.random.split(key)
        adversarial, smallest, queries = x, jnp.asarray(jnp.inf, x.dtype), jnp.asarray(0)
        for i, attack in enumerate(self.attacks.values()):
            attack_key = jax.random.fold_in(key, i)
            x_adv, spent = attack.perturb(logits_fn, x, y, ball, key=attack_key)
            x_adv = ball.project(x_adv, x)
            margin = logit_margin(logits_fn(x_adv, key=judge_key), y)
            adversarial = jnp.where(margin < smallest, x_adv, adversarial)
            smallest = jnp.minimum(smallest, margin)
            queries += spent + 1
        return adversarial, queries


def _standard(classes: int, loss: Loss) -> dict[str, AbstractAttack]:
    return {
        "APGD-CE": APGD(),
        "APGD-T": Targeted(APGD(loss=loss), classes),
        "FAB-T": Targeted(FAB(), classes),
        "Square": Square(),
    }
