# pyright: reportMissingImports=false
"""What the flow map costs, and what a solver costs instead: the 784-2048-activation-10 network.

    python -m benchmarks.nmode

One training step (forward, backward, Adam update) and one PGD-40, both at batch 256, on the same
weights in one run: ReLU, GELU, the nmODE flow map, Diffrax's Dopri5 at the paper's tolerances
(rtol = atol = 1e-3) and, where the extra `peers` is installed, torchdiffeq's `odeint` and
`odeint_adjoint` with the same. "x ReLU" compares with the ReLU net of odejax in the same rounds.
The last column is the largest error of y(t1; gamma) against a float64 solve.

The goals: the flow map at most 1.3 times ReLU, and 30 times faster than torchdiffeq at t = 1.
Writes `benchmarks/results/nmode.json`.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp

from odejax import LinfBall
from odejax.attacks import PGD, cross_entropy
from odejax.evaluation import provenance, save_result
from odejax.models import NmODE

from ._timing import medians

KIND = "benchmarks.nmode"
RESULT = Path(__file__).parent / "results" / "nmode.json"
LAM = 3.0
TIMES = (0.05, 1.0, 5.0)
BATCH = 256
SLOW_ROUNDS, ROUNDS = 3, 30


class Net(eqx.Module):
    """784 - Linear - 2048 - activation - Linear - 10."""

    layers: tuple[eqx.nn.Linear, eqx.nn.Linear]
    activation: Callable

    def __init__(self, activation):
        keys = jax.random.split(jax.random.key(0), 2)
        self.layers = (
            eqx.nn.Linear(784, 2048, key=keys[0]),
            eqx.nn.Linear(2048, 10, key=keys[1]),
        )
        self.activation = activation

    def __call__(self, x, *, key=None):
        return self.layers[1](self.activation(self.layers[0](jnp.ravel(x))))


def jobs(activation, images, labels) -> dict[str, Callable]:
    """A compiled training step and a compiled PGD-40."""
    net = Net(activation)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    optimizer = optax.adam(1e-3)

    def loss(params):
        logits = jax.vmap(eqx.combine(params, static))(images)
        return jnp.mean(jax.vmap(cross_entropy)(logits, labels))

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return eqx.apply_updates(params, updates), opt_state

    @eqx.filter_jit
    def attack(net, key):
        def one(x, y, key):
            return PGD(40, 0.01)(net, x, y, LinfBall(0.05), key=key).x_adv

        return jax.vmap(one)(images, labels, jax.random.split(key, BATCH))

    return {
        "training step": partial(step, params, optimizer.init(params)),
        "PGD-40": partial(attack, net, jax.random.key(1)),
    }


def peer_jobs(adjoint: bool, t1: float, images, labels) -> tuple[dict[str, Callable], Callable]:
    """The same in PyTorch, solved by torchdiffeq; and its y(t1; gamma)."""
    import torch
    import torchdiffeq

    tolerance = {"rtol": 1e-3, "atol": 1e-3, "method": "dopri5"}

    class WithGamma(torch.nn.Module):
        """gamma is in the state, with derivative 0: the adjoint differentiates nothing else."""

        def forward(self, t, state):
            y, gamma = state
            return -LAM * y + torch.sin(y + gamma) ** 2, torch.zeros_like(gamma)

    class SolvedNmODE(torch.nn.Module):
        def forward(self, gamma):
            y0, times = torch.zeros_like(gamma), torch.tensor([0.0, t1])
            if adjoint:
                ys, _ = torchdiffeq.odeint_adjoint(WithGamma(), (y0, gamma), times, **tolerance)
            else:
                ys = torchdiffeq.odeint(
                    lambda t, y: -LAM * y + torch.sin(y + gamma) ** 2, y0, times, **tolerance
                )
            return ys[-1]

    first, second = Net(jax.nn.relu).layers
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 2048), SolvedNmODE(), torch.nn.Linear(2048, 10)
    )
    for linear, layer in ((net[1], first), (net[3], second)):
        linear.weight.data = torch.tensor(np.asarray(layer.weight))
        linear.bias.data = torch.tensor(np.asarray(layer.bias))
    x, y = torch.tensor(np.asarray(images)), torch.tensor(np.asarray(labels), dtype=torch.int64)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    def attack():
        x_adv = (x + 0.05 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(40):
            x_adv.requires_grad_()
            loss = torch.nn.functional.cross_entropy(net(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + 0.01 * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - 0.05), x + 0.05).clamp(0, 1)

    def solved(gamma):
        with torch.no_grad():
            return net[2](torch.tensor(np.asarray(gamma))).numpy()

    return {"training step": step, "PGD-40": attack}, solved


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
    origin = provenance(0)
    images = jax.random.uniform(jax.random.key(1), (BATCH, 28, 28, 1))
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, 10)
    fast = {name: jobs(f, images, labels) for name, f in
            (("ReLU", jax.nn.relu), ("GELU", jax.nn.gelu))}  # fmt: skip
    slow, errors = {}, {}
    for t1 in TIMES:
        name = f"nmODE t = {t1}, flow map"
        fast[name] = jobs(NmODE(LAM, t1), images, labels)
        errors[name] = true_error(NmODE(LAM, t1), t1)
        name = f"nmODE t = {t1}, Diffrax Dopri5"
        solved = NmODE(LAM, t1, solver=diffrax.Dopri5())
        slow[name] = jobs(solved, images, labels)
        errors[name] = true_error(solved, t1)
        if importlib.util.find_spec("torchdiffeq"):
            for adjoint in (False, True):
                name = f"nmODE t = {t1}, torchdiffeq odeint{'_adjoint' if adjoint else ''}"
                slow[name], solved = peer_jobs(adjoint, t1, images, labels)
                errors[name] = true_error(solved, t1)
    result = {}
    for job in ("training step", "PGD-40"):
        times = medians({name: calls[job] for name, calls in fast.items()}, rounds=ROUNDS)
        times |= medians(
            {name: calls[job] for name, calls in slow.items()},
            rounds=SLOW_ROUNDS if job == "training step" else 1,
        )
        result[job] = times

    table = Table(title=f"784-2048-10, batch {BATCH} ({jax.devices()[0]})")
    columns = ["activation", "step, ms", "x ReLU", "PGD-40, ms", "x ReLU", "error of y"]
    for column in columns:
        table.add_column(column, justify="left" if column == "activation" else "right")
    for name in fast | slow:
        cells = []
        for job in ("training step", "PGD-40"):
            seconds = result[job]
            cells += [f"{1e3 * seconds[name]:.1f}", f"{seconds[name] / seconds['ReLU']:.2f}"]
        table.add_row(name, *cells, f"{errors[name]:.0e}" if name in errors else "")
    Console().print(table)
    save_result(RESULT, KIND, origin | {"seconds": result, "errors": errors})


if __name__ == "__main__":
    main()
