"""Experiments: one script for each table and figure, run as `python -m experiments.NAME`."""

import importlib.metadata
import os

# On the CPU jaxlib 0.10 (Python 3.11) convolves with YNNPACK, which takes up to twice the time of
# XLA's own kernels; 0.12 uses those by itself. XLA reads this once, when it compiles first.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if importlib.metadata.version("jaxlib").startswith("0.10.") and _FLAG not in os.environ.get(
    "XLA_FLAGS", ""
):
    _value = f"{_FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_value}".strip()
