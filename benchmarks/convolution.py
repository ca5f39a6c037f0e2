# pyright: reportMissingImports=false
"""The convolution primitive against XLA's own, in and out of loops, and against PyTorch's.

    python -m benchmarks.convolution

Forward and both gradients of four 3x3 layers with ReLU, batch 128, once on their own and once in a
`lax.scan`, where XLA's CPU backend loses its fast gradients; and one such convolution, forward,
which is XLA's own everywhere. The same in PyTorch (channels-last) where the extra `peers` is
installed. Times in ms, and as ratios to XLA's own convolution outside a loop. Writes
`benchmarks/results/convolution.json`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console
from rich.table import Table

from odejax.evaluation import provenance, save_result
from odejax.models import conv2d

from ._timing import medians

KIND = "benchmarks.convolution"
RESULT = Path(__file__).parent / "results" / "convolution.json"
SIZES = ((64, 7), (32, 14), (16, 32))  # channels, pixels a side
BATCH, ROUNDS = 128, 5
STEPS = 2  # in the scan
FORWARD = "forward"


def plain(x, kernel):
    return lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def odejax_conv(x, kernel):
    return conv2d(x, kernel, padding=1)


def gradients(conv):
    def loss(kernels, images):
        def network(x):
            for kernel in kernels:
                x = jax.nn.relu(conv(x, kernel))
            return jnp.sum(x**2)

        return jnp.sum(jax.vmap(network)(images))

    return jax.grad(loss, (0, 1))


def looped(gradient):
    """Gradient steps on kernels and images, so that no iteration can be hoisted out."""

    def step(carry, _):
        return jax.tree.map(lambda p, g: p - 1e-9 * g, carry, gradient(*carry)), None

    return lambda kernels, images: lax.scan(step, (kernels, images), None, length=STEPS)[0]


def peer_jobs(kernels, images) -> dict[str, Callable]:
    import torch

    def tensor(array, *axes):
        array = torch.tensor(np.asarray(array)).permute(*axes)
        return array.contiguous(memory_format=torch.channels_last).requires_grad_()

    weights = [tensor(kernel, 3, 2, 0, 1) for kernel in kernels]
    x = tensor(images, 0, 3, 1, 2)

    def gradient():
        y = x
        for weight in weights:
            y = torch.relu(torch.nn.functional.conv2d(y, weight, padding=1))
        return torch.autograd.grad((y**2).sum(), [x, *weights])

    @torch.no_grad()
    def forward():
        return torch.nn.functional.conv2d(x, weights[0], padding=1)

    return {"PyTorch": gradient, f"PyTorch, {FORWARD}": forward}


def our_jobs(kernels, images) -> dict[str, Callable]:
    programs = {
        "XLA": gradients(plain),
        "odejax": gradients(odejax_conv),
        "XLA in scan": looped(gradients(plain)),
        "odejax in scan": looped(gradients(odejax_conv)),
        f"XLA, {FORWARD}": lambda kernels, images: jax.vmap(plain, (0, None))(images, kernels[0]),
    }
    return {name: partial(jax.jit(f), kernels, images) for name, f in programs.items()}


def measure(channels: int, size: int) -> dict[str, float]:
    """Seconds a step of each candidate."""
    key = jax.random.key(0)
    images = jax.random.normal(key, (BATCH, size, size, channels))
    std = (2 / (9 * channels)) ** 0.5
    kernels = list(std * jax.random.normal(key, (4, 3, 3, channels, channels)))
    jobs = our_jobs(kernels, images)
    if importlib.util.find_spec("torch"):
        jobs |= peer_jobs(kernels, images)
    seconds = medians(jobs, rounds=ROUNDS)
    return {name: t / (STEPS if "scan" in name else 1) for name, t in seconds.items()}


def main():
    origin = provenance(0)
    rows = [{"channels": c, "pixels": p, "seconds": measure(c, p)} for c, p in SIZES]
    for job, title in (
        ("", "forward and both gradients of four layers"),
        (FORWARD, "one, forward"),
    ):
        names = [name for name in rows[0]["seconds"] if name.endswith(FORWARD) == bool(job)]
        table = Table(title=f"{title}: ms ({jax.devices()[0].device_kind})")
        for column in ("channels", "pixels", *(name.removesuffix(f", {job}") for name in names)):
            table.add_column(column, justify="right")
        for row in rows:
            times = [row["seconds"][name] for name in names]
            cells = [f"{1e3 * t:.1f} ({t / times[0]:.1f}x)" for t in times]
            table.add_row(str(row["channels"]), f"{row['pixels']} x {row['pixels']}", *cells)
        Console(width=110).print(table)
    if importlib.util.find_spec("torch"):
        origin["versions"]["torch"] = importlib.metadata.version("torch")
    save_result(RESULT, KIND, origin | {"batch": BATCH, "rounds": ROUNDS, "layers": rows})


if __name__ == "__main__":
    main()
