"""*enresnet*: the ensemble solved by Diffrax, and the neural SDE that is its continuous form.

    python -m experiments.enresnet.sde                                 # embedded digits
    python -m experiments.enresnet.sde --networks "neural SDE"

- ResNet: four residual layers of step 1/4, without noise.
- En1 ResNet: the same with the noise of each layer, solved by Diffrax as a stochastic differential
  equation whose field changes after each quarter of the time. En2 ResNet: two of these, trained
  together. Path by path they are `EnResNet`'s layers, as a test shows.
- neural SDE: one field for all of the time, in four Euler-Maruyama steps: a quarter of the residual
  layers' weights.

The noise is sigma = a sqrt(Var(x)) per unit of time, a = 0.2, so that a step of 1/4 has the paper's
0.1. All are trained alike against PGD in an L-infinity ball, one path an image. A network with
noise is attacked through the mean of several draws (EOT) and judged by its mean logits over draws
that are fixed and that the attack does not know.

What can be proven: noise within a network proves nothing of an adversary. In L-infinity only the
ResNet is certified (bound propagation); the lower end of the others is 0, and `uncertified` says
why. In l2 the vote of any of them under Gaussian noise on the image is certified by randomised
smoothing with confidence 99.9 % for each image, the inner noise drawn anew in each vote.

For the first test image the mean logit of its class is then estimated for the equation solved in
many more steps, by plain Monte Carlo and by multilevel Monte Carlo (the remark in Section 5): error
against cost, where the expectation is that of many plain paths. With fewer steps than layers some
layers of En1 ResNet are passed over, so its coarse levels are far from the fine ones.

Not in the paper: all of this but the ensembles.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

import odejax
from odejax.attacks import EOT, FGSM, PGD, AutoAttack
from odejax.certificates import RandomizedSmoothing
from odejax.models import EnResNet, NeuralSDENet, ResNet
from odejax.plots import set_title
from odejax.solvers import RelativeNoise
from odejax.training import Adversarial

from ..lib import accuracy, report
from ..lib.intervals import Listed
from ..lib.measure import brackets, judged_accuracy, summaries
from ..lib.networks import NetworksConfig, trained_and_measured
from ..lib.recipe import Recipe, adam, one_cycle
from ..lib.run import Experiment, Plan, PresetConfig, load_data, run
from . import expectation
from .expectation import Effort

KIND = "enresnet_sde"
LAYERS = 4
NOISE = 0.1 * LAYERS**0.5  # a of one unit of time: 0.1 in each layer
ATTACKS = {"FGSM": FGSM(), "PGD-20": PGD(20)}


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes, training and what is attacked.

    - `eps`, `eps_l2`: radii of the network's balls, and of its vote's; training is in the largest
      of `eps`.
    - `sigma`, `votes`: of the noise on the image, and draws of the certificate.
    - `draws`: of the attacks' means and of AutoAttack's; `judged`: those that are judged.
    - `test_images`: how many are attacked; of the vote, `vote_images`.
    """

    width: int
    epochs: int
    eps: tuple[float, ...]
    eps_l2: tuple[float, ...]
    sigma: float
    votes: int
    draws: int
    judged: int
    test_images: int
    vote_images: int
    effort: Effort
    batch_size: int = 64


