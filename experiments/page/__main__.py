"""Write the results as a page: one HTML file, which needs neither a network nor a server.

    python -m experiments.page                   # runs/page/index.html
    python -m experiments.page --out FILE

It has every interval, every claim of the ledger, curves, adversarial examples, and the command and
commit of each result. Nothing is measured: it reads `experiments/results`, and of each result the
figures that are drawn of it. Seconds.
"""

import dataclasses
from pathlib import Path

from odejax._paths import writable_file, written_whole
from odejax.commands.command_line import UsageError, command, parse

from .content import content
from .render import render


@dataclasses.dataclass
class Config:
    """Write the results as one HTML file."""

    out: Path = Path("runs/page/index.html")
    """The file."""


def main():
    with command():
        config = parse(Config, __doc__)
        try:
            out = writable_file("--out", config.out)
        except ValueError as error:
            raise UsageError(str(error)) from None
        page = render(content())
        with written_whole(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
        print(f"{out} written, {len(page) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
