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
- PGD-50, and on what all of these leave the standard AutoAttack.

The perturbation growth ratio of a block: the distance between the states behind it, of an image and
of the same image attacked by PGD-K in the largest ball (K = 7 for the naturally trained), over that
behind the first block. Beside it stands the growth of a random perturbation, of +-eps in every
pixel, clipped to [0, 1]. (No block here is certified, so the other end of every interval is 0.)

Paper: SGD at 0.1 for 200 epochs. The small presets take few steps of Adam, and let eps rise to its
own in 60 % of them: in MNIST's ball of 0.3 a small network may learn nothing otherwise. The paper's
networks normalise their inputs; these take pixels as they are. On CIFAR a strided block takes the
place of the first of the N in the second and third group; Tiny-ImageNet is left out. A finished
network is not trained or attacked again, an interrupted one goes on from its last epoch: --resume.

MNIST, PGD-7: 18 to 29 minutes of training and 3 to 9 of attacks a network on two CPU cores.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
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
from odejax.plots import plain_ticks
from odejax.solvers import SSPRK22, SSPRK33, LearnedRK2, PublishedMidpoint, growth_ratios
from odejax.training import Adversarial, CrossEntropy

from ..lib import report
from ..lib.measure import measure
from ..lib.recipe import Recipe, adam, drops, one_cycle, sgd, train
from ..lib.run import (
    Experiment,
    Plan,
    RunConfig,
    check_choices,
    check_counts,
    load_data,
    run,
    seeded,
)

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
SHOWN = "PGD-7"  # in tables and figures, of the paper's attacks
LAST = AutoAttack()  # on what withstands all others
STRONG = "PGD-50"  # not run again on what it broke in a smaller ball
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
COLORS = {
    "ResNet": "#b2182b",
    "SSP-2": "#4393c3",
    "SSP-3": "#2166ac",
    "ark": "#1b7837",
    "midpoint": "#fdb863",
    "midpoint, published": "#e08214",
    "ark, published": "#8c510a",
}


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
class Config(RunConfig):
    """Train networks with SSP blocks and without, attack them, watch perturbations grow."""

    preset: str = "cpu"
    """paper (for a GPU), cpu (small networks) or smoke."""
    dataset: str | None = None
    """By default digits (embedded), with the preset paper mnist; there also fashion_mnist and
    cifar10, with cpu mnist."""
    networks: tuple[str, ...] = tuple(SOLVERS)
    """Which networks, by name."""
    trainings: tuple[str, ...] = ("natural", "PGD-7")
    """natural, PGD-7, PGD-12: on clean images, or against PGD of so many steps."""
    seeds: int = 1
    """How many seeds of each."""
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
    check_choices("network", config.networks, SOLVERS)
    check_choices("training", config.trainings, TRAININGS)
    check_counts(config, "seeds", "depth")
    if config.depth is not None:
        preset = dataclasses.replace(preset, depth=config.depth)
    dataset = str(config.dataset)
    eps, step = SETTINGS[dataset]
    radii = [share * eps for share in SHARES]
    images, test = load_data(config, preset.test_images)
    settings = {"dataset": dataset, "preset": config.preset} | dataclasses.asdict(preset)
    settings |= {"eps": radii, "step": step}
    chosen = attacks(dataset)

    def jobs(folder, _):
        def measured(name: str, seed: int):
            training, network = name.split("/")
            slug = f"{training}_{network}_{seed}".replace(" ", "")
            how = recipe_of(network, training, dataset, preset, config.preset)
            predictor, record = train(how, images, jax.random.key(seed), folder / slug)
            record |= measure(
                predictor,
                test,
                preset.test_images,
                {"linf": radii},
                seed,
                attacks=chosen,
                anew=set(chosen) - {STRONG},
                last=last,
            )
            attack, key = PGD(TRAININGS[training] or 7, step), jax.random.key(seed + 1)
            attacked = test.take(slice(preset.test_images))
            return record | {"growth": _growth(predictor, attacked, attack, eps, key)}

        names = (f"{training}/{name}" for training in config.trainings for name in config.networks)
        return seeded(config.seeds, names, measured)

    own = "" if config.depth is None else f"_depth_{config.depth}"
    return Plan(f"{dataset}_{config.preset}{own}", settings, (images, test), jobs)


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
        for name, found in ratios(jnp.asarray(clean), jnp.asarray(zs)).items():
            finite = np.asarray(found)[np.isfinite(found).all(axis=1)]
            means[name] = finite.mean(axis=0).tolist() if len(finite) else []
        return means

    return {name: measure(zs) for name, zs in perturbed.items()}


