"""What `structured_flows` shows: a table for each experiment, and its figure."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from odejax.evaluation import decode_array
from odejax.plots import plain_ticks, set_title
from odejax.plots.palette import BLUE, GREEN, ORANGE, VERMILION

from ..lib import report


def tables(result: dict[str, Any]) -> list[Any]:
    """One for each experiment, a column for each network: the lowest and highest of the seeds."""
    errors = {"one_step": "error of one step", "error": "error of all steps"}
    largest = "largest_drift"
    return [
        _table("regression", result["regression"], {"test_error": "test error"}),
        _table("SIR", result["sir"], errors | {largest: "largest |s + i + r - 1|"}),
        _table(
            "pendulum",
            result["pendulum"],
            errors | {"median_drift": "energy drift, median", largest: "energy drift, largest"},
        ),
    ]


def _table(title: str, experiment: dict[str, Any], measures: dict[str, str]) -> Any:
    nets = experiment["nets"]
    shown = report.table(title, "", *nets)
    for size in ("layers", "weights"):
        shown.add_row(size, *(str(net[size]) for net in nets.values()))
    for measure, label in measures.items():
        shown.add_row(label, *(_cell(net[measure]) for net in nets.values()))
    return shown


def _cell(values: list[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    if 10 <= value < 1e4:
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


COLORS = {"gradient": GREEN, "divergence-free": ORANGE, "ResNet": VERMILION}
STRUCTURED, EXACT = BLUE, "0.75"


def figure(result: dict[str, Any]):
    """Above what is learned, by the first seed; below how well, by each."""
    drawn, axes = plt.subplots(2, 3, figsize=(13, 8.4), layout="constrained")
    _draw_regression(result["regression"], *axes[:, 0])
    _draw_sir(result["sir"], axes[0, 1])
    _draw_pendulum(result["pendulum"], axes[0, 2])
    _draw_curves(result["sir"], "largest $|s + i + r - 1|$", axes[1, 1])
    _draw_curves(result["pendulum"], "largest energy drift, relative", axes[1, 2])
    plain_ticks(axes[1, 2])
    for axis in axes[:, 1:].flat:
        axis.grid(alpha=0.3, lw=0.5)
    report.legend_below(drawn, ncols=6, fontsize=9)
    nets, end = result["pendulum"]["nets"], result["pendulum"]["times"][-1]
    set_title(
        drawn,
        f"Until t = {end:g} the pendulum's energy drifts by at most "
        f"{100 * max(nets['symplectic']['largest_drift']):.0f} % in the symplectic network, by "
        f"{100 * min(nets['ResNet']['largest_drift']):.0f} % or more in the ResNet",
        size=12,
    )
    return drawn


def _color(name: str) -> str:
    return COLORS.get(name, STRUCTURED)


def _errors(nets: dict[str, Any], measure: str, *names: str) -> str:
    """The lowest and highest of the seeds, by network."""
    return ",\n".join(f"{name} {_cell(nets[name][measure])}" for name in names if name in nets)


def _draw_regression(regression: dict[str, Any], above, below):
    styles: dict[str, Any] = {"exact": {"color": EXACT, "lw": 3.5}}
    grids = {"exact": regression["grid"]}
    for name in ("divergence-free", "both"):
        if name in regression["nets"]:
            grids[name] = regression["nets"][name]["grid"]
            styles[name] = {"color": _color(name), "lw": 0.9}
    for name, lines in grids.items():
        x, y = np.moveaxis(decode_array(lines), -1, 0)
        above.plot(x.T, y.T, **styles[name])
        above.plot([], [], label=name, **styles[name])
    above.set_aspect("equal")
    above.set_axis_off()
    above.set_title("regression: the image of a grid", fontsize=10)
    names = list(regression["nets"])
    for row, name in enumerate(names):
        errors = regression["nets"][name]["test_error"]
        below.plot(errors, [row] * len(errors), "o", color=_color(name), alpha=0.7)
    below.set_xscale("log")
    plain_ticks(below)
    below.set_xticks([0.01, 0.02, 0.05, 0.1])
    below.set_yticks(range(len(names)), names)
    below.set_ylim(len(names) - 0.5, -0.5)
    below.set_xlabel("rms test error, one point a seed")
    errors = _errors(regression["nets"], "test_error", "both", "ResNet")
    below.set_title(f"rms error: {errors}", fontsize=9)
    below.grid(axis="x", which="both", alpha=0.3, lw=0.5)


def _draw_sir(sir: dict[str, Any], axis):
    states = {"exact": sir["shown"]} | {name: net["shown"] for name, net in sir["nets"].items()}
    for name, encoded in states.items():
        y = decode_array(encoded)
        t = np.linspace(0, sir["times"][-1], len(y))
        style: dict[str, Any] = {"color": EXACT, "lw": 4}
        if name != "exact":
            style = {"color": _color(name), "lw": 1.2}
        axis.plot(t, y, **style)
        axis.plot([], [], label=name, **style)
    ends = zip("sir", decode_array(sir["shown"])[-1], (2, -9, -3), strict=True)
    for letter, end, down in ends:
        place = {"xytext": (5, down), "textcoords": "offset points"}
        axis.annotate(letter, (sir["times"][-1], end), **place)
    axis.set_xlabel("t")
    axis.set_ylabel("share of the population")
    axis.set_title("SIR, rolled out from 2 % infected", fontsize=10)


def _draw_pendulum(pendulum: dict[str, Any], axis):
    axis.plot(*decode_array(pendulum["shown"]).T, ".", ms=9, color=EXACT)
    for name, net in pendulum["nets"].items():
        axis.plot(*decode_array(net["shown"]).T, ".", ms=2, color=_color(name))
        axis.plot([], [], color=_color(name), lw=1.2, label=name)
    axis.set_xlim(-2.6, 2.6)
    axis.set_ylim(-2.1, 2.1)
    axis.set_xlabel("angle q")
    axis.set_ylabel("momentum p")
    axis.set_title("pendulum, rolled out from 86 degrees", fontsize=10)


def _draw_curves(experiment: dict[str, Any], drift: str, axis):
    """The median of the seeds, and from the lowest to the highest."""
    times, nets = experiment["times"][1:], experiment["nets"]
    for name, net in nets.items():
        for curves, style in (("drift_curve", "-"), ("error_curve", ":")):
            low, median, high = np.quantile(net[curves], (0, 0.5, 1), axis=0)[:, 1:]
            axis.plot(times, median, style, color=_color(name), lw=1.5)
            axis.fill_between(times, low, high, color=_color(name), alpha=0.12, lw=0)
    axis.set_yscale("log")
    axis.set_xlabel("t")
    axis.set_ylabel(f"solid: {drift}\ndotted: rms error")
    axis.set_title(f"rms error: {_errors(nets, 'error', *nets)}", fontsize=9)
