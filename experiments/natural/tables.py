"""*natural* Tables 1 and 2, Figs. 2 and 3: are neural ODEs robust by nature?

    python -m experiments.natural.tables --data-dir DIR  # MNIST, small networks
    python -m experiments.natural.tables --preset paper --data-dir DIR  # Table A1, for a GPU
    python -m experiments.natural.tables --preset paper --dataset cifar10 --data-dir DIR

A ResNet and convolutional neural ODEs (Dopri5), trained on clean images, under the paper's attacks
and under those that masked gradients cannot fool:

- FGSM, PGD-40 (step 0.01, random start) and DI2-FGSM, through the solver's own steps; Boundary,
  1,000 queries; on CIFAR-10 PGD-20, of Table 2, whose adversarially trained networks are trained
  here too;
- Square and SPSA, which see no gradient; images made by PGD-40 on the margin of other networks: of
  the ResNet, and of the same neural ODE with its solve stopped after a tenth of the time; and the
  standard AutoAttack, on what withstands everything else, in this ball and in the smaller ones.

What then is left is the attacked end of the interval; nothing here has a certificate, so the other
end is 0.

What the paper does not say is chosen here: the solver's tolerance is rtol = atol = 1e-3; its
ResNet-50 is pre-activated, and trained as the neural ODE is; its PreActResNet-18s are trained by
SGD for 100 epochs; DI2-FGSM takes 10 steps of eps / 4.
A finished network is not trained or attacked again, an interrupted one goes on from its last epoch:
--resume.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

import odejax
from odejax.attacks import DI2FGSM, FGSM, PGD, SPSA, AutoAttack, Boundary, Square
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import (
    bracket,
)
from odejax.models import AbstractODENet, ConvODENet, PreActResNet, ResNet
from odejax.training import (
    TRADES,
    YOPO,
    Adversarial,
    clean_accuracy,
)

from ..lib import recipe
from ..lib.recipe import Recipe, adam, drops, one_cycle, sgd, staircase
from ..lib.report import present
from ..lib.run import RunConfig, check_choice, check_choices, check_counts, load_data, run
from ..lib.runs import Runs
from .report import figure, tables

KIND = "natural"
EPS = {
    "digits": (0.1, 0.2, 0.3),
    "mnist": (0.1, 0.2, 0.3, 0.4, 0.5),
    "cifar10": tuple(eps / 255 for eps in (8, 12, 16, 20, 33, 50)),  # Fig. 3 turns at 33
}
TRAINED_AT = odejax.LinfBall(8 / 255)
PAPERS_ATTACKS = ("FGSM", "PGD-40", "PGD-20", "DI2-FGSM")  # run anew in every ball
LAST = AutoAttack()  # on what withstands all others
FLAG_IMAGES = 64
EARLY = 0.1  # of the time, after which the solves stop that are attacked in the whole one's stead


def _from_table_a1(dataset: str) -> dict[str, Recipe]:
    settings = {"mnist": (128, 4, 100.0, 100, 1e-3), "cifar10": (256, 5, 500.0, 200, 1e-4)}
    width, layers, t1, epochs, rate = settings[dataset]
    ode = partial(ConvODENet, width=width, layers=layers, t1=t1, max_steps=1024)
    halved = adam(staircase(rate, 50, 0.5))
    networks = {
        "ResNet-50": Recipe(partial(PreActResNet, depth=50), epochs, 32, halved),
        "Neural ODE": Recipe(ode, epochs, 32, halved),
    }
    if dataset == "cifar10":
        attack = PGD(10, 2 / 255, last=True)
        objectives = {
            "PGD-10": Adversarial(attack, TRAINED_AT),
            "TRADES-10": TRADES(TRAINED_AT, attack=attack),
            "YOPO-5-3": YOPO(TRAINED_AT, lambda model: model.net.stem),
        }
        for name, objective in objectives.items():
            make = partial(PreActResNet, depth=18)
            rule = sgd(drops(0.1, 0.75, 0.9))  # after these shares of the epochs
            networks[f"PreActResNet-18, {name}"] = Recipe(
                make, 100, 128, rule, objective, crop_and_flip
            )
    return networks


def _small(epochs: Mapping[str, int]) -> dict[str, Recipe]:
    """Networks that two CPU cores can train: 16 channels, two convolutions a field."""
    makes = {
        "ResNet": partial(ResNet, width=16, depth=4),
        "Neural ODE, t1 = 1": partial(ConvODENet, width=16),
        "Neural ODE, t1 = 100": partial(ConvODENet, width=16, t1=100.0, max_steps=1024),
    }
    return {name: Recipe(makes[name], n, 128, adam(one_cycle(5e-3))) for name, n in epochs.items()}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length."""

    networks: Callable[[str], dict[str, Recipe]]  # of a data set
    test_images: int  # that are attacked
    queries: int  # of Square and SPSA, for each image
    epochs: int | None = None  # in the place of every network's own


