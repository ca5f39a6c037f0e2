"""Shape checks, the compilation cache and the data marker, for the whole test session."""

import gc
import itertools
import os
import time
import zlib
from importlib.metadata import version
from pathlib import Path

# Before NumPy is imported: threads of its own in every worker only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxtyping
import pytest

# Tests compile more than they compute. Without LLVM's optimisations the suite takes two thirds of
# the time from an empty cache; XLA's older code for fused loops, where it still has that, compiles
# in a third of the time again. Whoever wants to test the optimised code sets the level to 3.
LEVEL, EMITTERS = "--xla_backend_optimization_level", "--xla_cpu_use_fusion_emitters"
if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), f"{LEVEL}=0"]
    if version("jaxlib").startswith("0.10."):
        flags.append(f"{EMITTERS}=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)

import experiments  # noqa: E402, F401  (sets a flag that compiled programs are cached by)

# Before anything imports odejax: every annotated function then checks what it is given. That takes
# a tenth of the suite's time and 10 s of every process that starts, so only `make test-slow` does.
if os.environ.get("ODEJAX_CHECK_SHAPES"):
    jaxtyping.install_import_hook("odejax", "type_checker.check")

import odejax  # noqa: E402

# Virtual ones, for the tests of many; what is in no mesh runs on the first.
jax.config.update("jax_num_cpu_devices", 8)
# However fast a program compiles, it is kept: a suite compiles thousands of them.
for option, value in {
    "jax_compilation_cache_dir": str(odejax.data.cache_dir() / "xla"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)  # for notebooks and whatever else a test starts


_KEPT_SECONDS = 30 * 24 * 3600


def pytest_sessionstart(session):
    """Forget the programs of a month ago; no run of the suite needs most of them."""
    if not hasattr(session.config, "workerinput"):
        for file in (odejax.data.cache_dir() / "xla").glob("*"):
            if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                file.unlink(missing_ok=True)


def pytest_collection_finish(session):
    """JAX's tracing makes many small objects, and Python would look through all of them, over and
    over, for cycles: a tenth of the suite's time. What stays to the end is not looked through."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    # Taken out: a test that starts pytest itself means all that it names.
    if share := os.environ.pop("ODEJAX_SHARE", None):
        _keep_share(config, items, share)
    if not os.environ.get("ODEJAX_DATA_DIR"):
        skip = pytest.mark.skip(reason="needs prepared data: set ODEJAX_DATA_DIR")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)


def _keep_share(config, items, share):
    """Of "2/4", the second quarter: the same tests in every worker, from all files."""
    number, n = map(int, share.split("/"))
    assert 1 <= number <= n, share
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % n == number - 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture
def unchecked():
    """As users have it, without shape checks: for errors that the library raises by itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


_MAPS, _count = Path("/proc/self/maps"), itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs are memory maps, and with 65,530 of those Linux ends a process."""
    yield
    if next(_count) % 10 == 0 and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()
        gc.collect()
