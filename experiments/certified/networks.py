"""Networks that are trained to be proven robust: how narrow their intervals are, for each family.

    python -m experiments.certified.networks --data-dir DIR          # MNIST
    python -m experiments.certified.networks --dataset digits        # embedded, minutes
    python -m experiments.certified.networks --preset paper --data-dir DIR  # CIFAR-10, for a GPU

One CNN, with another part in the middle of each: none, residual fields integrated by Euler's method
(ResNet), SSP-2 and SSP-3, a neural ODE on a grid, or nmODE; and the fully connected nmODE
(`families`). Each is trained plainly, with weight decay (what makes nmODE+ of nmODE), against
PGD-3, and by interval bounds for either of two radii (`CertifiedTraining`, with the initial
weights, the penalties and the warm-up of Shi et al. 2021, arXiv:2103.17268), all for as many
epochs; "CNN, longer" is the CNN, trained for more. Then, in L-infinity balls and in l2 balls:

- attacked: PGD-40, and the standard AutoAttack on images that PGD-40 fails on and nothing proves;
- certified: interval bounds, and CROWN-IBP.

True robust accuracy lies in between. The recipe was chosen on images held out of the training set.
Networks trained by bounds are measured in L-infinity on all test images, up to the radius that they
are trained for. Training for a larger radius may prove more within the smaller one:
`--trainings "bounds 0.2"`. AutoAttack takes long where little is proven: the other networks are
measured on the first images alone, and in l2 all are.

The field's figures for MNIST, larger networks and many epochs on GPUs: certified 97 to 98 % at 0.1
and 93 % at 0.3.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import odejax
from odejax.attacks import PGD, AutoAttack
from odejax.certificates import IntervalBounds, LinearRelaxation
from odejax.data import crop_and_flip
from odejax.plots import colors, set_title
from odejax.training import Adversarial, CertifiedTraining

from ..lib import accuracy, report
from ..lib.intervals import CLEAN, listed
from ..lib.measure import measure
from ..lib.networks import NetworksConfig, trained_and_measured
from ..lib.recipe import Recipe, adam, drops, one_cycle
from ..lib.run import Experiment, Plan, PresetConfig, UsageError, load_data, run
from .families import FAMILIES, LONGER, drawn_for_intervals, family

KIND = "certified"
BOUNDS = "bounds"  # of the trainings: by interval bounds
KINDS = ("plain", "decay", "PGD", BOUNDS)  # of the trainings; the last two are for a radius
ATTACKS = {"PGD-40": PGD(40, None)}
LAST = AutoAttack()
CERTIFICATES = {
    "intervals": IntervalBounds(),
    "CROWN-IBP": LinearRelaxation(intermediate="interval"),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes (see `family`), training and what is attacked.

    - `eps`, `eps_l2`: of the balls.
    - `epochs`, `longer`: of training by bounds, and of "CNN, longer"; `plain_epochs`: of other
      trainings.
    - `test_images`: how many are attacked in L-infinity of a network trained by bounds; of the
      others `fewer_images`; in l2 `l2_images`.
    - `crops`: whether training images are cropped and flipped.
    """

    channels: tuple[int, ...]
    width: int
    neurons: int
    eps: tuple[float, float]
    eps_l2: tuple[float, ...]
    epochs: int
    longer: int
    plain_epochs: int
    test_images: int
    fewer_images: int
    l2_images: int
    batch_size: int = 256
    crops: bool = False


PRESETS = {
    "paper": {
        "cifar10": Preset(
            (64, 128),
            512,
            4096,
            (2 / 255, 8 / 255),
            (36 / 255,),
            *(160, 160, 40),
            *(10_000, 1000, 1000),
            batch_size=128,
            crops=True,
        )
    },
    "cpu": {
        "mnist": Preset(
            (16, 32), 256, 2048, (0.1, 0.3), (0.5, 1.58), *(12, 60, 4), *(10_000, 200, 100)
        ),
        "digits": Preset(
            (16,), 64, 256, (0.05, 0.1), (0.25, 0.5), *(60, 120, 30), *(360, 360, 100), 64
        ),
    },
    "smoke": {
        "digits": Preset((4,), 8, 16, (0.05, 0.1), (0.25,), *(2, 3, 1), *(16, 8, 4), 64),
    },
}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train networks of every family to be proven robust, attack and certify them."""

    dataset: str | None = None
    """By default mnist, with smoke digits, with the preset paper cifar10."""
    trainings: tuple[str, ...] | None = None
    """plain, decay, PGD RADIUS, bounds RADIUS, for any radius; by default all, for the balls'."""


def trainings_of(eps: Sequence[float]) -> dict[str, float | None]:
    """The trainings by name, and the radius that each is for."""
    of_radii = {f"{kind} {radius:.3g}": radius for kind in KINDS[2:] for radius in eps}
    return dict.fromkeys(KINDS[:2]) | of_radii


