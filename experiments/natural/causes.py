"""*natural*, taken apart: is it the time, the tolerance, the logits' scale, or the dynamics?

    python -m experiments.natural.causes                              # embedded digits
    python -m experiments.natural.causes --dataset mnist --data-dir DIR

What the paper's attack, PGD-40 through the solver's own steps, leaves beyond what the worst of all
attacks leaves is not robustness. One experiment for each thing that may hide it:

- *time* and *dynamics*: three fields, a convolutional one (of the paper's kind), y' = f(y) fully
  connected, and y' = -y + tanh(W y + b), which settles. Each is trained to t1 = 1 and then on to 3,
  10, 30 and 100 in turn (the paper has 100 and 500), and measured after each: what attacks leave,
  and by how much the flow enlarges a distance between an image and another nearby.
- *training*: what is solved longer has been trained longer, too. The same, every time with t1 = 1.
- *tolerance*: the networks of the longest time, the same weights solved to other tolerances than
  1e-3 (the paper does not say its own).
- *saturation*: the networks of t1 = 1, their logits multiplied. The decisions are the same, and the
  cross-entropy's gradient vanishes. That of the margin does not see the factor.

"Worst" is what withstands PGD on either loss (in the tables PGD and CW), APGD-DLR, Square, and
images made on the same network with its solve stopped early.

100 minutes on two CPU cores, with two or three other runs beside it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import odejax
from odejax.attacks import APGD, PGD, Square, dlr, margin_loss
from odejax.models import ConvODENet, DenseODENet, HopfieldField
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.measure import brackets
from ..lib.recipe import Recipe, adam, cosine, fitted
from ..lib.run import (
    Experiment,
    Job,
    Plan,
    RunConfig,
    check_choice,
    check_choices,
    check_counts,
    load_data,
    run,
)
from .tables import with_solve

KIND = "natural_causes"
PAPERS, MARGIN, EARLY = "PGD-40", "PGD-40, margin", "solve stopped early"
FIELDS: dict[str, Callable[..., Any]] = {
    "convolutional": partial(ConvODENet, width=16),
    "fully connected": partial(DenseODENet, width=64),
    "settling": partial(DenseODENet, field=HopfieldField, width=64),
}
SHORT = dict(zip(FIELDS, ("conv.", "dense", "settl."), strict=True))  # in tables
COLORS = dict(zip(FIELDS, ("#2166ac", "#1b9e77", "#b2182b"), strict=True))
TIMES = (1.0, 3.0, 10.0, 30.0, 100.0)
TOLERANCES = (1e-1, 1e-2, 1e-4, 1e-5)  # beside the networks' own, 1e-3
FACTORS = (10.0, 100.0, 1000.0)  # beside 1
STOPPED = (0.03, 0.1, 0.3)  # of the time


def attacks_of(queries: int) -> dict[str, Any]:
    return {
        PAPERS: PGD(40, 0.01),
        MARGIN: PGD(40, 0.01, loss=margin_loss),
        "APGD-DLR": APGD(100, loss=dlr),
        "Square": Square(queries),
    }


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: float
    epochs: int  # a stage of training
    batch_size: int
    test_images: int


SETTINGS = {"digits": Setting(0.1, 20, 64, 100), "mnist": Setting(0.1, 2, 128, 200)}


@dataclasses.dataclass
class Config(RunConfig):
    """Train three fields to longer and longer times, and find what hides their gradients."""

    dataset: str = "digits"
    """digits (embedded) or mnist."""
    fields: tuple[str, ...] = tuple(FIELDS)
    """Which fields, by name."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""
    queries: int = 1000
    """Square's, for each image."""


