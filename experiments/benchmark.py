"""The main job: train every family of networks, bracket its robustness, and show the result.

    python -m experiments.benchmark                            # embedded digits
    python -m experiments.benchmark --dataset mnist --data-dir DIR

For each family: clean accuracy, accuracy under FGSM and PGD-40 (L-infinity and l2, several eps),
certified accuracy where the family has a certificate, and masking flags; a table, `result.json`
and two figures in the run folder. Digits end in 6 minutes on 2 CPU cores, MNIST in under 30.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

import odejax
from odejax import models
from odejax.attacks import FGSM, PGD
from odejax.certificates import FiniteTimeStableMapping, LipschitzMargin, StableMapping
from odejax.evaluation import bracket, encode_array
from odejax.training import CrossEntropy

from .lib.recipe import Recipe, adam, one_cycle, train
from .lib.report import figures, notes, publish, tables
from .lib.run import UsageError, check_choice, check_choices, check_counts, load_data, run
from .lib.runs import Runs

KIND = "benchmark"
BATCH_SIZE = 250  # of attacks and evaluation
BALLS: dict[str, Callable[[float], odejax.AbstractBall]] = {
    "linf": odejax.LinfBall,
    "l2": odejax.L2Ball,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family is built and trained. The digits, 50 times fewer, take more epochs."""

    make: Callable[..., Any]
    epochs: int
    epochs_on_digits: int
    learning_rate: float
    objective: CrossEntropy = dataclasses.field(default_factory=CrossEntropy)
    certificates: tuple[Callable, ...] = ()
    draws: int = 1  # of noise, over which a randomised family is judged


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: tuple[float, ...]
    eps_l2: tuple[float, ...]
    validation: int
    test_images: int
    batch_size: int


FAMILIES = {
    "MLP": Family(models.MLP, 6, 24, 1e-3),
    "ResNet": Family(partial(models.ResNet, width=16, depth=4), 3, 16, 5e-3),
    "SSPNet": Family(partial(models.SSPNet, width=16, depth=4), 3, 16, 5e-3),
    "EnResNet": Family(
        partial(models.EnResNet, members=2, width=16, depth=4), 3, 16, 5e-3, draws=8
    ),
    "ConvODENet": Family(partial(models.ConvODENet, width=16), 3, 32, 5e-3),
    "NmODENet": Family(
        models.NmODENet, 10, 40, 1e-3, certificates=(StableMapping(), FiniteTimeStableMapping())
    ),
    "LipschitzNet": Family(
        partial(models.LipschitzNet, width=8),
        4,
        16,
        5e-3,
        objective=CrossEntropy(temperature=0.2),
        certificates=(LipschitzMargin(),),
    ),
}

DATASETS = {
    "digits": Setting((0.05, 0.1, 0.2), (0.25, 0.5, 1.0), 147, 250, 64),
    "mnist": Setting((0.05, 0.1, 0.2, 0.3), (0.5, 1.0, 1.5, 2.0), 5000, 500, 128),
    "fashion_mnist": Setting((0.02, 0.05, 0.1), (0.25, 0.5, 1.0), 5000, 500, 128),
    "cifar10": Setting((1 / 255, 2 / 255, 8 / 255), (36 / 255, 0.25, 0.5), 5000, 500, 128),
    "cifar100": Setting((1 / 255, 2 / 255, 8 / 255), (36 / 255, 0.25, 0.5), 5000, 500, 128),
}


