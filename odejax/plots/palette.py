"""The colours of all figures: the same colour for the same thing, safe for colour-blind readers.

The palette is that of M. Okabe and K. Ito, "Color universal design", 2008.
"""

import re
from collections.abc import Iterable

ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILION, PURPLE, GREY, YELLOW = "#D55E00", "#CC79A7", "#7F7F7F", "#F0E442"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY, YELLOW)

# The ends of an interval, the band between them, and what a paper reports.
ATTACKED, CERTIFIED, BAND, PUBLISHED = "#b2182b", "#2166ac", "0.88", "black"

NAMED = {
    # attacks
    "FGSM": ORANGE,
    "PGD": VERMILION,
    "DI2-FGSM": PURPLE,
    "Square": BLUE,
    "SPSA": SKY,
    "Boundary": GREEN,
    # networks
    "ReLU": GREY,
    "ResNet": VERMILION,
    "SSP-2": SKY,
    "SSP-3": BLUE,
    "ark": GREEN,
    "midpoint": ORANGE,
    "neural ODE": PURPLE,
    "nmODE": BLUE,
    "nmODE+": GREEN,
    "nmODE t=1": BLUE,
    "nmODE t=0.05": SKY,
    # solvers
    "Euler": VERMILION,
    "Heun": ORANGE,
    "midpoint rule": ORANGE,
    "SSPRK(3,3)": BLUE,
    "Dopri5": PURPLE,
}


def colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in every figure for the names in `NAMED`.

    The number of steps at the end of an attack's name plays no part: PGD-40 has the colour of PGD.
    Other names, and one whose colour is taken, get the first colours of the palette that are free.

    - `names`: of the curves of one figure, at most eight.

    Raises `ValueError` for more names than the palette has colours.

    >>> from odejax.plots import colors
    >>> colors(["PGD-40", "Square", "an attack of your own"])
    {'PGD-40': '#D55E00', 'Square': '#0072B2', 'an attack of your own': '#009E73'}
    """
    names = list(dict.fromkeys(names))
    if len(names) > len(PALETTE):
        raise ValueError(f"names must be at most {len(PALETTE)}; got {len(names)}: {names}")
    chosen: dict[str, str] = {}
    for name in names:
        color = NAMED.get(name) or NAMED.get(re.sub(r"-\d+$", "", name))
        if color is not None and color not in chosen.values():
            chosen[name] = color
    free = iter([color for color in PALETTE if color not in chosen.values()])
    return {name: chosen.get(name) or next(free) for name in names}
