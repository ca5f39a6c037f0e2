"""A neural ODE that looks robust, and is not: what its own gradients leave, and what others break.

    python -m experiments.natural.masking                              # embedded digits
    python -m experiments.natural.masking --dataset mnist --data-dir DIR

One network, y' = -y + tanh(W y + b) solved by adaptive Dopri5 at *nmode*'s tolerance of 1e-3, is
trained on clean images to t = 1, 4, 8 and 12 in turn, and then solved on to t = 30, as its state
settles (*natural* integrates to 100). The network at t = 1 and the one at t = 30 are attacked by
PGD-40 through their own gradients, as the papers do, and by what masked gradients cannot fool: APGD
on a loss without scale, attacks without gradients, and images made on the same equation stopped
early. A table, `result.json` and a figure with the flags raised, in the run folder.

9 minutes on two CPU cores.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np

import odejax
from odejax.attacks import APGD, PGD, SPSA, Boundary, Square, dlr
from odejax.evaluation import attack_flags, gradient_cosines, solver_variants, survivor_flags
from odejax.models import DenseODENet, HopfieldField
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.measure import brackets
from ..lib.recipe import Recipe, adam, cosine, fitted
from ..lib.run import Config as Base, Experiment, Once, check_choice, check_counts, load_data, run
from .tables import with_solve

KIND = "masking"
MAKE = partial(DenseODENet, field=HopfieldField)
OWN, EARLY = "PGD-40, own gradients", "PGD-40, solve stopped early"
TOGETHER = "all together"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: tuple[float, ...]
    epochs: int  # a stage
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
class Config(Base):
    """Train a short and a long neural ODE, attack both, and draw claim and truth side by side."""

    dataset: str = "digits"
    """digits (embedded) or mnist."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    epochs: int | None = None
    """Epochs of each stage of training; by default the data set's."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default 200."""
    budget: int = 1000
    """Queries for each image of Square, Boundary and SPSA."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""


def plan(config: Config) -> Once:
    check_choice("dataset", config.dataset, SETTINGS)
    check_counts(config, "epochs", "test_images", "budget")
    asked = {name: getattr(config, name) for name in ("epochs", "test_images")}
    setting = dataclasses.replace(
        SETTINGS[config.dataset], **{name: n for name, n in asked.items() if n}
    )
    images, test = load_data(config, setting.test_images)

    def measure():
        result: dict[str, Any] = {"dataset": config.dataset, "test_images": setting.test_images}
        result |= {"budget": config.budget, "eps": list(setting.eps)}
        result |= {"data": [images.provenance(), test.provenance()]}
        networks = _train(images, setting, config.seed)
        return result | {
            "models": {
                name: _evaluate(predictor, test, setting, config)
                for name, predictor in networks.items()
            }
        }

    return Once(measure, config.dataset, config.seed)


def _train(images, setting: Setting, seed: int) -> dict[str, odejax.Predictor]:
    """The network after the first stage, and the last one settled, solved adaptively."""
    key = jax.random.key(seed)
    model, state = eqx.nn.make_with_state(MAKE)(images.image_shape, key=key)
    adaptive, networks = model.ode, {}
    rule = adam(cosine(3e-3), clip=1.0)
    recipe = Recipe(MAKE, setting.epochs, setting.batch_size, rule)
    for stage, t1 in enumerate(TIMES):
        # Fixed steps, two a unit of time, train faster and to the same solution.
        ode = adaptive.replace(
            t1=t1,
            stepsize_controller=diffrax.ConstantStepSize(),
            dt0=t1 / max(8, round(2 * t1)),
        )
        model = eqx.tree_at(lambda m: m.ode, model, ode)
        model = fitted(recipe, images, key, start=(model, state), stage=stage).model
        for first, t_end in ((TIMES[0], TIMES[0]), (TIMES[-1], SETTLED)):
            if t1 == first:
                solved = eqx.tree_at(lambda m: m.ode, model, adaptive.replace(t1=t_end))
                networks[f"t = {t_end:g}"] = odejax.Predictor(solved, state)
    return networks


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
    found = brackets(
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
    standing = {name: [b.per_attack[name] for b in found] for name in attacks}
    early = [
        np.logical_and.reduce([b.still_correct_under[name] for name in oracles]) for b in found
    ]
    standing[EARLY] = [float(left.mean()) for left in early]
    standing[TOGETHER] = [b.attacked for b in found]
    middle = found[len(found) // 2]
    variants = solver_variants(predictor)
    probed = data.pixels[:64], data.labels[:64]
    cosines = gradient_cosines(predictor, *probed, variants, key=key)
    ball = odejax.LinfBall(middle.eps)
    under = middle.still_correct_under
    # The paper's attack alone against the others: the bracket's flags are of the best white box.
    flags = survivor_flags(
        {OWN: under[OWN]},
        {name: under[name] for name in ("Square", "Boundary", "SPSA")},
        {"the solve stopped early": early[len(found) // 2]},
    )
    flags = (*middle.flags, *attack_flags(predictor, *probed, ball, key=key), *flags)
    return {
        "t1": predictor.model.ode.t1,
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        "clean": middle.clean,
        "standing": standing,
        "flags_at": middle.eps,
        "flags": {flag.name: flag.evidence for flag in flags},
        "median_cosine": {name: float(np.median(c)) for name, c in cosines.items()},
        "seconds": {name: sum(b.seconds[name] for b in found) for name in middle.seconds},
    }


def tables(result: dict[str, Any]) -> list[Any]:
    made = []
    for name, model in result["models"].items():
        title = f"{report.setting_line(result)}, {name}: accuracy in %"
        eps = (f"{eps:g}" for eps in result["eps"])
        made.append(report.table(title, "L-infinity eps", "clean", *eps))
        for attack, standing in model["standing"].items():
            made[-1].add_row(attack, *(f"{100 * a:.1f}" for a in (model["clean"], *standing)))
    return made


def notes(result: dict[str, Any]) -> list[str]:
    return [
        f"{name}: [bold]{flag}[/] ({evidence})"
        for name, model in result["models"].items()
        for flag, evidence in model["flags"].items()
    ]


def figure(result: dict[str, Any]):
    """What each attack leaves of each network, and beneath it the flags."""
    models = result["models"]
    drawn, axes = plt.subplots(
        2,
        len(models),
        figsize=(5.2 * len(models), 6.2),
        height_ratios=(3, 2),
        layout="constrained",
        sharey="row",
    )
    eps = [0.0, *result["eps"]]
    styles = {
        OWN: {"color": "#ef8a62", "lw": 2.5, "marker": "s"},
        TOGETHER: {"color": "#b2182b", "lw": 2.5, "marker": "o"},
        EARLY: {"color": "#2166ac", "lw": 1.2, "ls": "--"},
    }
    for column, (name, model) in enumerate(models.items()):
        axis, text = axes[:, column]
        for attack, standing in model["standing"].items():
            style = styles.get(attack, {"lw": 1, "ls": ":"})
            axis.plot(eps, 100 * np.array([model["clean"], *standing]), label=attack, ms=4, **style)
        axis.fill_between(
            eps,
            100 * np.array([model["clean"], *model["standing"][OWN]]),
            100 * np.array([model["clean"], *model["standing"][TOGETHER]]),
            color="#fddbc7",
            label="robust, PGD says, and is not",
        )
        axis.set_title(f"{name}, clean {100 * model['clean']:.1f} %", fontsize=11)
        axis.set_xlabel(r"$\epsilon$  ($\ell_\infty$)")
        axis.grid(alpha=0.3, lw=0.5)
        axis.set_ylim(-2, 102)
        lines = [f"Flags raised at eps = {model['flags_at']:g}" if model["flags"] else "No flag"]
        lines += [f"* {flag}\n   {evidence}" for flag, evidence in model["flags"].items()]
        text.text(0, 1, "\n".join(lines), va="top", fontsize=8.5, transform=text.transAxes)
        text.axis("off")
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[1, 0].legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="lower left",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    drawn.suptitle(
        f"{result['dataset']}: the same neural ODE, solved to a short and to a long time",
        fontsize=12,
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"masking": figure}, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
