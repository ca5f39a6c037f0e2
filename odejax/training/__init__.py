"""Training: `fit`, and its objectives."""

from .._checkpoints import CheckpointError as CheckpointError
from .certified import CertifiedTraining as CertifiedTraining
from .constraints import (
    Penalised as Penalised,
    clip_weights as clip_weights,
    drift_penalty as drift_penalty,
    energy_penalty as energy_penalty,
    mixture_weights as mixture_weights,
    orthogonality_penalty as orthogonality_penalty,
    row_sum_penalty as row_sum_penalty,
)
from .fit import (
    Fit as Fit,
    TrainingDiverged as TrainingDiverged,
    clean_accuracy as clean_accuracy,
    fit as fit,
    steps_per_epoch as steps_per_epoch,
)
from .free import FreeAdversarial as FreeAdversarial
from .gradients import (
    AbstractGradientRule as AbstractGradientRule,
    Derivative as Derivative,
)
from .mixed_precision import MixedPrecision as MixedPrecision, in_precision as in_precision
from .objectives import (
    Adversarial as Adversarial,
    CrossEntropy as CrossEntropy,
    Hinge as Hinge,
    RadiusCrossEntropy as RadiusCrossEntropy,
    batch_logits as batch_logits,
)
from .rising_eps import RisingEps as RisingEps
from .trades import TRADES as TRADES
from .yopo import YOPO as YOPO
