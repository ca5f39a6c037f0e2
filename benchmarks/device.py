"""What this device attains: one of each kind of work, in FLOP a second and as a share of its peak.

    python -m benchmarks.device            # for a GPU, where it has not been timed yet
    python -m benchmarks.device --quick    # tiny sizes, a minute on a CPU core; writes nothing

- A training step of ResNet20 on images of 32 pixels, batch 128, augmentation included: as `fit`
  takes it, in float32 at XLA's default precision (TF32 on NVIDIA's recent GPUs), and with the
  network in bfloat16 (`MixedPrecision`).
- A step of AutoAttack's APGD on the same network, of 256 images.
- The gradient of a convolutional neural ODE (`benchmarks.neural_ode`), at the highest precision,
  which adaptive solves need.
- CROWN's bounds on 64 images by a ResNet of the digits (`benchmarks.bounds`), at the highest
  precision as well. How many rows it propagates depends on the images, so it has no share.

FLOP are those of matrix products and convolutions (`experiments.lib.flop`); of a neural ODE three
times its field's for each evaluation. Seconds are medians without compilation. Writes
`benchmarks/results/device_NAME.json`, by the device's name, from where `experiments.gpu` has its
rate.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments.lib.flop import flop
from odejax import LinfBall, Predictor
from odejax.attacks import APGD
from odejax.commands.command_line import enable_compilation_cache
from odejax.data import ArrayDataset, crop_and_flip
from odejax.evaluation import load_result, provenance, save_result
from odejax.models import BatchNorm, PreActResNet, ResNet
from odejax.solvers import AcceptedSteps
from odejax.training import CrossEntropy, MixedPrecision, fit, steps_per_epoch

from . import neural_ode
from ._timing import medians
from .bounds import bounds

KIND = "benchmarks.device"
RESULTS = Path(__file__).parent / "results"
KEY = jax.random.key(0)
TRAINING = "training step"
HIGHEST, DEFAULT, BFLOAT16 = "float32, highest", "float32", "bfloat16"
# TFLOP/s without sparsity, from NVIDIA's data sheets (www.nvidia.com/en-us/data-center/h100, h200,
# a100), which print twice as many for TF32 and bfloat16, "with sparsity". The first that fits.
PEAKS = {
    "H100 PCIe": {HIGHEST: 51.2, DEFAULT: 378.0, BFLOAT16: 756.0},
    "H100": {HIGHEST: 66.9, DEFAULT: 494.7, BFLOAT16: 989.4},
    "H200": {HIGHEST: 66.9, DEFAULT: 494.7, BFLOAT16: 989.4},
    "A100": {HIGHEST: 19.5, DEFAULT: 156.0, BFLOAT16: 312.0},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Images of an epoch, a training batch and an attacked batch; steps of APGD; bounded images."""

    epoch: int = 25_600
    depth: int = 20
    batch: int = 128
    attacked: int = 256
    steps: int = 100
    bounded: int = 64
    rounds: int = 5


QUICK = Size(128, 8, 64, 8, 5, 2, 1)


@dataclasses.dataclass(frozen=True)
class Job:
    """FLOP of what `seconds()` times, None if they depend on the data, and in which precision."""

    flop: float | None
    precision: str
    seconds: Callable[[], float]


def peak(device: str, precision: str) -> float | None:
    """FLOP a second at most, by the device's name in JAX; None where it is not known."""
    peaks = next((peaks for name, peaks in PEAKS.items() if name in device), None)
    return None if peaks is None else 1e12 * peaks[precision]


def result_path(device: str) -> Path:
    return RESULTS / f"device_{re.sub('[^A-Za-z0-9]+', '_', device)}.json"


def attained(device: str) -> float | None:
    """FLOP a second of the training step in float32, where it was measured on such a device."""
    path = result_path(device)
    if not path.exists():
        return None
    return load_result(path, KIND)["jobs"][TRAINING]["flop_per_second"]


def jobs(size: Size) -> dict[str, Job]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size.epoch, 32, 32, 3), np.uint8)
    data = ArrayDataset(images, np.arange(size.epoch) % 10)
    model, state = eqx.nn.make_with_state(PreActResNet)((32, 32, 3), depth=size.depth, key=KEY)
    made = {TRAINING: _training(CrossEntropy(), DEFAULT, model, state, data, size)}
    rounded = MixedPrecision(CrossEntropy())
    made[f"{TRAINING}, {BFLOAT16}"] = _training(rounded, BFLOAT16, model, state, data, size)
    made["APGD step"] = _attack(Predictor(model, state), data.take(slice(size.attacked)), size)
    made["neural ODE gradient"] = _ode(size)
    made["CROWN"] = _bounds(size)
    return made


