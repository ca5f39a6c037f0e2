"""*enresnet* Fig. 4: what diffusion does to the solution of the transport equation.

    python -m experiments.enresnet.fig4

u_t + F . grad u + (sigma^2 / 2) lap u = 0 on the periodic unit square, 128 points a side, 1,000
steps, pseudo-spectral, sigma = 0, 0.01 and 0.1, from a random terminal condition (smoothed to the
scale of a class region, as the figure shows it).

- The paper's velocity, uniform in [-1, 1] at each grid point. If it stays the same over time, the
  gradient of u grows beyond any grid and the scheme overflows for sigma = 0 and 0.01. Drawn anew in
  every step it can be computed. The true solution stays within the terminal condition's bounds
  (maximum principle). Where u exceeds them, that is the scheme's error, and is reported.
- A smooth velocity, which the grid resolves. There the gradient is compared with Theorem 2,
  |grad u|_inf <= e^{gamma - sigma^2 / 2} (|u|_inf + |grad u|_inf at t = 1), gamma the largest
  eigenvalue of the symmetric part of grad F (at least sigma^2 / 2). The paper has sigma^2 for
  sigma^2 / 2, but its proof loses the 1/2 in front of the Laplacian; this is what it gives.
- For the same velocity, Theorem 1: |u(x + delta, 0) - u(x, 0)| <= C (|delta| / sigma)^alpha for
  sigma <= 1. The paper gives neither alpha > 0 nor C (which depends on d, |f|_inf and |F|_inf; it
  refers to a book), so its bound cannot be computed, and none is fitted. The largest measured
  difference is drawn beside an explicit bound of the same form, proven by coupling two paths by
  reflection (Lindvall and Rogers 1986, Annals of Probability 14):

      |u(x + delta, 0) - u(x, 0)| <= (max f - min f) (2 Phi(r / 2) - 1),
      r = |delta| / sigma (2 gamma / (1 - e^{-2 gamma}))^{1/2}

  which is at most C |delta| / sigma with alpha = 1 and a C that depends on gamma in the place of
  |F|_inf: two paths of dx = F dt + sigma dB, the noise of one reflected, drift apart at no more
  than gamma times their distance, and meet before t = 1 with a probability that is known.

Ends in half a minute.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odejax.evaluation import decode_array, encode_array
from odejax.plots import colors, set_title
from odejax.solvers import convection_diffusion, spectral_gradient

from ..lib import report
from ..lib.run import Config as Base, Experiment, Once, check_counts, run

KIND = "enresnet_fig4"
SIGMAS = (0.0, 0.01, 0.1)
VELOCITIES = {
    "every step": "velocity drawn anew at\nevery grid point and step",
    "fixed": "velocity drawn once\nat every grid point",
    "smooth": "smooth velocity",
}


@dataclasses.dataclass
class Config(Base):
    """Solve the convection-diffusion equation, check its principles, and draw Fig. 4."""

    points: int = 128
    """Grid points a side."""
    steps: int = 1000
    """Time steps."""
    seed: int = 0
    """Seed of the velocity and the terminal condition."""


def plan(config: Config) -> Once:
    check_counts(config, "points", "steps")

    def measure():
        terminal_key, key = jax.random.split(jax.random.key(config.seed))
        terminal = smooth(terminal_key, (config.points, config.points), scale=4.0)
        low, high = jnp.min(terminal), jnp.max(terminal)
        terminal = (terminal - low) / (high - low)
        return {
            "settings": {"points": config.points, "steps": config.steps},
            "terminal": encode_array(np.asarray(terminal)),
            "solutions": {
                name: [solution(name, key, terminal, sigma, config.steps) for sigma in SIGMAS]
                for name in VELOCITIES
            },
        }

    return Once(measure, seed=config.seed)


def smooth(key, shape, scale: float):
    """A random periodic field whose wave numbers are about `scale` at most."""
    white = jax.random.normal(key, shape)
    k = jnp.fft.fftfreq(shape[-1], 1 / shape[-1])
    keep = jnp.exp(-(k[:, None] ** 2 + k**2) / scale**2)
    return jnp.real(jnp.fft.ifft2(jnp.fft.fft2(white) * keep))


def velocity(name: str, key, n: int, steps: int):
    """F of the given kind: an array, or a function of time."""
    uniform = partial(jax.random.uniform, shape=(2, n, n), minval=-1.0, maxval=1.0)
    if name == "every step":
        # The steps go from t = 1 back to 0, and each ends where the next begins.
        return lambda t: uniform(jax.random.fold_in(key, jnp.floor(t * steps + 0.25).astype(int)))
    if name == "fixed":
        return uniform(key)
    field = smooth(key, (2, n, n), scale=2.0)
    return 0.3 * field / jnp.max(jnp.abs(field))


def solution(name: str, key, terminal, sigma: float, steps: int) -> dict[str, Any]:
    """u(., 0), its range and gradient, and, for a smooth velocity, what Theorem 2 allows."""
    flow = velocity(name, key, len(terminal), steps)
    u = jax.jit(lambda f: convection_diffusion(flow, f, sigma=sigma, steps=steps))(terminal)
    finite = bool(jnp.isfinite(u).all())
    record: dict[str, Any] = {"sigma": sigma, "finite": finite}
    if not finite:
        return record
    shown = np.clip(u, -1, 2)  # beyond what the colours tell apart
    record |= {"u": encode_array(shown), "gradient": steepest(u)}
    record |= {"min": float(u.min()), "max": float(u.max())}
    if name == "smooth":
        assert isinstance(flow, jax.Array)
        rows = [spectral_gradient(component) for component in flow]
        jacobian = jnp.moveaxis(jnp.stack(rows), (0, 1), (-2, -1))
        symmetric = (jacobian + jnp.swapaxes(jacobian, -2, -1)) / 2
        gamma = float(jnp.linalg.eigvalsh(symmetric).max())
        size = float(jnp.abs(terminal).max()) + steepest(terminal)
        record |= {"gamma": gamma, "bound": float(np.exp(max(gamma - sigma**2 / 2, 0)) * size)}
        if sigma > 0:
            record["differences"] = differences(np.asarray(u), np.asarray(terminal), gamma, sigma)
    return record


def differences(u, terminal, gamma: float, sigma: float) -> list[dict[str, float]]:
    """max_x |u(x + delta) - u(x)| by |delta|, along axes and diagonals, and the bound."""
    out, n = [], len(u)
    for k in (k for k in 2 ** np.arange(int(np.log2(n))) if 2 * k <= n):
        for scale, shifts in ((1.0, ((k, 0), (0, k))), (2**0.5, ((k, k), (k, -k)))):
            moved = [np.abs(np.roll(u, shift, axis=(0, 1)) - u).max() for shift in shifts]
            distance = float(scale * k / n)
            bound = float(np.ptp(terminal)) * uncoupled(distance, gamma, sigma)
            one = {"distance": distance, "difference": float(max(moved)), "bound": bound}
            out.append(one)
    return out


def uncoupled(distance: float, gamma: float, sigma: float) -> float:
    """The most by which two paths, so far apart at t = 0, fail to meet before t = 1.

    P(r(1) > 0) of dr = gamma r dt + 2 sigma dB, stopped at 0: 2 Phi(r / 2) - 1
    """
    growth = 2 * gamma / -math.expm1(-2 * gamma) if gamma else 1.0
    return math.erf(distance / sigma * growth**0.5 / 8**0.5)


def steepest(u) -> float:
    """max |grad u|."""
    return float(jnp.linalg.norm(spectral_gradient(u), axis=0).max())


def tables(result: dict[str, Any]) -> list[Any]:
    title = "u(., 0) for u(., 1) in [0, 1]: {points} points a side, {steps} steps"
    columns = ("velocity", "sigma", "min", "max", "max |grad u|", "Theorem 2")
    shown = report.table(title.format(**result["settings"]), *columns, collapse_padding=False)
    for name, records in result["solutions"].items():
        for record in records:
            cells = ["overflow", "", "", ""]
            if record["finite"]:
                bound = f"{record['bound']:.0f}" if "bound" in record else ""
                cells = [f"{record[k]:.2f}" for k in ("min", "max", "gradient")] + [bound]
            shown.add_row(name, f"{record['sigma']:g}", *cells)
    return [shown, *([_of_theorem_1(result)] if _compared(result) else [])]


def _compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The solutions whose nearby points were compared; none in results of before."""
    return [record for record in result["solutions"]["smooth"] if "differences" in record]


