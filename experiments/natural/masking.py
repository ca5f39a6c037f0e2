"""A neural ODE that looks robust under PGD through its own gradients, and stronger attacks on it.

    python -m experiments.natural.masking                              # embedded digits
    python -m experiments.natural.masking --dataset mnist --data-dir DIR

One network, y' = -y + tanh(W y + b) solved by adaptive Dopri5 at *nmode*'s tolerance of 1e-3, is
trained on clean images to t = 1, 4, 8 and 12 in turn, and then solved on to t = 30, as its state
settles (*natural* integrates to 100). The network at t = 1 and the one at t = 30 are attacked by
PGD-40 through their own gradients, as the papers do, and by what masked gradients cannot fool: APGD
on a loss without scale, attacks without gradients, and adversarial examples crafted on the same
equation stopped early. A finished network is not trained or attacked again: --resume.

9 minutes on two CPU cores.
"""

import dataclasses
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np

import odejax
from odejax.attacks import APGD, PGD, SPSA, Boundary, Square, dlr
from odejax.evaluation import attack_flags, gradient_cosines, solver_variants, survivor_flags
from odejax.models import DenseODENet, HopfieldField
from odejax.plots import AXIS_LABELS, colors, set_title
from odejax.plots.palette import ATTACKED
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.measure import brackets
from ..lib.run import Experiment, Job, Plan, RunConfig, check_choice, check_counts, load_data, run
from .staged import ALL, correct_under, robust_accuracies, trained_in_stages
from .tables import with_solve

KIND = "masking"
MAKE = partial(DenseODENet, field=HopfieldField)
OWN = "PGD-40, own gradients"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: tuple[float, ...]
    epochs: int  # of each stage of training
    batch_size: int
    test_images: int  # attacked


SETTINGS = {
    "digits": Setting((0.05, 0.1, 0.15), 20, 64, 200),
    "mnist": Setting((0.05, 0.1, 0.15), 2, 128, 200),
}
TIMES = (1.0, 4.0, 8.0, 12.0)  # the stages of training
SETTLED = 30.0  # what the last network is solved to
EARLY_TIMES = (1.0, 3.0)  # and where the solves that are attacked in its stead stop


