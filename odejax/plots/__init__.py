"""Figures, drawn from results alone."""

from .curves import robustness_curves as robustness_curves
from .perturbations import perturbation_grid as perturbation_grid
