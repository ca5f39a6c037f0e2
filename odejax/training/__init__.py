"""Training: `fit`, and the objectives handed to it."""

from .checkpoints import CheckpointError as CheckpointError
from .fit import (
    Fit as Fit,
    TrainingDiverged as TrainingDiverged,
    clean_accuracy as clean_accuracy,
    fit as fit,
    steps_per_epoch as steps_per_epoch,
)
from .objectives import (
    Adversarial as Adversarial,
    CrossEntropy as CrossEntropy,
    batch_logits as batch_logits,
)
