"""How a command reads its options and ends: one line on standard error for what a user can mend."""

import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import tyro
from rich.console import Console

from ..data import cache_dir
from ..evaluation import ResultError, StateError

# What is written in other programs for it.
_HINTS = dict.fromkeys(
    ("--eps", "--epsilon", "--radius", "--norm", "--l1"),
    " (a radius is given by --linf 0.1, or --l2 0.5)",
)


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that a terminal of ASCII does not have
            stream.reconfigure(errors="backslashreplace")
    ignored, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    except BrokenPipeError:  # a reader such as `head` has read enough
        _silence()
        sys.exit(0)
    # Of OSErrors a missing data set is one.
    except (UsageError, ResultError, StateError, FloatingPointError, OSError, *mended) as error:
        sys.exit(_failed(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_failed(f"interrupted; {interrupted}", 130))
    finally:
        sys.unraisablehook = ignored


def _interrupt_again(lost: Any):
    """Python ignores what is raised in a destructor, or in JAX's callback of garbage collection."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def say(text: Any, *, go_on: bool = False):
    """Print a line, as it is.

    - `go_on`: whether the command has more to do where a reader such as `head` has read enough.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        if not go_on:
            raise
        _silence()


class Terminal(Console):
    """Prints tables; where a reader has read enough it raises what `print` raises."""

    def on_broken_pipe(self):
        raise  # of rich's own accord it would end with exit code 1


def _silence():
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(options: Any, about: str | None, **settings: Any) -> Any:
    """The options of the command line; `UsageError`, in one line, for a wrong one."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(options, description=about, **settings)
    except ImportError:  # of what tyro wants for the completion of tcsh
        raise UsageError("--tyro-print-completion is for bash or zsh") from None
    except SystemExit as stop:
        if stop.code != 2:
            raise
        words = _one_line(message.getvalue())
        hint = next((hint for option, hint in _HINTS.items() if option in words), "")
        raise UsageError(f"{words}{hint}") from None


def _one_line(box: str) -> str:
    """What tyro explains in a box: a title, which the words may repeat, and these between rules."""
    sections = [""]
    for line in box.splitlines():
        words = " ".join(re.sub(r"[─━│╭╮╰╯]|-{3,}", " ", line).split())
        sections[-1] = f"{sections[-1]} {words}".strip()
        if not words or line.startswith("╭"):  # a rule, or the title in the box's upper edge
            sections.append("")
    title, *words = [part[:1].lower() + part[1:] for part in sections if part]
    said = "; ".join(words).replace(".; ", "; ")
    return said if said.startswith(title) else f"{title}: {said}"


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
