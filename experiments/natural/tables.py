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
  standard AutoAttack, on images that all of these fail on, in this ball and in the smaller ones.

"All attacks" are these together, the attacked end of the interval. Nothing here has a certificate,
so the other end is 0.

What the paper does not say is chosen here: the solver's tolerance is rtol = atol = 1e-3; its
ResNet-50 is pre-activated, and trained as the neural ODE is; its PreActResNet-18s are trained by
SGD for 100 epochs; DI2-FGSM takes 10 steps of eps / 4.
On one core, shared: ResNet 2 minutes of training and 9 of attacks a seed, neural ODE with t1 = 1 14
and 20.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import equinox as eqx

import odejax
from odejax.attacks import DI2FGSM, FGSM, PGD, SPSA, AutoAttack, Boundary, Square
from odejax.data import crop_and_flip
from odejax.models import AbstractODENet, ConvODENet, PreActResNet, ResNet
from odejax.training import TRADES, YOPO, Adversarial

from ..ledger.printed import Claim, claimed
from ..ledger.sources import FOLDER, Source, Work, from_brackets
from ..lib import accuracy, report
from ..lib.intervals import CLEAN, listed
from ..lib.measure import measure
from ..lib.networks import NetworksConfig, folder_name, state_file, train_in
from ..lib.recipe import Recipe, adam, drops, one_cycle, sgd, staircase
from ..lib.run import Experiment, Plan, PresetConfig, each, load_data, run, seeded

KIND = "natural"
EPS = {
    "digits": (0.1, 0.2, 0.3),
    "mnist": (0.1, 0.2, 0.3, 0.4, 0.5),
    "cifar10": tuple(eps / 255 for eps in (8, 12, 16, 20, 33, 50)),  # Fig. 3 turns at 33
}
TRAINED_AT = odejax.LinfBall(8 / 255)
PAPERS_ATTACKS = ("FGSM", "PGD-40", "PGD-20", "DI2-FGSM")  # run anew in every ball
EARLY = 0.1  # of the time, at which the solve stops whose adversarial examples are transferred
# The small networks that replace the paper's.
STAND_INS = {"ResNet-50": "ResNet", "Neural ODE": "Neural ODE, t1 = 1"}
PRINTED = ("Section 4.2", "Table 1", "Table 2")


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
            "YOPO-5-3": YOPO(TRAINED_AT, lambda model: model.stem),
        }
        for name, objective in objectives.items():
            make = partial(PreActResNet, depth=18)
            rule = sgd(drops(0.1, 0.75, 0.9))  # after these shares of the epochs
            networks[f"PreActResNet-18, {name}"] = Recipe(
                make, 100, 128, rule, objective, crop_and_flip
            )
    return networks


def _small(*epochs: int) -> dict[str, Recipe]:
    """Networks that two CPU cores can train: 16 channels, two convolutions a field."""
    makes = {
        "ResNet": partial(ResNet, width=16, depth=4),
        "Neural ODE, t1 = 1": partial(ConvODENet, width=16),
        "Neural ODE, t1 = 100": partial(ConvODENet, width=16, t1=100.0, max_steps=1024),
    }
    rule = adam(one_cycle(5e-3))
    chosen = zip(makes.items(), epochs, strict=False)
    return {name: Recipe(make, n, 128, rule) for (name, make), n in chosen}


def attacks_of(dataset: str, queries: int) -> dict[str, Any]:
    table2 = {"PGD-20": PGD(20, 2 / 255)} if dataset == "cifar10" else {}
    return {
        "FGSM": FGSM(),
        "PGD-40": PGD(40, 0.01),
        **table2,
        "DI2-FGSM": DI2FGSM(),
        "Boundary": Boundary(1000),
        "SPSA": SPSA(queries, samples=16),
        "Square": Square(queries),
    }


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size and length."""

    networks: Mapping[str, Recipe]
    test_images: int  # that are attacked
    queries: int  # of Square and SPSA, for each image
    epochs: int | None = None  # in the place of every network's own
    attacks: Callable[[str, int], dict[str, Any]] = attacks_of
    last: Any = dataclasses.field(default_factory=AutoAttack)  # where all others fail
    flag_images: int = 64


DATASETS = ("mnist", "cifar10", "digits")
PRESETS = {
    "paper": {name: Preset(_from_table_a1(name), 1000, 5000) for name in DATASETS[:2]},
    "cpu": each(DATASETS, Preset(_small(4, 6, 6), 100, 1000)),
    "smoke": each(DATASETS, Preset(_small(1, 1), 8, 34)),
}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train neural ODEs and ResNets, attack them as the paper does and by all else there is."""

    dataset: str | None = None
    """mnist (by default), cifar10 or digits (embedded; not with the preset paper)."""
    networks: tuple[str, ...] | None = None
    """Which networks, by name; by default all of the preset's. (The ResNet is trained anyhow.)"""


