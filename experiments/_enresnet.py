"""The networks of *enresnet*, how they are trained, and what the paper says of them."""

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import optax

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
    fit,
    mixture_weights,
    steps_per_epoch,
)

NOISE = 0.1  # a, of sigma = a sqrt(Var(x + F(x)))
BALL = odejax.LinfBall(8 / 255)
BATCH_SIZE = 128
TRAININGS = ("natural", "robust")


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length. `depths` are what stands in for the paper's."""

    depths: dict[int, int]
    epochs: int
    train_images: int
    held_out: int
    test_images: int  # that are attacked
    clean_images: int  # for clean accuracy
    pgd_steps: int
    draws: int  # of AutoAttack's averages; 20 is the standard
    networks: tuple[str, ...]
    one_cycle: bool  # else the paper's steps, at 0.4, 0.6 and 0.8 of the epochs


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

# Natural training: clean accuracy in %, by data set (Tables 1 and 4).
PAPER_NATURAL = {
    "cifar10": {
        "ResNet20": 92.10,
        "En1 ResNet20": 92.59,
        "En2 ResNet20": 92.60,
        "En5 ResNet20": 92.74,
        "ResNet44": 93.22,
        "En1 ResNet44": 93.37,
        "En2 ResNet44": 93.54,
        "ResNet110": 94.30,
        "En2 ResNet110": 93.49,
    },
    "cifar100": {
        "ResNet20": 68.53,
        "ResNet44": 71.48,
        "En2 ResNet20": 69.57,
        "En5 ResNet20": 70.22,
    },
}
# Robust training: clean, FGSM, IFGSM-20, C&W (Tables 2, 5, 8 to 10, and Section 4.4).
PAPER_ROBUST = {
    "cifar10": {
        "ResNet20": (75.11, 50.89, 46.03, 58.73),
        "En1 ResNet20": (77.21, 55.35, 49.06, 65.69),
        "En2 ResNet20": (80.34, 57.23, 50.06, 66.47),
        "En5 ResNet20": (82.52, 58.92, 51.48, 67.73),
        "ResNet44": (78.89, 54.54, 48.85, 61.33),
        "En1 ResNet44": (82.03, 57.80, 51.83, 66.00),
        "En2 ResNet44": (82.91, 58.29, 51.86, 66.89),
        "ResNet110": (82.19, 57.61, 52.02, 62.92),
        "En2 ResNet110": (82.43, 59.24, 53.03, 68.67),
        "En1 WRN-34-10": (86.19, 61.82, 56.60, 69.32),
        "WRN-14-2": (78.37, 52.93, 48.85, 60.30),
        "En2 ResNet32": (81.46, None, 52.06, 68.41),
        MIXED: (81.56, None, 51.99, 68.62),
        "2 ResNet20, no noise": (75.75, 51.11, 47.28, 59.73),
    },
    "cifar100": {
        "ResNet20": (46.02, 24.77, 23.23, 32.42),
        "En2 ResNet20": (50.68, 30.20, 26.25, 40.06),
        "En5 ResNet20": (51.72, 31.64, 27.80, 40.44),
        "ResNet44": (50.38, 28.40, 25.81, 36.06),
        "En2 ResNet32": (53.14, None, 27.27, 41.50),
        MIXED: (53.07, None, 27.01, 42.23),
    },
}
# Blind attacks: (target, oracle) -> FGSM, IFGSM-20, C&W (Tables 3 and 6).
PAPER_BLIND = {
    "cifar10": {
        ("ResNet20", "En5 ResNet20"): (61.69, 58.74, 73.77),
        ("En5 ResNet20", "ResNet20"): (64.07, 62.99, 76.57),
        ("ResNet44", "En2 ResNet44"): (63.87, 60.66, 75.83),
        ("En2 ResNet44", "ResNet44"): (64.52, 61.23, 76.99),
        ("ResNet110", "En2 ResNet110"): (64.19, 61.80, 75.19),
        ("En2 ResNet110", "ResNet110"): (66.26, 62.89, 77.71),
    },
    "cifar100": {
        ("ResNet20", "En2 ResNet20"): (33.08, 30.79, 41.52),
        ("En2 ResNet20", "ResNet20"): (34.15, 33.34, 48.21),
    },
}
# Section 4.4: what IFGSM-20 leaves of naturally trained ensembles.
PAPER_NATURAL_IFGSM = {"En1 ResNet20": 0.0, "En2 ResNet20": 0.02, "En5 ResNet20": 0.03}
# Separately trained: clean, FGSM, IFGSM-20, C&W (Table 7, and the last one Section 4.4).
PAPER_INTEGRATED = {
    ("En2 ResNet20", "En5 ResNet20"): (82.82, 59.14, 53.15, 68.00),
    ("En2 ResNet44", "En5 ResNet20"): (82.99, 59.64, 53.86, 69.36),
    ("En2 ResNet110", "En5 ResNet20"): (83.57, 60.63, 54.87, 70.02),
    ("En2 ResNet110", "En1 WRN-34-10"): (85.62, 62.48, 57.94, 70.20),
    ("ResNet20", "ResNet44"): (77.92, 54.73, 51.47, 61.77),
}


