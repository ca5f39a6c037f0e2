"""Figures, drawn from results alone."""

from .curves import robustness_curves as robustness_curves
from .interval import draw_interval as draw_interval
from .perturbations import perturbation_grid as perturbation_grid
