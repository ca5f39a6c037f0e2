"""The entries of the reference: a line for each public name, with a link to its source.

The site shows the whole docstring in its place (`docs_tools.stage`).
"""

import os
import re
from pathlib import Path

from docs_tools.names import PACKAGES, file_of, summary

# With or without the link and the sentence: who adds a name writes "- `Name`".
ENTRY = re.compile(r"^- \[?`(\w+)`(?:\]\(.*)?\n", re.MULTILINE)


def package_of(page: Path) -> str | None:
    """The package that a page of `docs/api` describes; None for any other page."""
    package = "odejax" if page.stem == "odejax" else f"odejax.{page.stem}"
    return package if page.parent.name == "api" and package in PACKAGES else None


def with_entries(page: Path, text: str) -> str:
    """The text of a page of the reference with its entries made anew."""
    package = package_of(page)
    if package is None:
        return text

    def entry(match: re.Match[str]) -> str:
        name = match[1]
        source = os.path.relpath(file_of(package, name), page.parent)
        return f"- [`{name}`]({source}): {summary(package, name)}\n"

    return ENTRY.sub(entry, text)