def _of_theorem_1(result: dict[str, Any]) -> Any:
    columns = ("|delta|", "|delta| / sigma", "largest difference", "bound")
    shown = report.table("Theorem 1, smooth velocity: |u(x + delta, 0) - u(x, 0)|", "", *columns)
    for record in _compared(result):
        for one in record["differences"]:
            ratio = one["distance"] / record["sigma"]
            cells = one["distance"], ratio, one["difference"], one["bound"]
            shown.add_row(f"sigma {record['sigma']:g}", *(f"{cell:.3f}" for cell in cells))
    shown.caption = "the paper gives neither C nor alpha; the bound is by coupling, alpha = 1"
    return shown


def figure(result: dict[str, Any]):
    """Rows: velocities; columns: the terminal condition, and sigma."""
    solutions = result["solutions"]
    drawn, axes = plt.subplots(
        len(solutions), 4, figsize=(9.6, 2.5 * len(solutions) + 0.4), layout="constrained"
    )
    show = {"origin": "lower", "extent": (0, 1, 0, 1), "vmin": 0, "vmax": 1, "cmap": "RdBu_r"}
    image = None
    for row, (name, records) in zip(axes, solutions.items(), strict=True):
        image = row[0].imshow(decode_array(result["terminal"]).T, **show)
        row[0].set_title("terminal condition $u(x, 1)$", fontsize=9)
        row[0].set_ylabel(VELOCITIES.get(name, name), fontsize=9)
        for axis, record in zip(row[1:], records, strict=False):
            axis.set_title(rf"$u(x, 0)$, $\sigma$ = {record['sigma']:g}", fontsize=9)
            if record["finite"]:
                axis.imshow(decode_array(record["u"]).T, **show)
                axis.set_xlabel(rf"max $|\nabla u|$ = {record['gradient']:.1f}", fontsize=8)
            else:
                axis.text(0.5, 0.5, "overflow", ha="center", va="center", fontsize=9)
                axis.set_xlim(0, 1)
                axis.set_ylim(0, 1)
                axis.set_aspect("equal")
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    assert image is not None
    bar = drawn.colorbar(image, ax=axes, shrink=0.6, label="$u$", extend="both")
    bar.ax.tick_params(labelsize=8)
    first, *_, last = solutions["smooth"]
    set_title(
        drawn,
        f"Diffusion flattens the solution: with a smooth velocity the largest gradient is "
        rf"{first['gradient']:.1f} at $\sigma$ = {first['sigma']:g} and {last['gradient']:.1f} at "
        rf"$\sigma$ = {last['sigma']:g}",
    )
    return drawn


