# pyright: reportMissingImports=false
"""What adversarial training costs: one PGD-10 step of En2 ResNet20 on images of 32 pixels.

    python -m benchmarks.training

The step of *enresnet* Algorithm 1 (ten steps of 2/255 within 8/255 from a random start, then SGD
with Nesterov momentum), BatchNorm in inference mode inside the attack, at batch 128 on the same
weights: odejax's, and, where the extra `peers` is installed, PyTorch's. The table also has the pure
cost of odejax's step: ten gradients by the images and one by the weights, compiled and called one
by one.

Then how long ResNet-20 and ResNet-110 take to compile. The goals: ahead of PyTorch, at most 1.1
times the pure cost, and at most 1.5 times ResNet-20's time to compile for ResNet-110. Writes
`benchmarks/results/training.json`.
"""

import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from odejax import LinfBall, Predictor
from odejax.attacks import PGD, cross_entropy
from odejax.evaluation import provenance, save_result
from odejax.models import EnResNet, PreActResNet
from odejax.solvers import RelativeNoise
from odejax.training import Adversarial, CrossEntropy

from ._timing import medians

KIND = "benchmarks.training"
RESULT = Path(__file__).parent / "results" / "training.json"
SHAPE, BATCH, ROUNDS, DEPTHS = (32, 32, 3), 128, 3, (20, 110)
EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
NOISE = 0.1
KEY = jax.random.key(0)


def sgd():
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))


def our_jobs(model, state, images, labels) -> dict[str, Callable]:
    """The step, and the gradients that it is made of."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = sgd()
    objective = Adversarial(PGD(STEPS, STEP, last=True), LinfBall(EPS))

    def loss(params, objective, images):
        copied = jax.tree.map(lambda leaf: leaf, state)
        return objective(eqx.combine(params, static), copied, images, labels, key=KEY)

    @jax.jit
    def step(params, opt_state):
        gradient, aux = jax.grad(loss, has_aux=True)(params, objective, images)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, aux

    @jax.jit
    def by_the_weights(params):
        return jax.grad(loss, has_aux=True)(params, CrossEntropy(), images)

    predictor = Predictor(model, state)

    @eqx.filter_jit
    def by_the_images(predictor, images):
        def one(x, y, key):
            return jax.grad(lambda x: cross_entropy(predictor(x, key=key), y))(x)

        return jax.vmap(one)(images, labels, jax.random.split(KEY, BATCH))

    return {
        "odejax": partial(step, params, optimizer.init(params)),
        "gradient by the images": partial(by_the_images, predictor, images),
        "gradient by the weights": partial(by_the_weights, params),
    }


def peer_job(model, state, images, labels) -> Callable:
    """The same step in PyTorch."""
    import torch

    from ._torch_resnet import torch_net

    nets = torch.nn.ModuleList(
        torch_net(model.nets, state, i, noise=NOISE) for i in range(model.members)
    )
    x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor(np.asarray(labels), dtype=torch.int64)
    optimizer = torch.optim.SGD(
        nets.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def loss(x):
        logits = torch.stack([net(x) for net in nets]).mean(0)
        return torch.nn.functional.cross_entropy(logits, y, reduction="sum")

    def step():
        nets.eval()
        x_adv = (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x_adv), x_adv)
            x_adv = x_adv.detach() + STEP * gradient.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
        nets.train()
        optimizer.zero_grad()
        (loss(x_adv) / BATCH).backward()
        optimizer.step()

    return step


def compile_seconds(depth: int, images, labels) -> float:
    """Of the gradient by the weights of a ResNet, tracing included."""
    model, state = eqx.nn.make_with_state(PreActResNet)(SHAPE, depth=depth, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def gradient(params, images):
        def loss(params):
            copied = jax.tree.map(lambda leaf: leaf, state)
            return CrossEntropy()(eqx.combine(params, static), copied, images, labels, key=KEY)[0]

        return jax.grad(loss)(params)

    started = time.perf_counter()
    jax.jit(gradient).lower(params, images).compile()
    return time.perf_counter() - started


def main():
    origin = provenance(0)
    images = jax.random.uniform(jax.random.key(1), (BATCH, *SHAPE))
    labels = jax.random.randint(jax.random.key(2), (BATCH,), 0, 10)
    compile_seconds(14, images, labels)  # the first one pays for more than itself
    rounds = [{d: compile_seconds(d, images, labels) for d in DEPTHS} for _ in range(ROUNDS)]
    compiled = {depth: statistics.median(one[depth] for one in rounds) for depth in DEPTHS}
    model, state = eqx.nn.make_with_state(EnResNet)(
        SHAPE, members=2, base=PreActResNet, depth=20, noise=RelativeNoise(NOISE), key=KEY
    )
    jobs = our_jobs(model, state, images, labels)
    if importlib.util.find_spec("torch"):
        jobs["PyTorch"] = peer_job(model, state, images, labels)
    seconds = medians(jobs, rounds=ROUNDS)
    pure = STEPS * seconds["gradient by the images"] + seconds["gradient by the weights"]

    table = Table(title=f"En2 ResNet20, PGD-{STEPS}, batch {BATCH} ({jax.devices()[0]})")
    for column in ("", "seconds", "x pure cost", "examples / s"):
        table.add_column(column, justify="right" if column else "left")
    timed = (name for name in ("odejax", "PyTorch") if name in seconds)
    rows = {"pure cost": pure} | {name: seconds[name] for name in timed}
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f}", f"{value / pure:.2f}", f"{BATCH / value:.0f}")
    console = Console()
    console.print(table)
    ratio = compiled[110] / compiled[20]
    console.print(
        f"compiling a gradient: ResNet-20 {compiled[20]:.1f} s, ResNet-110 {compiled[110]:.1f} s "
        f"({ratio:.2f} x)"
    )
    record = {"batch": BATCH, "rounds": ROUNDS, "seconds": seconds}
    record["compile_seconds"] = {f"ResNet-{depth}": value for depth, value in compiled.items()}
    if "PyTorch" in seconds:
        origin["versions"]["torch"] = importlib.metadata.version("torch")
    save_result(RESULT, KIND, origin | record)


if __name__ == "__main__":
    main()
