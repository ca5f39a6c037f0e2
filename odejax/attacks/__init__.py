"""Attacks: `attack(logits_fn, x, y, ball, key=key) -> AttackResult` on one example."""

from .apgd import APGD as APGD
from .autoattack import AutoAttack as AutoAttack
from .base import (
    AbstractAttack as AbstractAttack,
    AttackResult as AttackResult,
    RelativeStep as RelativeStep,
    StepSize as StepSize,
    default_step as default_step,
    logit_margin as logit_margin,
)
from .boundary import Boundary as Boundary
from .carlini_wagner import (
    CarliniWagner as CarliniWagner,
    CarliniWagnerLinf as CarliniWagnerLinf,
)
from .compose import EOT as EOT, Restarts as Restarts, Targeted as Targeted
from .deepfool import DeepFool as DeepFool
from .fab import FAB as FAB
from .fgsm import FGSM as FGSM
from .iterative import (
    AbstractIterativeAttack as AbstractIterativeAttack,
    AttackProblem as AttackProblem,
    BestAdversarial as BestAdversarial,
    start as start,
    step as step,
)
from .losses import cross_entropy as cross_entropy, dlr as dlr, margin_loss as margin_loss
from .momentum import DI2FGSM as DI2FGSM, MIFGSM as MIFGSM
from .pgd import IFGSM as IFGSM, PGD as PGD, AbstractClimb as AbstractClimb
from .spsa import SPSA as SPSA
from .square import Square as Square