def theorem_1(result: dict[str, Any]):
    """Differences of u between nearby points against |delta| / sigma; None in results of before."""
    compared = _compared(result)
    if not compared:
        return None
    drawn, axes = report.panels(compared, size=(4.2, 3.2))
    color = colors(["measured", "bound"])
    for record, axis in axes:
        points = sorted(record["differences"], key=lambda one: one["distance"])
        ratio = [one["distance"] / record["sigma"] for one in points]
        measured, bound = ([one[which] for one in points] for which in ("difference", "bound"))
        label = r"bound by coupling ($\alpha$ = 1)"
        axis.loglog(ratio, bound, color=color["bound"], label=label)
        label = r"measured, largest over $x$"
        axis.loglog(ratio, measured, "o", ms=4, color=color["measured"], label=label)
        axis.set_title(rf"smooth velocity, $\sigma$ = {record['sigma']:g}", fontsize=9)
        axis.set_xlabel(r"$|\delta|$ / $\sigma$")
        axis.grid(alpha=0.3, lw=0.5, which="both")
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(r"$|u(x + \delta, 0) - u(x, 0)|$")
    report.legend_below(drawn, ncols=2, title="the paper gives no value of its C and alpha")
    pairs = [
        one["difference"] / one["bound"] for record in compared for one in record["differences"]
    ]
    set_title(
        drawn,
        f"Nearby points differ by {100 * min(pairs):.0f} to {100 * max(pairs):.0f} % of a "
        f"bound of Theorem 1's form",
    )
    return drawn


FIGURES = {"fig4": figure, "fig4_theorem1": theorem_1}
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, figure_stem="enresnet")

if __name__ == "__main__":
    run(EXPERIMENT)