@dataclasses.dataclass
class Config(RunConfig):
    """Train a neural ODE, attack it solved to a short and to a long time."""

    dataset: str = "digits"
    """digits (embedded) or mnist."""
    budget: int = 1000
    """Queries for each image of Square, Boundary and SPSA."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""


def plan(config: Config) -> Plan:
    check_choice("dataset", config.dataset, SETTINGS)
    check_counts(config, "budget")
    setting = config.settle(SETTINGS[config.dataset])
    images, test = load_data(config, setting.test_images)
    settings = {"dataset": config.dataset, "seed": config.seed, "budget": config.budget}
    settings |= dataclasses.asdict(setting)

    def jobs(folder, _):
        for name, predictor in _train(images, setting, config.seed, folder).items():
            measured = partial(_evaluate, predictor, test, setting, config)
            yield Job(name, config.seed, measured, "models")

    return Plan(config.dataset, settings, (images, test), jobs)


def _train(images, setting: Setting, seed: int, folder: Path) -> dict[str, odejax.Predictor]:
    """The network after the first stage, and the last one settled, solved adaptively."""

    def fixed_steps(ode):
        """Two a unit of time: faster, and to the same solution."""
        controller = diffrax.ConstantStepSize()
        return ode.replace(stepsize_controller=controller, dt0=ode.t1 / max(8, round(2 * ode.t1)))

    first, *_, last = trained_in_stages(
        MAKE, TIMES, images, setting, jax.random.key(seed), folder, in_training=fixed_steps
    )
    return {f"t = {TIMES[0]:g}": first, f"t = {SETTLED:g}": with_solve(last, t1=SETTLED)}


def _evaluate(predictor, test, setting: Setting, config: Config) -> dict[str, Any]:
    key = jax.random.key(config.seed + 1)
    data = test.take(slice(setting.test_images))
    attacks = {
        OWN: PGD(40, 0.01),
        "APGD-CE": APGD(100),
        "APGD-DLR": APGD(100, loss=dlr),
        "Square": Square(config.budget),
        "Boundary": Boundary(config.budget),
        "SPSA": SPSA(config.budget, samples=16),
    }
    oracles = {f"solve stopped at {t1:g}": with_solve(predictor, t1=t1) for t1 in EARLY_TIMES}
    measured = brackets(
        predictor,
        data,
        "linf",
        setting.eps,
        attacks=attacks,
        anew=set(attacks),
        oracles=oracles,
        transfer_attack=PGD(40, None),
        key=key,
        batch_size=50,
    )
    at_each_eps = [robust_accuracies(bracket, [*oracles]) for bracket in measured]
    middle = measured[len(measured) // 2]
    variants = solver_variants(predictor)
    probed = data.pixels[:64], data.labels[:64]
    cosines = gradient_cosines(predictor, *probed, variants, key=key)
    ball = odejax.LinfBall(middle.eps)
    under = middle.still_correct_under
    # The paper's attack alone against the others: the bracket's flags are of the best white box.
    flags = survivor_flags(
        {OWN: under[OWN]},
        {name: under[name] for name in ("Square", "Boundary", "SPSA")},
        {"the solve stopped early": correct_under(middle, [*oracles])},
    )
    flags = (*middle.flags, *attack_flags(predictor, *probed, ball, key=key), *flags)
    return {
        "t1": predictor.model.ode.t1,
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        "clean": middle.clean,
        "robust_accuracy": {name: [at[name] for at in at_each_eps] for name in at_each_eps[0]},
        "flags_at": middle.eps,
        "flags": {flag.name: flag.evidence for flag in flags},
        "median_cosine": {name: float(np.median(c)) for name, c in cosines.items()},
        "seconds": {name: sum(b.seconds[name] for b in measured) for name in middle.seconds},
    }


def tables(result: dict[str, Any]) -> list[Any]:
    made, settings = [], result["settings"]
    for name, model in result["models"].items():
        title = f"{report.setting_line(settings)}, {name}: robust accuracy in %"
        eps = (f"{eps:g}" for eps in settings["eps"])
        made.append(report.table(title, "L-infinity eps", "clean", *eps))
        for attack, accuracies in model["robust_accuracy"].items():
            made[-1].add_row(attack, *(f"{100 * a:.1f}" for a in (model["clean"], *accuracies)))
    return made


def notes(result: dict[str, Any]) -> list[str]:
    return report.flag_notes({name: model["flags"] for name, model in result["models"].items()})


def figure(result: dict[str, Any]):
    """Robust accuracy of each network under PGD-40 and under all attacks, and the flags."""
    models, settings = result["models"], result["settings"]
    eps = [0.0, *settings["eps"]]
    drawn, axes = report.panels(models.items(), size=(3.9, 4.2))
    color = colors(("PGD-40",))["PGD-40"]
    overstated = []
    for (name, model), axis in axes:
        pgd, under_all = (
            100 * np.array([model["clean"], *model["robust_accuracy"][attack]])
            for attack in (OWN, ALL)
        )
        gap = pgd - under_all
        overstated.append(f"{gap.max():.1f} points at {name}")
        axis.vlines(eps, under_all, pgd, color=color, alpha=0.35, lw=5)
        axis.plot(eps, pgd, "s", color=color, ms=6)
        axis.plot(eps, under_all, "o", color=ATTACKED, ms=6)
        for at, high, low, by in zip(eps[1:], pgd[1:], under_all[1:], gap[1:], strict=True):
            if by >= 5:
                axis.annotate(f"PGD-40: {high:.1f}", (at, high), **_beside(-8, color))
                axis.annotate(f"all attacks: {low:.1f}", (at, low), **_beside(-8, ATTACKED))
            else:
                name = f"both: {low:.1f}" if high == low else f"PGD-40: {high:.1f}, all: {low:.1f}"
                axis.annotate(name, (at, low), **_beside(-8, ATTACKED))
        report.accuracy_axis(axis)
        axis.set_xticks(eps)
        axis.set_title(
            f"solved to {name}, clean accuracy {100 * model['clean']:.1f} %", fontsize=10
        )
        flags = textwrap.fill("; ".join(model["flags"]) or "none", 46)
        axis.set_xlabel(f"{AXIS_LABELS['linf']}\n\nflags at {model['flags_at']:g}: {flags}")
    set_title(
        drawn,
        f"PGD-40 overstates robust accuracy by up to {', by up to '.join(overstated)} "
        f"({report.setting_line(settings)})",
        size=10,
    )
    return drawn


def _beside(points: float, color: str) -> dict[str, Any]:
    """How a mark is named: beside it, in its colour."""
    settings = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 9}
    return {"xytext": (points, 0), "color": color, **settings}


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"masking": figure}, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
