"""No proven margin may be above an attacked one: certificates against attacks, network by network.

    python -m experiments.soundness --publish     # digits: 12 networks, 4 radii, 64 images
    python -m experiments.soundness --preset ci   # 2 networks, 2 radii, 8 images: under a minute

Networks are trained for seconds on clean images. For each of them, each image, each other class j
and both balls (L-infinity and l2), a lower bound on the margin z_label - z_j over ball and box, by
CROWN, CROWN-IBP and intervals, is compared with the least margin that is met by

- PGD on this margin from 5 random starts;
- AutoAttack: its four attacks, with 20 steps, and 300 queries;
- 64 random corners of the cube, or points of the sphere.

The label is the predicted class. The images that attacks return are projected to ball and box, and
evaluated in float64. A bound above a margin evaluated there is a violation, and so is NaN: the
certificate is wrong. The gap is the attacked margin less the proven one. The bound is too low by at
most that.

About 40 minutes on two CPU cores. SSPNet and PolyNet with BatchNorm have little clean accuracy: a
layer's stages share running statistics. Their bounds are as good a test as any.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odejax import AbstractBall, L2Ball, models, predict
from odejax.attacks import APGD, FAB, AutoAttack, Square, Targeted, dlr
from odejax.certificates import IntervalBounds, LinearRelaxation
from odejax.evaluation import robust_accuracy
from odejax.plots import set_title
from odejax.relaxation import deterministic, trace
from odejax.training import clean_accuracy

from .lib import report
from .lib.accuracy import NORMS
from .lib.measure import BALLS
from .lib.recipe import Recipe, adam, one_cycle, train
from .lib.run import Experiment, Job, Plan, PresetConfig, load_data, run

KIND = "soundness"
CERTIFICATES = {
    "CROWN": LinearRelaxation(),
    "CROWN-IBP": LinearRelaxation(intermediate="interval"),
    "intervals": IntervalBounds(),
}
AT_ONCE = CERTIFICATES["CROWN"].images_at_once
LOWEST = -1e6  # of the margins that are stored to be drawn


def on_a_grid(*shape: Any, **settings: Any) -> models.ConvODENet:
    """A neural ODE in two midpoint steps."""
    model = models.ConvODENet(*shape, solver=diffrax.Midpoint(), **settings)
    return eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(2))


NETWORKS: dict[str, Callable[..., Any]] = {
    "MLP": partial(models.MLP, width=64),
    "ResNet, BatchNorm": partial(models.ResNet, width=8, depth=3, norm=models.BatchNorm),
    "MLP, GELU": partial(models.MLP, width=32, activation=jax.nn.gelu),
    "ResNet, GroupNorm": partial(models.ResNet, width=8, depth=2),
    "PreActResNet": partial(models.PreActResNet, depth=8),
    "SSPNet": partial(models.SSPNet, width=4, depth=2, norm=models.BatchNorm),
    "PolyNet": partial(models.PolyNet, width=4, depth=2, norm=models.BatchNorm),
    "FractalNet": partial(models.FractalNet, width=4, depth=2, columns=2, norm=models.BatchNorm),
    "RevNet": partial(models.RevNet, width=8, depth=2),
    "neural ODE, grid": partial(on_a_grid, width=4),
    "NmODENet": partial(models.NmODENet, width=32),
    "LipschitzNet": partial(models.LipschitzNet, width=4, depth=1, features=32),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is compared."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    epochs: int = 24
    test_images: int = 64
    linf: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    l2: tuple[float, ...] = (0.02, 0.05, 0.1, 0.25)
    starts: int = 5
    steps: int = 20
    random: int = 64
    suite: AutoAttack = dataclasses.field(default_factory=lambda: suite(20, 300))


def suite(steps: int, queries: int) -> AutoAttack:
    """The standard attacks of AutoAttack, shorter."""
    return AutoAttack(
        {
            "APGD-CE": APGD(steps),
            "APGD-T": Targeted(APGD(steps, loss=dlr), 9),
            "FAB-T": Targeted(FAB(steps), 9),
            "Square": Square(queries),
        }
    )


PRESETS = {
    "cpu": {"digits": Preset()},
    "ci": {
        "digits": Preset(
            tuple(NETWORKS)[:2],
            *(6, 8, (0.005, 0.02), (0.02, 0.1)),
            steps=10,
            suite=AutoAttack({"APGD-CE": APGD(10)}),
        )
    },
}


@dataclasses.dataclass
class Config(PresetConfig):
    """Count the proven margins that are above an attacked one: none may be."""

    preset: str = "cpu"
    """cpu (the whole study) or ci (two networks, few images)."""


def plan(config: Config, presets: Mapping[str, Mapping[str, Preset]] = PRESETS) -> Plan:
    preset = config.choose(presets)
    images, test = load_data(config, preset.test_images)
    test = test.take(slice(preset.test_images))

    def measured(name: str, folder):
        started = time.perf_counter()
        recipe = Recipe(NETWORKS[name], preset.epochs, 64, adam(one_cycle(5e-3), clip=1.0))
        predictor, _ = train(recipe, images, jax.random.key(0), folder / name.replace(" ", ""))
        record: dict[str, Any] = {
            "clean_accuracy": clean_accuracy(predictor, test, key=jax.random.key(0)),
            "balls": {
                norm: [
                    compare(predictor, test.pixels, BALLS[norm](eps), preset)
                    for eps in getattr(preset, norm)
                ]
                for norm in ("linf", "l2")
            },
        }
        return record | {"seconds": time.perf_counter() - started}

    def jobs(folder, _):
        for name in preset.networks:
            yield Job(name, 0, partial(measured, name, folder), "networks")

    return Plan(config.run_name, config.settings(preset, "suite"), (images, test), jobs)


def compare(predictor, images, ball: AbstractBall, preset: Preset) -> dict[str, Any]:
    """The margins proven and attacked in one ball: what is wrong, and how far they are apart."""
    labels = predict(predictor, images, key=jax.random.key(0)).argmax(axis=1)
    bounds = proven(predictor, images, labels, ball)
    attacked = least_margins(
        predictor, images, labels, ball, attack_points(predictor, images, labels, ball, preset)
    )
    return {"eps": float(ball.eps)} | summary(bounds, attacked, labels)


def summary(bounds: Mapping[str, np.ndarray], attacked: np.ndarray, labels) -> dict[str, Any]:
    """Violations and gaps by certificate, of (n, k) margins; the least ones of every image."""
    other = np.arange(attacked.shape[1]) != labels[:, None]

    def worst(margins):
        least = np.where(other, margins, np.inf).min(axis=1)
        return np.round(np.fmax(least, LOWEST), 4).tolist()

    out = {}
    for name, low in bounds.items():
        gaps = attacked[other] - low[other]
        median = float(np.median(gaps))
        out[name] = {
            "violations": int((~(low[other] <= attacked[other])).sum()),  # a NaN is one
            "smallest_gap": float(np.nanmin(gaps)),
            "median_gap": median if np.isfinite(median) else None,
        }
    margins = {name: worst(low) for name, low in bounds.items()} | {"attacked": worst(attacked)}
    return {"bounds": int(other.sum()), "certificates": out, "worst": margins}


def proven(predictor, images, labels, ball: AbstractBall) -> dict[str, np.ndarray]:
    """Lower bounds on z_label - z_j by certificate, (n, k)."""
    parts = [
        _proven(predictor, images[i : i + AT_ONCE], labels[i : i + AT_ONCE], ball)
        for i in range(0, len(images), AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in CERTIFICATES}


@eqx.filter_jit
def _proven(predictor, images, labels, ball):
    def one(x, y):
        graph = trace(deterministic(predictor, x), x)
        return {name: c.margins(graph, x, y, ball) for name, c in CERTIFICATES.items()}

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(images, labels)


def attack_points(predictor, images, labels, ball: AbstractBall, preset: Preset) -> np.ndarray:
    """Images in which margins are small, by all attacks: (n, points, h, w, c)."""
    key = jax.random.key(1)
    keys = jax.random.split(key, (len(images), preset.starts))
    descended = _descend(predictor, images, labels, ball, keys, preset.steps)
    report = robust_accuracy(predictor, images, labels, ball, preset.suite, key=key, progress=False)
    moves = np.random.default_rng(0).normal(size=(len(images), preset.random, *images.shape[1:]))
    if isinstance(ball, L2Ball):
        moves /= np.sqrt((moves**2).sum(axis=(2, 3, 4), keepdims=True))
    else:
        moves = np.sign(moves)
    scattered = np.clip(images[:, None] + float(ball.eps) * moves, 0, 1)
    return np.concatenate([descended, report.x_adv[:, None], scattered], axis=1)


@eqx.filter_jit
def _descend(predictor, images, labels, ball, keys, steps):
    """PGD on every margin of each image by itself, from random starts, in ever shorter steps."""
    classes = jnp.arange(len(jax.eval_shape(predictor, images[0])))

    def margin(at, y, j):
        logits = predictor(at)
        return logits[y] - logits[j]

    def one(x, y, j, key):
        def step(i, carry):
            at, least, least_at = carry
            value, uphill = jax.value_and_grad(margin)(at, y, j)
            least_at = jnp.where(value < least, at, least_at)
            move = ball.eps * (1 - i / steps) * ball.steepest(uphill)
            return ball.project(at - move, x), jnp.minimum(value, least), least_at

        start = ball.sample(x, key=key)
        at, least, least_at = jax.lax.fori_loop(0, steps, step, (start, jnp.inf, start))
        return jnp.where(margin(at, y, j) < least, at, least_at)

    def of_image(x, y, keys):
        all_starts = jax.vmap(lambda j: jax.vmap(lambda key: one(x, y, j, key))(keys))(classes)
        return all_starts.reshape(-1, *x.shape)

    return jax.vmap(of_image)(images, labels, keys)


def least_margins(predictor, images, labels, ball: AbstractBall, points) -> np.ndarray:
    """The least margins z_label - z_j over the points of each image, (n, k), in float64."""

    def double(leaf):
        return np.asarray(leaf, np.float64) if eqx.is_inexact_array(leaf) else leaf

    with jax.enable_x64(True):
        wide = jax.tree.map(double, predictor), double(images), double(points)
        predictor, images, points = wide
        return np.asarray(_least_margins(predictor, images, labels, ball, points))


@eqx.filter_jit
def _least_margins(predictor, images, labels, ball, points):
    def one(x, y, points):
        logits = jax.vmap(lambda point: predictor(ball.project(point, x)))(points)
        return jnp.min(logits[:, y, None] - logits, axis=0)

    return jax.vmap(one)(images, labels, points)


def _violations(result: dict[str, Any]) -> tuple[int, int]:
    """How many bounds are above an attacked margin, and how many there are."""
    of_all = [r for n in result["networks"].values() for b in n["balls"].values() for r in b]
    wrong = sum(c["violations"] for r in of_all for c in r["certificates"].values())
    return wrong, sum(r["bounds"] * len(r["certificates"]) for r in of_all)


def finding(result: dict[str, Any]) -> str:
    wrong, total = _violations(result)
    if wrong:
        return f"{wrong:,} of {total:,} proven margins are above an attacked one: they are wrong"
    return f"None of {total:,} proven margins is above an attacked one"


def tables(result: dict[str, Any]) -> list[Any]:
    """Violations by network, and the median gap of every certificate within the least radii."""
    out = []
    for norm in ("linf", "l2"):
        radii = result["settings"][norm]
        title = f"{NORMS[norm]} {', '.join(map(str, radii))}; median gap within {radii[0]:g}"
        columns = ("", "clean", "violations", "smallest gap", *CERTIFICATES)
        table = report.table(title, *columns)
        for name, network in result["networks"].items():
            rows = network["balls"][norm]
            every = [c for r in rows for c in r["certificates"].values()]
            medians = [rows[0]["certificates"][c]["median_gap"] for c in CERTIFICATES]
            table.add_row(
                name,
                f"{100 * network['clean_accuracy']:.0f}",
                str(sum(c["violations"] for c in every)),
                f"{min(c['smallest_gap'] for c in every):.1e}",
                *("none" if gap is None else f"{gap:.2g}" for gap in medians),
            )
        out.append(table)
    return out


def notes(result: dict[str, Any]) -> list[str]:
    return [
        f"{finding(result)}.",
        "A gap is an attacked margin, evaluated in float64, less the proven one. clean: in %.",
    ]


def figure(result: dict[str, Any]):
    """For every network: CROWN's least margin of each image against the least one attacked."""
    settings, networks = result["settings"], result["networks"]
    columns = min(4, len(networks))
    drawn, axes = report.panels(networks, columns=columns, size=(2.9, 2.7), sharey=False)
    count = max(len(settings[norm]) for norm in ("linf", "l2"))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, count))
    for name, axis in axes:
        rows = [(norm, i, r) for norm in BALLS for i, r in enumerate(networks[name]["balls"][norm])]
        attacked = np.concatenate([r["worst"]["attacked"] for _, _, r in rows])
        low, high = attacked.min(), attacked.max()
        low, high = low - 0.35 * (high - low), high + 0.05 * (high - low)
        below = 0
        for norm, i, r in reversed(rows):
            x, y = (np.asarray(r["worst"][which]) for which in ("attacked", "CROWN"))
            hidden = y < low
            below += hidden.sum()
            marker = {"linf": "o", "l2": "^"}[norm]
            style = {"ms": 3, "mew": 0, "ls": "", "color": shades[i], "alpha": 0.7}
            axis.plot(x[~hidden], y[~hidden], marker, **style)
        axis.plot([low, high], [low, high], "k-", lw=0.9)
        axis.fill_between([low, high], [low, high], high, color="#b2182b", alpha=0.12, lw=0)
        axis.axhline(0, color="0.6", lw=0.6, zorder=0)
        axis.set_xlim(attacked.min() - 0.05 * (high - low), high)
        axis.set_ylim(low, high)
        axis.set_title(name, fontsize=9)
        if below:
            share = f"{100 * below / len(attacked):.0f} % lie below"
            axis.text(0.97, 0.03, share, transform=axis.transAxes, ha="right", fontsize=7)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("proven margin (CROWN)")
    for axis in drawn.axes[-columns:]:
        axis.set_xlabel("least margin under attack")
    first = drawn.axes[0]
    for i, shade in enumerate(shades):
        label = rf"$\ell_\infty$ {settings['linf'][i]:g}, $\ell_2$ {settings['l2'][i]:g}"
        first.plot([], [], "s", ms=5, color=shade, label=label)
    for marker, label in (("o", r"$\ell_\infty$"), ("^", r"$\ell_2$")):
        first.plot([], [], marker, ms=4, color="0.3", label=label)
    first.fill_between([], [], color="#b2182b", alpha=0.12, label="a point here: a wrong bound")
    report.legend_below(drawn, ncols=4)
    set_title(drawn, f"{finding(result)} ({report.setting_line(settings)}, one point per image)")
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"margins": figure}, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
