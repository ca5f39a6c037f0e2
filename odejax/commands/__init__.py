"""The command line, `odejax` or `python -m odejax`: evaluate, attack, compare, list."""

import sys
from typing import Annotated

import tyro

from .._version import __version__
from .attack import Attack
from .command_line import UsageError as UsageError, command, parse
from .compare import Compare
from .evaluate import Evaluate
from .listing import List

ABOUT = """How robust is a network? Certified <= true robust accuracy <= attacked.

`odejax COMMAND --help` explains a command; `--version` prints the version;
`--tyro-print-completion bash` prints what completes commands in a shell (bash or zsh)."""


def main() -> None:
    """Run the command that the command line asks for."""
    if sys.argv[1:] == ["--version"]:
        print(f"odejax {__version__}")
        return
    with command(ValueError, interrupted="with --json the next run goes on from here"):
        options = (
            Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
            | Annotated[Attack, tyro.conf.subcommand("attack")]
            | Annotated[Compare, tyro.conf.subcommand("compare")]
            | Annotated[List, tyro.conf.subcommand("list")]
        )
        parse(options, ABOUT, prog="odejax")()