def plan(config: Config, presets: Mapping[str, Mapping[str, Preset]] = PRESETS) -> Plan:
    preset = config.choose(presets)
    names = config.chosen(preset.networks)
    dataset, recipes = str(config.dataset), dict(preset.networks)
    if preset.epochs is not None:
        recipes = {n: dataclasses.replace(r, epochs=preset.epochs) for n, r in recipes.items()}
    source = next(iter(recipes))
    images, test = load_data(config, preset.test_images)
    settings = config.settings(preset, "networks", "attacks", "last", "flag_images")
    settings |= {"eps": EPS[dataset], "early": EARLY}
    settings |= {"epochs": {name: recipe.epochs for name, recipe in recipes.items()}}
    attacks = preset.attacks(dataset, preset.queries)

    def jobs(folder, _):
        @cache
        def trained(name: str, seed: int):
            return train_in(folder, recipes[name], images, name, seed)

        def measured(name: str, seed: int):
            predictor, record = trained(name, seed)
            oracles = _oracles(predictor)
            if name != source:  # its adversarial examples are tried on the others
                oracles |= {source: trained(source, seed)[0]}
            return record | measure(
                predictor,
                test,
                preset.test_images,
                {"linf": EPS[dataset]},
                seed,
                attacks=attacks,
                anew=set(PAPERS_ATTACKS) & set(attacks),
                oracles=oracles,
                last=preset.last,
                flag_images=preset.flag_images,
                state=state_file(folder, name, seed),
            )

        return seeded(config.seeds, names, measured)

    return Plan(config.run_name, settings, (images, test), jobs)


def _oracles(predictor: odejax.Predictor) -> dict[str, odejax.Predictor]:
    """Of a neural ODE, the one that stops early."""
    if not isinstance(predictor.model, AbstractODENet):
        return {}
    return {"solve stopped early": with_solve(predictor, t1=EARLY * predictor.model.ode.t1)}


def with_solve(predictor: Any, **changes) -> odejax.Predictor:
    """The same weights solved otherwise."""
    return eqx.tree_at(lambda p: p.model.ode, predictor, predictor.model.ode.replace(**changes))


def printed(settings: Mapping[str, Any], name: str) -> dict[tuple, float]:
    """The paper's figures for a network, or for the one that a small network replaces."""
    model = {"ResNet": "ResNet-50"}.get(name, name.split(", t1")[0])
    return claimed(KIND, settings["dataset"], model, *PRINTED)


def _networks(result: dict[str, Any]) -> dict[str, accuracy.Measured]:
    return {
        name: accuracy.Measured(records, {"paper": printed(result["settings"], name)})
        for name, records in report.by_name(result).items()
    }


def tables(result: dict[str, Any]) -> list[Any]:
    return accuracy.tables(report.setting_line(result["settings"]), _networks(result))


def figure(result: dict[str, Any]):
    networks = _networks(result)
    reported = {attack for name in networks for attack, *_ in printed(result["settings"], name)}
    alone = [attack for attack in PAPERS_ATTACKS if attack in reported] or ["PGD-40"]
    title, setting = accuracy.compared(networks), report.setting_line(result["settings"])
    alone = [*alone[:3], "transfer"]
    return accuracy.figure(title, setting, networks, alone, columns=3, size=(3.6, 3.6))


def sources(claim: Claim) -> list[Source]:
    """What measures a claim of the paper: the network of its size first, then a small one."""
    if claim.paper != KIND or claim.is_quantity or claim.table not in PRINTED:
        return []
    names = {"paper": claim.model, "cpu": STAND_INS.get(claim.model, "")}
    return [
        Source(
            f"natural_{claim.dataset}_{preset}",
            KIND,
            f"python -m experiments.natural.tables --preset {preset} "
            f"--dataset {claim.dataset} {FOLDER}",
            from_brackets,
            name,
            PRESETS[preset][claim.dataset].networks[name].epochs,
            smaller=preset == "cpu",
            work=partial(_work, name, claim.dataset) if preset == "paper" else None,
        )
        for preset, name in names.items()
        if name in PRESETS[preset][claim.dataset].networks
    ]


def _work(name: str, dataset: str) -> Work:
    preset = PRESETS["paper"][dataset]
    source = next(iter(preset.networks))  # whose adversarial examples are tried on the others
    attacks = (*preset.attacks(dataset, preset.queries).values(), preset.last)
    images = preset.test_images * len(EPS[dataset])
    return Work(
        ("--networks", name),
        {folder_name(n, 0): preset.networks[n] for n in dict.fromkeys((source, name))},
        tuple((attack, images) for attack in attacks),
        attacked=(folder_name(name, 0),),
    )


def _named(name: str, settings: Mapping[str, Any]) -> tuple[str, str]:
    """Table 2's networks have their training in their name, neural ODEs their time."""
    network, _, training = name.partition(", ")
    return (network, training) if training and " = " not in training else (name, CLEAN)


EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    tables,
    {"natural": figure},
    sources=sources,
    networks=partial(listed, named=_named),
)

if __name__ == "__main__":
    run(EXPERIMENT)
