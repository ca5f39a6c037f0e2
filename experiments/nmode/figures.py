"""*nmode* Figs. 2, 3 and 4: the attractor, the example of Table 1, and what Eq. (4) says.

    python -m experiments.nmode.figures

- Fig. 2: 1,000 initial states in [0, 2]^2 fall on one trajectory. The paper says neither lambda
  nor gamma; here lambda = 3 and gamma = (0.5, 1). By the proof of Theorem 1 two states approach
  each other at least as fast as e^{-(lambda - 1) t}. Both are measured.
- Fig. 3: the perturbed inputs of Table 1, and the distance of the outputs over time, against the
  epsilon of Eq. (4).
- Fig. 4: the bound epsilon = tau delta / (lambda - 1) over tau and lambda, and the bound for t = 1
  alone, with the flow map's largest slope in the place of 1 / (lambda - 1).

Ends in seconds.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odejax.evaluation import decode_array, encode_array
from odejax.models import NmODE, sin_squared
from odejax.models.nmode import nmode_field
from odejax.plots import colors, plain_ticks, set_title
from odejax.plots.palette import ORANGE, PURPLE

from ..ledger.printed import Claim
from ..ledger.sources import Source
from ..lib import report
from ..lib.run import Config, Experiment, Once, run
from . import table1

KIND = "nmode_figures"
STATES, SHOWN, GAMMA, LAM = 1000, 100, (0.5, 1.0), 3.0
ENDS = (1.0, 3.0, 5.0)  # the panels of Fig. 2
DELTA = float(table1.PERTURBATION.max())
LAMBDAS = np.linspace(1.5, 10.0, 18)
TAUS = np.linspace(0.0, 5.0, 35)
EQ4, SLOPE = "Eq. (4), every $t$", "largest slope of the flow map, $t$ = 1"
COLORS = colors(("nmODE", "P-nmODE")) | {EQ4: PURPLE, SLOPE: ORANGE}


def plan(config: Config) -> Once:
    return Once(lambda: {"attractor": attractor(), "example": example(), "epsilon": epsilon()})


def notes(result: dict[str, Any]) -> list[str]:
    data = result["attractor"]
    return [
        f"t = {t:g}: {STATES} states within {spread:.1e} (theorem: {bound:.1e})"
        for t, spread, bound in zip(ENDS, data["spread"], data["bound"], strict=True)
    ]


def trajectories(lam: float, y0, gamma, times) -> np.ndarray:
    """y(t) of shape (times, ...) of nmODE from y0."""
    with jax.enable_x64(True):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, gamma: nmode_field(y, gamma, lam, (sin_squared,))),
            diffrax.Dopri8(),
            0.0,
            float(times[-1]),
            None,
            jnp.asarray(y0, float),
            jnp.asarray(gamma, float),
            saveat=diffrax.SaveAt(ts=jnp.asarray(times, float)),
            stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-10),
        )
        return np.asarray(solution.ys)


def attractor() -> dict[str, Any]:
    """Fig. 2: trajectories from random states, and the distance between them."""
    y0 = np.random.default_rng(0).uniform(0.0, 2.0, (STATES, 2))
    times = np.linspace(0.0, ENDS[-1], 51)
    ys = trajectories(LAM, y0, GAMMA, times)
    spread = np.ptp(ys, axis=1).max(axis=1)
    at = [int(np.argmin(np.abs(times - t))) for t in ENDS]
    return {
        "times": times.tolist(),
        "trajectories": encode_array(ys[:, :SHOWN].astype(np.float32)),
        "spread": spread[at].tolist(),
        "bound": [float(spread[0] * np.exp(-(LAM - 1) * t)) for t in ENDS],
    }


def example() -> dict[str, Any]:
    """Fig. 3: |y - y'| over time for both neurons of Table 1, nmODE and P-nmODE."""
    lam, x = table1.LAM, table1.X
    times = np.linspace(0.0, 1.5, 61)
    gamma = table1.WEIGHTS @ np.stack([x, x + table1.PERTURBATION], axis=1)
    apart = {}
    for family, sign in (("nmODE", 1), ("P-nmODE", -1)):
        ys = trajectories(sign * lam, np.zeros_like(gamma), gamma, times)
        apart[family] = np.abs(ys[:, :, 1] - ys[:, :, 0]).tolist()
    tau = float(np.abs(table1.WEIGHTS).sum(axis=1).max())
    return {
        "times": times.tolist(),
        "apart": apart,
        "tau": tau,
        "epsilon": tau * DELTA / (lam - 1),
    }


