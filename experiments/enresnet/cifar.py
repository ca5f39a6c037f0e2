"""*enresnet* Tables 1 to 10 and Figs. 5 and 6: ensembles of noisy ResNets on CIFAR.

    python -m experiments.enresnet.cifar --preset paper --data-dir DIR    # for a GPU
    python -m experiments.enresnet.cifar --preset cpu --data-dir DIR      # small nets, real images
    python -m experiments.enresnet.cifar --resume --networks WRN-14-2 "En2 ResNet20"

- Tables 1 and 4: natural training; Section 4.4: IFGSM-20 against it.
- Tables 2, 5, 8, 9 and 10: PGD training; FGSM, IFGSM-20 and C&W at 8/255, their gradients averaged
  over 5 draws of the noise, and AutoAttack's version for random networks.
- Tables 3 and 6: blind attacks, both ways. Table 7: networks that were trained alone, integrated
  (with the preset cpu only where asked for: --integrate). ResNet20 + ResNet20, of two that differ
  in their first weights and batches alone, is the control: an ensemble without noise.

Tables 4, 5, 6 and 10 are of CIFAR-100 (--dataset cifar100). A table has what the run folder has.

What is not as in the paper: attacks on the first 1,000 test images; a network with noise is judged
by its mean logits over 10 fixed draws; the noise has the variance of each example (in the authors'
code, the batch's); BatchNorm is in inference mode inside the training's attack (there, in train
mode); C&W is untargeted; IFGSM-20 and C&W count every iterate in the ball, not the last alone;
natural networks are all trained as for Table 1. The paper does not give the learning rate of the
mixture's weights; it is 0.1 here. Of the training images 5,000 are held out (cpu: 500) and the best
epoch on them is kept, which for robust training is the best under its own PGD.

The preset cpu takes 19 minutes a seed on two CPU cores, --integrate 5 minutes more and
one training of ResNet20.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

import odejax
from odejax import predict
from odejax.attacks import EOT, FGSM, IFGSM, AutoAttack, CarliniWagnerLinf
from odejax.data import ArrayDataset
from odejax.evaluation import transfer_matrix

from ..ledger.printed import Claim
from ..ledger.sources import FOLDER, Source, Work, chosen, measured
from ..lib.measure import brackets, examples, judged_accuracy
from ..lib.networks import NetworksConfig
from ..lib.report import by_name
from ..lib.run import Experiment, Job, Plan, PresetConfig, check_choices, each, load_data, run
from .networks import (
    JOINED,
    NETWORKS,
    TABLES,
    TRAININGS,
    Preset,
    folder_name,
    printed_pairs,
    recipe,
    shown,
    train_network,
)
from .report import FIGURES, listed, notes, stored_examples, tables

KIND = "enresnet_cifar"
EOT_DRAWS, JUDGE_DRAWS = 5, 10
ATTACKS = {"FGSM": FGSM(), "IFGSM-20": IFGSM(20, 2 / 255), "C&W": CarliniWagnerLinf()}
_ALL_DEPTHS = (14, 20, 32, 34, 44, 110)
_SMALL = {14: 8, 20: 8, 32: 14, 34: 14, 44: 14, 110: 20}
SIZES = {
    "paper": Preset(
        {depth: depth for depth in _ALL_DEPTHS}, epochs=200, batch_size=128,
        train_images=50_000, held_out=5_000, test_images=1_000, clean_images=10_000,
        pgd_steps=10, draws=20, networks=tuple(NETWORKS), one_cycle=False,
    ),
    "cpu": Preset(
        _SMALL, epochs=4, batch_size=32,
        train_images=5_500, held_out=500, test_images=100, clean_images=2_000,
        pgd_steps=3, draws=5, networks=("ResNet20", "En1 ResNet20", "En2 ResNet20"), one_cycle=True,
    ),
    "smoke": Preset(
        _SMALL, epochs=1, batch_size=128,
        train_images=320, held_out=64, test_images=8, clean_images=64,
        pgd_steps=1, draws=1, networks=("ResNet20", "En2 ResNet20"), one_cycle=True,
    ),
}  # fmt: skip
PRESETS = {name: each(("cifar10", "cifar100"), size) for name, size in SIZES.items()}


@dataclasses.dataclass
class Config(PresetConfig, NetworksConfig):
    """Train ResNets and their noisy ensembles on CIFAR, attack them, print the tables."""

    dataset: str = "cifar10"
    """cifar10 or cifar100."""
    trainings: tuple[str, ...] = TRAININGS
    """natural, robust, or both."""
    networks: tuple[str, ...] | None = None
    """Which networks, by the paper's names; by default the preset's."""
    integrate: bool | None = None
    """Also join networks that were trained alone (Table 7); by default not with the preset cpu,
    where it takes five minutes more a seed."""


def plan(
    config: Config,
    presets: Mapping[str, Mapping[str, Preset]] = PRESETS,
    known: Mapping[str, Callable[[Preset], Callable[..., Any]]] = NETWORKS,
    attacks: Mapping[str, Any] = ATTACKS,
    rand: Callable[[int], Any] = AutoAttack.rand,
    load: Callable[..., tuple[ArrayDataset, ArrayDataset]] = load_data,
) -> Plan:
    preset = config.choose(presets)
    chosen = config.chosen(known)
    names = preset.networks if config.networks is None else chosen
    check_choices("training", config.trainings, TRAININGS)
    integrate = config.preset != "cpu" if config.integrate is None else config.integrate
    train, whole = load(config, preset.test_images)
    train, held_out = train.take(slice(preset.train_images)).holdout(preset.held_out)
    test, attacked = (whole.take(slice(n)) for n in (preset.clean_images, preset.test_images))
    settings = config.settings(preset, "networks", "ball")  # another run may add networks

    def jobs(folder, _):
        def network(name: str, training: str, seed: int, again: bool = False):
            make, own = known[name](preset), f"{name} again" if again else name
            return train_network(make, own, training, train, held_out, preset, seed, folder)

        def evaluated(predictor, training: str, seed: int, state: Path):
            own = attacks if training == "robust" else {"IFGSM-20": attacks["IFGSM-20"]}
            last = rand if training == "robust" else None
            return _evaluate(predictor, own, last, test, attacked, preset, seed, state)

        def trained(name: str, training: str, seed: int):
            predictor, record = network(name, training, seed)
            state = folder / folder_name(name, training, seed) / "evaluation"
            return record | evaluated(predictor, training, seed, state)

        def blind(target: str, oracle: str, seed: int):
            (judged, _), (source, _) = (network(n, "robust", seed) for n in (target, oracle))
            return _blind(judged, source, attacked, seed, attacks, preset.ball)

        def integrated(members: tuple[str, ...], seed: int):
            first, second = members
            predictors = [
                network(first, "robust", seed)[0],
                network(second, "robust", seed, again=second == first)[0],
            ]
            beside, other = (folder_name(name, "robust", seed) for name in members)
            state = folder / beside / f"evaluation_{other}"
            return evaluated(odejax.EnsembleLogits(predictors), "robust", seed, state)

        for seed in range(config.seeds):
            for training in config.trainings:
                for name in names:
                    measure = partial(trained, name, training, seed)
                    yield Job(f"{training}/{name}/{seed}", seed, measure)
            if "robust" not in config.trainings:
                continue
            for pair in _pairs(names, printed_pairs("blind", config.dataset)):
                for target, oracle in dict.fromkeys((pair, pair[::-1])):
                    name = f"blind/{target}{JOINED['blind']}{oracle}/{seed}"
                    yield Job(name, seed, partial(blind, target, oracle, seed))
            pairs = _pairs(names, printed_pairs("integrated", "cifar10"))
            for members in pairs if integrate else ():
                joined = f"integrated/{JOINED['integrated'].join(members)}/{seed}"
                yield Job(joined, seed, partial(integrated, members, seed))

    return Plan(config.run_name, settings, (train, held_out, whole), jobs)


def _pairs(names: tuple[str, ...], published) -> list[tuple[str, str]]:
    """The paper's pairs among the networks; without two that differ, the first and the last."""
    pairs = [pair for pair in published if set(pair) <= set(names)]
    ordered = [name for name in NETWORKS if name in names]
    differ = any(first != second for first, second in pairs)
    return pairs if differ or len(ordered) < 2 else [(ordered[0], ordered[-1]), *pairs]


