"""What a GPU is needed for, a few minutes at a time: the next of what is not measured yet.

    python -m experiments.gpu --data-dir DIR              # ten minutes; again, and it goes on
    python -m experiments.gpu --preset smoke --minutes 2  # all of it in small, on a CPU

Without a GPU the first says what it would do, and how long that takes; so it does on any machine
with JAX_PLATFORMS=cpu.

First what the device attains (`benchmarks.device`), once for each kind of device. Then the claims
of the ledger that are not measured as in the paper: ResNet20 of *enresnet* on clean images, at full
length, and after it whatever measures most claims a minute. Each slice is the command of its
experiment, limited to a network, with its own folder of checkpoints in runs/gpu. Shortly before the
time is up it is interrupted, and what is finished is kept: epochs, and all records. Compiled
programs are kept, too. Everything is computed in float32, at the precision that XLA has for it.

How long a slice takes is estimated: its FLOP, counted from a trace, over the rate of the training
step that `benchmarks.device` measured, or where it has not, over an assumed share of the peak. Once
a slice has epochs, the seconds are theirs.
"""

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.device import result_path
from odejax._paths import writable_folder
from odejax.commands.command_line import UsageError, command, parse
from odejax.data import cache_dir
from odejax.evaluation import provenance

from ..lib.report import KEPT, print_all
from ..lib.run import check_choice, check_positive
from .cost import Counts
from .listing import REFERENCE, Listing, shown
from .slices import Slice, slices

PRESETS = ("paper", "smoke")
MARGIN_SECONDS = 20.0  # for an interrupted slice to end, at most a tenth of all
INTERRUPTED = 130  # the exit code of a command that was interrupted
KEPT_SO_FAR = "finished epochs and records are kept; the same command goes on"


@dataclasses.dataclass
class Config:
    """Run the next of the experiments that need a GPU, for some minutes."""

    minutes: float = 10.0
    """How long the command may take."""
    preset: str = "paper"
    """paper, or smoke: the benchmarks and *structured*'s networks in small, on a CPU too."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    out: Path = Path("runs/gpu")
    """Where the folders of the runs are."""
    publish: bool = False
    """Also copy the results of finished slices into experiments/results and experiments/figures."""


def attempt(words: list[str], *, until: float, margin: float, meanwhile: Iterator[None]) -> int:
    """The exit code of a command that is interrupted `margin` seconds before `until`.

    It is killed at `until`, by `time.monotonic`; its code then is that of an interruption, 130.
    `meanwhile` is gone on with as long as it runs.
    """
    process = subprocess.Popen(words, start_new_session=True)  # Ctrl-C is for this process alone
    interrupted = False
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now > until:
                process.kill()
                process.wait()
                return INTERRUPTED
            if now > until - margin and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
            if now > until - 2 * margin or next(meanwhile, "ended") == "ended":
                time.sleep(0.05)
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(margin)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    return process.wait()


def run_for(
    listing: Listing, first: dict[str, list[str]], config: Config, until: float
) -> list[str]:
    """Run the commands `first`, by name, and then slices; the names of those that failed.

    A slice is begun if one epoch of it has time, and not again once it has failed. Two that fail
    one after the other end it all, as where the data are missing.
    """
    margin = min(MARGIN_SECONDS, 6 * config.minutes)
    counting, in_a_row = listing.count(), 0

    def code_of(name: str, words: list[str]) -> int:
        print(f"== {name}: {(until - time.monotonic()) / 60:.1f} minutes remain", flush=True)
        words = [sys.executable, *words]
        return attempt(words, until=until, margin=margin, meanwhile=counting)

    failed = [name for name, words in first.items() if code_of(name, words) not in (0, INTERRUPTED)]
    while in_a_row < 2 and (piece := _next(listing, failed, until - margin)) is not None:
        code = code_of(piece.name, _words(piece, config))
        well = listing.has(piece) if code == 0 else code == INTERRUPTED
        in_a_row = 0 if well else in_a_row + 1
        failed += [] if well else [piece.name]
    return failed


def _next(listing: Listing, failed: list[str], until: float) -> Slice | None:
    """The first slice of which an epoch, at least, can be finished."""
    seconds = until - time.monotonic()
    for piece, cost in listing.remaining():
        if piece.name not in failed and (seconds > 0 if cost is None else cost.fits(seconds)):
            return piece
    return None


def _words(piece: Slice, config: Config) -> list[str]:
    """The slice's command, after "python"; a result that is published goes on in its folder."""
    folder = config.out / piece.result
    folder.mkdir(parents=True, exist_ok=True)
    kept = KEPT / "results" / f"{piece.result}.json"
    if kept.exists() and not (folder / "result.json").exists():
        shutil.copy(kept, folder / "result.json")
    words = [*piece.command, "--resume", "--out", str(folder)]
    words += [] if config.data_dir is None else ["--data-dir", str(config.data_dir)]
    return words + ["--publish"] * config.publish


def device_of_jax() -> tuple[str, str]:
    """Platform and kind of the device, asked of another process: this one leaves it alone."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        raise UsageError(f"JAX has no device: {asked.stderr.strip().splitlines()[-1]}")
    platform, kind = asked.stdout.splitlines()[-2:]
    return platform, kind


def main(started: float):
    """The command, which began at `started`, by `time.monotonic`."""
    with command(interrupted=KEPT_SO_FAR):
        _main(started)


def _main(started: float):
    config = parse(Config, __doc__)
    check_choice("preset", config.preset, PRESETS)
    check_positive(config, "minutes")
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise UsageError(f"--data-dir: {config.data_dir} is no folder")
    try:
        config.out = writable_folder("--out", config.out)
    except ValueError as error:
        raise UsageError(str(error)) from None
    platform, device = device_of_jax()
    has_gpu, smoke = platform != "cpu", config.preset == "smoke"
    pieces, others = slices()
    counts = Counts(cache_dir() / "flop.json", str(provenance(0)["commit"]))
    listing = Listing(pieces, config.out, counts, device if has_gpu else REFERENCE, others)
    if smoke:
        small = [piece.smoke() for piece in pieces if piece.kind == "structured"]
        listing = Listing(small, config.out)
    benchmark = ["-m", "benchmarks.device", *(["--quick"] if smoke else [])]
    first = {"benchmarks": benchmark}
    if not smoke and result_path(device).exists():
        first = {}
    if not (has_gpu or smoke):
        uncounted = sum(1 for _ in counts.uncounted(pieces))
        if uncounted:
            print(f"counting the FLOP of {uncounted} training steps, once for each commit")
        for _ in listing.count():
            pass
        print_all(shown(listing, config.minutes))
        print(f"no GPU: nothing was run. On one, first: python {' '.join(benchmark)}")
        return
    failed = run_for(listing, first, config, started + 60 * config.minutes)
    print_all(shown(listing, config.minutes))
    if failed:
        sys.exit(f"error: failed, for the reasons above: {'; '.join(failed)}")