def plan(
    config: Config,
    times: tuple[float, ...] = TIMES,
    tolerances: Sequence[float] = TOLERANCES,
    factors: Sequence[float] = FACTORS,
    stopped: Sequence[float] = STOPPED,
    attacks: Callable[[int], dict[str, Any]] = attacks_of,
) -> Plan:
    check_choice("dataset", config.dataset, SETTINGS)
    check_choices("field", config.fields, FIELDS)
    check_counts(config, "queries")
    setting = config.settle(SETTINGS[config.dataset])
    images, test = load_data(config, setting.test_images)
    settings = {"dataset": config.dataset, "seed": config.seed, "queries": config.queries}
    settings |= dataclasses.asdict(setting) | {"times": times, "stopped": stopped}
    attacked = test.take(slice(setting.test_images))
    key = jax.random.key(config.seed)

    def job(field: str, what: str, value: float, predictor: odejax.Predictor) -> Job:
        def measured():
            record = {"field": field, "line": what, "value": value}
            record |= {"clean_accuracy": clean_accuracy(predictor, test, key=key)}
            chosen = attacks(config.queries)
            return record | _evaluate(predictor, attacked, setting.eps, chosen, stopped, key)

        return Job(f"{field}/{what}={value:g}", config.seed, measured)

    def jobs(folder, _):
        for field in config.fields:
            networks = _train(FIELDS[field], times, images, setting, key, folder / field)
            for t1, predictor in zip(times, networks, strict=True):
                yield job(field, "time", t1, predictor)
                if t1 == times[0]:
                    for factor in factors:
                        yield job(field, "factor", factor, _multiplied(predictor, factor))
                if t1 == times[-1]:
                    for tolerance in tolerances:
                        yield job(field, "tolerance", tolerance, _solved_to(predictor, tolerance))
            short = len(times) * (times[0],)
            networks = _train(FIELDS[field], short, images, setting, key, folder / field)
            for stage, predictor in enumerate(networks):
                if stage:
                    yield job(field, "training", setting.epochs * (stage + 1), predictor)

    return Plan(config.dataset, settings, (images, test), jobs)


def _train(
    make: Callable[..., Any], times: tuple[float, ...], train, setting: Setting, key, folder: Path
) -> Iterable[odejax.Predictor]:
    """The network after each stage of training, to one of `times` each."""
    model, state = eqx.nn.make_with_state(make)(train.image_shape, train.n_classes, key=key)
    rule = adam(cosine(3e-3), clip=1.0)
    recipe = Recipe(make, setting.epochs, setting.batch_size, rule)
    for stage, t1 in enumerate(times):
        model = eqx.tree_at(lambda m: m.ode, model, model.ode.replace(t1=t1))
        checkpoints = folder / "-".join(f"{t:g}" for t in times[: stage + 1])
        trained = fitted(recipe, train, key, checkpoints, start=(model, state), stage=stage)
        model = trained.model
        yield odejax.Predictor(model, trained.state)


def _solved_to(predictor: odejax.Predictor, tolerance: float) -> odejax.Predictor:
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
    return with_solve(predictor, stepsize_controller=controller, max_steps=4096)


def _multiplied(predictor: odejax.Predictor, factor: float) -> odejax.Predictor:
    """The same decisions, with logits `factor` times as large."""

    def last_layer(p):
        linear: Any = p.model.head.linear if isinstance(p.model, ConvODENet) else p.model.outputs
        return linear.weight, linear.bias

    weight, bias = last_layer(predictor)
    return eqx.tree_at(last_layer, predictor, (factor * weight, factor * bias))


def _evaluate(
    predictor: Any, attacked, eps: float, attacks: Mapping[str, Any], stopped: Sequence[float], key
) -> dict[str, Any]:
    t1 = predictor.model.ode.t1
    oracles = {f"{share:g} of the time": with_solve(predictor, t1=share * t1) for share in stopped}
    (found,) = brackets(
        predictor,
        attacked,
        "linf",
        (eps,),
        attacks=attacks,
        oracles=oracles,
        transfer_attack=PGD(40, None, loss=margin_loss),
        flag_images=0,
        key=key,
    )
    early = np.logical_and.reduce([found.still_correct_under[name] for name in oracles])
    left = found.per_attack | {EARLY: float(early.mean()), "worst": found.attacked}
    pixels = attacked.pixels
    corners = np.clip(pixels + eps * np.sign(jax.random.normal(key, pixels.shape)), 0, 1)
    growth, gap, steps = _flow(predictor, jnp.asarray(pixels), jnp.asarray(corners, pixels.dtype))
    return {
        "left": left,
        "median_growth": float(np.median(growth)),
        "median_logit_gap": float(np.median(gap)),
        "mean_steps": float(np.mean(steps)),
    }


@eqx.filter_jit
def _flow(predictor, images, others):
    """|z(t1) - y(t1)| / |z(0) - y(0)|, by how much the largest logit leads, and the steps."""
    model, state = predictor.model, predictor.state

    def ends(x):
        y, _ = model.encode(x, state)
        logits, _, solution = model.with_solution(x, state)
        return jnp.ravel(y), jnp.ravel(solution.ys[0]), logits, solution.stats["num_steps"]

    def one(x, z):
        (start, end, logits, steps), (other_start, other_end, _, _) = ends(x), ends(z)
        growth = jnp.linalg.norm(other_end - end) / jnp.linalg.norm(other_start - start)
        top, _ = jax.lax.top_k(logits, 2)
        return growth, top[0] - top[1], steps

    return jax.vmap(one)(images, others)


