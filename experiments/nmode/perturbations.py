"""*nmode* Figs. 6 and 7: natural perturbations, nmODE against networks without an ODE.

    python -m experiments.nmode.perturbations --data-dir DIR           # MNIST
    python -m experiments.nmode.perturbations --dataset digits         # small, minutes

All networks are trained alike (clean images, no augmentation, Adam 1e-3, batch 256) and tested on
images with Gaussian noise, resized to fewer pixels and back, blurred, and brightened, by strength.
The paper compares with ResNet, Xception and EfficientNet; here a small pre-activation ResNet with
GroupNorm stands for them. The ReLU net of nmODE's own shape differs from nmODE's in nothing but the
activation. A finished network is not trained again: --resume.

6 minutes on two CPU cores.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from odejax import predict
from odejax.data import brightness, gaussian_blur, gaussian_noise, resize
from odejax.evaluation import decode_array, encode_array
from odejax.models import ResNet
from odejax.plots import colors, set_title

from ..lib import report
from ..lib.run import Experiment, Job, Plan, RunConfig, check_choice, load_data, run
from .mnist import NETWORKS, Network, train_network

KIND = "nmode_perturbations"
_MLPS = {name: NETWORKS[name] for name in ("ReLU", "nmODE t=0.05", "nmODE t=1")}
CONTENDERS = {**_MLPS, "ResNet": Network(partial(ResNet, depth=4), width=16)}


def _batched(perturbation, keyed: bool = False):
    """On images of one strength, each with a key of its own."""

    def one(x, strength, key):
        return perturbation(x, strength, key=key) if keyed else perturbation(x, strength)

    return eqx.filter_jit(eqx.filter_vmap(one, in_axes=(0, None, 0)))


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """One panel: what is done to a batch, and how strongly."""

    function: Callable
    label: str
    strengths: tuple[float, ...]


ADDED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
PERTURBATIONS = {
    "Gaussian noise": Perturbation(
        _batched(gaussian_noise, keyed=True), "standard deviation, pixels in [0, 1]", ADDED
    ),
    "resize": Perturbation(_batched(resize), "image side, pixels", (28, 20, 14, 10, 7, 5)),
    "Gaussian blur": Perturbation(_batched(gaussian_blur), "kernel, pixels", (1, 3, 5, 7, 9, 11)),
    "brightness": Perturbation(_batched(brightness), "added to pixels in [0, 1]", ADDED),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    epochs: int
    test_images: int
    width: int  # of the fully connected networks
    sizes: tuple[float, ...] = PERTURBATIONS["resize"].strengths  # of `resize`


SETTINGS = {
    "mnist": Setting(10, 2000, 2048),
    "fashion_mnist": Setting(10, 2000, 2048),
    "digits": Setting(60, 500, 256, (8, 7, 6, 5, 4, 3)),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Train four networks alike, perturb the test images, draw Figs. 6 and 7."""

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits (embedded)."""
    seed: int = 0
    """Seed of initial weights, batches, and noise."""


def plan(config: Config, contenders: Mapping[str, Network] = CONTENDERS) -> Plan:
    check_choice("dataset", config.dataset, SETTINGS)
    setting = config.settle(SETTINGS[config.dataset])
    dataset, test = load_data(config, setting.test_images)
    test = test.take(slice(setting.test_images))
    strengths = {name: list(p.strengths) for name, p in PERTURBATIONS.items()}
    strengths["resize"] = list(setting.sizes)
    settings = {"dataset": config.dataset, "seed": config.seed, "epochs": setting.epochs}
    settings |= {"test_images": setting.test_images, "strengths": strengths}
    key = jax.random.key(config.seed + 1)

    def jobs(folder, result):
        images = {
            (name, strength): perturb(name, test.pixels, strength, key)
            for name, values in strengths.items()
            for strength in values
        }
        result["example"] = {
            name: encode_array(np.stack([images[name, s][0] for s in values]))
            for name, values in strengths.items()
        }

        def measured(name: str, network: Network):
            width = network.width or setting.width
            checkpoints = folder / name.replace(" ", "_")
            predictor, record = train_network(
                network, dataset, setting.epochs, width, config.seed, checkpoints
            )
            record["accuracy"] = {
                kind: [_accuracy(predictor, images[kind, s], test.labels, key) for s in values]
                for kind, values in strengths.items()
            }
            return record

        for name, network in contenders.items():
            yield Job(name, config.seed, partial(measured, name, network))

    return Plan(config.dataset, settings, (dataset, test), jobs)


def perturb(name: str, images: np.ndarray, strength: float, key) -> np.ndarray:
    """Every image, each with noise of its own."""
    keys = jax.random.split(key, len(images))
    perturbed = PERTURBATIONS[name].function(jnp.asarray(images), jnp.float32(strength), keys)
    return np.asarray(perturbed)


def _accuracy(predictor, images, labels, key) -> float:
    return float(np.mean(predict(predictor, images, key=key).argmax(axis=1) == labels))


def tables(result: dict[str, Any]) -> list[Any]:
    settings, out = result["settings"], []
    for kind, strengths in settings["strengths"].items():
        title = f"{report.setting_line(settings)}, {kind}: accuracy in %"
        columns = [f"{strength:g}" for strength in strengths]
        table = report.table(title, PERTURBATIONS[kind].label, *columns)
        for name, record in result["runs"].items():
            table.add_row(name, *(f"{100 * a:.1f}" for a in record["accuracy"][kind]))
        out.append(table)
    return out


def figure(result: dict[str, Any]):
    """Above, one image as it is perturbed (Fig. 7); below, accuracy by strength (Fig. 6)."""
    settings, runs = result["settings"], result["runs"]
    kinds, color = settings["strengths"], colors(runs)
    drawn, axes = plt.subplots(
        2, len(kinds), figsize=(13, 4.6), height_ratios=(1, 4), layout="constrained"
    )
    for (picture, axis), (kind, strengths) in zip(axes.T, kinds.items(), strict=True):
        strip = np.concatenate(list(decode_array(result["example"][kind])), axis=1)
        picture.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=1)
        picture.set_title(kind, fontsize=10)
        picture.axis("off")
        for name, record in runs.items():
            accuracy = 100 * np.array(record["accuracy"][kind])
            axis.plot(accuracy, "-o", ms=3, color=color[name], label=name)
        axis.set_xticks(range(len(strengths)), [f"{s:g}" for s in strengths])
        axis.set_xlabel(PERTURBATIONS[kind].label)
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.3, lw=0.5)
    axes[1, 0].set_ylabel("accuracy (%)")
    report.legend_below(drawn, ncols=4, fontsize=9)
    kind, strengths = next(iter(kinds.items()))
    middle = len(strengths) // 2
    accuracies = {name: 100 * record["accuracy"][kind][middle] for name, record in runs.items()}
    ranking = sorted(accuracies.items(), key=lambda item: -item[1])
    set_title(
        drawn,
        f"Under {kind} of {strengths[middle]:g} accuracy is "
        + ", ".join(f"{accuracy:.0f} % ({name})" for name, accuracy in ranking)
        + f" ({report.setting_line(settings)})",
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"perturbations": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
