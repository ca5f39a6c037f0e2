"""`odejax list`: what there is, by name."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import tyro
from rich.table import Table
from rich.text import Text

from .. import models
from ..evaluation import FLAGS
from .command_line import Terminal
from .written import METHODS, public_classes, signature


@dataclasses.dataclass
class List:
    """List all attacks, certificates, networks or flags, a line each.

    Attacks and certificates are listed as the options --attacks and --certificates take them.
    Networks are the classes of odejax.models that can be trained, saved and evaluated.
    """

    what: tyro.conf.Positional[Literal["attacks", "certificates", "networks", "flags"]]
    """Which of them."""

    def __call__(self) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, about in listed(self.what).items():
            table.add_row(Text(name, "bold"), Text(about))
        Terminal().print(table)


def listed(what: str) -> dict[str, str]:
    """How each is written, and what it is."""
    if what == "flags":
        return {name: flag.why for name, flag in FLAGS.items()}
    if what == "networks":
        return {name: _about(network) for name, network in networks().items()}
    return {signature(*one): _about(one[1]) for one in METHODS[what.removesuffix("s")].items()}


def networks() -> dict[str, Callable]:
    """The classes of networks: all that are made for images of a shape and a number of classes."""
    return {
        name: one
        for name, one in public_classes(models, eqx.Module).items()
        if {"image_shape", "n_classes"} <= set(inspect.signature(one).parameters)
    }


def _about(one: Callable) -> str:
    if isinstance(one, partial):
        given = ", ".join(f'{name}="{value}"' for name, value in one.keywords.items())
        return f"{one.func.__name__}({given}), as tables name it."
    # Without the marks of a web page, and its references to papers.
    first = re.sub(r" \(\*[^)]*\)", "", str(inspect.getdoc(one)).split("\n\n")[0])
    return " ".join(first.replace("`", "").replace("*", "").split())
