"""*nmode* on CIFAR-10: Fig. 8 b, Table 3 (CIFAR-10 rows) and Table 4.

    python -m experiments.nmode.cifar --preset paper --data-dir DIR    # for a GPU
    python -m experiments.nmode.cifar --preset cpu --data-dir DIR      # small nets, real images

- A ResNet is trained on clean images. "ResNet + nmODE" goes on from there with nmODE (t = 5) in
  front of its classifier, "ResNet" goes on for as long without (Fig. 8 b, Table 3).
- "TRADES" and "TRADES + nmODE" (t = 1) are trained by TRADES at 8/255 and attacked at 15/255
  (Table 4).

All weights are trained, by SGD with a one-cycle schedule. The paper takes a finished ResNet-18, and
trains for 1,000 epochs; for Table 4 it has Adam and says "using cross-entropy loss", where ours is
that of TRADES. Each network is attacked as in the paper (PGD-50) and by the standard AutoAttack; on
the CPU, where its 5,000 queries take hours, by the first half of it, which follows gradients.
Nothing here has a certificate: behind a convolutional net Eq. (4) bounds the part of nmODE alone.
A finished network is not trained or attacked again, an interrupted one goes on from its last epoch:
--resume.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

import odejax
from odejax.attacks import APGD, PGD, AutoAttack, Targeted, dlr
from odejax.data import crop_and_flip
from odejax.evaluation import bracket
from odejax.models import NmODE, PreActResNet, insert_before_classifier
from odejax.plots.curves import AXIS_LABELS
from odejax.training import TRADES, CrossEntropy, clean_accuracy

from ..ledger.printed import claimed
from ..lib.recipe import Recipe, fitted, one_cycle, sgd, train
from ..lib.report import present
from ..lib.run import RunConfig, check_choice, check_choices, load_data, run
from ..lib.runs import Runs

KIND = "nmode_cifar"
BATCH_SIZE = 128
LAM = 3.0
PAPERS_ATTACK = {"PGD-50": PGD(50, None)}
STRONGEST = {
    "AutoAttack": AutoAttack(),
    "APGD-CE and -T": AutoAttack({"APGD-CE": APGD(), "APGD-T": Targeted(APGD(loss=dlr), 9)}),
}
TRAINED_AT = 8 / 255
EPS = {"linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255), "l2": (36 / 255,)}
EPS_TRADES = {"linf": (8 / 255, 15 / 255), "l2": ()}
BALLS = {"linf": odejax.LinfBall, "l2": odejax.L2Ball}


@dataclasses.dataclass(frozen=True)
class Network:
    """How one network is trained."""

    objective: Any
    t1: float | None = None  # of nmODE in front of the classifier
    goes_on: bool = False  # from the pretrained ResNet
    eps: Any = dataclasses.field(default_factory=lambda: EPS)


NETWORKS = {
    "ResNet": Network(CrossEntropy(), goes_on=True),
    "ResNet + nmODE": Network(CrossEntropy(), 5.0, goes_on=True),
    "TRADES": Network(TRADES(odejax.LinfBall(TRAINED_AT)), eps=EPS_TRADES),
    "TRADES + nmODE": Network(TRADES(odejax.LinfBall(TRAINED_AT)), 1.0, eps=EPS_TRADES),
}
PRETRAINED = Network(CrossEntropy())


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length."""

    depth: int
    epochs_pretrained: int
    epochs: int
    train_images: int
    test_images: int
    strongest: str = "AutoAttack"