def epsilon() -> dict[str, Any]:
    """Fig. 4: 1 / (lambda - 1), and the largest slope of y(1; gamma), by lambda."""
    slopes = []
    for lam in LAMBDAS:
        flow_map = NmODE(float(lam), 1.0).flow_map
        assert flow_map is not None
        slopes.append(flow_map.max_slope())
    return {"lambda": LAMBDAS.tolist(), "eq4": (1 / (LAMBDAS - 1)).tolist(), "slope": slopes}


def figure_2(result: dict[str, Any]):
    """Trajectories of two neurons over time, until each of the three ends."""
    data = result["attractor"]
    times, ys = np.array(data["times"]), decode_array(data["trajectories"])
    drawn = plt.figure(figsize=(12, 4.2), layout="constrained")
    for i, end in enumerate(ENDS):
        axis: Any = drawn.add_subplot(1, 3, i + 1, projection="3d")
        shown = times <= end + 1e-9
        for j in range(ys.shape[1]):
            axis.plot(*ys[shown, j].T, times[shown], color=COLORS["nmODE"], lw=0.4, alpha=0.5)
        last = ys[shown][-1]
        axis.scatter(*last.T, np.full(len(last), end), color="k", s=5, depthshade=False)
        axis.set(xlim=(0, 2), ylim=(0, 2), zlim=(0, end))
        axis.set(xticks=(0, 1, 2), yticks=(0, 1, 2), zticks=np.linspace(0, end, 3))
        axis.set_xlabel("$y_1$")
        axis.set_ylabel("$y_2$")
        axis.set_title(f"until $t$ = {end:g}", fontsize=10)
        axis.set_zlabel("$t$")
        axis.set_box_aspect(None, zoom=0.8)  # its z label is outside of what the layout sees
    within = ", ".join(
        f"{float(f'{spread:.1g}'):f}".rstrip("0") + f" at t = {end:g}"
        for end, spread in zip(ENDS, data["spread"], strict=True)
    )
    set_title(
        drawn,
        f"nmODE forgets where it started: {STATES} states in [0, 2]² come within {within} "
        rf"($\lambda$ = {LAM:g}, {SHOWN} states drawn)",
    )
    return drawn


def figure_3(result: dict[str, Any]):
    """The inputs, and what becomes of their difference."""
    data, x = result["example"], table1.X
    drawn, axes = plt.subplots(
        1, 4, figsize=(12, 3.6), width_ratios=(1, 1, 2.2, 2.2), layout="constrained"
    )
    for axis, image, title in (
        (axes[0], x, "x"),
        (axes[1], x + table1.PERTURBATION, r"$\bar{x}$: one component + 0.8"),
    ):
        axis.imshow(image.reshape(3, 3), cmap="viridis", vmin=0, vmax=1.8)
        for (row, column), value in np.ndenumerate(image.reshape(3, 3)):
            color = "k" if value > 1 else "w"
            axis.text(column, row, f"{value:g}", ha="center", va="center", color=color)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, (family, distances) in zip(axes[2:], data["apart"].items(), strict=True):
        for neuron, style in ((0, "-"), (1, "--")):
            axis.plot(
                data["times"][1:],
                np.array(distances)[1:, neuron],
                style,
                color=COLORS[family],
                label=rf"{family}, $|y_{neuron + 1} - \bar{{y}}_{neuron + 1}|$",
            )
        bound = {"color": COLORS[EQ4], "label": r"Eq. (4), $\epsilon = \tau\delta / (\lambda - 1)$"}
        axis.axhline(data["epsilon"], ls=":", **bound)
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 1e3)
        axis.set_xlabel("$t$")
        axis.set_title(rf"{family}, $\lambda$ = {table1.LAM:g}", fontsize=10)
        axis.grid(alpha=0.3, lw=0.5)
        plain_ticks(axis)
    axes[2].set_ylabel("distance of the outputs")
    report.legend_below(drawn, ncols=5, fontsize=9)
    nmode, unstable = (np.max(data["apart"][family][-1]) for family in ("nmODE", "P-nmODE"))
    set_title(
        drawn,
        f"At t = {data['times'][-1]:g} the perturbation moves nmODE's output by {nmode:.2g} and "
        f"P-nmODE's by {unstable:.2g}; Eq. (4) allows nmODE {data['epsilon']:g}",
    )
    return drawn


