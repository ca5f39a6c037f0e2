"""Where the suite's time goes: what each test traces, compiles and takes from the cache.

    python -m pytest -n auto --dist worksteal -p tests.profiling [FILES]

prints the totals and the costliest files; $ODEJAX_PROFILE names a folder that keeps the table.
"""

import gc
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

_SECONDS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_COUNTS = {
    "/jax/compilation_cache/cache_hits": "hits",
    "/jax/compilation_cache/cache_misses": "misses",
}
_counts = Counter()


def _folder():
    # The workers inherit the variable from the process that started them.
    if "ODEJAX_PROFILE" not in os.environ:
        os.environ["ODEJAX_PROFILE"] = tempfile.mkdtemp()
    return Path(os.environ["ODEJAX_PROFILE"])


def pytest_configure(config):
    import jax

    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(config, "workerinput"):
        for file in folder.glob("*.jsonl"):
            file.unlink()

    def duration(event, seconds, **_):
        if event in _SECONDS:
            _counts[_SECONDS[event]] += seconds
            _counts["n_" + _SECONDS[event]] += 1

    def count(event, **_):
        if event in _COUNTS:
            _counts[_COUNTS[event]] += 1

    def collected(phase, _):
        _counts["gc"] += time.perf_counter() * (1 if phase == "stop" else -1)

    gc.callbacks.append(collected)
    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(count)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    before, start = Counter(_counts), time.perf_counter()
    yield
    row = {"test": item.nodeid, "wall": time.perf_counter() - start} | {
        name: n - before[name] for name, n in _counts.items()
    }
    with open(_folder() / f"{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def pytest_terminal_summary(terminalreporter):
    files, total = {}, Counter()
    for file in _folder().glob("*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            own = files.setdefault(row.pop("test").split("::")[0], Counter())
            for counter in (own, total):
                counter.update(row | {"tests": 1})
    columns = ["tests", "wall", "gc", "trace", "lower", "compile", "n_compile", "hits", "misses"]
    terminalreporter.section("seconds and programs, summed over the workers")
    rows = sorted(files.items(), key=lambda pair: -pair[1]["wall"])
    terminalreporter.write_line(f"{'file':44}" + "".join(f"{name:>10}" for name in columns))
    for name, counter in [("all", total), *rows]:
        cells = "".join(f"{counter[c]:10.0f}" for c in columns)
        terminalreporter.write_line(f"{name:44}{cells}")
