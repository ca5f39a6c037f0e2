"""A script for each table and figure, in a folder for each paper: `experiments.natural.tables`."""

import importlib.metadata
import os
import signal
import sys


def _stop(number, frame):
    sys.stderr.write("error: interrupted; nothing was kept\n")
    sys.stderr.flush()
    os._exit(130)  # no import that is under way reports what it was stopped at


# While a script is imported, which takes seconds; `lib.run.run` has a handler of its own.
if sys.argv[0] == "-m":
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)

# On the CPU jaxlib 0.10 (Python 3.11) convolves with YNNPACK, which takes up to twice the time of
# XLA's own kernels; 0.12 uses those by itself. XLA reads this once, when it compiles first.
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
if importlib.metadata.version("jaxlib").startswith("0.10.") and _FLAG not in os.environ.get(
    "XLA_FLAGS", ""
):
    _value = f"{_FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_value}".strip()
