"""The convolution primitive against XLA's own, in and out of loops.

    python -m benchmarks.convolution

Forward and both gradients of four 3x3 layers with ReLU, batch 128, once on their own and once in a
`lax.scan`, where XLA's CPU backend loses its fast gradients. Times in ms a step, and as ratios to
XLA's own convolution outside a loop.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.table import Table

from odejax.models import conv2d

from ._timing import medians

STEPS = 2  # in the scan


def plain(x, kernel):
    return lax.conv_general_dilated(
        x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def ours(x, kernel):
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


def main():
    table = Table(title=f"forward + both gradients, ms a step ({jax.devices()[0].device_kind})")
    for column in ("channels", "pixels", "XLA", "ours", "XLA in scan", "ours in scan"):
        table.add_column(column, justify="right")
    for channels, size in ((64, 7), (32, 14), (16, 32)):
        key = jax.random.key(0)
        images = jax.random.normal(key, (128, size, size, channels))
        std = (2 / (9 * channels)) ** 0.5
        kernels = list(std * jax.random.normal(key, (4, 3, 3, channels, channels)))
        programs = {
            "XLA": jax.jit(gradients(plain)),
            "ours": jax.jit(gradients(ours)),
            "XLA in scan": jax.jit(looped(gradients(plain))),
            "ours in scan": jax.jit(looped(gradients(ours))),
        }
        calls = {name: partial(f, kernels, images) for name, f in programs.items()}
        times = medians(calls, rounds=5)
        times = {name: t / (STEPS if "scan" in name else 1) for name, t in times.items()}
        cells = [f"{1e3 * t:.1f} ({t / times['XLA']:.1f}x)" for t in times.values()]
        table.add_row(str(channels), f"{size} x {size}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
