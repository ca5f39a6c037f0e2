"""*ssp*: do strong-stability-preserving blocks make a residual network more robust?

    python -m experiments.ssp.networks  # embedded digits, minutes
    python -m experiments.ssp.networks --dataset mnist --data-dir DIR  # real MNIST, small networks
    python -m experiments.ssp.networks --preset paper --dataset cifar10 --data-dir DIR  # for a GPU
    python -m experiments.ssp.networks --preset paper --dataset mnist --depth 10 --data-dir DIR

One residual field per block, integrated by Euler's method (ResNet), SSPRK(2,2) (SSP-2),
SSPRK(3,3) (SSP-3), a two-stage method with learned coefficients (ark; on CIFAR, as in the paper, in
the first group alone, with Euler's and SSP-2 in the others), and three that keep no strong
stability: the midpoint rule, what the authors' code takes for it, and ark as published, which
begins outside the SSP region. The networks have the same weights but for ark's coefficients; a
block of SSP-3 costs three of ResNet's. Each is trained on clean images
and against PGD of K steps, and then attacked by

- FGSM and the paper's PGD (K steps, random start), with K = 7 and 12; in smaller balls its steps
  are smaller alike;
- PGD-50, and the standard AutoAttack on images that all of these fail on.

The perturbation growth ratio of a block: the distance between the states behind it, of an image and
of the same image attacked by PGD-K in the largest ball (K = 7 for the naturally trained), over that
behind the first block. It is measured for a random perturbation too, of +-eps in every pixel,
clipped to [0, 1]. (No block here is certified, so the other end of every interval is 0.)

Paper: SGD at 0.1 for 200 epochs. The small presets take few steps of Adam, and let eps rise to its
own in 60 % of them: in MNIST's ball of 0.3 a small network may learn nothing otherwise. The paper's
networks normalise their inputs; these take pixels as they are. On CIFAR a strided block takes the
place of the first of the N in the second and third group. Tiny-ImageNet is not measured.

MNIST, PGD-7: 18 to 29 minutes of training and 3 to 9 of attacks a network on two CPU cores.
"""

import dataclasses
from collections.abc import Callable
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
from odejax.attacks import FGSM, PGD, AutoAttack, RelativeStep
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import robust_accuracy
from odejax.models import GroupNorm, PreActResNet, ResNet
from odejax.plots import colors, plain_ticks, set_title
from odejax.solvers import SSPRK22, SSPRK33, LearnedRK2, PublishedMidpoint, growth_ratios
from odejax.training import Adversarial, CrossEntropy

from ..lib import accuracy, report
from ..lib.intervals import CLEAN, listed
from ..lib.measure import measure
from ..lib.networks import NetworksConfig, trained_and_measured
from ..lib.recipe import Recipe, adam, drops, one_cycle, sgd
from ..lib.run import Experiment, Plan, PresetConfig, check_choices, check_counts, load_data, run

KIND = "ssp"
# The ball of training and the step of PGD in it; the shares of the ball that are attacked.
SETTINGS = {
    "digits": (0.1, 0.02),
    "mnist": (0.3, 0.05),
    "fashion_mnist": (0.1, 0.02),
    "cifar10": (8 / 255, 2 / 255),
}
SHARES = (0.25, 0.5, 1.0)
TRAININGS = {"natural": None, "PGD-7": 7, "PGD-12": 12}
SHOWN = "PGD-7"  # in the ledger, of the paper's attacks
LAST = AutoAttack()  # where all others fail
STRONG = "PGD-50"  # run only where it failed in the smaller ball
NORMS = {"l1": 1, "l2": 2}
# solver(blocks of each group): of one group, and of the three on CIFAR
SOLVERS = {
    "ResNet": lambda n: None,
    "SSP-2": lambda n: SSPRK22(),
    "SSP-3": lambda n: SSPRK33(),
    "ark": LearnedRK2,
    "midpoint": lambda n: diffrax.Midpoint(),
    "midpoint, published": lambda n: PublishedMidpoint(),
    "ark, published": partial(LearnedRK2, published=True),
}
DRAWN = ("ResNet", "SSP-2", "SSP-3", "ark", "midpoint")  # the published variants in tables alone


def attacks_of(dataset: str) -> dict[str, Any]:
    eps, step = SETTINGS[dataset]
    papers = {f"PGD-{steps}": PGD(steps, RelativeStep(step / eps)) for steps in (7, 12)}
    return {"FGSM": FGSM(), STRONG: PGD(50, None)} | papers


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes, training and what is attacked."""

    width: int
    depth: int  # blocks; on CIFAR in each of three groups
    epochs: int
    test_images: int
    rise: float = 0.0  # the share of all steps in which the eps of training rises to its own
    batch_size: int = 128


PRESETS = {
    "paper": {name: Preset(64, 6, 200, 1000) for name in ("mnist", "fashion_mnist", "cifar10")},
    "cpu": {"digits": Preset(8, 6, 25, 100, 0.6, 64), "mnist": Preset(16, 6, 3, 100, 0.6)},
    "smoke": {"digits": Preset(4, 2, 1, 8, 0.6, 64)},
}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train networks with SSP blocks and without, attack them, watch perturbations grow."""

    dataset: str | None = None
    """By default digits (embedded), with the preset paper mnist; there also fashion_mnist and
    cifar10, with cpu mnist."""
    trainings: tuple[str, ...] = ("natural", "PGD-7")
    """natural, PGD-7, PGD-12: on clean images, or against PGD of so many steps."""
    depth: int | None = None
    """Blocks, on CIFAR in each group; by default 6; the paper also takes 10."""


