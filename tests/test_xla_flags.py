"""The flag that experiments and benchmarks give XLA before it compiles first."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "--xla_cpu_experimental_ynn_fusion_type"
OURS = f"{NAME}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
NEEDED = importlib.metadata.version("jaxlib").startswith("0.10.")  # others may not know it


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [OURS] if NEEDED else []),
        ("--xla_dump_to=there", ["--xla_dump_to=there", *([OURS] if NEEDED else [])]),
        (f"{NAME}=", [f"{NAME}="]),  # the user's own value stays
    ],
)
def test_scripts_set_the_flag_where_it_is_needed_and_not_given(package, given, expected):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {} if given is None else {"XLA_FLAGS": given}
    code = f"import os, {package}; print(os.environ.get('XLA_FLAGS', ''))"
    shown = subprocess.check_output([sys.executable, "-c", code], env=env, cwd=ROOT, text=True)
    assert shown.split() == expected
