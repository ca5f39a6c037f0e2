# pyright: reportMissingImports=false
"""A Griffe extension for mkdocstrings: docstrings as Markdown, signatures of Equinox modules."""

import importlib
import inspect
from typing import Any

import griffe

from docs_tools.markdown import as_markdown


def _runtime(obj: Any) -> Any:
    module, _, names = obj.module.path, "", obj.path[len(obj.module.path) + 1 :]
    member = importlib.import_module(module)
    for name in names.split("."):
        member = getattr(member, name, None)
    return member


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
