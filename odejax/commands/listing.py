"""`odejax list`: what there is, by name."""

import dataclasses
import inspect
from typing import Literal

import equinox as eqx
import tyro
from rich.console import Console
from rich.table import Table

from .. import attacks, certificates, models
from ..evaluation import FLAGS
from .written import public_classes


@dataclasses.dataclass
class List:
    """List all attacks, certificates, networks or flags, a line each."""

    what: tyro.conf.Positional[Literal["attacks", "certificates", "networks", "flags"]]
    """Which of them."""

    def __call__(self) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, about in listed(self.what).items():
            table.add_row(f"[bold]{name}[/]", about)
        Console().print(table)


def listed(what: str) -> dict[str, str]:
    """The names, and what each is."""
    if what == "flags":
        return {name: flag.why for name, flag in FLAGS.items()}
    kinds = {
        "attacks": (attacks, attacks.AbstractAttack),
        "certificates": (certificates, certificates.AbstractCertificate),
        "networks": (models, eqx.Module),
    }
    return {
        name: " ".join(str(inspect.getdoc(one)).split("\n\n")[0].split())
        for name, one in public_classes(*kinds[what]).items()
        if what != "networks" or "image_shape" in inspect.signature(one).parameters
    }
