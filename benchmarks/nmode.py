"""What the flow map costs: a training step of the 784-2048-activation-10 network at batch 256.

    python -m benchmarks.nmode

Forward, backward and Adam update, with ReLU, GELU, the nmODE flow map, and Diffrax's Dopri5 at
the paper's tolerances (rtol = atol = 1e-3), on the same weights in one run. The goal is at most 1.5
times ReLU. The last column is the largest error of y(t1; gamma) against a float64 solve.
"""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp

from odejax.attacks import cross_entropy
from odejax.models import NmODE

from ._timing import medians

LAM = 3.0
TIMES = (0.05, 1.0, 5.0)


def training_step(activation):
    """A compiled step of the network and its initial (weights, optimiser state)."""
    keys = jax.random.split(jax.random.key(0), 2)
    weights = (eqx.nn.Linear(784, 2048, key=keys[0]), eqx.nn.Linear(2048, 10, key=keys[1]))
    optimizer = optax.adam(1e-3)

    def loss(weights, images, labels):
        def logits(x):
            return weights[1](activation(weights[0](x)))

        return jnp.mean(jax.vmap(cross_entropy)(jax.vmap(logits)(images), labels))

    @jax.jit
    def step(weights, opt_state, images, labels):
        gradient = jax.grad(loss)(weights, images, labels)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return eqx.apply_updates(weights, updates), opt_state

    return step, weights, optimizer.init(weights)  # pyright: ignore


def true_error(activation, t1):
    gamma = np.random.default_rng(0).uniform(-10, 10, 2000).astype(np.float32)
    truth = solve_ivp(
        lambda t, y: -LAM * y + np.sin(y + gamma.astype(float)) ** 2,
        (0, t1),
        np.zeros(len(gamma)),
        method="DOP853",
        rtol=1e-11,
        atol=1e-13,
    ).y[:, -1]
    return float(np.abs(np.asarray(activation(jnp.asarray(gamma))) - truth).max())


def main():
    activations = {"ReLU": jax.nn.relu, "GELU": jax.nn.gelu}
    errors = {}
    for t1 in TIMES:
        for kind, solver in (("flow map", None), ("Dopri5", diffrax.Dopri5())):
            name = f"nmODE t = {t1}, {kind}"
            activations[name] = NmODE(LAM, t1, solver=solver)
            errors[name] = true_error(activations[name], t1)
    images = jax.random.uniform(jax.random.key(1), (256, 784))
    labels = jax.random.randint(jax.random.key(2), (256,), 0, 10)
    calls = {}
    for name, activation in activations.items():
        step, weights, opt_state = training_step(activation)
        calls[name] = partial(step, weights, opt_state, images, labels)
    quick = {name: call for name, call in calls.items() if "Dopri5" not in name}
    times = medians(quick, rounds=40)
    times |= medians({name: call for name, call in calls.items() if name not in quick}, rounds=3)

    table = Table(title=f"784-2048-10, batch 256, one training step ({jax.devices()[0]})")
    for column in ("activation", "ms", "x ReLU", "error of y"):
        table.add_column(column, justify="left" if column == "activation" else "right")
    for name in activations:
        error = f"{errors[name]:.0e}" if name in errors else ""
        table.add_row(name, f"{1e3 * times[name]:.1f}", f"{times[name] / times['ReLU']:.2f}", error)
    Console().print(table)


if __name__ == "__main__":
    main()
