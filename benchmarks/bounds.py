"""CROWN of odejax beside that of auto_LiRPA: the same weights, images and balls, in one run.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bounds [--quick]

Lower bounds on all margins of an image, in ms for each image, as medians without compilation. Both
take the images in batches, as `certified_radii` does, and one at a time. The two libraries' bounds
are compared. Compilation is timed by itself, with no cache; memory is what the compiled batch needs
for its temporary values.

- MLP: digits, two hidden layers of 64.
- ResNet: digits, 3 blocks of 16 channels, BatchNorm.
- ConvODENet: digits, 8 channels, GroupNorm, 4 midpoint steps on a grid; odejax alone.
- ResNet, MNIST (`$ODEJAX_DATA_DIR`): 6 blocks of 32 channels, BatchNorm; odejax alone.
- Compile time of a ResNet of 3 and of 24 blocks, whose blocks are one loop.

The goals: faster than auto_LiRPA on the first two; at most 20 s to compile; the ResNet of MNIST at
most 2 s an image and 2 GB; 24 blocks at most 1.5 times the compile time of 3.

auto_LiRPA is measured where it is installed: its last release on PyPI is of 2022, 0.7.1 is on
GitHub (Verified-Intelligence/auto_LiRPA), which runs with a newer PyTorch than it asks for, if it
is installed without its dependencies. PyTorch's threads must not wait actively (OMP_WAIT_POLICY)
while JAX's run. Writes `benchmarks/results/bounds.json`; with --quick,
nothing.
"""

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import odejax
from odejax import LinfBall, Predictor
from odejax.certificates import LinearRelaxation
from odejax.certificates.best import count_neurons
from odejax.evaluation import provenance, save_result
from odejax.models import MLP, BatchNorm, ConvODENet, ResNet
from odejax.relaxation import deterministic, trace
from odejax.training import CrossEntropy, fit

from ._lirpa import INSTALLED, LiRPA
from ._timing import medians

KIND = "benchmarks.bounds"
RESULT = Path(__file__).parent / "results" / "bounds.json"
KEY = jax.random.key(0)
CROWN = LinearRelaxation()
TOLERANCE = 1e-4  # of logits, between JAX and PyTorch
DEPTHS, COMPILE_ROUNDS = (3, 24), 3


def on_grid(*shape, **settings):
    """A neural ODE in four midpoint steps."""
    model = ConvODENet(*shape, solver=diffrax.Midpoint(), **settings)
    return eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(4))


@dataclasses.dataclass(frozen=True)
class Job:
    """A network, how it is trained in seconds, and what is bounded."""

    make: Callable[..., Any]
    eps: float
    dataset: str = "digits"
    train_images: int = 1400
    epochs: int = 8
    images: int = 32
    batch: int = CROWN.images_at_once
    peer: bool = True
    rounds: int = 5


JOBS = {
    "MLP": Job(partial(MLP, width=64), 0.01),
    "ResNet": Job(partial(ResNet, width=16, depth=3, norm=BatchNorm), 0.005),
    "ConvODENet, grid of 4": Job(partial(on_grid, width=8), 0.005, peer=False, rounds=3),
    "ResNet, MNIST": Job(
        partial(ResNet, norm=BatchNorm), 0.005, "mnist", 4096, 1, 2, 2, peer=False, rounds=1
    ),
}


def trained(job: Job) -> Predictor:
    data = odejax.data.load(job.dataset, "train").take(slice(job.train_images))
    model, state = eqx.nn.make_with_state(job.make)(data.image_shape, data.n_classes, key=KEY)
    result = fit(
        model, state, data, CrossEntropy(), optax.adam(3e-3),
        epochs=job.epochs, batch_size=64, key=KEY, progress=False,
    )  # fmt: skip
    return Predictor(result.model, result.state)


@eqx.filter_jit
def bounds(predictor, images, labels, ball):
    """Lower bounds on z_label - z_j, (n, k)."""

    def one(x, y):
        return CROWN.margins(trace(deterministic(predictor, x), x), x, y, ball)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(images, labels)


def compiled(*arguments) -> tuple[Callable, dict[str, Any]]:
    """The program for arguments of these shapes, and what it takes to compile and to run."""
    jax.clear_caches()
    started = time.perf_counter()
    program = bounds.lower(*arguments).compile()
    seconds = time.perf_counter() - started
    memory = program.compiled.memory_analysis()
    return program, {"compile_seconds": seconds, "bytes": int(memory.temp_size_in_bytes)}


def in_batches(program: Callable, images, labels, size: int) -> Callable[[], np.ndarray]:
    """All images, so many at a time; their number is a multiple of it."""
    chunks = [slice(i, i + size) for i in range(0, len(images), size)]
    return lambda: np.concatenate([np.asarray(program(images[c], labels[c])) for c in chunks])


