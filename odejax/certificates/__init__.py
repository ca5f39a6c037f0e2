"""Certificates: `certificate(predictor, x, y, ball, key=key) -> CertificateResult`, a proof."""

from .base import (
    AbstractCertificate as AbstractCertificate,
    AbstractDeterministicCertificate as AbstractDeterministicCertificate,
    AbstractLipschitzCertificate as AbstractLipschitzCertificate,
    CertificateResult as CertificateResult,
)
from .best import Best as Best, best as best
from .bound_propagation import (
    IntervalBounds as IntervalBounds,
    LinearRelaxation as LinearRelaxation,
)
from .lipschitz_margin import LipschitzMargin as LipschitzMargin
from .local_lipschitz import LocalLipschitz as LocalLipschitz
from .randomized_smoothing import RandomizedSmoothing as RandomizedSmoothing
from .stable_mapping import (
    FiniteTimeStableMapping as FiniteTimeStableMapping,
    FlowMapSlope as FlowMapSlope,
    StableMapping as StableMapping,
)
