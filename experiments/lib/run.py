"""What all experiment scripts share: the command line, its errors, and data."""

import contextlib
import dataclasses
import io
import re
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from odejax.data import ArrayDataset, cache_dir, load
from odejax.evaluation import ResultError, StateError, provenance
from odejax.training import CheckpointError

Config = TypeVar("Config")
Setting = TypeVar("Setting")


class UsageError(ValueError):
    """A wrong argument; the message says what is accepted."""


def run(main: Callable[[Config], None], config: type[Config]) -> None:
    """Parse the command line into `config` and run `main`.

    What a user can mend ends with one line on standard error and exit code 2, Ctrl-C, or a
    SIGTERM, with 130.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # imports had one of their own
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    enable_compilation_cache()
    provenance(0)  # of the code as it is now, whatever is committed during the run
    try:
        main(_parse(config))
    except (
        UsageError,
        ResultError,
        CheckpointError,
        StateError,
        FloatingPointError,
        OSError,  # a missing data set among them
    ) as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        kept = "finished epochs and models are kept, go on with --resume"
        resumes = "resume" in (field.name for field in dataclasses.fields(config))  # pyright: ignore
        sys.exit(_fail(f"interrupted; {kept if resumes else 'nothing was kept'}", 130))


@dataclasses.dataclass
class RunConfig:
    """What every script that can be resumed takes."""

    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    out: Path | None = None
    """Run folder; by default runs/SCRIPT/DATASET."""
    resume: bool = False
    """Go on with the run in the folder."""
    overwrite: bool = False
    """Start anew in a folder that holds a run, whose result and checkpoints are lost."""
    publish: bool = False
    """Also copy the result and figure into experiments/results and experiments/figures."""

    def settle(self, setting: Setting) -> Setting:
        """`setting` with the epochs and test images that were asked for in the place of its own."""
        asked = {name: getattr(self, name) for name in ("epochs", "test_images")}
        check_counts(self, *asked)
        changes = {name: n for name, n in asked.items() if n}
        return dataclasses.replace(setting, **changes)  # pyright: ignore[reportArgumentType]


def check_choice(what: str, value: str, accepted: Collection[str]) -> None:
    """`UsageError` for a name that is not among the accepted ones."""
    if value not in accepted:
        raise UsageError(f"unknown {what} {value!r}; accepted: {', '.join(accepted)}")


def check_choices(what: str, values: Collection[str], accepted: Collection[str]) -> None:
    """`UsageError` for an empty list of names, or one that is not among the accepted ones."""
    if not values:
        raise UsageError(f"no {what}s; accepted: {', '.join(accepted)}")
    for value in values:
        check_choice(what, value, accepted)


def check_counts(config: Any, *names: str) -> None:
    """`UsageError` for a field of `config` that is neither None nor at least 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name.replace('_', '-')} must be at least 1; got {value}")


def load_data(config: Any, test_images: int) -> tuple[ArrayDataset, ArrayDataset]:
    """The training and the test set of `config.dataset`; `UsageError` where the latter is short."""
    train, test = (
        load(config.dataset, split, data_dir=config.data_dir) for split in ("train", "test")
    )
    if test_images > len(test):
        raise UsageError(f"{test.name} has {len(test)} test images; got {test_images}")
    return train, test


def enable_compilation_cache():
    """Keep compiled programs in `odejax.data.cache_dir() / "xla"` from one run to the next.

    A cache that is set already, by $JAX_COMPILATION_CACHE_DIR or before, stays as it is.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _parse(config: type[Config]) -> Config:
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(config)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        # tyro explains itself in a box of several lines; its words, without the box.
        words = re.sub(r"[─━│╭╮╰╯\s]+", " ", message.getvalue()).strip()
        raise UsageError(words) from None


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