def _training(objective, precision: str, model, state, data: ArrayDataset, size: Size) -> Job:
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def gradient(params, x, y):
        def loss(params):
            copied = jax.tree.map(lambda leaf: leaf, state)
            return objective(eqx.combine(params, static), copied, x, y, key=KEY)

        return jax.grad(loss, has_aux=True)(params)

    of_step = flop(
        gradient,
        params,
        jax.ShapeDtypeStruct((size.batch, *data.image_shape), jnp.float32),
        jax.ShapeDtypeStruct((size.batch,), jnp.int32),
    )

    def seconds() -> float:
        settings = {"epochs": 1 + size.rounds, "batch_size": size.batch, "augment": crop_and_flip}
        rule = optax.sgd(0.01, momentum=0.9)
        trained = fit(model, state, data, objective, rule, key=KEY, progress=False, **settings)
        epochs = [epoch["seconds"] for epoch in trained.history[1:]]  # the first one compiles
        return float(np.median(epochs)) / steps_per_epoch(len(data), size.batch)

    return Job(of_step, precision, seconds)


def _attack(predictor: Predictor, data: ArrayDataset, size: Size) -> Job:
    attack, ball = APGD(size.steps), LinfBall(8 / 255)
    x, y = jnp.asarray(data.pixels), jnp.asarray(data.labels)

    @eqx.filter_jit
    def perturbed(predictor, x, y):
        def one(x, y, key):
            return attack(predictor, x, y, ball, key=key).x_adv

        return jax.vmap(one)(x, y, jax.random.split(KEY, len(x)))

    of_attack = flop(partial(perturbed, predictor), x, y)
    return Job(
        of_attack / attack.n_steps,
        DEFAULT,
        lambda: _median(partial(perturbed, predictor, x, y), size) / attack.n_steps,
    )


def _ode(size: Size) -> Job:
    residual, y0, direction = neural_ode.problem()
    job = neural_ode.our_job(AcceptedSteps(), residual, y0, direction)
    of_field = flop(job.evaluation)
    return Job(3 * job.evaluations * of_field, HIGHEST, lambda: _median(job.gradient, size))


def _bounds(size: Size) -> Job:
    make = eqx.nn.make_with_state(partial(ResNet, width=16, depth=3, norm=BatchNorm))
    predictor, ball = Predictor(*make((8, 8, 1), key=KEY)), LinfBall(0.005)
    x, y = jnp.full((size.bounded, 8, 8, 1), 0.5), jnp.zeros(size.bounded, int)
    return Job(None, HIGHEST, lambda: _median(partial(bounds, predictor, x, y, ball), size))


def _median(call: Callable[[], Any], size: Size) -> float:
    return medians({"": call}, rounds=size.rounds)[""]


def measured(job: Job, device: str) -> dict[str, Any]:
    """What the result has of a job; its share where the device's peak is known."""
    row = {"seconds": job.seconds(), "precision": job.precision}
    if job.flop is not None:
        row |= {"flop": job.flop, "flop_per_second": job.flop / row["seconds"]}
        if (most := peak(device, job.precision)) is not None:
            row |= {"peak": most, "share": row["flop_per_second"] / most}
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(name: str, unit: float, none: str = "") -> str:
        return f"{row[name] / unit:.3g}" if name in row else none

    peak = cell("peak", 1e12, "unknown" if "flop" in row else "")
    rate = cell("flop", 1e9), cell("flop_per_second", 1e12), peak, cell("share", 0.01)
    return [row["precision"], cell("seconds", 1e-3), *rate]


def main(quick: bool):
    enable_compilation_cache()
    origin, device = provenance(0), jax.devices()[0].device_kind
    table = Table(title=f"one of each ({device})")
    for column in ("", "precision", "ms", "GFLOP", "TFLOP/s", "peak", "share (%)"):
        table.add_column(column, justify="left" if column in ("", "precision") else "right")
    rows = {}
    for name, job in jobs(QUICK if quick else Size()).items():
        rows[name] = measured(job, device)
        table.add_row(name, *_cells(rows[name]))
    Console(width=100).print(table)
    if not quick:
        save_result(result_path(device), KIND, origin | {"jobs": rows})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What this device attains, one of each kind.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes nothing")
    main(parser.parse_args().quick)
