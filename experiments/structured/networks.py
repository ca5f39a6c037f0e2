"""*structured*: networks 1-Lipschitz by construction, certified and under attack.

    python -m experiments.structured.networks  # digits, small networks
    python -m experiments.structured.networks --dataset mnist --data-dir DIR  # hours on a CPU
    python -m experiments.structured.networks --preset paper --data-dir DIR  # CIFAR-10, for a GPU

The paper's architecture in its five regimes (unconstrained, naively constrained, non-expansive,
switching prescribed and flexible), and two kinds of later 1-Lipschitz layers (convex potential and
SDP-based), trained on clean images with the paper's multi-class hinge loss, or with cross-entropy
inside a margin (--temperature). To have radius eps certified, a network of constant 1 needs a
margin of sqrt(2) eps; --held-out chooses it without the test set. In the l2 ball of each eps:

- the paper's attack, PGD with ten steps of 0.025 eps: all of them together reach a quarter of eps;
- PGD-50 with steps of 2.5 eps / 50, and the standard AutoAttack on images that these fail on and
  nothing certifies;
- what is certified, of all test images too: the margin over sqrt(2) times the Lipschitz constant
  from pixels to logits, every lifting convolution, step, pooling and head counted. The paper's
  constraints are approximate (a penalty, power iteration), and its networks' constants far from 1.

Here the constants hold whatever the weights are. Switching steps expand as far as the others are
proven to contract, which takes maps near orthogonal ones, so these networks are trained with the
penalty |A^T A - I|^2; the JSON has all step sizes: negative ones expand. By the paper's factor,
0.01, small networks lose orthogonality and no step expands; --orthogonality 1 keeps it.

The table has also the mean accuracy over all eps up to the largest, interpolated but for what is
certified. The paper's constrained layers have LeakyReLUs of slope 1/2; it trains for 100 epochs by
SGD.

On two CPU cores: digits 10 minutes for all networks; MNIST, unconstrained 13 minutes of training
and 38 of attacks, non-expansive 10 and 10, SDP-based 5 to 10 and 5.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from odejax import models
from odejax.attacks import PGD, AutoAttack, RelativeStep
from odejax.certificates import LipschitzMargin
from odejax.data import ArrayDataset, crop_and_flip
from odejax.training import CrossEntropy, Hinge, Penalised, orthogonality_penalty

from ..ledger.printed import Claim, claimed
from ..ledger.sources import FOLDER, Source, Work, chosen, from_brackets
from ..lib import accuracy, report
from ..lib.intervals import listed
from ..lib.measure import measure, radii_of_all
from ..lib.networks import NetworksConfig, folder_name, trained_and_measured
from ..lib.recipe import Recipe, adam, one_cycle, sgd, staircase
from ..lib.run import (
    Experiment,
    Plan,
    PresetConfig,
    UsageError,
    check_counts,
    check_positive,
    load_data,
    run,
)

KIND = "structured"
TABLE, PAPERS_MARGIN = "l2 attack, margin 0.07", 0.07
PAPERS = "PGD-10"  # the paper's attack, as the ledger calls it
REGIMES = {
    "unconstrained": models.Unconstrained(),
    "naively constrained": models.NaivelyConstrained(),
    "non-expansive": models.Structured(),
    "switching prescribed": models.Structured(steps=models.PrescribedSteps()),
    "switching flexible": models.Structured(steps=models.FlexibleSteps()),
}
SUCCESSORS = {"convex potential": "CPL", "SDP-based": "SLL"}
ORTHOGONALITY = 0.01  # the paper's factor of the penalty
STRONG = "PGD-50"  # run only where it failed in the smaller ball
ATTACKS = {PAPERS: PGD(10, RelativeStep(0.025)), STRONG: PGD(50)}
LAST = AutoAttack()  # where all others fail and nothing is certified
NAMES = (*REGIMES, *SUCCESSORS)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes, training and what is attacked."""

    channels: tuple[int, ...]
    depth: int
    width: int  # of the successors
    epochs: int
    margin: float
    eps: tuple[float, ...]
    test_images: int
    batch_size: int = 128