def _evaluate(
    predictor,
    attacks: Mapping[str, Any],
    rand: Callable[[int], Any] | None,
    test: ArrayDataset,
    attacked: ArrayDataset,
    preset: Preset,
    seed: int,
    state: Path,
) -> dict[str, Any]:
    """Clean accuracy on `test`; robust accuracy under each attack on `attacked`.

    An evaluation that is interrupted goes on from the file `state`.
    """
    started = time.perf_counter()
    key = jax.random.key(seed + 1)
    random = draws_noise(predictor, attacked, key)
    if random:
        attacks = {name: EOT(attack, EOT_DRAWS) for name, attack in attacks.items()}
    if rand is not None:
        attacks = {**attacks, "AA-rand": rand(preset.draws if random else 1)}
    (measured,) = brackets(
        predictor,
        attacked,
        "linf",
        (float(preset.ball.eps),),
        attacks=attacks,
        key=key,
        batch_size=_batch_size(preset.draws if random else 1),
        draws=JUDGE_DRAWS if random else 1,
        flag_images=32,
        state_path=state,
    )
    batch_size = _batch_size(JUDGE_DRAWS if random else 1)
    return measured.summary() | {
        "clean_accuracy": judged_accuracy(measured, test, key, batch_size=batch_size),
        "evaluation_seconds": time.perf_counter() - started,
        "example": None if rand is None else examples(measured, attacked),
    }


