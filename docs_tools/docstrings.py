"""How docstrings become pages: examples and equations as code, public names as links, signatures.

A Griffe extension for mkdocstrings (`zensical.toml`).
"""

import importlib
import inspect
import re
from functools import cache
from typing import Any

import griffe

from docs_tools.names import PACKAGES, path_of, public_names

_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})\b")
_CODE = re.compile(r"(?<![\[`])`([A-Za-z_][\w.]*)((?:\([^`]*\))?)`(?!`)")


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
            if path is None or match[1] == own:
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


def _runtime(obj: Any) -> Any:
    module, _, names = obj.module.path, "", obj.path[len(obj.module.path) + 1 :]
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name, None)
    return found


def _default(value: Any) -> str | None:
    if value is inspect.Parameter.empty:
        return None
    return getattr(value, "__name__", None) or repr(value)


def _annotation(cls: griffe.Class, name: str) -> Any:
    """As it is written in the class or in those that it inherits from."""
    for one in [cls, *cls.mro()]:
        if name in one.members and not one.members[name].is_alias:
            return getattr(one.members[name], "annotation", None)
    return None


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        self._visit(pkg)

    def _visit(self, obj: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj.name)
        for member in list(obj.members.values()):
            if not member.is_alias:
                self._visit(member)
        if obj.is_class and "__init__" not in obj.members:
            self._add_init(obj)

    def _add_init(self, cls: griffe.Class) -> None:
        """Of a dataclass, as every Equinox module is one: fields in order, those inherited too."""
        runtime = _runtime(cls)
        if not inspect.isclass(runtime) or not hasattr(runtime, "__dataclass_fields__"):
            return
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        for name, parameter in inspect.signature(runtime).parameters.items():
            kind = griffe.ParameterKind[parameter.kind.name.lower()]
            parameters.append(
                griffe.Parameter(
                    name,
                    kind=kind,
                    annotation=_annotation(cls, name),
                    default=_default(parameter.default),
                )
            )
        init = griffe.Function(
            "__init__",
            parameters=griffe.Parameters(*parameters),
            lineno=cls.lineno,
            endlineno=cls.endlineno,
            parent=cls,
        )
        cls.set_member("__init__", init)
