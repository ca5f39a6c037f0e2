"""The networks of *enresnet*, how they are trained, and what the paper says of them."""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

import odejax
from odejax.attacks import PGD
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import robust_accuracy
from odejax.models import EnResNet, MixedEnResNet, PreActResNet, WideResNet
from odejax.solvers import RelativeNoise
from odejax.training import (
    Adversarial,
    CrossEntropy,
    clean_accuracy,
    mixture_weights,
)

from ..ledger.printed import claims_of
from ..lib.recipe import Recipe, Rule, Schedule, drops, one_cycle, sgd, train

NOISE = 0.1  # a, of sigma = a sqrt(Var(x + F(x)))
BALL = odejax.LinfBall(8 / 255)
TRAININGS = ("natural", "robust")


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length. `depths` are what stands in for the paper's."""

    depths: dict[int, int]
    epochs: int
    batch_size: int
    train_images: int
    held_out: int
    test_images: int  # that are attacked
    clean_images: int  # for clean accuracy
    pgd_steps: int
    draws: int  # of AutoAttack's averages; 20 is the standard
    networks: tuple[str, ...]
    one_cycle: bool  # else the paper's steps, at 0.4, 0.6 and 0.8 of the epochs
    ball: odejax.LinfBall = BALL  # of training and attacks


def _resnet(depth: int, preset: Preset):
    return partial(PreActResNet, depth=preset.depths[depth])


def _ensemble(members: int, depth: int, preset: Preset, noise: float = NOISE):
    base = {"base": PreActResNet, "depth": preset.depths[depth]}
    return partial(EnResNet, members=members, noise=RelativeNoise(noise), **base)


def _mixed(preset: Preset):
    bases = [_resnet(depth, preset) for depth in (20, 32)]
    return partial(MixedEnResNet, bases=bases, noise=RelativeNoise(NOISE), softmax=False)


def _wide(depth: int, width: int, members: int | None, preset: Preset):
    settings = {"depth": preset.depths[depth], "width": width}
    if members is None:
        return partial(WideResNet, **settings)
    return partial(
        EnResNet, members=members, base=WideResNet, noise=RelativeNoise(NOISE), **settings
    )


MIXED = "En1 ResNet20 & En1 ResNet32"
NETWORKS: dict[str, Callable[[Preset], Callable[..., Any]]] = {
    **{f"ResNet{d}": partial(_resnet, d) for d in (20, 44, 110)},
    **{f"En{m} ResNet20": partial(_ensemble, m, 20) for m in (1, 2, 5)},
    **{f"En{m} ResNet44": partial(_ensemble, m, 44) for m in (1, 2)},
    "En2 ResNet110": partial(_ensemble, 2, 110),
    "En1 WRN-34-10": partial(_wide, 34, 10, 1),
    "WRN-14-2": partial(_wide, 14, 2, None),
    "En2 ResNet32": partial(_ensemble, 2, 32),
    MIXED: _mixed,
    "2 ResNet20, no noise": partial(_ensemble, 2, 20, noise=0.0),
}

# The tables that show a kind of measurement.
TABLES = {
    "natural": ("Table 1", "Table 4", "Section 4.4, natural"),
    "robust": ("Table 2", "Table 5", "Table 8", "Table 9", "Table 10", "Section 4.4"),
    "blind": ("Table 3", "Table 6"),  # target <- oracle
    "integrated": ("Table 7", "Section 4.4, integrated"),  # first + second
}
JOINED = {"blind": " <- ", "integrated": " + "}


def printed_pairs(kind: str, dataset: str) -> list[tuple[str, str]]:
    """The pairs of networks that the paper has of a kind."""
    claims = claims_of("enresnet", dataset, *TABLES[kind])
    pairs = dict.fromkeys(tuple(claim.model.split(JOINED[kind])) for claim in claims)
    return [(first, second) for first, second in pairs]


def shown(name: str, depths: Mapping[str, int]) -> str:
    """A network's name with the depth that it has in a run, `depths` by the paper's."""
    return re.sub(r"(ResNet|WRN-)(\d+)", lambda found: f"{found[1]}{depths[found[2]]}", name)


def recipe(make: Callable[..., Any], name: str, training: str, preset: Preset) -> Recipe:
    robust = training == "robust"
    return Recipe(
        make,
        preset.epochs,
        preset.batch_size,
        partial(_mixture, preset) if name == MIXED else _sgd(preset),
        Adversarial(_attack(preset), preset.ball) if robust else CrossEntropy(),
        crop_and_flip,
    )


def _attack(preset: Preset) -> PGD:
    """That of training: the paper's is of 10 steps of 2/255."""
    return PGD(preset.pgd_steps, 20 / 255 / preset.pgd_steps, last=True)


def folder_name(name: str, training: str, seed: int) -> str:
    """Of the checkpoints."""
    return f"{training}_{name.replace(' ', '')}_{seed}"


def train_network(
    make: Callable[..., Any],
    name: str,
    training: str,
    dataset: ArrayDataset,
    held_out: ArrayDataset,
    preset: Preset,
    seed: int,
    folder: Path,
):
    """The network of the best epoch on the images held out, and the history of its training.

    A finished one comes from its checkpoint.
    """
    # Of its own for every network, lest two that are integrated begin with the same weights.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{training}/{name}".encode()))
    standing = partial(_standing, _attack(preset), preset.ball)
    predictor, record = train(
        recipe(make, name, training, preset),
        dataset,
        key,
        folder / folder_name(name, training, seed),
        validation=held_out,
        score=standing if training == "robust" else clean_accuracy,
    )
    kept = ("loss", "train_accuracy", "validation")
    return predictor, record | {
        "history": [{what: epoch[what] for what in kept} for epoch in record["history"]]
    }


def _sgd(preset: Preset) -> Rule:
    """Nesterov's SGD with the constants of the authors' code, or with a one-cycle schedule."""
    return sgd(schedule(preset), nesterov=True)


def schedule(preset: Preset) -> Schedule:
    return one_cycle(0.1, 0.3) if preset.one_cycle else drops(0.1, 0.4, 0.6, 0.8)


def _mixture(preset: Preset, steps: int, epochs: int):
    """The same, and once an epoch a step of the mixture's weights."""
    rule = _sgd(preset)(steps, epochs)
    return mixture_weights(rule, lambda model: model.weights, learning_rate=0.1, every=steps)


def _standing(attack, ball, predictor, dataset, *, key) -> float:
    """Accuracy under the attack of the training."""
    images, labels = dataset.pixels, dataset.labels
    return robust_accuracy(predictor, images, labels, ball, attack, key=key).accuracy