def _by_training(result: dict[str, Any]) -> dict[str, dict[str, list[report.Record]]]:
    """The records of all seeds, by training and network."""
    found: dict[str, dict[str, list]] = {}
    for name, records in report.by_name(result).items():
        training, network = name.split("/")
        found.setdefault(training, {})[network] = records
    return found


def last_growth(records: list[report.Record]) -> float | None:
    """The growth ratio behind the last block, in l2; None where no image was moved."""
    last = [record["growth"]["attack"]["l2"][-1:] for record in records]
    values = [ratio for ratios in last for ratio in ratios]
    return float(np.mean(values)) if values else None


def shown_growth(growth: float | None) -> str:
    """The same as a table shows it."""
    return "-" if growth is None else f"{growth:.1f}"


def tables(result: dict[str, Any]) -> list[Any]:
    """By training: robust accuracy under the paper's PGD and under all attacks, in %; growth.

    The clean accuracy is of the attacked images, too.
    """
    settings, out = result["settings"], []
    for training, networks in _by_training(result).items():
        title = f"{settings['dataset']}, {training}, {settings['test_images']} test images"
        eps = [f"{eps:.3g}" for eps in settings["eps"]]
        table = report.table(title, "network", "L-inf eps", *eps, names=2)
        for name, records in networks.items():
            grid = report.at_each_eps(records)
            clean = report.cell(b["clean"] for b in grid[0])
            for heads, read in (
                ((name, SHOWN), report.attack(SHOWN)),
                ((f"  clean {clean}", "all attacks"), report.end("attacked")),
            ):
                table.add_row(*heads, *(report.cell(map(read, row)) for row in grid))
            table.add_row(f"  growth {shown_growth(last_growth(records))}", "")
        flags = report.flags_raised(r for records in networks.values() for r in records)
        table.caption = (
            f"in %; growth: of PGD's perturbation in the largest ball, from the first block to "
            f"the last, in l2; flags: {flags}"
        )
        out.append(table)
    return out


def figure(result: dict[str, Any]):
    """A row for each training: accuracy against eps, and growth behind each block in l1 and l2."""
    settings, trainings = result["settings"], _by_training(result)
    drawn, axes = plt.subplots(
        len(trainings),
        3,
        figsize=(12, 3.4 * len(trainings) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for row, (training, networks) in zip(axes, trainings.items(), strict=True):
        _draw_accuracy(row[0], networks, settings["eps"])
        row[0].set_title(f"trained: {training}", fontsize=10)
        for axis, norm in zip(row[1:], NORMS, strict=True):
            _draw_growth(axis, networks, norm)
    report.legend_below(drawn, ncols=7, fontsize=9)
    blocks = f"{settings['depth']} blocks" + (
        " a group" if settings["dataset"] == "cifar10" else ""
    )
    title = f"{settings['dataset']}, {settings['test_images']} test images, {blocks}"
    drawn.suptitle(title, fontsize=11)
    return drawn


def _draw_accuracy(axis, networks: Mapping[str, list[report.Record]], eps: list[float]):
    for name, records in networks.items():
        grid = report.at_each_eps(records)
        for read, style in (
            (report.end("attacked"), {"ls": "-", "marker": "o", "label": name}),
            (report.attack(SHOWN), {"ls": ":"}),
        ):
            values = report.curve(grid, read)
            axis.plot([0.0, *eps], values, color=COLORS[name], ms=3, lw=1.3, **style)
    report.accuracy_axis(axis, "linf")
    axis.set_ylabel(f"accuracy (%), all attacks; dotted: {SHOWN}", fontsize=9)


def _draw_growth(axis, networks: Mapping[str, list[report.Record]], norm: str):
    for name, records in networks.items():
        for perturbation, style in (("attack", "-o"), ("random", ":")):
            ratios = [record["growth"][perturbation][norm] for record in records]
            if not all(ratios):
                continue
            mean = np.mean(ratios, axis=0)
            axis.plot(range(1, len(mean) + 1), mean, style, ms=3, lw=1.3, color=COLORS[name])
    axis.set_yscale("log", base=2)
    plain_ticks(axis)
    axis.set_xlabel("block")
    axis.set_ylabel(f"growth in {norm}; dotted: random", fontsize=9)
    axis.grid(alpha=0.3, lw=0.5, which="both")


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"ssp": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
