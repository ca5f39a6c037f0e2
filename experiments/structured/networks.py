"""*structured*: networks 1-Lipschitz by construction, what that proves, and what attacks leave.

    python -m experiments.structured.networks  # digits, small networks
    python -m experiments.structured.networks --dataset mnist --data-dir DIR  # hours on a CPU
    python -m experiments.structured.networks --preset paper --data-dir DIR  # CIFAR-10, for a GPU

The paper's architecture in its five regimes (unconstrained, naively constrained, non-expansive,
switching prescribed and flexible), and two kinds of later 1-Lipschitz layers (convex potential and
SDP-based), trained on clean images with the paper's multi-class hinge loss, or with cross-entropy
inside a margin (--temperature). To have radius eps certified, a network of constant 1 needs a
margin of sqrt(2) eps; which to ask for, --held-out tells. In the l2 ball of each eps:

- the paper's attack, PGD with ten steps of 0.025 eps: all of them together reach a quarter of eps;
- PGD-50 with steps of 2.5 eps / 50, and on what these leave and nothing certifies the standard
  AutoAttack;
- what is certified, of all test images too: the margin over sqrt(2) times the Lipschitz constant
  from pixels to logits, every lifting convolution, step, pooling and head counted. The paper's
  constraints are approximate (a penalty, power iteration), and its networks' constants far from 1.

Here the constants hold whatever the weights are. Switching steps expand as far as the others are
proven to contract, which takes maps near orthogonal ones, so these networks are trained with the
penalty |A^T A - I|^2; the JSON has all step sizes: negative ones expand. By the paper's factor,
0.01, small networks lose orthogonality and no step expands; --orthogonality 1 keeps it.

The figure shows for each network all three against eps; the table has also the area under each
curve, the mean accuracy over all eps up to the largest, interpolated but for what is certified. The
paper's constrained layers have LeakyReLUs of slope 1/2; it trains for 100 epochs by SGD. A finished
network is not trained or attacked again: --resume.

On two CPU cores: digits 10 minutes for all networks; MNIST, unconstrained 13 minutes of training
and 38 of attacks, non-expansive 10 and 10, SDP-based 5 to 10 and 5.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import odejax
from odejax.attacks import PGD, AutoAttack, RelativeStep
from odejax.certificates import LipschitzMargin
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import certified_radii
from odejax.models import (
    FlexibleSteps,
    GradientFlow,
    LipschitzNet,
    NaivelyConstrained,
    PrescribedSteps,
    Structured,
    StructuredNet,
    Unconstrained,
)
from odejax.plots import draw_interval
from odejax.training import CrossEntropy, Hinge, Penalised, orthogonality_penalty

from ..ledger.printed import Claim, claimed
from ..ledger.sources import FOLDER, Source, chosen, from_brackets
from ..lib import report
from ..lib.measure import measure
from ..lib.recipe import Recipe, adam, one_cycle, sgd, staircase, train
from ..lib.run import (
    Experiment,
    Plan,
    RunConfig,
    UsageError,
    check_choices,
    check_counts,
    check_positive,
    load_data,
    run,
    seeded,
)

KIND = "structured"
TABLE, PAPERS_MARGIN = "l2 attack, margin 0.07", 0.07
PAPERS = "PGD-10"  # the paper's attack, as the ledger calls it
REGIMES = {
    "unconstrained": Unconstrained(),
    "naively constrained": NaivelyConstrained(),
    "non-expansive": Structured(),
    "switching prescribed": Structured(steps=PrescribedSteps()),
    "switching flexible": Structured(steps=FlexibleSteps()),
}
SUCCESSORS = {"convex potential": "CPL", "SDP-based": "SLL"}
ORTHOGONALITY = 0.01  # the paper's factor of the penalty
STRONG = "PGD-50"  # not run again on what it broke in a smaller ball
LAST = AutoAttack()  # on what withstands all others and is not certified
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
class Config(RunConfig):
    """Train networks with proven Lipschitz constants, and hold proofs and attacks together."""

    preset: str = "cpu"
    """paper (CIFAR-10, for a GPU), cpu (small networks) or smoke."""
    dataset: str | None = None
    """By default digits (embedded), with the preset paper cifar10; mnist with cpu."""
    networks: tuple[str, ...] = NAMES
    """Which networks, by name."""
    seeds: int = 1
    """How many seeds of each."""
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
        return partial(StructuredNet, regime=REGIMES[name], **sizes)
    return partial(LipschitzNet, width=preset.width, depth=preset.depth, layer=SUCCESSORS[name])


def recipe(name: str, kind: str, preset: Preset, loss: Callable[..., Any], eta: float) -> Recipe:
    make = network(name, preset)
    regime = REGIMES.get(name)
    if isinstance(regime, Structured) and regime.steps.switching:
        loss = Penalised(loss, penalty=orthogonality_penalty, eta=eta)
    if kind == "paper":
        rule = sgd(staircase(1e-2, 30, 0.1), decay=0.0)
        return Recipe(make, preset.epochs, preset.batch_size, rule, loss, crop_and_flip)
    return Recipe(make, preset.epochs, preset.batch_size, adam(one_cycle(5e-3)), loss)


def plan(config: Config, recipe_of: Callable[..., Recipe] = recipe, last: Any = LAST) -> Plan:
    preset, images, test = _check(config)
    loss = Hinge(preset.margin)
    if config.temperature is not None:
        loss = CrossEntropy(config.temperature, preset.margin)
    asked = ("temperature", "orthogonality", "held_out")
    own = {name: getattr(config, name) for name in ("margin", *asked)}
    settings = {"dataset": config.dataset, "preset": config.preset}
    settings |= dataclasses.asdict(preset) | {name: own[name] for name in asked}

    def jobs(folder, _):
        def measured(name: str, seed: int):
            eta = config.orthogonality or ORTHOGONALITY
            how = recipe_of(name, config.preset, preset, loss, eta)
            slug = f"{name}_{seed}".replace(" ", "_")
            predictor, record = train(how, images, jax.random.key(seed), folder / slug)
            return record | _evaluate(predictor, test, preset, seed, last)

        return seeded(config.seeds, config.networks, measured)

    name = f"{config.dataset}_{config.preset}" + "".join(
        f"_{name}_{value:g}" for name, value in own.items() if value is not None
    )
    return Plan(name, settings, (images, test), jobs)


def _check(config: Config) -> tuple[Preset, ArrayDataset, ArrayDataset]:
    preset = config.choose(PRESETS)
    check_choices("network", config.networks, NAMES)
    check_counts(config, "seeds", "held_out")
    check_positive(config, "margin", "temperature", "orthogonality")
    if config.margin is not None:
        preset = dataclasses.replace(preset, margin=config.margin)
    images, test = load_data(config, preset.test_images)
    n, attacked = config.held_out, preset.test_images
    if n is None:
        return preset, images, test
    if not attacked <= n < len(images):
        raise UsageError(
            f"held-out must be at least the {attacked} images that are attacked, and less than the "
            f"{len(images)} of {images.name}'s training set; got {n}"
        )
    return preset, *images.holdout(n)


def _evaluate(predictor: Any, test: ArrayDataset, preset: Preset, seed: int, last: Any):
    certificate = LipschitzMargin()
    record = measure(
        predictor,
        test,
        preset.test_images,
        {"l2": preset.eps},
        seed,
        attacks={PAPERS: PGD(10, RelativeStep(0.025)), STRONG: PGD(50)},
        anew={PAPERS},
        certificates=certificate,
        last=last,
    )
    ball, key = odejax.L2Ball(preset.eps[0]), jax.random.key(seed + 1)
    radii = certified_radii(predictor, test.pixels, test.labels, ball, certificate, key=key)
    return record | {
        "lipschitz_bound": float(predictor.model.lipschitz_bound()),
        "steps": _steps(predictor.model),
        "certified_of_all": [float(np.mean(radii >= eps)) for eps in preset.eps],
        "median_radius": float(np.median(radii)),
    }


def _steps(model: Any) -> list[float]:
    """The sizes of all gradient-flow steps; a negative one expands."""
    flows = [
        node
        for node in jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, GradientFlow))
        if isinstance(node, GradientFlow)
    ]
    return [float(flow.step) for flow in flows]


def _claimed(result: dict[str, Any], name: str) -> dict[tuple, float]:
    """The paper's figures, of a network trained with the margin that they are for."""
    settings = result["settings"]
    if settings["margin"] != PAPERS_MARGIN or settings.get("temperature") is not None:
        return {}
    return claimed("structured", settings["dataset"], name, TABLE)