def recipe(name: str, training: str, dataset: str, preset: Preset, kind: str) -> Recipe:
    solver = SOLVERS[name](preset.depth)
    if dataset == "cifar10":
        if isinstance(solver, LearnedRK2):
            solver = [solver, None, SSPRK22()]
        make = partial(PreActResNet, depth=6 * preset.depth + 2, solver=solver)
    else:
        make = partial(ResNet, width=preset.width, depth=preset.depth, solver=solver)
        if kind == "paper":
            make = partial(make, norm=partial(GroupNorm, groups=32))
    objective, steps, rise = CrossEntropy(), TRAININGS[training], 0.0
    if steps is not None:
        rise = preset.rise
        eps, step = SETTINGS[dataset]
        objective = Adversarial(PGD(steps, step, last=True), odejax.LinfBall(eps))
    if kind != "paper":
        rule = adam(one_cycle(5e-3))
        return Recipe(make, preset.epochs, preset.batch_size, rule, objective, rise=rise)
    shares = (0.3, 0.5, 0.7) if name == "ResNet" else (0.35, 0.6, 0.8)
    augment = crop_and_flip if dataset == "cifar10" else None
    rule = sgd(drops(0.1, *shares))
    return Recipe(make, preset.epochs, preset.batch_size, rule, objective, augment)


def plan(
    config: Config,
    recipe_of: Callable[..., Recipe] = recipe,
    attacks: Callable[[str], dict[str, Any]] = attacks_of,
    last: Any = LAST,
) -> Plan:
    preset = config.choose(PRESETS)
    networks = config.chosen(SOLVERS)
    check_choices("training", config.trainings, TRAININGS)
    check_counts(config, "depth")
    if config.depth is not None:
        preset = dataclasses.replace(preset, depth=config.depth)
    dataset = str(config.dataset)
    eps, step = SETTINGS[dataset]
    radii = [share * eps for share in SHARES]
    images, test = load_data(config, preset.test_images)
    names = [f"{training}/{name}" for training in config.trainings for name in networks]
    chosen = attacks(dataset)

    def how(name: str) -> Recipe:
        training, network = name.split("/")
        return recipe_of(network, training, dataset, preset, config.preset)

    def measured(predictor: Any, name: str, seed: int, state: Path):
        anew = set(chosen) - {STRONG}
        n, balls = preset.test_images, {"linf": radii}
        settings = {"attacks": chosen, "anew": anew, "last": last, "state": state}
        record = measure(predictor, test, n, balls, seed, **settings)
        attack = PGD(TRAININGS[name.split("/")[0]] or 7, step)
        growth = _growth(predictor, test.take(slice(n)), attack, eps, jax.random.key(seed + 1))
        return record | {"growth": growth}

    return Plan(
        config.run_name + ("" if config.depth is None else f"_depth_{config.depth}"),
        config.settings(preset) | {"eps": radii, "step": step},
        (images, test),
        lambda folder, _: trained_and_measured(config.seeds, names, how, images, measured, folder),
    )


def _growth(
    predictor: odejax.Predictor, images: ArrayDataset, attack: PGD, eps: float, key
) -> dict[str, dict[str, list[float]]]:
    """By perturbation and norm: the growth ratio behind each block, its mean over the images.

    Of the images whose state behind the first block has moved; without any the lists are empty.
    """
    clean = images.pixels
    ball = odejax.LinfBall(eps)
    made = robust_accuracy(
        predictor,
        clean,
        images.labels,
        ball,
        attack,
        key=key,
        stop_at_first_success=False,
        attack_misclassified=True,
    )
    signs = jax.random.rademacher(key, clean.shape, clean.dtype)
    perturbed = {"attack": made.x_adv, "random": np.clip(clean + eps * np.asarray(signs), 0, 1)}

    @eqx.filter_jit
    @jax.vmap
    def ratios(x, z):
        ys, zs = (predictor.model.block_states(at, predictor.state) for at in (x, z))
        return {name: growth_ratios(ys, zs, order) for name, order in NORMS.items()}

    def measure(zs):
        means = {}
        for name, grown in ratios(jnp.asarray(clean), jnp.asarray(zs)).items():
            finite = np.asarray(grown)[np.isfinite(grown).all(axis=1)]
            means[name] = finite.mean(axis=0).tolist() if len(finite) else []
        return means

    return {name: measure(zs) for name, zs in perturbed.items()}


