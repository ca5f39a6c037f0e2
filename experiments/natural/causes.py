"""*natural*, taken apart: is it the time, the tolerance, the logits' scale, or the dynamics?

    python -m experiments.natural.causes                              # embedded digits
    python -m experiments.natural.causes --dataset mnist --data-dir DIR

The paper attacks by PGD-40 through the solver's own steps. Where robust accuracy is higher under it
than under all attacks, PGD-40 overstates it. One experiment for each possible cause:

- *time* and *dynamics*: three fields, a convolutional one (of the paper's kind), y' = f(y) fully
  connected, and y' = -y + tanh(W y + b), which settles. Each is trained to t1 = 1 and then on to 3,
  10, 30 and 100 in turn (the paper has 100 and 500). Measured after each: robust accuracy, and by
  how much the flow enlarges the distance between an image and a randomly perturbed one.
- *training*: a longer time also means longer training. The same stages, every one with t1 = 1.
- *tolerance*: the networks of the longest time, the same weights solved to other tolerances than
  1e-3 (the paper does not give its own).
- *saturation*: the networks of t1 = 1, their logits multiplied. The decisions are the same, and the
  cross-entropy's gradient vanishes. The margin's gradient does not depend on the factor.

"All attacks" are PGD on either loss, APGD-DLR, Square, and adversarial examples crafted on the same
network with its solve stopped early.

100 minutes on two CPU cores, with two or three other runs beside it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from odejax.plots import colors, plain_ticks, set_title
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.measure import brackets
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
from .staged import ALL, EARLY, robust_accuracies, trained_in_stages
from .tables import with_solve

KIND = "natural_causes"
PAPERS, MARGIN = "PGD-40", "PGD-40, margin"
FIELDS: dict[str, Callable[..., Any]] = {
    "convolutional": partial(ConvODENet, width=16),
    "fully connected": partial(DenseODENet, width=64),
    "settling": partial(DenseODENet, field=HopfieldField, width=64),
}
# In tables.
SHORT = {PAPERS: "PGD", MARGIN: "CW", "APGD-DLR": "DLR", EARLY: "early", ALL: "all"}
SHORT |= dict(zip(FIELDS, ("conv.", "dense", "settl."), strict=True))
CAUSES = {  # what is varied: its column in the tables, its axis
    "time": ("t1", "integration time $t_1$"),
    "training": ("epochs", "epochs of training, $t_1$ = 1"),
    "tolerance": ("rtol", "tolerance of the solver"),
    "factor": ("factor", "logits multiplied by"),
}
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
    """Train three fields to longer and longer times, and find what masks their gradients."""

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

    def stages(field: str, times: tuple[float, ...], folder):
        make = FIELDS[field]
        return trained_in_stages(make, times, images, setting, key, folder / field)

    def jobs(folder, _):
        for field in config.fields:
            networks = stages(field, times, folder)
            for t1, predictor in zip(times, networks, strict=True):
                yield job(field, "time", t1, predictor)
                if t1 == times[0]:
                    for factor in factors:
                        yield job(field, "factor", factor, _multiplied(predictor, factor))
                if t1 == times[-1]:
                    for tolerance in tolerances:
                        yield job(field, "tolerance", tolerance, _solved_to(predictor, tolerance))
            for stage, predictor in enumerate(stages(field, len(times) * times[:1], folder)):
                if stage:
                    yield job(field, "training", setting.epochs * (stage + 1), predictor)

    return Plan(config.dataset, settings, (images, test), jobs)


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
    (bracket,) = brackets(
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
    pixels = attacked.pixels
    corners = np.clip(pixels + eps * np.sign(jax.random.normal(key, pixels.shape)), 0, 1)
    growth, gap, steps = _flow(predictor, jnp.asarray(pixels), jnp.asarray(corners, pixels.dtype))
    return {
        "robust_accuracy": robust_accuracies(bracket, [*oracles]),
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


def _records(result: dict[str, Any], cause: str) -> dict[str, list[dict[str, Any]]]:
    """The records in which a cause is varied, by field, in the order of their values."""
    # The networks of the shortest and the longest time are points of the other lines, too.
    settings = result["settings"]
    shortest, longest = settings["times"][0], settings["times"][-1]
    shared = {
        "training": (shortest, settings["epochs"]),
        "factor": (shortest, 1.0),
        "tolerance": (longest, 1e-3),
    }.get(cause)
    by_field: dict[str, list] = {}
    for record in result["runs"].values():
        if shared and (record["line"], record["value"]) == ("time", shared[0]):
            record = record | {"value": shared[1]}
        elif record["line"] != cause:
            continue
        by_field.setdefault(record["field"], []).append(record)
    return {f: sorted(records, key=lambda r: r["value"]) for f, records in by_field.items()}


def _overstated(record: dict[str, Any]) -> float:
    """By how many points PGD-40 overstates robust accuracy."""
    return 100 * (record["robust_accuracy"][PAPERS] - record["robust_accuracy"][ALL])


def _compact(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}" if value >= 1 else f"{value:.1g}"


def tables(result: dict[str, Any]) -> list[Any]:
    """One for each cause, accuracies in %; the clean ones of all test images."""
    settings, out = result["settings"], []
    for cause, (column, _) in CAUSES.items():
        title = f"{settings['dataset']}, {cause}: robust accuracy in %, eps {settings['eps']:g}"
        attacks = next(iter(result["runs"].values()))["robust_accuracy"]
        names = [SHORT.get(attack) or attack for attack in attacks]
        table = report.table(title, "", column, "clean", *names, "growth", "gap", "steps")
        table.caption = (
            f"clean: of all test images; the others: of the first {settings['test_images']}"
        )
        for field, records in _records(result, cause).items():
            for record in records:
                table.add_row(
                    SHORT[field],
                    f"{record['value']:g}",
                    f"{100 * record['clean_accuracy']:.1f}",
                    *(f"{100 * share:.0f}" for share in record["robust_accuracy"].values()),
                    _compact(record["median_growth"]),
                    _compact(record["median_logit_gap"]),
                    f"{record['mean_steps']:.0f}",
                )
        out.append(table)
    return out


def figure(result: dict[str, Any]):
    """Robust accuracy and how far PGD-40 overstates it, by cause; how the flow contracts."""
    settings, color = result["settings"], colors(FIELDS)
    setting = report.setting_line(settings, rf"$\ell_\infty$ {settings['eps']:g}")
    drawn, axes = plt.subplots(2, 5, figsize=(14, 5.4), sharex="col", layout="constrained")
    largest = {}

    def draw(axis: Any, cause: str, read: Callable[[dict[str, Any]], float]):
        values = []
        for field, records in _records(result, cause).items():
            values = [record["value"] for record in records]
            reads = [*map(read, records)]
            axis.plot(values, reads, "-o", ms=4, color=color[field], label=field)
        axis.set_xscale("linear" if cause == "training" else "log")
        axis.set_xticks(values[:: 2 if cause == "tolerance" else 1])
        axis.grid(alpha=0.3, lw=0.5)

    for (above, below), (cause, (_, label)) in zip(axes.T, CAUSES.items(), strict=False):
        draw(above, cause, lambda record: 100 * record["robust_accuracy"][ALL])
        draw(below, cause, _overstated)
        every = [record for records in _records(result, cause).values() for record in records]
        largest[cause] = max(map(_overstated, every))
        above.set_title(f"{cause}: overstated by {largest[cause]:.0f} points", fontsize=10)
        above.set_ylim(-2, 102)
        below.set_ylim(-2, 102)
        below.set_xlabel(label)
    growth = axes[1, 4]
    draw(growth, "time", lambda record: record["median_growth"])
    growth.axhline(1, color="k", lw=0.8)
    growth.set_yscale("log")
    growth.set_title("growth of random noise", fontsize=10)
    growth.set_xlabel(CAUSES["time"][1])
    growth.set_ylabel(r"growth ($\ell_2$), median")
    axes[0, 4].set_axis_off()
    for axis in axes.flat:
        plain_ticks(axis)
    axes[0, 0].set_ylabel("robust accuracy under\nall attacks (%)")
    axes[1, 0].set_ylabel("under PGD-40 minus\nunder all attacks (points)")
    report.legend_below(drawn, ncols=3, fontsize=9)
    set_title(
        drawn,
        f"PGD-40 overstates robust accuracy by up to {largest['time']:.0f} points over integration "
        f"times, {largest['tolerance']:.0f} over the solver's tolerances (longest time), "
        f"{largest['training']:.0f} over lengths of training, {largest['factor']:.0f} if the "
        f"logits are multiplied ({setting})",
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"causes": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
