"""*nmode* on CIFAR-10: Fig. 8 b, Table 3 (CIFAR-10 rows) and Table 4.

    python -m experiments.nmode.cifar --preset paper --data-dir DIR    # for a GPU
    python -m experiments.nmode.cifar --preset cpu --data-dir DIR      # small nets, real images

- A ResNet is trained on clean images. "ResNet + nmODE" goes on from there with nmODE (t = 5) in
  front of its classifier, "ResNet" goes on for as long without (Fig. 8 b, Table 3).
- "TRADES" and "TRADES + nmODE" (t = 1) are trained by TRADES at 8/255 and attacked at 15/255
  (Table 4).

All weights are trained, by SGD with a one-cycle schedule. The paper takes a finished ResNet-18, and
trains for 1,000 epochs; for Table 4 it has Adam and says "using cross-entropy loss", where the loss
here is that of TRADES. Each network is attacked as in the paper (PGD-50) and by the standard
AutoAttack; on the CPU, where its 5,000 queries take hours, by the first half of it, which follows
gradients. Nothing here has a certificate: behind a convolutional net Eq. (4) bounds nmODE alone.
A finished network is not trained or attacked again, an interrupted one goes on from its last epoch:
--resume.

The preset cpu takes 55 minutes on one core.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np

import odejax
from odejax.attacks import APGD, PGD, AutoAttack, Targeted, dlr
from odejax.data import crop_and_flip
from odejax.evaluation import confidence_interval
from odejax.models import NmODE, PreActResNet, insert_before_classifier
from odejax.plots import colors, set_title
from odejax.training import TRADES, CrossEntropy

from ..ledger.printed import Claim, claimed
from ..ledger.sources import FOLDER, Source, chosen, from_balls
from ..lib import report
from ..lib.intervals import CLEAN, listed
from ..lib.measure import measure
from ..lib.recipe import Recipe, fitted, one_cycle, sgd, train
from ..lib.run import Experiment, Job, Plan, PresetConfig, check_choices, each, load_data, run

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
    preset: each(("cifar10", "cifar100"), sizes)
    for preset, sizes in {
        "paper": Preset(18, 60, 60, 50_000, 1000),
        "cpu": Preset(8, 4, 2, 10_000, 100, "APGD-CE and -T"),
        "smoke": Preset(8, 1, 1, 256, 20, "APGD-CE and -T"),
    }.items()
}


@dataclasses.dataclass
class Config(PresetConfig):
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


def plan(
    config: Config,
    presets: Mapping[str, Mapping[str, Preset]] = PRESETS,
    networks: Mapping[str, Network] = NETWORKS,
    attacks: Mapping[str, Any] = PAPERS_ATTACK | STRONGEST,
    load: Callable[..., Any] = load_data,
) -> Plan:
    preset = config.choose(presets)
    check_choices("network", config.networks, networks)
    pretrained = config.epochs or preset.epochs_pretrained
    preset = dataclasses.replace(preset, epochs_pretrained=pretrained)
    images, test = load(config, preset.test_images)
    images = images.take(slice(preset.train_images))
    settings = {"dataset": config.dataset, "seed": config.seed} | dataclasses.asdict(preset)

    def measured(name: str, folder) -> dict[str, Any]:
        predictor, record = train_network(name, networks[name], images, preset, config.seed, folder)
        return record | measure(
            predictor,
            test,
            preset.test_images,
            networks[name].eps,
            config.seed,
            attacks={name: attacks[name] for name in (*PAPERS_ATTACK, preset.strongest)},
            batch_size=100,
            flag_images=32,
        )

    def jobs(folder, _):
        for name in config.networks:
            yield Job(name, config.seed, partial(measured, name, folder))

    return Plan(config.run_name, settings, (images, test), jobs)


def train_network(name: str, network: Network, dataset, preset: Preset, seed: int, folder):
    """The network, and what there is to say about its training."""
    key = jax.random.key(seed)
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


def tables(result: dict[str, Any]) -> list[Any]:
    """Accuracy in %, in brackets the paper's."""
    settings = result["settings"]
    title = "nmode Tables 3 and 4: {dataset}, PreActResNet-{depth}, {test_images} test images"
    columns = ("norm", "eps, 1/255", "clean (all)", *PAPERS_ATTACK, settings["strongest"])
    shown = report.table(title.format(**settings), "", *columns)
    for name, record in result["runs"].items():
        paper = claimed("nmode", settings["dataset"], name, "Table 3", "Table 4")
        clean = _cell(record["clean_accuracy"], paper.get(("clean", "", 0)))
        for ball, intervals in record["balls"].items():
            for interval in intervals:
                eps = interval["eps"]
                pgd, strongest = interval["per_attack"].values()
                pgd = _cell(pgd, paper.get((*PAPERS_ATTACK, ball, round(eps, 6))))
                shown.add_row(name, ball, f"{255 * eps:g}", clean, pgd, _cell(strongest, None))
    return [shown]


