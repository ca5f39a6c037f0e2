"""Certificates: `certificate(predictor, x, y, ball, key=key) -> CertificateResult`, a proof."""

from .base import (
    AbstractCertificate as AbstractCertificate,
    CertificateResult as CertificateResult,
)
from .lipschitz_margin import LipschitzMargin as LipschitzMargin
from .stable_mapping import (
    FiniteTimeStableMapping as FiniteTimeStableMapping,
    StableMapping as StableMapping,
)
