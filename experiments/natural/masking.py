"""A neural ODE that looks robust, and is not: what its own gradients leave, and what others break.

    python -m experiments.natural.masking                              # embedded digits
    python -m experiments.natural.masking --dataset mnist --data-dir DIR

One network, y' = -y + tanh(W y + b) solved by adaptive Dopri5 at *nmode*'s tolerance of 1e-3, is
trained on clean images to t = 1, 4, 8 and 12 in turn, and then solved on to t = 30, as its state
settles (*natural* integrates to 100). The network at t = 1 and the one at t = 30 are attacked by
PGD-40 through their own gradients, as the papers do, and by what masked gradients cannot fool: APGD
on a loss without scale, attacks without gradients, and images made on the same equation stopped
early. A table, `result.json` and a figure with the flags raised, in the run folder.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import odejax
from odejax.attacks import APGD, PGD, SPSA, Boundary, Square, dlr
from odejax.evaluation import (
    attack_flags,
    gradient_cosines,
    masking_flags,
    provenance,
    robust_accuracy,
    save_result,
    solver_flags,
    solver_variants,
    survivor_flags,
)
from odejax.models import HopfieldODENet

from ..lib.recipe import Recipe, adam, cosine, fitted
from ..lib.report import copy_to_repository
from ..lib.run import check_choice, check_counts, load_data, run

KIND = "masking"
OWN = "PGD-40, own gradients"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: tuple[float, ...]
    epochs: int  # a stage
    batch_size: int
    images: int  # attacked


SETTINGS = {
    "digits": Setting((0.05, 0.1, 0.15), 20, 64, 200),
    "mnist": Setting((0.05, 0.1, 0.15), 2, 128, 200),
}
TIMES = (1.0, 4.0, 8.0, 12.0)  # the stages of training
SETTLED = 30.0  # what the last network is solved to
EARLY = (1.0, 3.0)  # and where the solves that are attacked in its stead stop


@dataclasses.dataclass
class Config:
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
    out: Path | None = None
    """Run folder; by default runs/masking/DATASET."""
    publish: bool = False
    """Also copy the result and figure into experiments/results and experiments/figures."""


def main(config: Config):
    started = time.perf_counter()
    setting = _check(config)
    origin = provenance(config.seed)
    console = Console()
    train, test = load_data(config, setting.images)

    networks = _train(train, setting, config.seed, console)
    result = {"dataset": config.dataset, "n": setting.images, "budget": config.budget}
    result |= {"eps": list(setting.eps), "data": [train.provenance(), test.provenance()]}
    result["models"] = {}
    for name, predictor in networks.items():
        console.print(f"[bold]{name}[/]: attacking {setting.images} images")
        result["models"][name] = _evaluate(predictor, test, setting, config)
        seconds = result["models"][name]["seconds"]
        console.print("  " + ", ".join(f"{what} {s:.0f} s" for what, s in seconds.items()))

    folder = config.out or Path("runs/masking") / config.dataset
    path = folder / "result.json"
    minutes = (time.perf_counter() - started) / 60
    save_result(path, KIND, origin | {"minutes": minutes} | result)
    for table in _tables(result):
        console.print(table)
    for name, model in result["models"].items():
        for flag, evidence in model["flags"].items():
            console.print(f"{name}: [bold]{flag}[/] ({evidence})")
    figure(result).savefig(folder / "masking.png", dpi=150)
    plt.close("all")
    if config.publish:
        copy_to_repository(path, f"masking_{config.dataset}.json")
        copy_to_repository(folder / "masking.png", f"masking_{config.dataset}.png")
    console.print(f"{path} and masking.png written after {minutes:.1f} minutes")


def _check(config: Config) -> Setting:
    check_choice("dataset", config.dataset, SETTINGS)
    check_counts(config, "epochs", "test_images", "budget")
    setting = SETTINGS[config.dataset]
    return dataclasses.replace(
        setting,
        epochs=config.epochs or setting.epochs,
        images=config.test_images or setting.images,
    )


def _train(train, setting: Setting, seed: int, console) -> dict[str, odejax.Predictor]:
    """The network after the first stage, and the last one settled, solved adaptively."""
    key = jax.random.key(seed)
    model, state = eqx.nn.make_with_state(HopfieldODENet)(train.image_shape, key=key)
    adaptive, networks = model.ode, {}
    rule = adam(cosine(3e-3), clip=1.0)
    recipe = Recipe(HopfieldODENet, setting.epochs, setting.batch_size, rule)
    for stage, t1 in enumerate(TIMES):
        # Fixed steps, two a unit of time, train faster and to the same solution.
        ode = adaptive.replace(
            t1=t1,
            stepsize_controller=diffrax.ConstantStepSize(),
            dt0=t1 / max(8, round(2 * t1)),
        )
        model = eqx.tree_at(lambda m: m.ode, model, ode)
        console.print(f"training to t = {t1:g}")
        model = fitted(recipe, train, key, start=(model, state), stage=stage).model
        for first, t_end in ((TIMES[0], TIMES[0]), (TIMES[-1], SETTLED)):
            if t1 == first:
                solved = eqx.tree_at(lambda m: m.ode, model, adaptive.replace(t1=t_end))
                networks[f"t = {t_end:g}"] = odejax.Predictor(solved, state)
    return networks


def _evaluate(predictor, test, setting: Setting, config: Config) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    key = jax.random.key(config.seed + 1)
    data = test.take(slice(setting.images))
    pixels, labels = data.pixels, data.labels
    clean = odejax.predict(predictor, test.images, key=key).argmax(axis=1) == test.labels
    early = [
        eqx.tree_at(lambda p: p.model.ode, predictor, predictor.model.ode.replace(t1=t1))
        for t1 in EARLY
    ]
    # name: (the attack, the networks whose images it shows to this one)
    attacks = {
        OWN: (PGD(40, 0.01), [predictor]),
        "APGD-CE": (APGD(100), [predictor]),
        "APGD-DLR": (APGD(100, loss=dlr), [predictor]),
        "Square": (Square(config.budget), [predictor]),
        "Boundary": (Boundary(config.budget), [predictor]),
        "SPSA": (SPSA(config.budget, samples=16), [predictor]),
        "PGD-40, solve stopped early": (PGD(40, None), early),
    }
    standing = {name: [] for name in attacks}
    flags = []
    for i, eps in enumerate(setting.eps):
        ball, left = odejax.LinfBall(eps), {}
        for name, (attack, oracles) in attacks.items():
            started = time.perf_counter()
            left[name] = np.ones(len(data), bool)
            for oracle in oracles:
                left[name] &= robust_accuracy(
                    oracle,
                    pixels,
                    labels,
                    ball,
                    attack,
                    key=jax.random.fold_in(key, i),
                    batch_size=50,
                    judge=predictor,
                    stop_at_first_success=oracle is predictor,
                    already_broken=~left[name],
                    progress=True,
                ).still_correct
            standing[name].append(float(left[name].mean()))
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        standing.setdefault("all together", []).append(
            float(np.logical_and.reduce(list(left.values())).mean())
        )
        if i == len(setting.eps) // 2:
            started = time.perf_counter()
            probed = predictor, pixels[:64], labels[:64], ball
            flags += masking_flags(*probed, key=key)
            flags += solver_flags(*probed, key=key)
            flags += attack_flags(*probed, key=key)
            flags += survivor_flags(
                {OWN: left[OWN]},
                {name: left[name] for name in ("Square", "Boundary", "SPSA")},
                {"the solve stopped early": left["PGD-40, solve stopped early"]},
            )
            seconds["flags"] = time.perf_counter() - started
    variants = solver_variants(predictor)
    cosines = gradient_cosines(predictor, pixels[:64], labels[:64], variants, key=key)
    return {
        "t1": predictor.model.ode.t1,
        "clean_accuracy": float(clean.mean()),
        "clean": float(clean[: len(data)].mean()),
        "standing": standing,
        "flags_at": setting.eps[len(setting.eps) // 2],
        "flags": {flag.name: flag.evidence for flag in flags},
        "median_cosine": {name: float(np.median(c)) for name, c in cosines.items()},
        "seconds": seconds,
    }


def _tables(result) -> list[Table]:
    tables = []
    for name, model in result["models"].items():
        title = f"{result['dataset']}, {name}: accuracy in %, the first {result['n']} test images"
        table = Table(title=title, box=SIMPLE_HEAD)
        table.add_column("L-infinity eps")
        for eps in ("clean", *(f"{eps:g}" for eps in result["eps"])):
            table.add_column(eps, justify="right")
        for attack, standing in model["standing"].items():
            table.add_row(attack, *(f"{100 * a:.1f}" for a in (model["clean"], *standing)))
        tables.append(table)
    return tables


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
        "all together": {"color": "#b2182b", "lw": 2.5, "marker": "o"},
        "PGD-40, solve stopped early": {"color": "#2166ac", "lw": 1.2, "ls": "--"},
    }
    for column, (name, model) in enumerate(models.items()):
        axis, text = axes[:, column]
        for attack, standing in model["standing"].items():
            style = styles.get(attack, {"lw": 1, "ls": ":"})
            axis.plot(eps, 100 * np.array([model["clean"], *standing]), label=attack, ms=4, **style)
        axis.fill_between(
            eps,
            100 * np.array([model["clean"], *model["standing"][OWN]]),
            100 * np.array([model["clean"], *model["standing"]["all together"]]),
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


if __name__ == "__main__":
    run(main, Config)