def radius_of(training: str, eps: Sequence[float]) -> float | None:
    """The radius that a training is for, of the balls or another; `UsageError` for no training."""
    known = trainings_of(eps)
    if training in known:
        return known[training]
    kind, _, number = training.partition(" ")
    try:
        radius = float(number)
    except ValueError:
        radius = 0.0
    if kind not in KINDS[2:] or not 0 < radius <= 1:
        raise UsageError(
            f"unknown training {training!r}; accepted: {', '.join(known)}, "
            f"or {' or '.join(KINDS[2:])} with another radius, at most 1"
        )
    return radius


def recipe(name: str, training: str, eps: float | None, preset: Preset) -> Recipe:
    make = family(name, preset.channels, preset.width, preset.neurons)
    augment = crop_and_flip if preset.crops else None
    if eps is None:
        rule = adam(one_cycle(2e-3), decay=1e-4 if training == "decay" else 0.0)
        return Recipe(make, preset.plain_epochs, preset.batch_size, rule, augment=augment)
    ball = odejax.LinfBall(eps)
    if training.startswith("PGD"):
        objective = Adversarial(PGD(3, None, last=True), ball)
        rule = adam(one_cycle(2e-3))
        epochs = preset.plain_epochs
        return Recipe(make, epochs, preset.batch_size, rule, objective, augment, rise=0.5)
    rule = adam(drops(2e-3, 0.75, 0.9), clip=10.0)
    make, objective = drawn_for_intervals(make), CertifiedTraining(ball)
    epochs = preset.longer if name == LONGER else preset.epochs
    return Recipe(make, epochs, preset.batch_size, rule, objective, augment, rise=0.35, wait=0.05)


def plan(
    config: Config,
    recipe_of: Callable[..., Recipe] = recipe,
    attacks: Mapping[str, Any] = ATTACKS,
    last: Any = LAST,
) -> Plan:
    preset, networks = config.choose(PRESETS), config.chosen(FAMILIES)
    chosen = trainings_of(preset.eps) if config.trainings is None else config.trainings
    if not chosen:
        raise UsageError(f"no trainings; accepted: {', '.join(trainings_of(preset.eps))}")
    trainings = {training: radius_of(training, preset.eps) for training in chosen}
    names = [f"{training}/{name}" for training in trainings for name in networks]
    images, test = load_data(config, preset.test_images)

    def how(name: str) -> Recipe:
        training, network = name.split("/")
        return recipe_of(network, training, trainings[training], preset)

    def measured(predictor: Any, name: str, seed: int, state: Path):
        training, bounded = name.split("/")[0], name.startswith(BOUNDS)
        n = {
            "linf": preset.test_images if bounded else preset.fewer_images,
            "l2": preset.l2_images,
        }
        # Beyond the radius that it is trained for, a network is hardly certified.
        largest = trainings[training] if bounded else None
        eps = [r for r in preset.eps if largest is None or r <= largest] or preset.eps[:1]
        settings = {"attacks": attacks, "certificates": CERTIFICATES, "last": last, "state": state}
        balls = {"linf": eps, "l2": preset.eps_l2}
        record = measure(predictor, test, n, balls, seed, **settings)
        return record | {"images": n}

    return Plan(
        config.run_name,
        config.settings(preset),
        (images, test),
        lambda folder, _: trained_and_measured(config.seeds, names, how, images, measured, folder),
    )


def _by_training(result: dict[str, Any], norm: str) -> dict[str, dict[str, accuracy.Measured]]:
    """The networks by training and family, in the balls of one norm."""
    trainings: dict[str, dict[str, accuracy.Measured]] = {}
    for name, records in report.by_name(result).items():
        training, network = name.split("/")
        minutes = np.mean([record["training_seconds"] for record in records]) / 60
        notes = [f"n {records[0]['images'][norm]}", f"trained {minutes:.1f} min"]
        measured = accuracy.Measured(records, {}, notes, lambda record: record["balls"][norm])
        trainings.setdefault(training, {})[network] = measured
    eps = result["settings"]["eps"]

    def order(training: str) -> tuple[int, float]:
        return KINDS.index(training.split()[0]), radius_of(training, eps) or 0.0

    return {training: trainings[training] for training in sorted(trainings, key=order)}


def _rows(bracket: dict[str, Any]) -> dict[str, report.Read]:
    width = {"attacked - certified": lambda b: b["attacked"] - b["certified"]}
    return accuracy.every_row(bracket) | width


def tables(result: dict[str, Any]) -> list[Any]:
    """By training: robust accuracy in %, as an interval."""
    made = []
    for norm, shown in accuracy.NORMS.items():
        for training, networks in _by_training(result, norm).items():
            title = f"{result['settings']['dataset']}, {shown}, training: {training}"
            made += accuracy.tables(title, networks, _rows)
    return made


def figure(result: dict[str, Any]):
    """For every family the interval after each training, in either L-infinity ball."""
    return _drawn(result, _by_training(result, "linf"))


