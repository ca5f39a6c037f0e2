"""The main job: train every family of networks, bracket its robustness, and show the result.

    python -m experiments.benchmark                            # embedded digits
    python -m experiments.benchmark --dataset mnist --data-dir DIR

For each family: clean accuracy, accuracy under FGSM and PGD-40 (L-infinity and l2, several eps),
certified accuracy by every certificate that applies to it, and masking flags; a table,
`result.json` and two figures in the run folder. ResNet, SSPNet and the neural ODE each evaluate
four residual fields: four Euler steps, two SSP-2 steps, two midpoint steps of one field. The steps
do not depend on the image, so that all three can be certified. Digits end in about 17 minutes on 2
CPU cores, most of it for the proofs.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import numpy as np

from odejax import models
from odejax.attacks import FGSM, PGD
from odejax.plots import robustness_curves
from odejax.solvers import SSPRK22
from odejax.training import CrossEntropy

from .lib import accuracy, report
from .lib.intervals import CLEAN, Listed
from .lib.measure import brackets, examples, judged_accuracy
from .lib.recipe import Recipe, adam, one_cycle, train
from .lib.run import Experiment, Job, Plan, RunConfig, UsageError, check_choices, load_data, run

KIND = "benchmark"
BATCH_SIZE = 250  # of attacks and evaluation


@dataclasses.dataclass(frozen=True)
class Family:
    """How one family is built and trained. The digits, 50 times fewer, take more epochs.

    - `wide`: `make` has a `width`, which is the data set's.
    """

    make: Callable[..., Any]
    epochs: int
    epochs_on_digits: int
    learning_rate: float
    objective: CrossEntropy = dataclasses.field(default_factory=CrossEntropy)
    draws: int = 1  # of noise, over which a randomised family is judged
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    eps: tuple[float, ...]
    eps_l2: tuple[float, ...]
    validation: int
    test_images: int
    batch_size: int
    epochs: int | None = None  # in the place of every family's own
    width: int = 16  # channels of the convolutional families


def neural_ode_on_a_grid(*shape: Any, **settings: Any) -> models.ConvODENet:
    """A neural ODE in two midpoint steps, whatever the image: so it is trained and evaluated."""
    model = models.ConvODENet(*shape, solver=diffrax.Midpoint(), **settings)
    return eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(2))


FAMILIES = {
    "MLP": Family(models.MLP, 6, 24, 1e-3),
    "ResNet": Family(partial(models.ResNet, depth=4), 3, 16, 5e-3, wide=True),
    "SSPNet": Family(partial(models.SSPNet, depth=2, solver=SSPRK22()), 3, 16, 5e-3, wide=True),
    "EnResNet": Family(
        partial(models.EnResNet, members=2, depth=4), 3, 16, 5e-3, draws=8, wide=True
    ),
    "ConvODENet-grid": Family(neural_ode_on_a_grid, 3, 32, 5e-3, wide=True),
    "NmODENet": Family(models.NmODENet, 10, 40, 1e-3),
    "LipschitzNet": Family(
        partial(models.LipschitzNet, width=8),
        4,
        16,
        5e-3,
        objective=CrossEntropy(temperature=0.2),
    ),
}

_CIFAR = (0.1 / 255, 1 / 255, 2 / 255, 8 / 255), (0.005, 36 / 255, 0.25, 0.5)

# The least eps is one within which most networks can be certified.
DATASETS = {
    "digits": Setting((0.005, 0.05, 0.1, 0.2), (0.02, 0.25, 0.5, 1.0), 147, 250, 64, width=8),
    "mnist": Setting((0.005, 0.05, 0.1, 0.3), (0.02, 0.5, 1.0, 2.0), 5000, 500, 128),
    "fashion_mnist": Setting((0.002, 0.02, 0.05, 0.1), (0.02, 0.25, 0.5, 1.0), 5000, 500, 128),
    "cifar10": Setting(*_CIFAR, 5000, 500, 128),
    "cifar100": Setting(*_CIFAR, 5000, 500, 128),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Train every family, attack and certify it, and write the table, JSON and figures."""

    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10 or cifar100."""
    models: tuple[str, ...] = tuple(FAMILIES)
    """Which families, by name."""
    eps: tuple[float, ...] = ()
    """L-infinity radii, in pixels of [0, 1]; by default the data set's."""
    eps_l2: tuple[float, ...] = ()
    """l2 radii; by default the data set's."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""


def plan(config: Config, families: Mapping[str, Family] = FAMILIES, flag_images: int = 64) -> Plan:
    setting, seed = _check(config, families), config.seed
    images, test = load_data(config, setting.test_images)
    images, validation = images.holdout(setting.validation)
    settings = {"dataset": config.dataset, "epochs": config.epochs, "seed": seed}
    settings |= {"linf": setting.eps, "l2": setting.eps_l2, "test_images": setting.test_images}

    def measured(name: str, folder):
        family = families[name]
        usual = family.epochs_on_digits if config.dataset == "digits" else family.epochs
        rule = adam(one_cycle(family.learning_rate), clip=1.0)
        epochs = config.epochs or usual
        make = partial(family.make, width=setting.width) if family.wide else family.make
        recipe = Recipe(make, epochs, setting.batch_size, rule, family.objective)
        predictor, record = train(
            recipe, images, jax.random.key(seed), folder / name, validation=validation
        )
        return record | _evaluate(family, predictor, test, setting, seed, flag_images)

    def jobs(folder, _):
        for name in config.models:
            yield Job(name, seed, partial(measured, name, folder), "models")

    return Plan(str(config.dataset), settings, (images, validation, test), jobs)


def _check(config: Config, families: Mapping[str, Family]) -> Setting:
    check_choices("dataset", [config.dataset], DATASETS)
    check_choices("model", config.models, families)
    for name, values in (("eps", config.eps), ("eps-l2", config.eps_l2)):
        if any(not 0 < value < float("inf") for value in values):
            raise UsageError(f"{name} must be finite and positive numbers; got {values}")
    if not 0 <= config.seed < 2**31 - 1:
        raise UsageError(f"seed must be between 0 and 2147483646; got {config.seed}")
    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise UsageError(f"out must be a folder; {config.out} is a file")
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise UsageError(f"data-dir must be an existing folder; got {config.data_dir}")
    setting = config.settle(DATASETS[config.dataset])
    return dataclasses.replace(
        setting,
        eps=tuple(sorted(config.eps)) or setting.eps,
        eps_l2=tuple(sorted(config.eps_l2)) or setting.eps_l2,
    )


def _evaluate(
    family: Family, predictor, test, setting: Setting, seed: int, flag_images: int
) -> dict[str, Any]:
    started = time.perf_counter()
    attacked = test.take(slice(setting.test_images))
    attacks = {"FGSM": FGSM(), "PGD-40": PGD(steps=40, step_size=None)}
    key = jax.random.key(seed + 1)  # the same for every eps: the same judge
    out: dict[str, Any] = {"balls": {}}
    for name, eps in (("linf", setting.eps), ("l2", setting.eps_l2)):
        intervals = brackets(
            predictor,
            attacked,
            name,
            eps,
            attacks=attacks,
            certificates="auto",
            key=key,
            batch_size=BATCH_SIZE,
            draws=family.draws,
            # A look at the gradients is about the network, hardly about the norm: once.
            flag_images=flag_images if name == "linf" else 0,
        )
        if name == "linf":
            out["examples"] = examples(intervals[len(eps) // 2], attacked)
            # Any bracket's judge: they share the key, so they share the judge.
            out["clean_accuracy"] = judged_accuracy(intervals[0], test, key)
        out["balls"][name] = {
            "brackets": intervals.summaries(),
            "radii": (np.floor(intervals[-1].radius * 1e5) / 1e5).tolist(),
            "certificates": len(intervals[0].per_certificate),
        }
    return out | {"evaluation_seconds": time.perf_counter() - started}


def tables(result: dict[str, Any]) -> list[Any]:
    """For each ball: clean accuracy, and certified - attacked accuracy at every eps, in percent."""
    settings, results = result["settings"], result["models"]
    out: list[Any] = [f"{report.setting_line(settings)}: certified - attacked accuracy in %"]
    first = next(iter(results.values()))
    for ball in first["balls"]:
        eps = [f"eps {b['eps']:.3g}" for b in first["balls"][ball]["brackets"]]
        table = report.table(None, accuracy.NORMS[ball], "clean", *eps)
        for name, model in results.items():
            curves = model["balls"][ball]
            cells = [f"{100 * curves['brackets'][0]['clean']:.1f}"]
            for interval in curves["brackets"]:
                low = f"{100 * interval['certified']:.1f}-" if curves["certificates"] else "<= "
                cells.append(f"{low}{100 * interval['attacked']:.1f}")
            table.add_row(name, *cells)
        out.append(table)
    return out


def _networks(result: dict[str, Any]) -> dict[str, accuracy.Measured]:
    return {
        f"{name}, {accuracy.NORMS[ball]}": accuracy.Measured([of])
        for name, model in result["models"].items()
        for ball, of in model["balls"].items()
    }


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know: how sure, by which attacks, and the flags raised."""
    networks = _networks(result)
    brackets = [bracket for network in networks.values() for bracket in network.seeds[0]]
    error = 100 * max(
        abs(bracket[end] - limit)
        for bracket in brackets
        for end in ("clean", "attacked", "certified")
        for limit in bracket[f"{end}_interval"]
    )
    clean = {name: 100 * model["clean_accuracy"] for name, model in result["models"].items()}
    flags = {name: ", ".join(network.flags) for name, network in networks.items()}
    return [
        f"Attacked: robust accuracy under {' and '.join(brackets[0]['per_attack'])} together. "
        "<=: no certificate. "
        f"95 % sampling error: at most {error:.1f} points.",
        f"Clean accuracy on all test images: {', '.join(f'{n} {c:.1f}' for n, c in clean.items())}",
        f"{accuracy.overstated(networks, 'FGSM')}.",
        *(f"{name}: {reason}." for name, reason in _uncertified(result)),
        *(f"{n}: {f}; stronger attacks may succeed on more images." for n, f in flags.items() if f),
    ]


