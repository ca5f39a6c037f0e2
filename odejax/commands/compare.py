"""`odejax compare`: two evaluations of the same images beside one another."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from .._words import counted
from ..evaluation import decode_array, load_result
from .command_line import Terminal, UsageError
from .evaluate import KIND


@dataclasses.dataclass
class Compare:
    """Compare two results of `odejax evaluate --json`, of the same images.

    One network is more robust for certain where what is certified of it is above what the other
    has under attack; with a confidence, if the certificate is a test. Otherwise the images on which
    the attacks decide differently are counted, and tested by McNemar's exact test.
    """

    a: tyro.conf.Positional[Path]
    """The first result."""
    b: tyro.conf.Positional[Path]
    """The second."""

    def __call__(self) -> None:
        a, b = (load_result(path, KIND) for path in (self.a, self.b))
        if a["data"]["digest"] != b["data"]["digest"]:
            raise UsageError(f"{self.a} and {self.b} are of different images")
        balls = [
            (one, other)
            for one in a["brackets"]
            for other in b["brackets"]
            if (one["ball"], one["eps"]) == (other["ball"], other["eps"])
        ]
        if not balls:
            raise UsageError(f"{self.a} and {self.b} have no ball in common")
        names = [Text(f"A: {a['network']}"), Text(f"B: {b['network']}")]
        table = Table(title=f"robust accuracy in %, {counted(balls[0][0]['n'], 'image')}")
        for column in ("ball", *names, "verdict"):
            table.add_column(column)
        for one, other in balls:
            ball = f"{one['ball']} {one['eps']:.3g}"
            table.add_row(ball, _ends(one), _ends(other), verdict(one, other))
        Terminal().print(table)


def _ends(bracket: dict[str, Any]) -> str:
    return f"{100 * bracket['certified']:.1f} to {100 * bracket['attacked']:.1f}"


def verdict(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What the two intervals of one ball say, in words."""
    for (name, one), (_, other) in ((("A", a), ("B", b)), (("B", b), ("A", a))):
        sure = 1 - one["n"] * sum(one["alpha"].values())  # that a vote of finitely many is right
        if one["certified"] > other["attacked"] and sure > 0:
            how = "for certain" if sure == 1 else f"with confidence {100 * sure:.4g} %"
            return f"{name} is more robust on these images, {how}"
    from scipy.stats import binomtest

    alive = [decode_array(x["still_correct"]).astype(bool) for x in (a, b)]
    only_a, only_b = int(np.sum(alive[0] & ~alive[1])), int(np.sum(alive[1] & ~alive[0]))
    if only_a == only_b == 0:
        return "the attacks decide alike on every image"
    p = binomtest(only_a, only_a + only_b).pvalue
    return f"under attack correct by A alone {only_a}, by B alone {only_b} (p = {p:.2g})"
