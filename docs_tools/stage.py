"""The pages that the site is built from: those of `docs/`, whose links are made for GitHub.

    python -m docs_tools.stage     # writes build/docs

- A figure of `experiments/figures` is copied to the site.
- A link to any other file of the repository goes to `repo_url`.
- An entry of the reference becomes the whole docstring.
"""

import os
import re
import shutil
import tomllib
from pathlib import Path

from docs_tools.names import path_of
from docs_tools.reference import ENTRY, package_of

ROOT = Path(__file__).parents[1]
DOCS, FIGURES = ROOT / "docs", ROOT / "experiments" / "figures"
STAGED = ROOT / "build" / "docs"

# On GitHub one reads how to make this page; the site has it.
_ALL_RESULTS = (ROOT / "experiments" / "README.md", "#all-results-on-one-page")
_OUTWARDS = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def staged(page: Path) -> str:
    """A page of `docs/` as the site has it."""
    text = _OUTWARDS.sub(
        lambda link: f"]({_on_site(page, link[1], link[2] or '')})", page.read_text()
    )
    if package := package_of(page):
        text = ENTRY.sub(lambda entry: f"::: {path_of(package, entry[1])}\n", text)
    return text


def _on_site(page: Path, link: str, anchor: str) -> str:
    target = Path(os.path.normpath(page.parent / link))
    if target.is_relative_to(DOCS):
        return link + anchor
    if (target, anchor) == _ALL_RESULTS:
        return os.path.relpath(DOCS / "all_results.html", page.parent)
    if target.parent == FIGURES:
        return os.path.relpath(DOCS / "figures" / target.name, page.parent)
    settings = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    return f"{settings['repo_url']}/blob/main/{target.relative_to(ROOT).as_posix()}{anchor}"


def stage(folder: Path = STAGED) -> None:
    """Write all pages, with the style sheet and the figures, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder)
    shutil.copytree(FIGURES, folder / "figures")
    for page in DOCS.rglob("*.md"):
        (folder / page.relative_to(DOCS)).write_text(staged(page))


if __name__ == "__main__":
    stage()