def _cell(fraction: float, printed: float | None) -> str:
    return f"{100 * fraction:.1f}" + (f" ({printed:.1f})" if printed else "")


def figure(result: dict[str, Any]):
    """L-infinity, under PGD and AutoAttack: natural training to the left, TRADES to the right."""
    settings, runs = result["settings"], result["runs"]
    titles = {"ResNet": "clean training (Fig. 8 b)", "TRADES": "TRADES (Table 4)"}
    networks = {"without nmODE": "", "with nmODE": " + nmODE"}
    color = dict(zip(networks, colors(("ResNet", "nmODE")).values(), strict=True))
    drawn, axes = report.panels(titles, size=(4.5, 3.0))
    changes = []
    for plain, axis in axes:
        grids = {
            label: [[b] for b in runs[plain + more]["balls"]["linf"]]
            for label, more in networks.items()
            if plain + more in runs
        }
        for label, grid in grids.items():
            eps = [0.0, *(255 * row[0]["eps"] for row in grid)]
            for attack, style in zip(grid[0][0]["per_attack"], (":s", "-o"), strict=True):
                values = report.curve(grid, report.attack(attack))
                named = {"color": color[label], "label": f"{label}, {attack}"}
                axis.step(eps, values, style, where="post", ms=4, **named)
        strongest = report.attack(settings["strongest"])
        robust = [report.curve(grid, strongest)[1:] for grid in grids.values()]
        if len(robust) == 2:
            changes.append(np.abs(np.subtract(*robust)).max())
        report.accuracy_axis(axis, title=titles[plain])
        axis.set_xlabel(r"$\epsilon$  ($\ell_\infty$, in 1/255)")
    report.legend_below(drawn, ncols=4, fontsize=8)
    n = settings["test_images"]
    low, high = confidence_interval(n // 2, n)
    findings = [f"sampling error is up to {50 * (high - low):.0f} points"]
    if changes:
        change = f"by at most {max(changes):.0f} points under {settings['strongest']}"
        findings.insert(0, f"nmODE changes robust accuracy {change}")
    setting = report.setting_line(settings, f"PreActResNet-{settings['depth']}")
    set_title(drawn, f"{'; '.join(findings)} ({setting})")
    return drawn


def sources(claim: Claim) -> list[Source]:
    known = claim.paper == "nmode" and claim.dataset in PRESETS["paper"]
    if claim.is_quantity or not known or claim.model not in NETWORKS:
        return []
    return [
        Source(
            f"nmode_{claim.dataset}_{preset}",
            KIND,
            f"python -m experiments.nmode.cifar --preset {preset} {FOLDER}",
            from_balls,
            claim.model,
            PRESETS[preset][claim.dataset].epochs,
            chosen(PRESETS[preset][claim.dataset], "depth", "train_images"),
            smaller=preset == "cpu",
        )
        for preset in ("paper", "cpu")
    ]


def _named(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    network = name.replace("TRADES", "ResNet").replace("ResNet", f"ResNet-{settings['depth']}")
    return network, "TRADES" if name.startswith("TRADES") else CLEAN


EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    tables,
    {"cifar": figure},
    stem="nmode",
    sources=sources,
    networks=partial(listed, named=_named),
)

if __name__ == "__main__":
    run(EXPERIMENT)