def _uncertified(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Which networks have no certificate, or not all, and why."""
    return [
        (name, reason)
        for name, model in result["models"].items()
        for reason in next(iter(model["balls"].values()))["brackets"][0].get("uncertified", ())
    ]


def proven(result: dict[str, Any]) -> str:
    """What is certified within the least eps and the next, as a sentence."""
    ball = next(iter(next(iter(result["models"].values()))["balls"]))
    networks = {name: model["balls"][ball] for name, model in result["models"].items()}
    certified = [of["brackets"] for of in networks.values() if of["certificates"]]
    if not certified:
        return "no network is certified"
    shares = []
    for i, first in enumerate(certified[0][:2]):
        low, high = (100 * pick(of[i]["certified"] for of in certified) for pick in (min, max))
        shares.append((f"{low:.0f} to {high:.0f} %", f"{first['eps']:.3g}"))
    without = [name for name, of in networks.items() if not of["certificates"]]
    (most, least), *others = shares
    more = "".join(f", {share} within {eps}" for share, eps in others)
    but = f" (none for {', '.join(without)})" if without else ""
    return (
        f"certificates prove {most} of the images within {accuracy.NORMS[ball]} {least}{more}{but}"
    )


def curves(result: dict[str, Any]):
    """In L-infinity balls; those in l2 are on the page of all results. Legible on a phone."""
    setting = report.setting_line(result["settings"])
    models = {
        name: {"balls": {"linf": model["balls"]["linf"]}}
        for name, model in result["models"].items()
    }
    title = f"{setting}: {proven(result)}"
    return robustness_curves(models, title=title, log=True, columns=2)


def stored_examples(result: dict[str, Any]) -> dict[str, Any]:
    return {name: model["examples"] for name, model in result["models"].items()}


def images(result: dict[str, Any]):
    """Two adversarial examples of each family; None if there is none."""
    examples = stored_examples(result)
    eps = next((e["eps"] for e in examples.values() if e), 0.0)
    title = f"perturbations within L-infinity {eps:.3g} change predictions"
    return report.examples_figure(examples, f"{result['settings']['dataset']}: {title}", 2)


def listed(result: dict[str, Any]) -> list[Listed]:
    return [
        Listed(name, CLEAN, [model], [of["brackets"]], of["radii"] if of["certificates"] else None)
        for name, model in result["models"].items()
        for of in model["balls"].values()
    ]


FIGURES = {"curves": curves, "images": images}
EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    tables,
    FIGURES,
    notes,
    networks=listed,
    examples=stored_examples,
)

if __name__ == "__main__":
    run(EXPERIMENT)
