"""Robust accuracy against eps as what is known of it: a band of steps, not of straight lines."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

ATTACKED, CERTIFIED = "#b2182b", "#2166ac"


def draw_interval(
    axis: Axes,
    eps: Sequence[float] | np.ndarray,
    attacked: Sequence[float] | np.ndarray,
    certified: Sequence[float] | np.ndarray | None,
    *,
    proven_at: Sequence[float] | np.ndarray | None = None,
    label: str = "worst case of all attacks",
):
    """Draw certified <= true <= attacked over [0, max eps], claiming no more than is known.

    What breaks an image at eps breaks it at any larger one, so `attacked` bounds the truth from its
    eps up to the next; what is proven at eps is proven at any smaller one, so `certified` bounds it
    from its eps down to the one before.

    - `eps` (m,): growing from 0, where `attacked` (m,) was measured; the first is clean accuracy.
    - `certified` (m,), in the unit of `attacked`; None draws no lower end, and the band from 0.
    - `proven_at`: where `certified` is known, if not at `eps`, growing from 0.
    - `label`: of the upper end.
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
        color="0.88",
        lw=0,
        label="the truth lies in here",
    )
    axis.step(eps, attacked, "-o", where="post", ms=3, color=ATTACKED, label=label)
    if certified is not None:
        axis.step(grid, low, "-", where="pre", color=CERTIFIED, label="certified")
