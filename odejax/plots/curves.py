"""Robust accuracy against eps: the band between certified and attacked, one panel a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .interval import draw_interval

_FGSM = "#ef8a62"
AXIS_LABELS = {"linf": r"$\epsilon$  ($\ell_\infty$)", "l2": r"$\epsilon$  ($\ell_2$)"}


def robustness_curves(models: Mapping[str, Mapping[str, Any]], *, title: str) -> Figure:
    """One row for each threat model, one column for each model.

    `models[name][ball]` is {"brackets": summaries by growing eps, "radii": certified radii}, as
    `experiments.benchmark` stores it. The truth lies in the shaded band (`draw_interval`): below
    what the attacks leave standing, above what is proven; without a certificate it reaches down to
    zero. Sampling error is not drawn; the summaries hold it.
    """
    balls = list(next(iter(models.values()))["balls"])
    figure, axes = plt.subplots(
        len(balls),
        len(models),
        figsize=(1.0 + 1.9 * len(models), 0.9 + 2.2 * len(balls)),
        sharey=True,
        sharex="row",
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], models, strict=True):
        axis.set_title(name, fontsize=10)
    for row, ball in zip(axes, balls, strict=True):
        for axis, model in zip(row, models.values(), strict=True):
            _panel(axis, model["balls"][ball])
            axis.set_xlabel(AXIS_LABELS[ball])
        row[0].set_ylabel("accuracy (%)")
    # Of all panels: the first network may have no certificate.
    named = {}
    for axis in axes.flat:
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    figure.suptitle(title, fontsize=11)
    return figure


def _panel(axis, curves: Mapping[str, Any]):
    brackets: Sequence[Mapping[str, Any]] = curves["brackets"]
    eps = np.array([0.0] + [b["eps"] for b in brackets])
    clean = brackets[0]["clean"]
    attacked = np.array([clean] + [b["attacked"] for b in brackets])
    radii = np.asarray(curves["radii"])
    grid = np.unique(np.concatenate([np.linspace(0, eps[-1], 200), eps]))
    # At eps = 0 there is nothing to prove: a correct prediction is certified.
    certified = 100 * np.array([(radii >= e).mean() if e > 0 else clean for e in grid])
    proof = certified if curves["certificates"] else None
    draw_interval(axis, eps, 100 * attacked, proof, proven_at=grid)
    fgsm = [b["per_attack"].get("FGSM", np.nan) for b in brackets]
    axis.plot(
        eps, 100 * np.array([clean, *fgsm]), ":s", ms=2, lw=1, color=_FGSM, label="FGSM alone"
    )
    axis.set_ylim(-2, 102)
    axis.set_xlim(0, 1.03 * eps[-1])
    axis.grid(alpha=0.3, lw=0.5)
    axis.tick_params(labelsize=8)