def _batch_size(draws: int) -> int:
    """What there is memory for, of a network that is evaluated `draws` times at once."""
    return max(8, 256 // draws)


def draws_noise(predictor, images: ArrayDataset, key) -> bool:
    """Whether a network's logits change with its key."""
    some = images.images[:8]
    first, second = (predict(predictor, some, key=k) for k in jax.random.split(key))
    return not np.array_equal(first, second)


def _blind(
    target, oracle, attacked: ArrayDataset, seed: int, attacks: Mapping[str, Any], ball
) -> dict[str, Any]:
    """Robust accuracy of the target on adversarial examples of the oracle, for each attack."""
    key = jax.random.key(seed + 1)
    random = draws_noise(oracle, attacked, key)
    judge = target
    if draws_noise(target, attacked, key):
        judge = odejax.MeanLogits(target, jax.random.split(key, JUDGE_DRAWS))
    accuracy = {}
    for name, attack in attacks.items():
        matrix = transfer_matrix(
            {"oracle": oracle},
            attacked.pixels,
            attacked.labels,
            ball,
            EOT(attack, EOT_DRAWS) if random else attack,
            targets={"target": judge},
            key=key,
            batch_size=_batch_size(EOT_DRAWS),
            progress=True,
        )
        accuracy[name] = float(matrix.accuracy[0, 0])
    return {"per_attack": accuracy}


def _read(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any] | None:
    settings = result["settings"]
    attacked = {"n": settings["test_images"]}  # which blind attacks do not repeat
    entry = measured(by_name(result).get(name, []), claim, lambda record: attacked | record)
    # A small network has a name of the paper's, but not its depth.
    return entry and {"network": shown(name, settings["depths"])} | entry


def _count_parameters(result: dict[str, Any], claim: Claim, name: str) -> dict[str, Any]:
    """In millions; no weight is made for it."""
    make = eqx.nn.make_with_state(NETWORKS[name](SIZES["paper"]))
    classes = {"cifar10": 10, "cifar100": 100}[claim.dataset]
    model, _ = eqx.filter_eval_shape(make, (32, 32, 3), classes, key=jax.random.key(0))
    leaves = (leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.ShapeDtypeStruct))
    return {"value": sum(leaf.size for leaf in leaves) / 1e6}


def sources(claim: Claim) -> list[Source]:
    if claim.paper != "enresnet":
        return []
    if claim.attack == "parameters, M":
        command = "python -m experiments.ledger.claims"
        return [Source("", "", command, _count_parameters, claim.model)]
    if claim.is_quantity:
        return []
    # The prose of Section 4.2 repeats a row of Table 2, with another figure.
    kind = next((kind for kind, tables in TABLES.items() if claim.table in tables), "robust")
    if kind in JOINED:
        pair = tuple(claim.model.split(JOINED[kind]))
        known = pair in printed_pairs(kind, claim.dataset)
    else:
        known = claim.model in NETWORKS
    if not known:
        return []
    return [
        Source(
            f"enresnet_{claim.dataset}_{preset}",
            KIND,
            f"python -m experiments.enresnet.cifar --preset {preset} --dataset {claim.dataset} "
            f"{FOLDER}",
            _read,
            f"{kind}/{claim.model}",
            SIZES[preset].epochs,
            chosen(SIZES[preset], "train_images", "pgd_steps"),
            smaller=preset == "cpu",
            work=partial(_work, kind, claim.model) if preset == "paper" else None,
        )
        for preset in ("paper", "cpu")
    ]


def _work(kind: str, model: str) -> Work:
    preset = SIZES["paper"]
    networks = model.split(JOINED[kind]) if kind in JOINED else [model]
    training = "natural" if kind == "natural" else "robust"
    trained = {
        folder_name(name, training, 0): recipe(NETWORKS[name](preset), name, training, preset)
        for name in networks
    }
    attacks = ATTACKS
    if training == "natural":
        attacks = {"IFGSM-20": ATTACKS["IFGSM-20"]}
    if "En" in model:  # noise
        attacks = {name: EOT(attack, EOT_DRAWS) for name, attack in attacks.items()}
    if kind in ("robust", "integrated"):
        attacks = attacks | {"AA-rand": AutoAttack.rand(preset.draws if "En" in model else 1)}
    return Work(
        ("--trainings", training, "--networks", *networks),
        trained,
        tuple((attack, preset.test_images) for attack in attacks.values()),
        preset.train_images - preset.held_out,
    )


EXPERIMENT = Experiment(
    KIND,
    __doc__,
    Config,
    plan,
    tables,
    FIGURES,
    notes,
    sources=sources,
    stem="enresnet",
    networks=listed,
    examples=stored_examples,
)


if __name__ == "__main__":
    run(EXPERIMENT)