EPOCHS = {"ResNet": 4, "Neural ODE, t1 = 1": 6, "Neural ODE, t1 = 100": 6}
PRESETS = {
    "paper": Preset(_from_table_a1, 1000, 5000),
    "cpu": Preset(lambda dataset: _small(EPOCHS), 100, 1000),
    "smoke": Preset(lambda dataset: _small({"ResNet": 1, "Neural ODE, t1 = 1": 1}), 8, 34),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Train neural ODEs and ResNets, attack them as the paper does and by all else there is."""

    preset: str = "cpu"
    """paper (for a GPU), cpu (small networks, few epochs) or smoke."""
    dataset: str = "mnist"
    """mnist, cifar10 or digits (embedded; not with the preset paper)."""
    networks: tuple[str, ...] | None = None
    """Which networks, by name; by default all of the preset's. (The ResNet is trained anyhow.)"""
    seeds: int = 1
    """How many seeds of each."""
    epochs: int | None = None
    """Epochs; by default each network's own."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default the preset's."""


def main(config: Config):
    preset, every = _check(config)
    networks = {name: every[name] for name in config.networks or every}
    source = next(iter(every))
    train, test = load_data(config, preset.test_images)
    folder = config.out or Path("runs/natural") / f"{config.dataset}_{config.preset}"
    settings = {"dataset": config.dataset, "preset": config.preset, "n": preset.test_images}
    settings |= {"eps": list(EPS[config.dataset]), "queries": preset.queries, "early": EARLY}
    settings |= {"epochs": {name: network.epochs for name, network in every.items()}}
    runs = Runs.open(folder, KIND, settings, config, (train, test))

    @cache
    def trained(name: str, seed: int):
        slug = f"{name}_{seed}".replace(" ", "").replace(",", "_")
        return recipe.train(every[name], train, jax.random.key(seed), folder / "checkpoints" / slug)

    def measure(name: str, seed: int):
        predictor, record = trained(name, seed)
        oracles = _oracles(predictor)
        if name != source:  # the others see its images
            oracles |= {source: trained(source, seed)[0]}
        return record | _evaluate(predictor, oracles, test, config.dataset, preset, seed)

    for seed in range(config.seeds):
        for name in networks:
            runs.record(f"{name}/{seed}", seed, partial(measure, name, seed))
        trained.cache_clear()
    name = f"natural_{config.dataset}_{config.preset}" if config.publish else None
    present(tables(runs.result), figure(runs.result), runs.path, "natural.png", name)


def _check(config: Config) -> tuple[Preset, dict[str, Recipe]]:
    check_choice("preset", config.preset, PRESETS)
    accepted = [name for name in EPS if config.preset != "paper" or name != "digits"]
    check_choice(f"dataset for the preset {config.preset}", config.dataset, accepted)
    check_counts(config, "seeds")
    preset = config.settle(PRESETS[config.preset])
    networks = preset.networks(config.dataset)
    if config.networks is not None:
        check_choices("network", config.networks, networks)
    if preset.epochs is not None:
        networks = {
            name: dataclasses.replace(network, epochs=preset.epochs)
            for name, network in networks.items()
        }
    return preset, networks


def _oracles(predictor: odejax.Predictor) -> dict[str, odejax.Predictor]:
    """Of a neural ODE, the one that stops early."""
    if not isinstance(predictor.model, AbstractODENet):
        return {}
    return {"solve stopped early": with_solve(predictor, t1=EARLY * predictor.model.ode.t1)}


def with_solve(predictor: Any, **changes) -> odejax.Predictor:
    """The same weights solved otherwise."""
    return eqx.tree_at(lambda p: p.model.ode, predictor, predictor.model.ode.replace(**changes))


def _attacks(dataset: str, preset: Preset) -> dict[str, Any]:
    table2 = {"PGD-20": PGD(20, 2 / 255)} if dataset == "cifar10" else {}
    return {
        "FGSM": FGSM(),
        "PGD-40": PGD(40, 0.01),
        **table2,
        "DI2-FGSM": DI2FGSM(),
        "Boundary": Boundary(1000),
        "SPSA": SPSA(preset.queries, samples=16),
        "Square": Square(preset.queries),
    }


def _evaluate(
    predictor: odejax.Predictor,
    oracles: Mapping[str, odejax.Predictor],
    test: ArrayDataset,
    dataset: str,
    preset: Preset,
    seed: int,
) -> dict[str, Any]:
    """Clean accuracy on all of `test`, and for each eps what every attack leaves."""
    started = time.perf_counter()
    key = jax.random.key(seed + 1)
    attacked = test.take(slice(preset.test_images))
    attacks = _attacks(dataset, preset)
    intervals = bracket(
        predictor,
        *attacked,
        [odejax.LinfBall(eps) for eps in EPS[dataset]],  # pyright: ignore[reportCallIssue]
        attacks=attacks,
        anew=set(PAPERS_ATTACKS) & set(attacks),
        oracles=oracles,
        last=LAST,
        key=key,
        flag_images=FLAG_IMAGES,
    )
    return {
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        "brackets": intervals.summaries(),
        "evaluation_seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    run(main, Config)
