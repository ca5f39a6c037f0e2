"""How a command reads its options and ends: one line on standard error for what a user can mend."""

import contextlib
import io
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import tyro

from ..data import cache_dir
from ..evaluation import ResultError, StateError


class UsageError(ValueError):
    """A wrong argument; the message says what is accepted."""


@contextlib.contextmanager
def command(*mended: type[Exception], interrupted: str = "nothing was kept") -> Iterator[None]:
    """A command from its start to its end.

    What a user can mend ends with one line on standard error and exit code 2, Ctrl-C, or a SIGTERM,
    with 130. Compiled programs are kept from one run to the next.

    - `mended`: other exceptions that a user can mend.
    - `interrupted`: what became of the work.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # imports had one of their own
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    enable_compilation_cache()
    try:
        yield
    # Of OSErrors a missing data set is one.
    except (UsageError, ResultError, StateError, FloatingPointError, OSError, *mended) as error:
        sys.exit(_failed(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_failed(f"interrupted; {interrupted}", 130))


def parse(options: Any, about: str | None, **settings: Any) -> Any:
    """The options of the command line; `UsageError`, in one line, for a wrong one."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(options, description=about, **settings)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        # tyro explains itself in a box of several lines; its words, without the box.
        words = re.sub(r"[─━│╭╮╰╯\s]+", " ", message.getvalue()).strip()
        raise UsageError(words) from None


def enable_compilation_cache():
    """Keep compiled programs in `odejax.data.cache_dir() / "xla"` from one run to the next.

    A cache that is set already, by $JAX_COMPILATION_CACHE_DIR or before, stays as it is.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _failed(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
