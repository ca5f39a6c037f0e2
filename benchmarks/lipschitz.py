"""What a proven Lipschitz constant costs in training: the bounds are computed in every step.

    python -m benchmarks.lipschitz

The gradient of the hinge loss of *structured*'s networks on images of MNIST's size, batch 128,
beside that of the same network with its scaled weights and step sizes stored, which has the same
layers and computes no bound. Times in ms, and their ratio. Writes
`benchmarks/results/lipschitz.json`.
"""

from functools import partial
from pathlib import Path

import equinox as eqx
import jax
from rich.console import Console
from rich.table import Table

from experiments.structured.networks import PRESETS, REGIMES, SUCCESSORS, network
from odejax import Predictor
from odejax.evaluation import provenance, save_result
from odejax.training import Hinge

from ._timing import medians

KIND = "benchmarks.lipschitz"
RESULT = Path(__file__).parent / "results" / "lipschitz.json"
SHAPE, BATCH, ROUNDS = (28, 28, 1), 128, 7


def gradient(model, state, images, labels):
    """Of the mean loss by the weights."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def run(params, images, labels):
        def loss(params):
            key = jax.random.key(0)
            return Hinge(1.0)(eqx.combine(params, static), state, images, labels, key=key)[0]

        return jax.grad(loss)(params)

    return partial(run, params, images, labels)


def main():
    origin = provenance(0)
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.uniform(keys[0], (BATCH, *SHAPE))
    labels = jax.random.randint(keys[1], (BATCH,), 0, 10)
    jobs = {}
    for name in (*REGIMES, *SUCCESSORS):
        make = eqx.nn.make_with_state(network(name, PRESETS["cpu"]["mnist"]))
        model, state = make(SHAPE, key=keys[2])
        frozen = Predictor(model, state).model
        jobs[name] = gradient(model, state, images, labels)
        jobs[f"{name}, frozen"] = gradient(frozen, state, images, labels)
    seconds = medians(jobs, rounds=ROUNDS)
    table = Table(title=f"gradient of a batch of {BATCH}, ms ({jax.devices()[0]})")
    for column in ("", "with bounds", "without", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for name in (*REGIMES, *SUCCESSORS):
        bounded, plain = seconds[name], seconds[f"{name}, frozen"]
        ratio = f"{bounded / plain:.2f}"
        table.add_row(name, f"{1e3 * bounded:.0f}", f"{1e3 * plain:.0f}", ratio)
    Console().print(table)
    save_result(RESULT, KIND, origin | {"batch": BATCH, "rounds": ROUNDS, "seconds": seconds})


if __name__ == "__main__":
    main()
