"""The vote under noise: do SSP steps or a Feynman-Kac ensemble raise what it certifies in l2?

    python -m experiments.certified.vote --data-dir DIR                # MNIST
    python -m experiments.certified.vote --dataset digits              # embedded, minutes
    python -m experiments.certified.vote --preset paper --data-dir DIR  # CIFAR-10, for a GPU

Noise inside of a network proves nothing of an adversary, so an `EnResNet` is certified as any
network can be: by the vote of its classes under Gaussian noise on the image (`Smoothed`), each
draw of which draws the inner noise anew. The networks are the ResNet and SSP-3 of
`families`; En1 ResNet, the same with noise after each residual layer; En2 ResNet, the mean of two
of these; and two ResNets without noise. Two members have hidden linear layers that are smaller, so
that all five have the same number of weights within 2 %. All are trained alike on images with the
noise of the vote (Cohen et al. 2019, arXiv:1902.02918). Then, in the l2 ball of each radius:

- attacked: PGD-20 on the vote of 100 fresh draws in every step, by the gradient of their mean
  softmax;
- certified: the exact vote, from 10,000 draws, with confidence 99.9 % for each image.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np

from odejax import Smoothed
from odejax.attacks import PGD
from odejax.certificates import RandomizedSmoothing
from odejax.data import crop_and_flip
from odejax.models import BatchNorm, EnResNet
from odejax.solvers import SSPRK33, AbstractNoise, RelativeNoise

from ..lib import accuracy, report
from ..lib.intervals import listed
from ..lib.measure import measure
from ..lib.networks import NetworksConfig, trained_and_measured
from ..lib.recipe import Recipe, adam, one_cycle
from ..lib.run import Experiment, Plan, PresetConfig, load_data, run
from .families import Layers, WithMiddle

KIND = "certified_vote"
ATTACKS = {"PGD-20": PGD(20)}
NOISE = 0.1  # a, of the inner noise a sqrt(Var(x + F(x)))


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes (see `families.family`), training and what is attacked.

    - `widths`: of the hidden linear layer, of one network and of each of two.
    - `sigma`: of the noise on the image, in training and in the vote.
    - `votes`: draws of the certificate.
    - `test_images`: how many are attacked and certified.
    """

    channels: tuple[int, ...]
    widths: tuple[int, int]
    sigma: float
    eps: tuple[float, ...]
    epochs: int
    test_images: int
    batch_size: int = 256
    votes: int = 10_000
    crops: bool = False