def area(record: dict[str, Any], eps: list[float], read: Callable[..., float]) -> float:
    """The mean accuracy over all radii up to the largest, interpolated."""
    left = [record["brackets"][0]["clean"], *map(read, record["brackets"])]
    return float(np.trapezoid(left, [0.0, *eps]) / eps[-1])


def certified_area(record: dict[str, Any], eps: list[float]) -> float:
    """The same of what is certified, and a lower bound: nothing is interpolated."""
    certified = [b["certified"] for b in record["brackets"]]
    return float(np.diff([0.0, *eps]) @ certified / eps[-1])


def tables(result: dict[str, Any]) -> list[Any]:
    """Robust accuracy of each network under the paper's attack and all attacks; proofs; areas.

    The clean accuracy is of the attacked images. What is certified of all test images has a column
    of its own, "of all".
    """
    settings, runs = result["settings"], report.by_name(result)
    claims = {name: _claimed(result, name) for name in runs}
    papers = ["paper"] if any(claims.values()) else []
    columns = ("network", "eps", "ten steps", "all attacks", "certified", "of all", *papers)
    table = report.table(f"{_setting(settings)}: accuracy in %, l2", *columns)
    reads = (report.attack(PAPERS), report.end("attacked"), report.end("certified"))
    for name, records in runs.items():
        grid = report.at_each_eps(records)
        constant = np.mean([record["lipschitz_bound"] for record in records])
        clean = report.cell(b["clean"] for b in grid[0])
        heads = iter((name, f"  clean {clean}", f"  constant {constant:.3g}"))
        for i, eps in enumerate(settings["eps"]):
            cells = [report.cell(map(read, grid[i])) for read in reads]
            cells.append(report.cell(record["certified_of_all"][i] for record in records))
            printed = claims[name].get((PAPERS, "l2", round(eps, 6)))
            paper = "" if printed is None else f"{printed:.1f}"
            table.add_row(next(heads, ""), f"{eps:.3g}", *cells, *(paper for _ in papers))
        areas = [[area(r, settings["eps"], read) for r in records] for read in reads[:2]]
        areas.append([certified_area(r, settings["eps"]) for r in records])
        table.add_row(next(heads, ""), "area", *map(report.cell, areas), end_section=True)
    flags = report.flags_raised(record for records in runs.values() for record in records)
    table.caption = (
        f"ten steps: the paper's attack; of all: certified of all images, not of the attacked "
        f"alone; flags: {flags}"
    )
    return [table]


def figure(result: dict[str, Any]):
    """A panel for each network: the paper's attack, all attacks, and what is certified."""
    settings = result["settings"]

    def draw(axis, name, records):
        grid, eps = report.at_each_eps(records), [0.0, *settings["eps"]]
        ends = (report.curve(grid, report.end(which)) for which in ("attacked", "certified"))
        draw_interval(axis, eps, *ends)
        weak = report.curve(grid, report.attack(PAPERS))
        axis.plot(eps, weak, ":s", ms=3, color=report.ORANGE, label="ten steps of 0.025 eps")
        printed = _claimed(result, name)
        report.crosses(axis, printed, PAPERS, marker="x", label="the paper")
        constant = np.mean([record["lipschitz_bound"] for record in records])
        axis.set_title(f"{name}\nproven constant {constant:.3g}", fontsize=9)

    title = _setting(settings)
    return report.interval_panels(result, draw, ncols=4, title=title, norm="l2", columns=4)


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
        )
    ]


EXPERIMENT = Experiment(
    KIND, __doc__, Config, plan, tables, {"structured": figure}, sources=sources
)

if __name__ == "__main__":
    run(EXPERIMENT)