def _by_training(result: dict[str, Any]) -> dict[str, dict[str, list[report.Record]]]:
    """The records of all seeds, by training and network."""
    trainings: dict[str, dict[str, list]] = {}
    for name, records in report.by_name(result).items():
        training, network = name.split("/")
        trainings.setdefault(training, {})[network] = records
    return trainings


def mean_growth(records: list[report.Record], perturbation: str, norm: str) -> np.ndarray | None:
    """The growth ratio behind each block, over the seeds in which it moved an image."""
    ratios = [record["growth"][perturbation][norm] for record in records]
    moved = [seed for seed in ratios if seed]
    return np.mean(moved, axis=0) if moved else None


def last_growth(
    records: list[report.Record], perturbation: str = "attack", norm: str = "l2"
) -> float | None:
    """The growth ratio behind the last block; None where no image was moved."""
    mean = mean_growth(records, perturbation, norm)
    return None if mean is None else float(mean[-1])


def shown_growth(growth: float | None) -> str:
    """A growth ratio as a table has it."""
    return "-" if growth is None else f"{growth:.1f}"


def _measured(records: list[report.Record]) -> accuracy.Measured:
    notes = [
        f"{perturbation}, {norm}: x " + shown_growth(last_growth(records, perturbation, norm))
        for perturbation in ("attack", "random")
        for norm in NORMS
    ]
    return accuracy.Measured(records, notes=notes)


def tables(result: dict[str, Any]) -> list[Any]:
    """By training: robust accuracy in %, and the growth of perturbations in l1 and l2."""
    made = []
    for training, networks in _by_training(result).items():
        title = f"{report.setting_line(result['settings'])}, training: {training}"
        measured = {name: _measured(records) for name, records in networks.items()}
        made += accuracy.tables(title, measured)
        made[-1].caption += (
            "; x: growth from the first block to the last, of PGD's perturbation in the largest "
            "ball and of a random one"
        )
    return made


def figure(result: dict[str, Any]):
    """A row for each training: accuracy against eps, and growth behind each block in l2."""
    settings, trainings, color = result["settings"], _by_training(result), colors(DRAWN)
    size = (12, 3.4 * len(trainings) + 1.2)
    drawn, axes = plt.subplots(
        len(trainings), 3, figsize=size, squeeze=False, layout="constrained", sharey="col"
    )
    for row, (training, networks) in zip(axes, trainings.items(), strict=True):
        for name, records in networks.items():
            if name not in DRAWN:
                continue
            style = {"color": color[name], "ms": 3, "lw": 1.5}
            measured = _measured(records)
            attacked = measured.mean(accuracy.ATTACKED)
            eps = [0.0, *measured.eps]
            row[0].step(eps, attacked, "-o", where="post", label=name, **style)
            for axis, perturbation in zip(row[1:], ("attack", "random"), strict=True):
                growth = mean_growth(records, perturbation, "l2")
                if growth is not None:
                    axis.plot(range(1, len(growth) + 1), growth, "-o", **style)
        row[0].set_title(f"training: {training}; under all attacks", fontsize=9)
        report.accuracy_axis(row[0], "linf")
        for axis, what in zip(row[1:], ("PGD's", "a random"), strict=True):
            axis.set_yscale("log", base=2)
            axis.set_xlabel("block")
            axis.set_ylabel("distance, relative to block 1 (l2)", fontsize=9)
            axis.set_title(f"training: {training}; growth of {what} perturbation", fontsize=9)
            axis.grid(alpha=0.3, lw=0.5, which="both")
        for axis in row:
            plain_ticks(axis)
    setting = report.setting_line(settings, f"{settings['depth']} blocks")
    if settings["dataset"] == "cifar10":
        setting += " in each group"
    report.legend_below(drawn, ncols=7, fontsize=9, title=setting)
    set_title(drawn, _finding(trainings, settings["eps"][-1]))
    return drawn


def _finding(trainings: dict[str, dict[str, list[report.Record]]], eps: float) -> str:
    """By how much the networks differ in growth and in robust accuracy, as a sentence."""
    training, networks = [*trainings.items()][-1]
    growth = [g for records in networks.values() if (g := last_growth(records)) is not None]
    last = [_measured(records).mean(accuracy.ATTACKED)[-1] for records in networks.values()]
    apart = [f"by a factor of {max(growth) / min(growth):.1f} in growth"] if growth else []
    apart.append(f"by {max(last) - min(last):.0f} points in robust accuracy at eps {eps:.3g}")
    return f"Training {training}: the {len(networks)} networks differ {' and '.join(apart)}"


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    training, network = name.split("/")
    return network, CLEAN if training == "natural" else training


NETWORKS = partial(listed, named=_named)
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"ssp": figure}, networks=NETWORKS)

if __name__ == "__main__":
    run(EXPERIMENT)