def before_and_after(result: dict[str, Any]):
    """The same within the first radius, for training that is plain, by attacks, and by bounds.

    Networks that had fewer of these trainings than others are not drawn.
    """
    trainings = _by_training(result, "linf")
    eps = f"{result['settings']['eps'][0]:.3g}"
    kept = [name for name in ("plain", f"PGD {eps}", f"{BOUNDS} {eps}") if name in trainings]
    shown = {name: trainings[name] for name in kept} or trainings
    times = Counter(name for networks in shown.values() for name in networks)
    most = max(times.values())
    shown = {
        training: {name: of for name, of in networks.items() if times[name] == most}
        for training, networks in shown.items()
    }
    return _drawn(result, {name: of for name, of in shown.items() if of}, panels=1)


def _drawn(
    result: dict[str, Any],
    trainings: dict[str, dict[str, accuracy.Measured]],
    panels: int | None = None,
):
    """A bar from certified to attacked for every network, in a panel for each radius."""
    eps = result["settings"]["eps"]
    families = [name for name in FAMILIES if any(name in of for of in trainings.values())]
    measured = max(len(network.eps) for of in trainings.values() for network in of.values())
    height = len(families) * (0.16 * len(trainings) + 0.14) + 0.6
    drawn, axes = report.panels(range(panels or measured), size=(5.4, height))
    color, step = colors(trainings), 0.8 / len(trainings)
    for i, axis in axes:
        for t, (training, networks) in enumerate(trainings.items()):
            n = max(network.records[0]["images"]["linf"] for network in networks.values())
            label = f"training: {_in_words(training)} ({n:,} images)"
            style = {"color": color[training], "label": label}
            for name, network in networks.items():
                if i >= len(network.eps):
                    continue
                low, high = (
                    network.mean(end)[i + 1] for end in (accuracy.CERTIFIED, accuracy.ATTACKED)
                )
                at = families.index(name) + (t - (len(trainings) - 1) / 2) * step
                axis.barh(at, high - low, left=low, height=0.6 * step, alpha=0.5, **style)
                axis.plot([low, high], [at, at], "|", ms=7, mew=1.6, color=color[training])
                ends = f"{low:.1f} to {high:.1f}"
                beside, side = (high + 1.5, "left") if high < 80 else (low - 1.5, "right")
                if high - low > 60:
                    beside, side = (low + high) / 2, "center"
                axis.text(beside, at, ends, ha=side, va="center", fontsize=8)
        axis.set_yticks(range(len(families)), families)
        axis.set_ylim(len(families) - 0.5, -0.5)
        axis.set_xlim(-2, 102)
        axis.set_xlabel("robust accuracy (%), from certified to attacked: the truth is in the bar")
        axis.set_title(f"L-infinity {eps[i]:.3g}", fontsize=9)
        axis.grid(alpha=0.3, lw=0.5, axis="x")
    report.legend_below(
        drawn, 1 if panels == 1 else 2, title=_setting(result["settings"]), fontsize=9
    )
    set_title(drawn, _finding(trainings, eps))
    return drawn


def _setting(settings: dict[str, Any]) -> str:
    """Which images were attacked; the legend says how many."""
    return f"{settings['dataset']}, the first test images"


def _in_words(training: str) -> str:
    kind, _, radius = training.partition(" ")
    words = {"decay": "plain, weight decay", "PGD": "against PGD", BOUNDS: f"by {BOUNDS}"}
    return words.get(kind, kind) + (f", {radius}" if radius else "")


def _finding(trainings: dict[str, dict[str, accuracy.Measured]], eps: list[float]) -> str:
    """How narrow the intervals of networks trained for the first radius are, as a sentence."""
    best = trainings.get(f"{BOUNDS} {eps[0]:.3g}")
    if not best:
        return f"No network is trained for certification within {eps[0]:.3g}"
    low = [network.mean(accuracy.CERTIFIED)[1] for network in best.values()]
    finding = (
        f"Trained by bounds: {min(low):.1f} to {max(low):.1f} % certified within L-infinity "
        f"{eps[0]:.3g}, in intervals {_median_width(best):.1f} points wide"
    )
    attacked = trainings.get(f"PGD {eps[0]:.3g}")
    more = f"; trained against PGD: {_median_width(attacked):.0f} points wide" if attacked else ""
    return finding + more


def _median_width(networks: dict[str, accuracy.Measured]) -> float:
    """Of the intervals in the first ball, in points."""
    ends = accuracy.ATTACKED, accuracy.CERTIFIED
    tops, bottoms = ([network.mean(end)[1] for network in networks.values()] for end in ends)
    return float(np.median(np.subtract(tops, bottoms)))


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    training, network = name.split("/")
    shown = {"plain": CLEAN, "decay": f"{CLEAN}, weight decay"}
    return network, shown.get(training, training.replace(f"{BOUNDS} ", f"by {BOUNDS}, "))


FIGURES = {"intervals": figure, "before_and_after": before_and_after}
NETWORKS = partial(listed, named=_named)
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, networks=NETWORKS)

if __name__ == "__main__":
    run(EXPERIMENT)
