"""Robust accuracy against eps: the band between certified and attacked, one panel a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._threat_model import AbstractBall, check_ball
from .axes import AXIS_LABELS as AXIS_LABELS, plain_ticks, set_title
from .interval import ATTACKED_AT_DOTS, IN_BAND, PROVEN, draw_interval
from .measured import Curve, read_curves
from .palette import PUBLISHED, colors

Published = Mapping[str, Sequence[tuple[AbstractBall, float]]]


def robustness_curves(
    models: Mapping[str, Any],
    *,
    title: str,
    published: Published | None = None,
    alone: str | None = "FGSM",
    log: bool = False,
    columns: int | None = None,
) -> Figure:
    """A figure of certified and attacked accuracy: a panel for each model in each norm.

    True robust accuracy lies in the shaded band (`draw_interval`): at most the accuracy under all
    attacks, at least the certified accuracy, or 0 without a certificate. Certified accuracy is
    drawn as the step curve of the certified radii where these are given, and else as steps between
    the eps of the brackets. Sampling error is not drawn; the brackets hold it.

    - `models`: by name, each of them

      - a `Bracket`, or several of any norms and eps (`Brackets`, a list of these),
      - a list of their `summary()`, as JSON holds it,
      - or `{"balls": {norm: {"brackets": summaries, "radii": (n,) certified radii,
        "certificates": how many}}}`, as `experiments.benchmark` stores it.

    - `title`: the finding, as a sentence; it is wrapped to the figure's width.
    - `published`: by a name in `models`, pairs of a ball and the robust accuracy in [0, 1] that a
      paper reports in it, drawn as crosses.
    - `alone`: an attack by its name in `per_attack`, drawn by itself where it was run; None draws
      none.
    - `columns`: the most panels beside each other; None, the default, puts all models in one row.
    - `log`: an axis of eps that is logarithmic from the least eps on, for radii of several orders.

    Raises `ValueError` without a model, for a model that holds no bracket or anything else, for two
    brackets of one eps, and for published figures of a model or norm that is not drawn or outside
    [0, 1].

    >>> import matplotlib.pyplot as plt
    >>> from odejax import LinfBall, plots
    >>> measured = {"ball": "linf", "eps": 0.1, "clean": 0.98, "attacked": 0.6, "certified": 0.2}
    >>> measured |= {"per_attack": {"PGD": 0.6}, "per_certificate": {"LipschitzMargin": 0.2}}
    >>> figure = plots.robustness_curves(
    ...     {"a network": [measured]},
    ...     title="At eps 0.1 a paper reports more than an attack allows",
    ...     published={"a network": [(LinfBall(0.1), 0.8)]},
    ... )
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['true robust accuracy', 'under all attacks, run at the dots', 'certified', 'published']
    >>> plt.close(figure)
    """
    if not models:
        raise ValueError("models must hold at least one model; got none")
    read = {name: read_curves(name, value) for name, value in models.items()}
    crosses = _crosses(published or {}, read)
    norms = list(dict.fromkeys(norm for curves in read.values() for norm in curves))
    height = 2.9 if len(read) == 1 else 2.2
    columns = min(columns or len(read), len(read))
    rows = -(-len(read) // columns)  # of one norm
    figure, axes = plt.subplots(
        len(norms) * rows,
        columns,
        figsize=(max(4.8, 1.0 + 2.0 * columns), 1.1 + height * len(norms) * rows),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    of_norms = axes.reshape(len(norms), -1)
    for panels in of_norms:
        for axis in panels[len(read) :]:
            axis.set_axis_off()
        for axis in panels[1 : len(read)]:
            axis.sharex(panels[0])
    for norm, panels in zip(norms, of_norms, strict=True):
        for name, axis in zip(read, panels, strict=False):
            if norm == norms[0] or rows > 1:
                axis.set_title(name, fontsize=10)
            if norm in read[name]:
                _panel(axis, read[name][norm], crosses.get((name, norm), []), alone)
                axis.set_xlabel(AXIS_LABELS.get(norm, norm), fontsize=8)
            else:
                axis.set_axis_off()  # what was not measured
    for norm, row in zip(norms, of_norms, strict=True):
        drawn = [curves[norm].eps[-1] for curves in read.values() if norm in curves]
        drawn += [eps for (_, of), pairs in crosses.items() if of == norm for eps, _ in pairs]
        if log:
            least = min(c[norm].eps[1] for c in read.values() if norm in c)
            row[0].set_xscale("symlog", linthresh=least, linscale=0.3)
            row[0].set_xticks([0, *next(c[norm].eps[1:] for c in read.values() if norm in c)])
            for axis in row[: len(read)]:
                plain_ticks(axis)
        row[0].set_xlim(0, (1.1 if log else 1.03) * max(drawn))
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    _legend(figure, axes)
    set_title(figure, title)
    return figure


def _crosses(
    published: Published, models: Mapping[str, Mapping[str, Curve]]
) -> dict[tuple[str, str], list]:
    """(eps, accuracy) by model and norm."""
    crosses: dict[tuple[str, str], list] = {}
    for name, figures in published.items():
        if name not in models:
            raise ValueError(f"published must name one of the models {list(models)}; got {name!r}")
        for ball, accuracy in figures:
            check_ball(ball)
            if ball.name not in models[name]:
                measured = list(models[name])
                raise ValueError(
                    f"published[{name!r}] must be in a norm measured, {measured}; got {ball.name!r}"
                )
            if not 0 <= accuracy <= 1:
                raise ValueError(f"a published accuracy must be in [0, 1]; got {accuracy}")
            crosses.setdefault((name, ball.name), []).append((float(ball.eps), accuracy))
    return crosses


def _panel(axis: Axes, curve: Curve, crosses: list, alone: str | None):
    certified = None if curve.certified is None else 100 * curve.certified
    draw_interval(axis, curve.eps, 100 * curve.attacked, certified, proven_at=curve.certified_at)
    if alone in curve.per_attack and list(curve.per_attack) != [alone]:
        values = 100 * curve.per_attack[alone]
        style = {"color": colors([alone])[alone], "ls": "", "marker": "s", "ms": 3}
        axis.plot(curve.eps, values, label=f"under {alone} alone", **style)
    if crosses:
        at, accuracy = np.array(sorted(crosses)).T
        style = {"color": PUBLISHED, "marker": "x", "ls": "", "ms": 6, "mew": 1.5, "zorder": 5}
        axis.plot(at, 100 * accuracy, label="published", **style)
    axis.set_ylim(-2, 102)
    axis.grid(alpha=0.3, lw=0.5)
    axis.tick_params(labelsize=8)
    plain_ticks(axis)


def _legend(figure: Figure, axes: np.ndarray):
    """One legend below all panels: the first model may have no certificate, another has one."""
    named: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    order = [IN_BAND, ATTACKED_AT_DOTS, PROVEN]
    labels = sorted(named, key=lambda label: order.index(label) if label in order else len(order))
    figure.legend(
        [named[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / 2.2))),
        frameon=False,
        fontsize=9,
    )