_RADII = {"eps": (0.005, 0.05, 0.1), "eps_l2": (0.1, 0.25), "sigma": 0.25}
PRESETS = {
    "cpu": {
        "digits": Preset(
            width=8, epochs=10, votes=1000, draws=2, judged=8, test_images=60, vote_images=24,
            effort=Effort((1, 2, 4, 8, 16, 32), (128, 512, 2048), 10, 32_768), **_RADII,
        )
    },
    "smoke": {
        "digits": Preset(
            width=4, epochs=1, votes=20, draws=1, judged=2, test_images=4, vote_images=2,
            effort=Effort((1, 2), (4, 16), 2, 64, batch=4), **_RADII,
        )
    },
}  # fmt: skip


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train networks of noisy layers and a neural SDE through Diffrax, attack and certify them."""

    preset: str = "cpu"
    """cpu (small networks, few epochs) or smoke."""


def network(name: str, preset: Preset) -> Callable[..., Any]:
    """What makes the network of this name."""
    solved = {"width": preset.width, "steps": LAYERS, "paths": 1, "noise": RelativeNoise(NOISE)}
    layers = solved | {"depth": LAYERS}
    return {
        "ResNet": partial(ResNet, width=preset.width, depth=LAYERS, step_size=1 / LAYERS),
        "En1 ResNet": partial(NeuralSDENet, **layers),
        "En2 ResNet": partial(EnResNet, members=2, base=NeuralSDENet, **layers),
        "neural SDE": partial(NeuralSDENet, **solved),
    }[name]


NAMES = ("ResNet", "En1 ResNet", "En2 ResNet", "neural SDE")


def recipe(name: str, preset: Preset) -> Recipe:
    eps = preset.eps[-1]
    objective = Adversarial(PGD(2, 0.6 * eps, last=True), odejax.LinfBall(eps))
    rule = adam(one_cycle(5e-3))
    make = network(name, preset)
    return Recipe(make, preset.epochs, preset.batch_size, rule, objective, rise=0.6)


def plan(
    config: Config,
    recipe_of: Callable[..., Recipe] = recipe,
    last: Callable[[int], Any] = AutoAttack.rand,
) -> Plan:
    preset, names = config.choose(PRESETS), config.chosen(NAMES)
    images, test = load_data(config, preset.test_images)

    def measured(predictor: Any, name: str, seed: int, state: Path) -> dict[str, Any]:
        started, key = time.perf_counter(), jax.random.key(seed + 1)
        noisy = name != "ResNet"
        draws = preset.draws if noisy else 1
        attacked = test.take(slice(preset.test_images))
        intervals = brackets(
            predictor,
            attacked,
            "linf",
            preset.eps,
            attacks={n: EOT(a, draws) if noisy else a for n, a in ATTACKS.items()},
            certificates="auto",
            last=last(draws),
            key=key,
            draws=preset.judged if noisy else 1,
            state_path=f"{state}_linf",
        )
        votes = brackets(
            odejax.Smoothed(predictor, preset.sigma, draws=16),
            test.take(slice(preset.vote_images)),
            "l2",
            preset.eps_l2,
            attacks={"PGD-20": PGD(20)},
            certificates=RandomizedSmoothing(n=preset.votes),
            key=key,
            flag_images=0,  # a vote's gradient is not its own, which is known
            state_path=f"{state}_l2",
        )
        record = {
            "clean_accuracy": judged_accuracy(intervals[0], test, key),
            "brackets": summaries(intervals),
            "vote": summaries(votes),
        }
        if isinstance(predictor.model, NeuralSDENet) and seed == 0:
            image, label = attacked.pixels[0], int(attacked.labels[0])
            effort = preset.effort
            record["expectation"] = expectation.measure(predictor, image, label, effort, seed)
        return record | {"evaluation_seconds": time.perf_counter() - started}

    return Plan(
        config.run_name,
        config.settings(preset, "effort") | {"effort": dataclasses.asdict(preset.effort)},
        (images, test),
        lambda folder, _: trained_and_measured(
            config.seeds, names, lambda name: recipe_of(name, preset), images, measured, folder
        ),
    )


def _networks(result: dict[str, Any], of_vote: bool = False) -> dict[str, accuracy.Measured]:
    stored, shown = ("vote", "vote of {}") if of_vote else ("brackets", "{}")
    networks = {}
    for name, records in report.by_name(result).items():
        notes = [f"{records[0]['parameters']:,} weights"]
        measured = accuracy.Measured(records, {}, notes, lambda record: record[stored])
        networks[shown.format(name)] = measured
    return networks


def _expectations(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    records = {name: records[0] for name, records in report.by_name(result).items()}
    return {name: one["expectation"] for name, one in records.items() if "expectation" in one}


def tables(result: dict[str, Any]) -> list[Any]:
    settings = result["settings"]
    title = f"{report.setting_line(settings)}, PGD-trained at {settings['eps'][-1]:g}"
    vote = f"the first {settings['vote_images']}, noise {settings['sigma']:g} on the image"
    of_networks = accuracy.tables(title, _networks(result))
    of_votes = accuracy.tables(vote, _networks(result, of_vote=True))
    expectations = _expectations(result)
    return [*of_networks, *of_votes, *(expectation.tables(expectations) if expectations else [])]


def notes(result: dict[str, Any]) -> list[str]:
    """Why a network has no certificate in L-infinity."""
    return [
        f"{name}: {reason}."
        for name, network in _networks(result).items()
        for reason in network.first.get("uncertified", ())
    ]


def intervals(result: dict[str, Any]):
    networks, setting = _networks(result), report.setting_line(result["settings"])
    title = accuracy.compared(networks, ball=-1)
    return accuracy.figure(title, setting, networks, ["PGD-20"])


def costs(result: dict[str, Any]):
    measured = _expectations(result)
    drawn = expectation.figure(measured)
    if drawn is not None:
        gains = (f"{expectation.gain(of):.1f} ({name})" for name, of in measured.items())
        times = " and ".join(gains)
        title = f"For the same error plain Monte Carlo costs {times} times as much as multilevel"
        set_title(drawn, title)
    return drawn


def listed(result: dict[str, Any]) -> list[Listed]:
    """Every network in L-infinity, and its vote in l2."""
    training = f"PGD-2 at {result['settings']['eps'][-1]:g}"
    return [
        Listed(name, training, measured.records, measured.seeds)
        for of_vote in (False, True)
        for name, measured in _networks(result, of_vote).items()
    ]


FIGURES = {"intervals": intervals, "costs": costs}
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, notes, networks=listed)

if __name__ == "__main__":
    run(EXPERIMENT)
