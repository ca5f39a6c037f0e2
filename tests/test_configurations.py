"""What people have JAX set to: the contracts hold there too, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CONTRACTS = ("test_models_contract.py", "test_attacks_contract.py")
SETTINGS = {
    "float64": {"JAX_ENABLE_X64": "1"},
    "no promotion": {
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_contracts_hold_whatever_jax_is_set_to(settings):
    files = [str(TESTS / name) for name in CONTRACTS]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | settings
    for variable in ("ODEJAX_CHECK_SHAPES", "ODEJAX_SHARE"):  # all of the tests, as users have them
        environment.pop(variable, None)
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
