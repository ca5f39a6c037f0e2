"""Attacks: `attack(logits_fn, x, y, ball, key=key) -> AttackResult` on one example."""

from .base import (
    AbstractAttack as AbstractAttack,
    AttackResult as AttackResult,
    check_labels as check_labels,
    check_pixels as check_pixels,
    logit_margin as logit_margin,
)
from .fgsm import FGSM as FGSM
from .losses import cross_entropy as cross_entropy
from .pgd import PGD as PGD
