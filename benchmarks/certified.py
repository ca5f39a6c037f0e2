"""What certified training costs: a step by interval bounds beside a plain one, same network.

    python -m benchmarks.certified

The gradient of a batch of 256 MNIST-sized images by the weights, for every family of
`experiments.certified`: of the cross-entropy; of interval bounds after the warm-up; of those during
it, with its penalties; and of CROWN-IBP during the warm-up. The goal: at most 3 times a plain step.
Writes `benchmarks/results/certified.json`.
"""

from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.certified.families import FAMILIES, family
from experiments.certified.networks import PRESETS
from odejax import LinfBall
from odejax.evaluation import provenance, save_result
from odejax.training import CertifiedTraining, CrossEntropy

from ._timing import medians

KIND = "benchmarks.certified"
RESULT = Path(__file__).parent / "results" / "certified.json"
SHAPE, BATCH, ROUNDS = (28, 28, 1), 256, 5
KEY = jax.random.key(0)
BALL, HALF = LinfBall(0.1), jnp.asarray(0.5)
OBJECTIVES = {
    "plain": CrossEntropy(),
    "intervals": CertifiedTraining(BALL, progress=jnp.asarray(1.0)),
    "intervals, warm-up": CertifiedTraining(BALL, progress=HALF),
    "CROWN-IBP, warm-up": CertifiedTraining(BALL, bounds="linear", progress=HALF),
}


def jobs(name: str, images, labels):
    """The gradient of each objective, compiled."""
    size = PRESETS["cpu"]["mnist"]
    make = family(name, size.channels, size.width, size.neurons)
    model, state = eqx.nn.make_with_state(make)(SHAPE, 10, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @eqx.filter_jit
    def gradient(objective, params):
        def loss(params):
            copied = jax.tree.map(lambda leaf: leaf, state)
            return objective(eqx.combine(params, static), copied, images, labels, key=KEY)[0]

        return jax.grad(loss)(params)

    return {of: partial(gradient, objective, params) for of, objective in OBJECTIVES.items()}


def main():
    origin = provenance(0)
    images = jax.random.uniform(jax.random.key(1), (BATCH, *SHAPE))
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, 10)
    seconds = {name: medians(jobs(name, images, labels), rounds=ROUNDS) for name in FAMILIES}
    save_result(RESULT, KIND, origin | {"batch": BATCH, "seconds": seconds})
    table = Table("network", *OBJECTIVES, title=f"ms for a gradient of {BATCH} images (x plain)")
    for name, of in seconds.items():
        cells = (f"{1e3 * s:.0f} ({s / of['plain']:.1f})" for s in of.values())
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