PRESETS = {
    "paper": {
        "cifar10": Preset(
            (64, 128), (512, 178), 0.25, (36 / 255, 0.25, 0.5), 160, 1000, 128, 100_000, True
        )
    },
    "cpu": {
        "mnist": Preset((16, 32), (256, 112), 0.75, (0.5, 1.58), 12, 500),
        "digits": Preset((16,), (64, 24), 0.25, (0.25, 0.5), 30, 100, 64),
    },
    "smoke": {"digits": Preset((4,), (8, 4), 0.25, (0.25,), 1, 4, 64, 20)},
}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train networks on noisy images, certify and attack their votes."""

    dataset: str | None = None
    """By default mnist, with smoke digits, with the preset paper cifar10."""


def _residual(
    image_shape: Any,
    n_classes: int,
    *,
    channels: tuple[int, ...],
    width: int,
    solver: Any = None,
    noise: AbstractNoise | None = None,
    key: Any,
) -> WithMiddle:
    middle = partial(Layers, solver=solver or diffrax.Euler(), noise=noise)
    sizes = {"channels": channels, "width": width, "norm": BatchNorm}
    return WithMiddle(image_shape, n_classes, middle, **sizes, key=key)


def network(name: str, preset: Preset) -> Callable[..., Any]:
    """What makes the network of this name."""
    one, of_two = ({"channels": preset.channels, "width": width} for width in preset.widths)
    ensemble = partial(EnResNet, base=_residual)
    return {
        "ResNet": partial(_residual, **one),
        "SSP-3": partial(_residual, solver=SSPRK33(), **one),
        "En1 ResNet": partial(ensemble, members=1, noise=RelativeNoise(NOISE), **one),
        "En2 ResNet": partial(ensemble, members=2, noise=RelativeNoise(NOISE), **of_two),
        "two ResNets": partial(ensemble, members=2, noise=RelativeNoise(0.0), **of_two),
    }[name]


NAMES = ("ResNet", "SSP-3", "En1 ResNet", "En2 ResNet", "two ResNets")


def noisy(x, key, *, sigma: float):
    """The image with Gaussian noise; pixels may be outside of [0, 1], as in the vote."""
    return x + sigma * jax.random.normal(key, x.shape, x.dtype)


def _cropped_and_noisy(x, key, *, sigma: float):
    crop_key, noise_key = jax.random.split(key)
    return noisy(crop_and_flip(x, crop_key), noise_key, sigma=sigma)


def recipe(name: str, preset: Preset) -> Recipe:
    augment = partial(_cropped_and_noisy if preset.crops else noisy, sigma=preset.sigma)
    make, rule = network(name, preset), adam(one_cycle(2e-3))
    return Recipe(make, preset.epochs, preset.batch_size, rule, augment=augment)


def plan(config: Config, recipe_of: Callable[..., Recipe] = recipe) -> Plan:
    preset, names = config.choose(PRESETS), config.chosen(NAMES)
    images, test = load_data(config, preset.test_images)

    def measured(predictor: Any, name: str, seed: int, state: Path):
        vote, n = Smoothed(predictor, preset.sigma), preset.test_images
        certificate = RandomizedSmoothing(n=preset.votes)
        settings = {"attacks": ATTACKS, "certificates": certificate, "state": state}
        # The clean accuracy of the vote is that of the brackets: of the images that are attacked.
        return measure(vote, test.take(slice(n)), n, {"l2": preset.eps}, seed, **settings)

    return Plan(
        config.run_name,
        config.settings(preset),
        (images, test),
        lambda folder, _: trained_and_measured(
            config.seeds, names, lambda name: recipe_of(name, preset), images, measured, folder
        ),
    )


def _networks(result: dict[str, Any]) -> dict[str, accuracy.Measured]:
    networks = {}
    for name, records in report.by_name(result).items():
        minutes = np.mean([record["training_seconds"] for record in records]) / 60
        notes = [f"{records[0]['parameters']:,} weights", f"trained {minutes:.1f} min"]
        networks[name] = accuracy.Measured(records, notes=notes)
    return networks


def tables(result: dict[str, Any]) -> list[Any]:
    return accuracy.tables(f"{_setting(result['settings'])}, l2", _networks(result))


def figure(result: dict[str, Any]):
    networks, setting = _networks(result), _setting(result["settings"])
    return accuracy.figure(_finding(networks), setting, networks, [])


def _finding(networks: dict[str, accuracy.Measured]) -> str:
    """What is certified in the largest ball, lowest and highest, as a sentence."""
    shares = {name: network.mean(accuracy.CERTIFIED)[-1] for name, network in networks.items()}
    ordered = sorted(shares, key=lambda name: shares[name])
    values = " to ".join(f"{shares[name]:.1f} % ({name})" for name in (ordered[0], ordered[-1]))
    eps = next(iter(networks.values())).eps[-1]
    return f"Within l2 {eps:.3g} the vote certifies {values}"


def _setting(settings: dict[str, Any]) -> str:
    return f"{report.setting_line(settings)}, noise {settings['sigma']:g}"


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    return f"vote of {name}", f"Gaussian noise {settings['sigma']:g}"


FIGURES, NETWORKS = {"intervals": figure}, partial(listed, named=_named)
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, networks=NETWORKS)

if __name__ == "__main__":
    run(EXPERIMENT)