def shown(name: str, depths: Mapping[str, int]) -> str:
    """A network's name with the depth that it has in a run, `depths` by the paper's."""
    return re.sub(r"(ResNet|WRN-)(\d+)", lambda found: f"{found[1]}{depths[found[2]]}", name)


def train_network(
    name: str,
    training: str,
    train: ArrayDataset,
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
    make = eqx.nn.make_with_state(NETWORKS[name](preset))
    model, state = make(train.image_shape, train.n_classes, key=key)
    steps = steps_per_epoch(len(train), BATCH_SIZE)
    optimizer = _sgd(preset, steps)
    if name == MIXED:
        optimizer = mixture_weights(
            optimizer, lambda model: model.weights, learning_rate=0.1, every=steps
        )
    attack = PGD(preset.pgd_steps, _step_size(preset), last=True)
    robust = training == "robust"
    trained = fit(
        model,
        state,
        train,
        Adversarial(attack, BALL) if robust else CrossEntropy(),
        optimizer,
        epochs=preset.epochs,
        batch_size=BATCH_SIZE,
        key=jax.random.fold_in(key, 1),
        checkpoint_dir=folder / f"{training}_{name.replace(' ', '')}_{seed}",
        validation=held_out,
        score=partial(_standing, attack) if robust else clean_accuracy,
        augment=crop_and_flip,
    )
    return odejax.Predictor(trained.model, trained.state), {
        "training_seconds": sum(epoch["seconds"] for epoch in trained.history),
        "examples_per_second": trained.history[-1]["examples_per_second"],
        "best_epoch": trained.best_epoch,
        "history": [
            {what: epoch[what] for what in ("loss", "train_accuracy", "validation")}
            for epoch in trained.history
        ],
    }


def _step_size(preset: Preset) -> float:
    """The paper's 2/255 in ten steps, and with fewer as far in all."""
    return 20 / 255 / preset.pgd_steps


def _sgd(preset: Preset, steps: int):
    """Nesterov's SGD with the constants of the authors' code, or with a one-cycle schedule."""
    sgd = optax.sgd(_rate(preset, steps), momentum=0.9, nesterov=True)
    return optax.chain(optax.add_decayed_weights(5e-4), sgd)


def _rate(preset: Preset, steps: int):
    peak, total = 0.1, preset.epochs * steps
    if preset.one_cycle:
        return optax.cosine_onecycle_schedule(total, peak)
    drops = {round(share * total): 0.1 for share in (0.4, 0.6, 0.8)}
    return optax.piecewise_constant_schedule(peak, drops)


def _standing(attack, predictor, dataset, *, key) -> float:
    """Accuracy under the attack of the training."""
    images, labels = dataset.pixels, dataset.labels
    return robust_accuracy(attack, predictor, images, labels, BALL, key=key).accuracy