def run(job: Job, quick: bool) -> dict[str, Any]:
    """Milliseconds for each image by library and batch, and how far the bounds are apart."""
    predictor, ball = trained(job), LinfBall(job.eps)
    n = min(job.images, job.batch) if quick else job.images
    images = odejax.data.load(job.dataset, "test").pixels[:n]
    labels = odejax.predict(predictor, images, key=KEY).argmax(axis=1)
    batch, facts = compiled(predictor, images[: job.batch], labels[: job.batch], ball)
    programs, sizes = {f"odejax, {job.batch} at a time": batch}, [job.batch]
    if job.peer:
        programs["odejax, one at a time"], _ = compiled(predictor, images[:1], labels[:1], ball)
        sizes.append(1)
    calls: dict[str, Callable] = {
        who: lambda x, y, program=program: program(predictor, x, y, ball)
        for who, program in programs.items()
    }
    if job.peer and INSTALLED:
        peer = LiRPA(predictor, images[0].shape)
        apart = np.abs(peer.logits(images) - odejax.predict(predictor, images, key=KEY)).max()
        if apart > TOLERANCE:
            raise AssertionError(f"the logits in PyTorch differ from those in JAX by {apart:.1e}")
        for name, size in ((f"{job.batch} at a time", job.batch), ("one at a time", 1)):
            calls[f"auto_LiRPA, {name}"] = partial(peer, ball=ball)
            sizes.append(size)
    margins = {}

    def kept(who: str, call: Callable[[], np.ndarray]):
        def timed():
            margins[who] = call()

        return timed

    timed = {
        who: kept(who, in_batches(call, images, labels, size))
        for (who, call), size in zip(calls.items(), sizes, strict=True)
    }
    seconds = medians(timed, rounds=1 if quick else job.rounds)
    ours = margins[next(iter(calls))]
    out = facts | {
        "eps": job.eps,
        "images": n,
        "neurons": count_neurons(predictor, jnp.asarray(images[0])),
        "certified": float(np.mean((ours > 0).sum(1) == ours.shape[1] - 1)),
        "milliseconds": {who: 1e3 * t / n for who, t in seconds.items()},
    }
    if INSTALLED and job.peer:
        theirs = margins[f"auto_LiRPA, {job.batch} at a time"]
        out["odejax_less_auto_LiRPA"] = [float((ours - theirs).min()), float((ours - theirs).max())]
    return out


def compile_times() -> dict[str, float]:
    """Seconds by depth, of the ResNet of the digits: medians over rounds in turn."""
    image, label, seconds = np.full((1, 8, 8, 1), 0.5, np.float32), np.zeros(1, int), {}
    for depth in COMPILE_ROUNDS * DEPTHS:
        make = eqx.nn.make_with_state(partial(ResNet, width=16, depth=depth, norm=BatchNorm))
        predictor = Predictor(*make(image.shape[1:], key=KEY))
        _, facts = compiled(predictor, image, label, LinfBall(0.005))
        seconds.setdefault(str(depth), []).append(facts["compile_seconds"])
    return {depth: float(np.median(times)) for depth, times in seconds.items()}


def main(quick: bool):
    jax.config.update("jax_enable_compilation_cache", False)
    warnings.simplefilter("ignore")  # of PyTorch, at auto_LiRPA
    origin = provenance(0)
    device = jax.devices()[0].device_kind
    table = Table(title=f"CROWN: ms an image ({device})")
    for column in ("", "neurons", "eps", "ms", "x odejax", "compile, s", "MB"):
        table.add_column(column, justify="right" if column else "left")
    rows, notes = {}, []
    for name, job in JOBS.items():
        if quick and job.dataset != "digits":
            continue
        rows[name] = row = run(job, quick)
        table.add_section()
        first = next(iter(row["milliseconds"].values()))
        facts = f"{row['neurons']:,}", f"{job.eps:g}"
        costs = f"{row['compile_seconds']:.1f}", f"{row['bytes'] / 1e6:.0f}"
        for who, ms in row["milliseconds"].items():
            cells = f"{ms:.1f}", f"{ms / first:.1f}"
            table.add_row(f"{name}: {who}", *facts, *cells, *costs)
            facts, costs = ("", ""), ("", "")
        if job.peer and not INSTALLED:
            table.add_row(f"{name}: auto_LiRPA", "", "", "not measured in this run", "", "", "")
        if "odejax_less_auto_LiRPA" in row:
            low, high = row["odejax_less_auto_LiRPA"]
            notes.append(
                f"{name}: margins of odejax less those of auto_LiRPA: {low:.1e} to {high:.1e}"
            )
    few, many = (times := compile_times()).values()
    notes.append(
        f"to compile a ResNet of {DEPTHS[1]} blocks takes {many:.1f} s, of {DEPTHS[0]} "
        f"{few:.1f} s: {many / few:.2f} times as long"
    )
    console = Console(width=110)
    console.print(table, *notes, sep="\n")
    if INSTALLED:
        import auto_LiRPA  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]

        origin["versions"] |= {"torch": torch.__version__, "auto_LiRPA": auto_LiRPA.__version__}
    if not quick:
        save_result(RESULT, KIND, origin | {"jobs": rows, "compile_seconds": times})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="CROWN beside auto_LiRPA's, timed in one run.")
    parser.add_argument("--quick", action="store_true", help="digits, one batch, one round")
    main(parser.parse_args().quick)