PAPERS_EPS = (8 / 255, 16 / 255, 36 / 255, 0.3, 0.5, 0.6, 0.8, 1.0)
PRESETS = {
    "paper": {"cifar10": Preset((32, 64, 128), 4, 32, 100, PAPERS_MARGIN, PAPERS_EPS, 1024)},
    "cpu": {
        "digits": Preset((8, 16), 2, 8, 60, 1.0, (0.25, 0.5, 1.0, 1.58), 100, 64),
        "mnist": Preset((8, 16, 32), 2, 16, 4, 1.0, (0.25, 0.5, 1.0, 1.58), 100),
    },
    "smoke": {"digits": Preset((4,), 2, 4, 1, 1.0, (0.5, 1.58), 8, 64)},
}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train networks with proven Lipschitz constants, certify and attack them."""

    dataset: str | None = None
    """By default digits (embedded), with the preset paper cifar10; mnist with cpu."""
    margin: float | None = None
    """The loss's; by default 0.07 (CIFAR-10; the paper also takes 0.15 and 0.3) or 1."""
    temperature: float | None = None
    """Train by cross-entropy of this temperature, with the margin, instead of the hinge loss."""
    orthogonality: float | None = None
    """The factor of the penalty on maps of switching steps; by default the paper's, 0.01."""
    held_out: int | None = None
    """Choose without the test set: hold out so many random training images, and measure on them."""


def network(name: str, preset: Preset) -> Callable[..., Any]:
    """What makes the network of this name."""
    if name in REGIMES:
        sizes = {"channels": preset.channels, "depth": preset.depth}
        return partial(models.StructuredNet, regime=REGIMES[name], **sizes)
    sizes = {"width": preset.width, "depth": preset.depth}
    return partial(models.LipschitzNet, layer=SUCCESSORS[name], **sizes)


def recipe(name: str, kind: str, preset: Preset, loss: Callable[..., Any], eta: float) -> Recipe:
    make = network(name, preset)
    regime = REGIMES.get(name)
    if isinstance(regime, models.Structured) and regime.steps.switching:
        loss = Penalised(loss, penalty=orthogonality_penalty, eta=eta)
    if kind == "paper":
        rule = sgd(staircase(1e-2, 30, 0.1), decay=0.0)
        return Recipe(make, preset.epochs, preset.batch_size, rule, loss, crop_and_flip)
    return Recipe(make, preset.epochs, preset.batch_size, adam(one_cycle(5e-3)), loss)


def plan(config: Config, recipe_of: Callable[..., Recipe] = recipe, last: Any = LAST) -> Plan:
    preset, names = config.choose(PRESETS), config.chosen(NAMES)
    check_counts(config, "held_out")
    check_positive(config, "margin", "temperature", "orthogonality")
    if config.margin is not None:
        preset = dataclasses.replace(preset, margin=config.margin)
    images, test = load_data(config, preset.test_images)
    if config.held_out is not None:
        images, test = _hold_out(images, config.held_out, preset.test_images)
    loss = Hinge(preset.margin)
    if config.temperature is not None:
        loss = CrossEntropy(config.temperature, preset.margin)
    asked = ("temperature", "orthogonality", "held_out")
    own = {name: getattr(config, name) for name in ("margin", *asked)}

    def how(name: str) -> Recipe:
        return recipe_of(name, config.preset, preset, loss, config.orthogonality or ORTHOGONALITY)

    def measured(predictor: Any, name: str, seed: int, state: Path):
        return _evaluate(predictor, test, preset, seed, last, state)

    return Plan(
        config.run_name + "".join(f"_{name}_{v:g}" for name, v in own.items() if v is not None),
        config.settings(preset) | {name: own[name] for name in asked},
        (images, test),
        lambda folder, _: trained_and_measured(config.seeds, names, how, images, measured, folder),
    )


def _hold_out(images: ArrayDataset, n: int, attacked: int) -> tuple[ArrayDataset, ArrayDataset]:
    if not attacked <= n < len(images):
        raise UsageError(
            f"held-out must be at least the {attacked} images that are attacked, and less than the "
            f"{len(images)} of {images.name}'s training set; got {n}"
        )
    return images.holdout(n)


def _evaluate(
    predictor: Any, test: ArrayDataset, preset: Preset, seed: int, last: Any, state: Path
):
    certificate = LipschitzMargin()
    record = measure(
        predictor,
        test,
        preset.test_images,
        {"l2": preset.eps},
        seed,
        attacks=ATTACKS,
        anew={PAPERS},
        certificates=certificate,
        last=last,
        state=state,
    )
    record |= radii_of_all(predictor, test, preset.eps, certificate, seed)
    return record | {"steps": _steps(predictor.model)}


