"""Docstrings as Markdown: examples and equations as code, public names as links."""

import re
from functools import cache

from docs_tools.names import PACKAGES, path_of, public_names

_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})\b")
_CODE = re.compile(r"(?<![\[`])`([A-Za-z_][\w.]*)((?:\([^`]*\))?)`(?!`)")
_WORD = re.compile(r"[a-z]+")  # as likely the name of an argument as that of a function


@cache
def _paths() -> dict[str, str]:
    """By name, with and without its package; a name that two packages export is the first one's."""
    paths: dict[str, str] = {}
    for package in PACKAGES:
        for name in public_names(package):
            path = path_of(package, name)
            paths.setdefault(name, path)
            full = f"{package}.{name}"
            paths |= {full: path, full.removeprefix("odejax."): path}
    return paths


def as_markdown(docstring: str, own: str = "") -> str:
    """Examples fenced, so that `>>>` is no quotation, and public names in backticks linked.

    - `own`: the name that is described, which is not linked to itself.
    """

    def linked(line: str) -> str:
        def link(match: re.Match[str]) -> str:
            path = _paths().get(match[1])
            unclear = _WORD.fullmatch(match[1]) and not match[2]
            if path is None or match[1] == own or unclear:
                return match[0]
            return f"[`{match[1]}{match[2]}`][{path}]"

        return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", _CODE.sub(link, line))

    lines, example, in_list = [], None, False
    for line in [*docstring.splitlines(), ""]:
        text = line.lstrip()
        if example is not None:
            lines.append(line[example:] if text else "```\n")
            example = example if text else None
        elif text.startswith(">>> "):
            example, in_list = len(line) - len(text), False
            lines += ["```pycon", text]
        elif line.startswith("- "):
            in_list = True
            lines.append(linked(line))
        elif in_list and line.startswith("  "):
            lines.append("  " + linked(line))  # Markdown wants four spaces within a list
        elif line.startswith("    ") or not text:
            lines.append(line)
        else:
            in_list = False
            lines.append(linked(line))
    return "\n".join(lines)
