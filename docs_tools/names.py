"""The public names of the library, and where Griffe, which reads the source alone, has them."""

import importlib
import inspect

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
    """Where Griffe has it: a name that a file of the package has, too, is that file's."""
    defined_in = getattr(getattr(importlib.import_module(package), name), "__module__", "")
    return f"{package}.{name}.{name}" if defined_in == f"{package}.{name}" else f"{package}.{name}"
