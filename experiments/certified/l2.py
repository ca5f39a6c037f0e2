"""Networks 1-Lipschitz by construction, trained for a radius: how many images are certified in l2.

    python -m experiments.certified.l2 --data-dir DIR                # MNIST
    python -m experiments.certified.l2 --dataset digits              # embedded, minutes
    python -m experiments.certified.l2 --preset paper --data-dir DIR  # CIFAR-10, for a GPU

Three kinds of layers: convex potential and SDP-based gradient flows (`LipschitzNet`), and
orthogonal matrices with min and max (`OrthogonalNet`). All are trained by cross-entropy in which
every other class has an advantage of eps times its own constant (`RadiusCrossEntropy`), so that an
image counts as classified only if it is certified within eps, somewhat above the radius that is
asked for. Then, in the l2 ball of each radius:

- attacked: PGD-50, and the standard AutoAttack on images that PGD-50 fails on and nothing proves;
- certified: the margin of each pair of classes over its constant, on all test images.

Eps and temperature were chosen on images held out of the training set (`--held-out`).

The field's certified accuracies for MNIST at 1.58: 62.8 % (GloRo, 300 epochs, its constant
estimated by power iteration, which is no proof); 56.7 % (BCOP, 200 epochs, 98.8 % clean); 54.5 %
(fully connected orthogonal networks, 200 epochs, 98.7 % clean).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from odejax import models
from odejax.attacks import PGD, AutoAttack
from odejax.certificates import LipschitzMargin
from odejax.data import crop_and_flip
from odejax.training import RadiusCrossEntropy

from ..lib import accuracy, report
from ..lib.intervals import listed
from ..lib.measure import measure, radii_of_all
from ..lib.networks import NetworksConfig, trained_and_measured
from ..lib.recipe import Recipe, adam, one_cycle
from ..lib.run import Experiment, Plan, PresetConfig, check_counts, load_data, run

KIND = "certified_l2"
ATTACKS = {"PGD-50": PGD(50)}
LAST = AutoAttack()


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes, training and what is attacked.

    - `widths`: of the orthogonal network; `width`, `depth`: of gradient flows.
    - `radius`: eps of training; `eps`: of the balls.
    """

    widths: tuple[int, ...]
    width: int
    depth: int
    epochs: int
    radius: float
    eps: tuple[float, ...]
    test_images: int
    batch_size: int = 512
    temperature: float = 0.25
    crops: bool = False


PRESETS = {
    "paper": {
        "cifar10": Preset(
            (2048,) * 4, 64, 4, 200, 0.3, (36 / 255, 72 / 255, 108 / 255), 1000, crops=True
        )
    },
    "cpu": {
        "mnist": Preset((512,) * 3, 16, 2, 40, 1.75, (0.5, 1.58), 1000),
        "digits": Preset((128,) * 2, 8, 2, 60, 0.6, (0.25, 0.5), 360, 64),
    },
    "smoke": {"digits": Preset((8,), 4, 1, 1, 0.6, (0.25, 0.5), 8, 64)},
}
NAMES = ("convex potential", "SDP-based", "orthogonal")


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train 1-Lipschitz networks for an l2 radius, certify and attack them."""

    dataset: str | None = None
    """By default mnist, with smoke digits, with the preset paper cifar10."""
    held_out: int | None = None
    """Choose without the test set: hold out so many random training images, and measure on them."""


def recipe(name: str, preset: Preset) -> Recipe:
    layers = {"convex potential": "CPL", "SDP-based": "SLL"}
    make: Callable[..., Any] = partial(models.OrthogonalNet, widths=preset.widths)
    if name in layers:
        make = partial(
            models.LipschitzNet, width=preset.width, depth=preset.depth, layer=layers[name]
        )
    loss = RadiusCrossEntropy(preset.radius, preset.temperature)
    rule = adam(one_cycle(2e-3 if name == "orthogonal" else 5e-3))
    augment = crop_and_flip if preset.crops else None
    return Recipe(make, preset.epochs, preset.batch_size, rule, loss, augment)


def plan(config: Config, recipe_of: Callable[..., Recipe] = recipe, last: Any = LAST) -> Plan:
    preset, names = config.choose(PRESETS), config.chosen(NAMES)
    check_counts(config, "held_out")
    images, test = load_data(config, preset.test_images)
    if config.held_out is not None:
        images, test = images.holdout(config.held_out)

    def measured(predictor: Any, name: str, seed: int, state: Path):
        certificate, n, balls = LipschitzMargin(), preset.test_images, {"l2": preset.eps}
        settings = {"attacks": ATTACKS, "certificates": certificate, "last": last, "state": state}
        record = measure(predictor, test, n, balls, seed, **settings)
        return record | radii_of_all(predictor, test, preset.eps, certificate, seed)

    return Plan(
        config.run_name + ("" if config.held_out is None else f"_held_out_{config.held_out}"),
        config.settings(preset) | {"held_out": config.held_out},
        (images, test),
        lambda folder, _: trained_and_measured(
            config.seeds, names, lambda name: recipe_of(name, preset), images, measured, folder
        ),
    )


def _networks(result: dict[str, Any]) -> dict[str, accuracy.Measured]:
    networks = {}
    for name, records in report.by_name(result).items():
        minutes = np.mean([record["training_seconds"] for record in records]) / 60
        notes = [f"trained {minutes:.1f} min"]
        networks[name] = accuracy.Measured(records, notes=notes, brackets=accuracy.of_all)
    return networks


def tables(result: dict[str, Any]) -> list[Any]:
    return accuracy.tables(
        f"{_setting(result['settings'])}, l2", _networks(result), accuracy.rows_of_all
    )


def figure(result: dict[str, Any]):
    networks, setting = _networks(result), _setting(result["settings"])
    eps = result["settings"]["eps"][-1]
    shares = {
        name: network.mean(accuracy.CERTIFIED_OF_ALL)[-1] for name, network in networks.items()
    }
    best = max(shares, key=lambda name: shares[name])
    title = f"{shares[best]:.1f} % of all images are certified within l2 {eps:.3g} ({best})"
    return accuracy.figure(title, setting, networks, [])


def _setting(settings: dict[str, Any]) -> str:
    kind = "held-out" if settings.get("held_out") else "test"
    return f"{settings['dataset']}, {settings['test_images']} {kind} images"


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    return name, f"for radius {settings['radius']:g}"


FIGURES, NETWORKS = {"intervals": figure}, partial(listed, named=_named)
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, networks=NETWORKS)

if __name__ == "__main__":
    run(EXPERIMENT)
