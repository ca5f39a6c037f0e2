"""Figures, drawn from results alone."""

from .axes import AXIS_LABELS as AXIS_LABELS, plain_ticks as plain_ticks, set_title as set_title
from .curves import robustness_curves as robustness_curves
from .interval import draw_interval as draw_interval
from .palette import colors as colors
from .perturbations import perturbation_grid as perturbation_grid