def _steps(model: Any) -> list[float]:
    """The sizes of all gradient-flow steps; a negative one expands."""

    def is_flow(node: Any) -> bool:
        return isinstance(node, models.GradientFlow)

    flows = filter(is_flow, jax.tree.leaves(model, is_leaf=is_flow))
    return [float(flow.step) for flow in flows]


def _networks(result: dict[str, Any]) -> dict[str, accuracy.Measured]:
    """By name; with the paper's figures, if trained with the margin that they are for."""
    settings, networks = result["settings"], {}
    as_published = settings["margin"] == PAPERS_MARGIN and settings.get("temperature") is None
    for name, records in report.by_name(result).items():
        published = claimed(KIND, settings["dataset"], name, TABLE) if as_published else {}
        constant = np.mean([record["lipschitz_bound"] for record in records])
        note = f"constant {constant:.3g}"
        networks[name] = accuracy.Measured(records, {"paper": published}, [note], accuracy.of_all)
    return networks


def mean_over_eps(brackets: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean accuracies over all eps up to the largest.

    Those under attack are interpolated. Certified ones are lower bounds: each holds from the eps
    before to its own.
    """
    eps = [0.0, *(bracket["eps"] for bracket in brackets)]

    def attacked(read: report.Read) -> float:
        return float(np.trapezoid([brackets[0]["clean"], *map(read, brackets)], eps) / eps[-1])

    def certified(read: report.Read) -> float:
        return float(np.diff(eps) @ [*map(read, brackets)] / eps[-1])

    return {
        "per_attack": {n: attacked(report.attack(n)) for n in brackets[0]["per_attack"]},
        "attacked": attacked(report.end("attacked")),
        "certified": certified(report.end("certified")),
        accuracy.OF_ALL: certified(accuracy.CERTIFIED_OF_ALL),
    }


def tables(result: dict[str, Any]) -> list[Any]:
    title = f"{_setting(result['settings'])}; PGD-10: the paper's attack, ten steps of 0.025 eps"
    return accuracy.tables(title, _networks(result), accuracy.rows_of_all, {"mean": mean_over_eps})


def figure(result: dict[str, Any]):
    networks, setting = _networks(result), _setting(result["settings"])
    title = accuracy.overstated(networks, PAPERS)
    return accuracy.figure(title, setting, networks, [PAPERS], columns=4)


def _setting(settings: dict[str, Any]) -> str:
    """Which images were attacked, and what the networks were trained for."""
    kind = "held-out" if settings.get("held_out") else "test"
    parts = [settings["dataset"], f"{settings['test_images']} {kind} images"]
    trained = ("margin", "temperature", "orthogonality")
    parts += [f"{n} {settings[n]:g}" for n in trained if settings.get(n) is not None]
    return ", ".join(parts)


def sources(claim: Claim) -> list[Source]:
    if claim.paper != KIND or claim.is_quantity or claim.model not in NAMES:
        return []
    preset = PRESETS["paper"][claim.dataset]
    return [
        Source(
            f"structured_{claim.dataset}_paper",
            KIND,
            f"python -m experiments.structured.networks --preset paper {FOLDER}",
            from_brackets,
            claim.model,
            preset.epochs,
            chosen(preset, "margin"),
            work=partial(_work, claim.model, preset),
        )
    ]


def _work(name: str, preset: Preset) -> Work:
    images = preset.test_images * len(preset.eps)
    how = recipe(name, "paper", preset, Hinge(preset.margin), ORTHOGONALITY)
    attacks = tuple((attack, images) for attack in (*ATTACKS.values(), LAST))
    return Work(("--networks", name), {folder_name(name, 0): how}, attacks)


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    kept = ("margin", "temperature", "orthogonality")
    parts = [f"{what} {settings[what]:g}" for what in kept if settings.get(what) is not None]
    loss = "hinge" if settings.get("temperature") is None else "cross-entropy"
    return name, ", ".join((loss, *parts))


EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    tables,
    {"structured": figure},
    sources=sources,
    networks=partial(listed, named=_named),
)

if __name__ == "__main__":
    run(EXPERIMENT)
