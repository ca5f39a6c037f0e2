"""The blocks of a Markdown page, run from top to bottom as a reader would.

    ODEJAX_UPDATE_PAGES=1 python -m pytest tests/test_pages.py     # writes what they print

- ```` ```python ````: runs, in one namespace for the whole page.
- ```` ```python title="my_attack.py" ````: is written to that file, which later blocks may import.
- ```` ```text title="Output" ````: what the block above it prints.
- ```` ```text title="Output (your numbers may differ)" ````: the same, its numbers not compared.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

EXACT, SIMILAR = "Output", "Output (your numbers may differ)"
_INFO = re.compile(r'(?P<language>\w+)(?: title="(?P<title>[^"]*)")?[^\n]*\n')
_LEXER = RawFencedCodeBlockLexer(_INFO)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_PRINTED = " printed"  # no name that a page can have


def blocks(path: Path) -> list[dict[str, Any]]:
    """The fenced blocks of a page, those of Python and of what it prints alone: dictionaries of
    "language", "title" (None without one) and "source"."""
    return [region.lexemes for region in _LEXER(Document(path.read_text(), str(path)))]


class Changed(NamedTuple):
    """An output that is another than the page says: where, what it says, what was printed."""

    line: int
    span: tuple[int, int]
    title: str
    expected: str
    printed: str


class _Blocks:
    def __init__(self) -> None:
        self.changed: list[Changed] = []

    def parse(self, document: Document):
        for region in _LEXER(document):
            language, title = region.lexemes["language"], region.lexemes["title"]
            if language == "python":
                region.evaluator = _write if title else _run
            elif language == "text" and title in (EXACT, SIMILAR):
                region.evaluator = self._compare
            else:
                continue
            region.parsed = region.lexemes["source"]
            yield region

    def _compare(self, example: Example) -> None:
        printed = example.namespace[_PRINTED]
        expected, title = str(example.parsed), example.region.lexemes["title"]
        same = _numbers_aside if title == SIMILAR else _as_it_is
        if same(printed) != same(expected):
            span = (example.region.start, example.region.end)
            self.changed.append(Changed(example.line, span, title, expected, printed))


def run_page(path: Path, folder: Path) -> list[Changed]:
    """Run a page in `folder`, and return every output that is another than the page says."""
    of_page = _Blocks()
    document = Sybil([of_page.parse]).parse(path)
    document.namespace["__name__"] = "page"
    with contextlib.chdir(folder):
        for example in document.examples():
            example.evaluate()
    return of_page.changed


def update_page(path: Path, changed: list[Changed]) -> None:
    """Write what was printed into the page."""
    text = path.read_text()
    for output in reversed(changed):
        start, end = output.span
        text = f'{text[:start]}```text title="{output.title}"\n{output.printed}```{text[end:]}'
    path.write_text(text)


def _run(example: Example) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        PythonEvaluator()(example)
    example.namespace[_PRINTED] = _as_it_is(printed.getvalue()) + "\n"


def _write(example: Example) -> None:
    file = Path(example.region.lexemes["title"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(example.parsed))


def _as_it_is(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _numbers_aside(text: str) -> str:
    return " ".join(_NUMBER.sub("0", text).split())