PRESETS = {
    "paper": Preset(18, 60, 60, 50_000, 1000),
    "cpu": Preset(8, 4, 2, 10_000, 100, "APGD-CE and -T"),
    "smoke": Preset(8, 1, 1, 256, 20, "APGD-CE and -T"),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Train ResNets with and without nmODE on CIFAR-10, attack them, print Tables 3 and 4."""

    preset: str = "cpu"
    """paper (ResNet-18, for a GPU), cpu (a ResNet-8, fewer images and epochs) or smoke."""
    dataset: str = "cifar10"
    """cifar10 or cifar100."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which networks, by name."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""
    epochs: int | None = None
    """Epochs of every network, and before that of the pretrained one; by default the preset's."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default the preset's."""


def main(config: Config):
    preset = _check(config)
    images, test = load_data(config, preset.test_images)
    images = images.take(slice(preset.train_images))
    folder = config.out or Path("runs/nmode_cifar") / f"{config.dataset}_{config.preset}"
    settings = {"dataset": config.dataset, "seed": config.seed} | dataclasses.asdict(preset)
    runs = Runs.open(folder, KIND, settings, config, (images, test))

    def measure(name: str):
        predictor, record = train_network(name, images, preset, config.seed, folder / "checkpoints")
        return record | _evaluate(NETWORKS[name], predictor, test, preset, config.seed)

    for name in config.networks:
        runs.record(name, config.seed, partial(measure, name))
    name = f"nmode_{config.dataset}_{config.preset}" if config.publish else None
    present([table(runs.result)], figure(runs.result), runs.path, "cifar.png", name)


def _check(config: Config) -> Preset:
    check_choice("preset", config.preset, PRESETS)
    check_choice("dataset", config.dataset, ("cifar10", "cifar100"))
    check_choices("network", config.networks, NETWORKS)
    preset = config.settle(PRESETS[config.preset])
    return dataclasses.replace(preset, epochs_pretrained=config.epochs or preset.epochs_pretrained)


def train_network(name: str, dataset, preset: Preset, seed: int, folder: Path):
    """The network, and what there is to say about its training."""
    network, key = NETWORKS[name], jax.random.key(seed)
    make = partial(PreActResNet, depth=preset.depth)
    start = None
    if network.goes_on:
        pretraining = _recipe(make, PRETRAINED, preset.epochs_pretrained)
        pretrained = fitted(pretraining, dataset, key, folder / "pretrained")
        start = pretrained.model, pretrained.state
    if network.t1 is not None:
        if start is None:
            start = eqx.nn.make_with_state(make)(dataset.image_shape, dataset.n_classes, key=key)
        start = insert_before_classifier(start[0], NmODE(LAM, network.t1)), start[1]
    return train(
        _recipe(make, network, preset.epochs),
        dataset,
        key,
        folder / name.replace(" ", ""),
        start=start,
        stage=1 + network.goes_on,
    )


def _recipe(make, network: Network, epochs: int) -> Recipe:
    # Of weights that are trained already, a tenth.
    rule = sgd(one_cycle(0.01 if network.goes_on else 0.1, 0.3), nesterov=True)
    return Recipe(make, epochs, BATCH_SIZE, rule, network.objective, crop_and_flip)


def _evaluate(network: Network, predictor, test, preset: Preset, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    key = jax.random.key(seed + 1)
    attacked = test.take(slice(preset.test_images))
    balls = {
        ball: bracket(
            predictor,
            *attacked,
            [BALLS[ball](eps) for eps in values],  # pyright: ignore[reportCallIssue]
            attacks=PAPERS_ATTACK | {preset.strongest: STRONGEST[preset.strongest]},
            anew=(*PAPERS_ATTACK, preset.strongest),
            key=key,
            batch_size=100,
            flag_images=32,
        ).summaries()
        for ball, values in network.eps.items()
    }
    return {
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        "balls": balls,
        "evaluation_seconds": time.perf_counter() - started,
    }


def table(result: dict[str, Any]) -> Table:
    """Accuracy in %, in brackets the paper's."""
    settings = result["settings"]
    title = "nmode Tables 3 and 4: {dataset}, PreActResNet-{depth}, {test_images} test images"
    shown = Table(title=title.format(**settings), box=SIMPLE_HEAD)
    for column in ("", "norm", "eps, 1/255", "clean (all)", *PAPERS_ATTACK, settings["strongest"]):
        shown.add_column(column, justify="right" if column else "left")
    for name, record in result["runs"].items():
        paper = claimed("nmode", settings["dataset"], name, "Table 3", "Table 4")
        clean = _cell(record["clean_accuracy"], paper.get(("clean", "", 0)))
        for ball, intervals in record["balls"].items():
            for interval in intervals:
                eps = interval["eps"]
                pgd, strongest = interval["per_attack"].values()
                pgd = _cell(pgd, paper.get((*PAPERS_ATTACK, ball, round(eps, 6))))
                shown.add_row(name, ball, f"{255 * eps:g}", clean, pgd, _cell(strongest, None))
    return shown


def _cell(fraction: float, printed: float | None) -> str:
    return f"{100 * fraction:.1f}" + (f" ({printed:.1f})" if printed else "")


def figure(result: dict[str, Any]):
    """L-infinity: what PGD and what AutoAttack leave, natural training left, TRADES right."""
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, prefix in zip(axes, ("ResNet", "TRADES"), strict=True):
        for (name, record), color in zip(
            ((n, r) for n, r in result["runs"].items() if n.startswith(prefix)),
            ("0.35", "#b2182b"),
            strict=False,
        ):
            intervals = record["balls"]["linf"]
            eps = [0.0, *(255 * b["eps"] for b in intervals)]
            for attack, style in zip(intervals[0]["per_attack"], (":s", "-o"), strict=True):
                left = [intervals[0]["clean"], *(b["per_attack"][attack] for b in intervals)]
                axis.plot(
                    eps,
                    100 * np.array(left),
                    style,
                    color=color,
                    ms=4,
                    label=f"{name}, {attack}",
                )
        axis.set_xlabel(AXIS_LABELS["linf"] + " x 255")
        axis.set_ylim(-2, 102)
        axis.grid(alpha=0.3, lw=0.5)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    axes[0].set_title("clean training (Fig. 8 b)", fontsize=10)
    axes[1].set_title("TRADES (Table 4)", fontsize=10)
    axes[0].set_ylabel("accuracy (%)")
    settings = result["settings"]
    drawn.suptitle(
        f"{settings['dataset']}, PreActResNet-{settings['depth']}, the first "
        f"{settings['test_images']} test images",
        fontsize=11,
    )
    return drawn


if __name__ == "__main__":
    run(main, Config)