def figure_4(result: dict[str, Any]):
    """epsilon over tau and lambda, then along each of them."""
    data = result["epsilon"]
    lam, eq4, slope = (np.array(data[name]) for name in ("lambda", "eq4", "slope"))
    drawn = plt.figure(figsize=(12, 4), layout="constrained")
    surface: Any = drawn.add_subplot(1, 3, 1, projection="3d")
    surface.plot_surface(
        TAUS[None, :], lam[:, None], DELTA * TAUS[None, :] * eq4[:, None], cmap="viridis"
    )
    surface.set_xlabel(r"$\tau$")
    surface.set_ylabel(r"$\lambda$")
    surface.set_zlabel(r"$\epsilon$")
    surface.set_box_aspect(None, zoom=0.85)
    surface.set_title(r"(a) $\epsilon$ of Eq. (4)", fontsize=10)
    by_tau, by_lam = drawn.add_subplot(1, 3, 2), drawn.add_subplot(1, 3, 3)
    middle = int(np.argmin(np.abs(lam - 3.0)))
    for bound, values, style in ((EQ4, eq4, "-"), (SLOPE, slope, "--")):
        line: dict[str, Any] = {"color": COLORS[bound], "ls": style, "label": bound}
        by_tau.plot(TAUS, DELTA * TAUS * values[middle], **line)
        by_lam.plot(lam, DELTA * values, **line)
    by_tau.set_xlabel(r"$\tau$")
    by_tau.set_title(rf"(b) $\lambda$ = {lam[middle]:g}", fontsize=10)
    by_lam.set_xlabel(r"$\lambda$")
    by_lam.set_title(r"(c) $\tau$ = 1", fontsize=10)
    for axis in (by_tau, by_lam):
        axis.set_ylabel(r"$\epsilon$, bound on the output's change")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3, lw=0.5)
    report.legend_below(drawn, ncols=2, fontsize=9)
    first, last = (eq4[i] / slope[i] for i in (0, -1))
    set_title(
        drawn,
        rf"Eq. (4) allows {first:.1f} times the change of the output that the flow map's slope "
        rf"allows at $\lambda$ = {lam[0]:g}, and {last:.1f} times at $\lambda$ = {lam[-1]:g} "
        rf"($\delta$ = {DELTA:g})",
    )
    return drawn


def _read(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    return {"device": result["device"], "value": result["example"][claim.attack]}


def sources(claim: Claim) -> list[Source]:
    if claim.paper != "nmode" or not claim.is_quantity or claim.table == "Table 1":
        return []
    return [Source(KIND, KIND, "python -m experiments.nmode.figures", _read, claim.model)]


FIGURES = {"fig2": figure_2, "fig3": figure_3, "fig4": figure_4}
EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    lambda result: [],
    FIGURES,
    notes,
    figure_stem="nmode",
    sources=sources,
)

if __name__ == "__main__":
    run(EXPERIMENT)
