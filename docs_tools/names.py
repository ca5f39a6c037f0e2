"""The public names of the library: where they are defined, and what they are in one sentence."""

import ast
import importlib
import inspect
from functools import cache
from pathlib import Path

PACKAGES = (
    "odejax",
    "odejax.attacks",
    "odejax.certificates",
    "odejax.data",
    "odejax.evaluation",
    "odejax.models",
    "odejax.plots",
    "odejax.solvers",
    "odejax.training",
)


def public_names(package: str) -> list[str]:
    """What a package exports, in the order of its `__init__.py`, its packages left out."""
    members = vars(importlib.import_module(package))
    return [
        name
        for name, member in members.items()
        if not name.startswith("_") and name != "TYPE_CHECKING" and not inspect.ismodule(member)
    ]


def path_of(package: str, name: str) -> str:
    """Where Griffe, which reads the source alone, has a name: one that a file of the package has,
    too, is that file's."""
    defined_in = getattr(getattr(importlib.import_module(package), name), "__module__", "")
    return f"{package}.{name}.{name}" if defined_in == f"{package}.{name}" else f"{package}.{name}"


def file_of(package: str, name: str) -> Path:
    """The file that a package imports a public name from."""
    init = Path(inspect.getfile(importlib.import_module(package)))
    for node in _parsed(init):
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return init.parents[node.level - 1] / f"{node.module}.py"
    raise ValueError(f"{package} does not import {name!r} from one of its files")


def summary(package: str, name: str) -> str:
    """The first paragraph of the docstring of a public name, in one line."""
    file = file_of(package, name)
    for node, after in zip(_parsed(file), [*_parsed(file)[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            docstring = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign) and name in _assigned(node):
            docstring = str(ast.literal_eval(after.value)) if isinstance(after, ast.Expr) else ""
        else:
            continue
        return " ".join(docstring.split("\n\n")[0].split())
    raise ValueError(f"{file} does not define {name!r}")


@cache
def _parsed(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text()).body


def _assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}
