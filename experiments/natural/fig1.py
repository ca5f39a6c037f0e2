"""*natural* Fig. 1: ResNets with a step size from 1 down to 1e-10, under a transfer attack.

    python -m experiments.natural.fig1                                       # embedded digits
    python -m experiments.natural.fig1 --preset paper --dataset cifar10 --data-dir DIR  # for a GPU

y_{n+1} = y_n + h f(y_n), each network trained with its own h. The paper crafts adversarial examples
by FGSM at 0.1, 0.3 and 0.5 on a network with three residual layers, and finds no h robust. PGD-40
on the network itself, at 0.1 and at a smaller radius, is measured too, because a transfer attack
says little of a network.

Preset paper: ResNet-56, trained as in He et al. (2016), here pre-activated; cpu: ResNet-14, 20
epochs of Adam. A finished network is not trained or attacked again: --resume.

The preset cpu: 7 minutes on two CPU cores.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np

import odejax
from odejax.attacks import FGSM, PGD
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import robust_accuracy, transfer_matrix
from odejax.models import PreActResNet
from odejax.plots import colors, set_title
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.recipe import Recipe, adam, drops, one_cycle, sgd, train
from ..lib.run import Experiment, Plan, PresetConfig, check_counts, each, load_data, run, seeded

KIND = "natural_fig1"
STEP_SIZES = tuple(10.0**-k for k in range(11))
PAPERS_EPS = (0.1, 0.3, 0.5)
SMALL_EPS = {"digits": 0.02, "mnist": 0.02, "cifar10": 2 / 255}
ORACLE_DEPTH = 8  # one residual layer in each of three groups
ORACLE_SEED = 1000  # and so on: other initial weights than those of the networks it attacks


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length."""

    depth: int
    epochs: int
    test_images: int


PRESETS = {
    "paper": {"cifar10": Preset(56, 164, 1000)},
    "cpu": each(SMALL_EPS, Preset(14, 20, 200)),
    "smoke": each(SMALL_EPS, Preset(8, 1, 20)),
}


@dataclasses.dataclass
class Config(PresetConfig):
    """Train ResNets with smaller and smaller steps, attack them by transfer and directly."""

    preset: str = "cpu"
    """paper (ResNet-56, for a GPU), cpu (ResNet-14, few epochs) or smoke."""
    dataset: str | None = None
    """digits (embedded), mnist or cifar10; with the preset paper cifar10."""
    seeds: int = 1
    """How many seeds of each."""


def plan(
    config: Config,
    make: Callable[..., Any] = PreActResNet,
    step_sizes: Sequence[float] = STEP_SIZES,
) -> Plan:
    preset = config.choose(PRESETS)
    check_counts(config, "seeds")
    images, test = load_data(config, preset.test_images)
    attacked, small = test.take(slice(preset.test_images)), SMALL_EPS[str(config.dataset)]

    def jobs(folder, _):
        @cache
        def trained(depth: int, h: float, seed: int):
            how = _recipe(make, config.preset, depth, h, preset.epochs)
            return train(how, images, jax.random.key(seed), folder / f"{depth}_{h:g}_{seed}")

        def measured(name: str, seed: int):
            h = float(name)
            oracle, _ = trained(ORACLE_DEPTH, 1.0, ORACLE_SEED + seed)
            predictor, record = trained(preset.depth, h, seed)
            key = jax.random.key(seed + 1)
            # Of all test images, and of those that are attacked, which the figure compares.
            record |= {
                "h": h,
                "clean_accuracy": clean_accuracy(predictor, test, key=key),
                "clean": clean_accuracy(predictor, attacked, key=key),
            }
            return record | _evaluate(predictor, oracle, attacked, small, key)

        return seeded(config.seeds, [f"{h:g}" for h in step_sizes], measured)

    return Plan(config.run_name, config.settings(preset), (images, test), jobs)


def _recipe(make, preset: str, depth: int, h: float, epochs: int) -> Recipe:
    make = partial(make, depth=depth, step_size=h)
    if preset == "paper":
        # He et al. (2016): a tenth of the rate after 32,000 and 48,000 of 64,000 steps.
        rule = sgd(drops(0.1, 0.5, 0.75), decay=1e-4)
        return Recipe(make, epochs, 128, rule, augment=crop_and_flip)
    return Recipe(make, epochs, 64, adam(one_cycle(3e-3)))


def _evaluate(predictor, oracle, attacked: ArrayDataset, small: float, key) -> dict[str, Any]:
    pixels, labels = attacked.pixels, attacked.labels

    def transferred(eps: float) -> float:
        matrix = transfer_matrix(
            {"oracle": oracle},
            pixels,
            labels,
            odejax.LinfBall(eps),
            FGSM(),
            targets={"network": predictor},
            key=key,
        )
        return float(matrix.accuracy[0, 0])

    def attacked_itself(eps: float) -> float:
        ball = odejax.LinfBall(eps)
        return robust_accuracy(predictor, pixels, labels, ball, PGD(40, None), key=key).accuracy

    return {
        "transfer": {f"{eps:g}": transferred(eps) for eps in PAPERS_EPS},
        "own": {f"{eps:.3g}": attacked_itself(eps) for eps in (small, PAPERS_EPS[0])},
    }


def _columns(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What is shown of the seeds of one h."""
    columns = {"clean": [record["clean"] for record in records]}
    for kind, attack in (("transfer", "FGSM"), ("own", "own PGD")):
        for eps in records[0][kind]:
            columns[f"{attack} {eps}"] = [record[kind][eps] for record in records]
    return columns


def tables(result: dict[str, Any]) -> list[Any]:
    """Accuracy in % by step size: clean, under transfer by FGSM, under PGD-40 on the network."""
    settings = result["settings"]
    rows = {h: _columns(records) for h, records in report.by_name(result).items()}
    title = f"{settings['dataset']}, ResNet-{settings['depth']}: accuracy in %"
    shown = report.table(title, "h", *next(iter(rows.values())), names=0)
    for h, columns in rows.items():
        shown.add_row(h, *map(report.cell, columns.values()))
    return [shown]


def figure(result: dict[str, Any]):
    """Fig. 1: accuracy against h, clean and under transfer; to the right, under PGD-40."""
    settings, runs = result["settings"], report.by_name(result)
    rows = {float(h): _columns(records) for h, records in runs.items()}

    def by_step_size(name: str) -> np.ndarray:
        return np.array([100 * np.mean(columns.get(name, np.nan)) for columns in rows.values()])

    names = [*next(iter(rows.values()))]
    color = colors(sorted({name.split()[-1] for name in names[1:]}, key=float))
    kinds = {
        "FGSM": "FGSM on another network, transferred (Fig. 1)",
        "own PGD": "PGD-40 on the network itself",
    }
    drawn, axes = report.panels(kinds.items(), size=(4.7, 3.4))
    for (kind, title), axis in axes:
        axis.plot(list(rows), by_step_size("clean"), "--", color="0.5", label="clean")
        for eps in color:
            style = {"color": color[eps], "label": rf"$\ell_\infty$, $\epsilon$ = {eps}"}
            axis.plot(list(rows), by_step_size(f"{kind} {eps}"), "-o", ms=4, **style)
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_xlabel("step size h")
        report.accuracy_axis(axis, title=title)
    report.legend_below(drawn, ncols=5, fontsize=9)
    set_title(
        drawn,
        f"Robust accuracy under PGD-40 at {names[-1].split()[-1]} is at most "
        f"{by_step_size(names[-1]).max():.1f} %, whatever the step size h "
        f"(ResNet-{settings['depth']}, {report.setting_line(settings)})",
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"fig1": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