@dataclasses.dataclass
class Config:
    """Train every family, attack and certify it, and write the table, JSON and figures."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10 or cifar100."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    models: tuple[str, ...] = tuple(FAMILIES)
    """Which families, by name."""
    eps: tuple[float, ...] = ()
    """L-infinity radii, in pixels of [0, 1]; by default the data set's."""
    eps_l2: tuple[float, ...] = ()
    """l2 radii; by default the data set's."""
    epochs: int | None = None
    """Epochs for every family; by default each family's own."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default 500, of the digits 250."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""
    out: Path | None = None
    """Run folder; by default runs/benchmark/DATASET."""
    resume: bool = False
    """Go on with the run in the folder."""
    overwrite: bool = False
    """Start anew in a folder that holds a run, whose result and checkpoints are lost."""
    publish: bool = False
    """Also copy the result and figures into experiments/results and experiments/figures."""


def main(config: Config):
    started = time.perf_counter()
    setting = _check(config)
    images, test = load_data(config, setting.test_images)
    images, validation = images.holdout(setting.validation)

    folder = config.out or Path("runs/benchmark") / config.dataset
    settings = {"dataset": config.dataset, "epochs": config.epochs, "seed": config.seed}
    settings |= {"linf": list(setting.eps), "l2": list(setting.eps_l2), "n": setting.test_images}
    data = (images, validation, test)
    runs = Runs.open(folder, KIND, settings, config, data, records="models")

    def measure(name: str):
        family = FAMILIES[name]
        usual = family.epochs_on_digits if config.dataset == "digits" else family.epochs
        checkpoints = folder / "checkpoints" / name
        rule = adam(one_cycle(family.learning_rate), clip=1.0)
        recipe = Recipe(
            family.make, config.epochs or usual, setting.batch_size, rule, family.objective
        )
        key = jax.random.key(config.seed)
        predictor, trained = train(recipe, images, key, checkpoints, validation=validation)
        return trained | _evaluate(family, predictor, test, setting, config.seed)

    for name in config.models:
        runs.record(name, config.seed, partial(measure, name))

    shown = {name: runs.result["models"][name] for name in config.models}
    console = Console()
    n = setting.test_images
    heading = f"{config.dataset}: certified - attacked accuracy in %, the first {n} test images"
    console.print(f"\n{heading}")
    for table in tables(shown):
        console.print(table)
    for note in notes(shown):
        console.print(note)
    figures(shown, config.dataset, n, folder)
    if config.publish:
        publish(config.dataset, folder, runs.path)
    minutes = (time.perf_counter() - started) / 60
    console.print(f"{runs.path}, curves.png and images.png written after {minutes:.1f} minutes")


def _check(config: Config) -> Setting:
    check_choice("dataset", config.dataset, DATASETS)
    check_choices("model", config.models, FAMILIES)
    for name, values in (("eps", config.eps), ("eps-l2", config.eps_l2)):
        if any(not 0 < value < float("inf") for value in values):
            raise UsageError(f"{name} must be finite and positive numbers; got {values}")
    check_counts(config, "epochs", "test_images")
    if not 0 <= config.seed < 2**31 - 1:
        raise UsageError(f"seed must be between 0 and 2147483646; got {config.seed}")
    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise UsageError(f"out must be a folder; {config.out} is a file")
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise UsageError(f"data-dir must be an existing folder; got {config.data_dir}")
    setting = DATASETS[config.dataset]
    return dataclasses.replace(
        setting,
        eps=tuple(sorted(config.eps)) or setting.eps,
        eps_l2=tuple(sorted(config.eps_l2)) or setting.eps_l2,
        test_images=config.test_images or setting.test_images,
    )


def _evaluate(family: Family, predictor, test, setting: Setting, seed):
    started = time.perf_counter()
    attacked = test.take(slice(setting.test_images))
    attacks = {"FGSM": FGSM(), "PGD-40": PGD(steps=40, step_size=None)}
    key = jax.random.key(seed + 1)  # the same for every eps: the same judge
    out: dict[str, Any] = {"balls": {}}
    for name, eps in (("linf", setting.eps), ("l2", setting.eps_l2)):
        intervals = bracket(
            predictor,
            *attacked,
            [BALLS[name](e) for e in eps],  # pyright: ignore[reportCallIssue]
            attacks=attacks,
            certificates=family.certificates,
            key=key,
            batch_size=BATCH_SIZE,
            draws=family.draws,
            # A look at the gradients is about the network, hardly about the norm: once.
            flag_images=64 if name == "linf" else 0,
        )
        if name == "linf":
            out["examples"] = _examples(attacked, intervals[len(eps) // 2])
            # Any bracket's judge: they share the key, so they share the judge.
            predictions = odejax.predict(intervals[0].judge, test.images, key=key).argmax(axis=1)
            out["clean_accuracy"] = float(np.mean(predictions == test.labels))
        out["balls"][name] = {
            "brackets": intervals.summaries(),
            "radii": (np.floor(intervals[-1].radius * 1e5) / 1e5).tolist(),
            "certificates": len(family.certificates),
        }
    return out | {"evaluation_seconds": time.perf_counter() - started}


def _examples(test, interval, count: int = 4):
    """A few images that an attack of this bracket broke, with what they became."""
    moved = np.abs(interval.x_adv - test.pixels).max(axis=(1, 2, 3)) > 0
    chosen = np.flatnonzero(moved)[:count]
    if len(chosen) == 0:
        return None
    key = jax.random.key(0)
    predictions = odejax.predict(interval.judge, interval.x_adv[chosen], key=key).argmax(axis=1)
    return {
        "eps": interval.eps,
        "images": encode_array(test.pixels[chosen]),
        "x_adv": encode_array(interval.x_adv[chosen]),
        "labels": test.labels[chosen].tolist(),
        "predictions": predictions.tolist(),
    }


if __name__ == "__main__":
    run(main, Config)