def _lines(result: dict[str, Any], line: str) -> dict[str, list[dict[str, Any]]]:
    """The records of a line, by field, in the order of their values."""
    # The networks of the shortest and the longest time are points of the other lines, too.
    settings = result["settings"]
    shortest, longest = settings["times"][0], settings["times"][-1]
    shared = {
        "training": (shortest, settings["epochs"]),
        "factor": (shortest, 1.0),
        "tolerance": (longest, 1e-3),
    }.get(line)
    found: dict[str, list] = {}
    for record in result["runs"].values():
        if shared and (record["line"], record["value"]) == ("time", shared[0]):
            record = record | {"value": shared[1]}
        elif record["line"] != line:
            continue
        found.setdefault(record["field"], []).append(record)
    return {f: sorted(rows, key=lambda r: r["value"]) for f, rows in found.items()}


def _compact(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}" if value >= 1 else f"{value:.1g}"


def tables(result: dict[str, Any]) -> list[Any]:
    """One for each line, accuracies in %; the clean ones of all test images."""
    settings, out = result["settings"], []
    columns = {"time": "t1", "training": "epochs", "tolerance": "rtol", "factor": "factor"}
    for line, column in columns.items():
        title = f"{settings['dataset']}, {line}: % left at {settings['eps']:g}"
        short = {PAPERS: "PGD", MARGIN: "CW", "APGD-DLR": "DLR", EARLY: "early"}
        attacks: list[str] = list(next(iter(result["runs"].values()))["left"])
        names = [short.get(attack, attack) for attack in attacks]
        columns_of = (column, "clean", *names, "growth", "gap", "steps")
        table = report.table(title, "", *columns_of)
        table.caption = (
            f"clean: of all test images; the others: of the first {settings['test_images']}"
        )
        for field, records in _lines(result, line).items():
            for record in records:
                table.add_row(
                    SHORT[field],
                    f"{record['value']:g}",
                    f"{100 * record['clean_accuracy']:.1f}",
                    *(f"{100 * share:.0f}" for share in record["left"].values()),
                    _compact(record["median_growth"]),
                    _compact(record["median_logit_gap"]),
                    f"{record['mean_steps']:.0f}",
                )
        out.append(table)
    return out


def figure(result: dict[str, Any]):
    """Time, tolerance and saturation: PGD against the worst; dynamics: how the flow contracts."""
    settings = result["settings"]
    drawn, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    panels = (
        (axes[0, 0], "time", "integration time $t_1$"),
        (axes[0, 1], "training", "epochs, $t_1$ = 1"),
        (axes[0, 2], "tolerance", "tolerance of the solver"),
        (axes[1, 0], "factor", "logits multiplied by"),
    )
    styles = {
        PAPERS: ("--s", PAPERS),
        MARGIN: (":^", "PGD-40 on the margin"),
        "worst": ("-o", "worst"),
    }
    for axis, line, label in panels:
        for field, records in _lines(result, line).items():
            values = [record["value"] for record in records]
            for attack in styles:
                left = [100 * record["left"][attack] for record in records]
                axis.plot(values, left, styles[attack][0], ms=4, color=COLORS[field])
            if line != "factor":  # there all of it would be hidden
                ends = ([100 * r["left"][attack] for r in records] for attack in (PAPERS, "worst"))
                axis.fill_between(values, *ends, color=COLORS[field], alpha=0.12)
        for attack in styles:
            axis.plot([], [], styles[attack][0], color="0.3", ms=4, label=styles[attack][1])
        axis.set_title(line, fontsize=11)
        axis.set_xlabel(label)
        axis.set_ylabel("accuracy (%)")
        axis.set_ylim(-2, 102)
    axis = axes[1, 1]
    for field, records in _lines(result, "time").items():
        values = [record["value"] for record in records]
        growth = [record["median_growth"] for record in records]
        axis.plot(values, growth, "-o", ms=4, color=COLORS[field])
    axis.axhline(1, color="k", lw=0.8)
    axis.set_yscale("log")
    axis.set_title("dynamics", fontsize=11)
    axis.set_xlabel("integration time $t_1$")
    axis.set_ylabel("growth of a random distance (median)")
    axes[1, 2].axis("off")
    for axis in axes.flat[:-1]:
        axis.set_xscale("log")
        axis.grid(alpha=0.3, lw=0.5)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    fields = [plt.Line2D([], [], color=color, label=field) for field, color in COLORS.items()]
    drawn.legend(handles=fields, loc="outside lower center", ncols=3, fontsize=9)
    drawn.suptitle(
        f"{settings['dataset']}, L-infinity {settings['eps']:g}, {settings['test_images']} test "
        "images: between PGD (dashed) and the worst of all attacks lies what is hidden",
        fontsize=11,
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"causes": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
