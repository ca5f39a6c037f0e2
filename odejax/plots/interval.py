"""Robust accuracy against eps as an interval: dots where attacks were run, and a band of steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from .palette import ATTACKED, BAND, CERTIFIED

IN_BAND, PROVEN = "true robust accuracy", "certified"
ATTACKED_AT_DOTS = "under all attacks, run at the dots"


def draw_interval(
    axis: Axes,
    eps: Sequence[float] | np.ndarray,
    attacked: Sequence[float] | np.ndarray,
    certified: Sequence[float] | np.ndarray | None,
    *,
    proven_at: Sequence[float] | np.ndarray | None = None,
    label: str = ATTACKED_AT_DOTS,
):
    """Draw certified <= true <= attacked over [0, max eps] into one panel.

    Attacks are dots, at the eps at which they were run. An image that is misclassified within eps
    is so within any larger eps. So each dot is an upper bound from its eps up to the next one, and
    the band ends there. What is certified at eps is so at any smaller one. So `certified` is a
    lower bound from its eps down to the one before, and is drawn as a line.

    - `axis`: of Matplotlib; eps is on x, accuracy on y.
    - `eps` (m,): growing from 0, where `attacked` was measured; the first is for clean accuracy.
    - `attacked` (m,): accuracy under attack, in any unit.
    - `certified` (m,): in the same unit; None draws no lower end, and the band from 0.
    - `proven_at` (k,): where `certified` (k,) is known, growing from 0; by default at `eps`.
    - `label`: of the upper end in a legend.

    >>> import matplotlib.pyplot as plt
    >>> from odejax import plots
    >>> figure, axis = plt.subplots()
    >>> plots.draw_interval(axis, [0, 0.1, 0.2], [98, 80, 40], [98, 60, 0])
    >>> axis.get_legend_handles_labels()[1]
    ['true robust accuracy', 'under all attacks, run at the dots', 'certified']
    >>> plt.close(figure)
    """
    eps, attacked = np.asarray(eps, float), np.asarray(attacked, float)
    grid = eps if proven_at is None or certified is None else np.asarray(proven_at, float)
    low = np.zeros_like(grid) if certified is None else np.asarray(certified, float)
    at = np.unique(np.concatenate([eps, grid[grid <= eps[-1]]]))
    left, right = at[:-1], at[1:]
    lower = low[np.minimum(np.searchsorted(grid, right), len(grid) - 1)]
    upper = attacked[np.searchsorted(eps, left, side="right") - 1]
    axis.fill_between(
        np.stack([left, right], axis=1).ravel(),
        np.repeat(lower, 2),
        np.repeat(upper, 2),
        color=BAND,
        lw=0,
        label=IN_BAND,
    )
    axis.plot(eps, attacked, "o", ms=3.5, color=ATTACKED, label=label, clip_on=False, zorder=3)
    if certified is not None:
        axis.step(grid, low, "-", where="pre", color=CERTIFIED, label=PROVEN)
