"""What the Feynman-Kac average of a trained network costs: plain Monte Carlo and multilevel."""

import dataclasses
import itertools
from typing import Any

import equinox as eqx
import jax
import numpy as np

from odejax.models import NeuralSDENet
from odejax.plots import colors
from odejax.solvers import multilevel_feynman_kac

from ..lib import report

METHODS = {"plain": "plain Monte Carlo", "multilevel": "multilevel Monte Carlo"}


@dataclasses.dataclass(frozen=True)
class Effort:
    """- `steps`: of each level; plain Monte Carlo takes those of the finest.
    - `paths`: how many plain paths each point of the figure is worth.
    - `repeats`: estimates with keys of their own, over which the error is measured.
    - `reference`: plain paths of the estimate that is taken for the expectation.
    - `batch`: paths drawn at once.
    """

    steps: tuple[int, ...]
    paths: tuple[int, ...]
    repeats: int
    reference: int
    batch: int = 64


def measure(predictor: Any, image: Any, label: int, effort: Effort, seed: int) -> dict[str, Any]:
    """Cost and error of both methods, for the mean logit of the image's class.

    - "spread": the deviation of one path's logit; "points": by standard error asked for, the mean
      cost of an estimate (evaluations of the field) and its root-mean-square error.
    - "levels": of the most accurate multilevel estimate.
    """
    model: NeuralSDENet = predictor.model
    start, state = eqx.filter_jit(lambda m, s, x: m.stem(x, s))(model, predictor.state, image)
    drift, head = model.problem(state)
    problem = (lambda y: head(y)[label]), drift, model.noise, start
    key = jax.random.key(seed + 2)
    keys = (jax.random.fold_in(key, i) for i in itertools.count())
    finest = effort.steps[-1:]

    def estimate(steps: tuple[int, ...], error: float):
        settings = {"steps": steps, "t1": model.t1, "batch": effort.batch}
        return multilevel_feynman_kac(*problem, standard_error=error, key=next(keys), **settings)

    spread = float(np.sqrt(estimate(finest, 1e9).levels[0].variance))
    reference = estimate(finest, spread / effort.reference**0.5)
    points, levels = [], []
    for paths in effort.paths:
        error = spread / paths**0.5
        point: dict[str, Any] = {"standard_error": error}
        for method, steps in (("plain", finest), ("multilevel", effort.steps)):
            estimates = [estimate(steps, error) for _ in range(effort.repeats)]
            squares = [float((one.mean - reference.mean) ** 2) for one in estimates]
            cost = float(np.mean([one.cost for one in estimates]))
            point[method] = {"cost": cost, "error": float(np.mean(squares)) ** 0.5}
            levels = estimates[-1].levels
        points.append(point)
    return {
        "label": label,
        "spread": spread,
        "reference": float(reference.mean),
        "reference_error": float(reference.standard_error),
        "points": points,
        "levels": [
            {name: float(value) for name, value in level._asdict().items()} for level in levels
        ],
    }


def gain(measured: dict[str, Any]) -> float:
    """How many times as much plain Monte Carlo costs as multilevel, for the same error.

    At the smallest error; an error falls as one over the root of the cost.
    """
    plain, multilevel = (measured["points"][-1][method] for method in METHODS)
    return plain["cost"] * plain["error"] ** 2 / (multilevel["cost"] * multilevel["error"] ** 2)


def tables(measured: dict[str, dict[str, Any]]) -> list[Any]:
    """By network: error and cost of both methods; the levels of the multilevel one."""
    columns = ("asked for", "plain", "cost", "multilevel", "cost")
    title = "error of the mean logit, and its cost in evaluations of the field"
    errors = report.table(title, "", *columns)
    for name, of in measured.items():
        for point in of["points"]:
            cells = [f"{point['standard_error']:.2g}"]
            for method in METHODS:
                cells += [f"{point[method]['error']:.2g}", f"{point[method]['cost']:,.0f}"]
            errors.add_row(name, *cells)
    columns = ("steps", "paths", "mean", "variance")
    title = "the multilevel estimate's levels: each less the one before"
    levels = report.table(title, "", *columns)
    for name, of in measured.items():
        for level in of["levels"]:
            counts = f"{level['steps']:.0f}", f"{level['paths']:,.0f}"
            levels.add_row(name, *counts, f"{level['mean']:.2g}", f"{level['variance']:.2g}")
    return [errors, levels]


def figure(measured: dict[str, dict[str, Any]]):
    """A panel for each network: error against cost; None without any."""
    if not measured:
        return None
    color = colors(METHODS)
    drawn, axes = report.panels(measured.items(), size=(4.2, 3.2))
    for (name, of), axis in axes:
        for method, label in METHODS.items():
            points = [point[method] for point in of["points"]]
            costs, errors = zip(*((p["cost"], p["error"]) for p in points), strict=True)
            axis.loglog(costs, errors, "-o", ms=4, color=color[method], label=label)
        axis.set_xlabel("evaluations of the field")
        axis.set_title(f"{name}: one path's deviation is {of['spread']:.2g}", fontsize=9)
        axis.grid(alpha=0.3, lw=0.5, which="both")
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("error of the mean logit")
    report.legend_below(drawn, ncols=2)
    return drawn
