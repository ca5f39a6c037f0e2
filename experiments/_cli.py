"""What all experiment scripts share: the command line, its errors, and the compilation cache."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import tyro

from odejax.data import cache_dir
from odejax.evaluation import ResultError
from odejax.training import CheckpointError

Config = TypeVar("Config")


class UsageError(ValueError):
    """A wrong argument; the message says what is accepted."""


def run(main: Callable[[Config], None], config: type[Config]) -> None:
    """Parse the command line into `config` and run `main`.

    What a user can mend ends with one line on standard error and exit code 2, Ctrl-C with 130.
    """
    enable_compilation_cache()
    try:
        main(_parse(config))
    except (
        UsageError,
        ResultError,
        CheckpointError,
        FloatingPointError,
        OSError,  # a missing data set among them
    ) as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(
            _fail("interrupted; finished epochs and models are kept, go on with --resume", 130)
        )


def enable_compilation_cache():
    """Keep compiled programs in `odejax.data.cache_dir() / "xla"` from one run to the next."""
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
