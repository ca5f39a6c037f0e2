"""Evaluation: robustness as an interval, and results that can be believed."""

from .attack_flags import attack_flags as attack_flags
from .bracket import bracket as bracket
from .bracket_result import Bracket as Bracket, Brackets as Brackets, Entry as Entry
from .certified_radii import certified_radii as certified_radii
from .flags import (
    FLAGS as FLAGS,
    Flag as Flag,
    FlagKind as FlagKind,
    sequence_flags as sequence_flags,
    step_flags as step_flags,
    survivor_flags as survivor_flags,
)
from .intervals import confidence_interval as confidence_interval
from .probes import masking_flags as masking_flags
from .results import (
    ResultError as ResultError,
    decode_array as decode_array,
    encode_array as encode_array,
    load_result as load_result,
    provenance as provenance,
    save_result as save_result,
)
from .robust_accuracy import (
    AttackReport as AttackReport,
    robust_accuracy as robust_accuracy,
)
from .saved_state import StateError as StateError
from .solver_flags import (
    gradient_cosines as gradient_cosines,
    solver_flags as solver_flags,
    solver_variants as solver_variants,
)
from .transfer import TransferMatrix as TransferMatrix, transfer_matrix as transfer_matrix
from .verify import Verification as Verification, verify as verify
