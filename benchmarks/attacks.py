"""Attacks against the PyTorch libraries and against the limit: the network's own evaluations.

    python -m benchmarks.attacks [--quick]

On one set of weights and the same MNIST images (`$ODEJAX_DATA_DIR`), in one run: PGD-40, APGD-CE
with 100 steps, Square with 1,000 queries and the standard AutoAttack suite, with the robust accuracy
that each leaves. odejax runs twice: `vmap` is every step on every image in one compiled program,
`robust_accuracy` lets broken images go. Seconds are medians without compilation. "x limit" is the
time divided by that of the evaluations alone: as many calls of the jitted, batched gradient (for
Square, of the logits) of the network as the attack makes.

The goals: PGD-40 and APGD at most 1.15 x limit, Square 1.3; PGD-40 no slower than the fastest
library and twice as fast as Foolbox and ART; AutoAttack three times as fast as its authors' code;
the robust accuracy never higher. One trace for each attack and shape; memory linear in the batch
and the same for any number of steps. Writes `benchmarks/results/attacks.json`.
"""

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import odejax
from odejax import AbstractBall, LinfBall
from odejax.attacks import APGD, PGD, AbstractIterativeAttack, AutoAttack, Square, cross_entropy
from odejax.evaluation import provenance, robust_accuracy, save_result

from ._peers import KEY, Peers, broken, classifier
from ._timing import medians

NETWORK = "robust cnn"
KIND = "benchmarks.attacks"
RESULT = Path(__file__).parent / "results" / "attacks.json"
COMPILED = "/jax/core/compile/backend_compile_duration"  # an event of JAX's monitoring


@dataclasses.dataclass(frozen=True)
class Job:
    """One attack, the same one of the libraries, and what it evaluates."""

    attack: Callable
    ball: AbstractBall
    peers: dict[str, Callable[[Peers, float], np.ndarray]]
    images: int = 256
    gradients: bool = True
    rounds: int = 5


JOBS = {
    "PGD-40": Job(
        PGD(steps=40, step_size=0.01),
        LinfBall(0.2),
        {
            "torchattacks": lambda p, eps: p.torchattacks("PGD", eps=eps, alpha=0.01, steps=40),
            "Foolbox": lambda p, eps: p.foolbox(
                "LinfProjectedGradientDescentAttack", eps, steps=40, abs_stepsize=0.01
            ),
            "ART": lambda p, eps: p.art(
                "ProjectedGradientDescent",
                eps=eps,
                eps_step=0.01,
                max_iter=40,
                num_random_init=1,
                verbose=False,
            ),
        },
    ),
    "APGD-CE": Job(
        APGD(),
        LinfBall(0.2),
        {
            "torchattacks": lambda p, eps: p.torchattacks("APGD", eps=eps, steps=100),
            "ART": lambda p, eps: p.art(
                "AutoProjectedGradientDescent",
                eps=eps,
                eps_step=2 * eps,
                max_iter=100,
                nb_random_init=1,
                loss_type="cross_entropy",
                verbose=False,
            ),
            "pyautoattack": lambda p, eps: p.autoattack(LinfBall(eps), "apgd-ce"),
        },
    ),
    "Square": Job(
        Square(n_queries=1000),
        LinfBall(0.2),
        {
            "torchattacks": lambda p, eps: p.torchattacks(
                "Square", eps=eps, n_queries=1000, resc_schedule=False
            ),
            "ART": lambda p, eps: p.art("SquareAttack", eps=eps, max_iter=1000, verbose=False),
            "pyautoattack": lambda p, eps: p.autoattack(LinfBall(eps), "square", queries=1000),
        },
        gradients=False,
        rounds=3,
    ),
    "AutoAttack": Job(
        AutoAttack(),
        LinfBall(0.2),
        {
            "torchattacks": lambda p, eps: p.torchattacks("AutoAttack", eps=eps),
            "pyautoattack": lambda p, eps: p.autoattack(LinfBall(eps)),
        },
        rounds=1,
    ),
}


class Compilations:
    """Counts the programs that XLA compiles, and the seconds it takes."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event, seconds, **_):
        if event == COMPILED:
            self.count += 1
            self.seconds += seconds

    def during(self, call):
        """What `call()` returns, the programs that it compiled, and the seconds."""
        count, seconds = self.count, self.seconds
        out = call()
        return out, self.count - count, self.seconds - seconds


def batched(attack, ball):
    """The attack on a batch as one program, and a list that grows with every trace of it."""
    traces = []

    @eqx.filter_jit
    def run(attack, predictor, images, labels, ball, key):
        traces.append(images.shape)

        def one(x, y, key):
            return attack(predictor, x, y, ball, key=key)

        return jax.vmap(one)(images, labels, jax.random.split(key, len(images)))

    return run, traces


def limits(predictor, images, labels) -> dict[str, Callable]:
    """One evaluation of the batch: its gradient, its logits."""

    @jax.jit
    def gradient(images):
        losses = lambda images: jax.vmap(cross_entropy)(jax.vmap(predictor)(images), labels)  # noqa: E731
        return jax.grad(lambda images: jnp.sum(losses(images)))(images)

    logits = jax.jit(jax.vmap(predictor))
    return {"gradient": lambda: gradient(images), "logits": lambda: logits(images)}


def memory(attack_of, predictor, ball, images, labels) -> dict[str, int]:
    """Bytes of temporary memory of the compiled batch, by batch size and steps."""
    out = {}
    for n in (64, 256):
        for steps in (10, 100):
            x, y = jnp.asarray(images[:n]), jnp.asarray(labels[:n])
            run, _ = batched(attack_of(steps), ball)
            compiled = run.lower(attack_of(steps), predictor, x, y, ball, KEY).compile()
            analysis = compiled.compiled.memory_analysis()
            out[f"batch {n}, {steps} steps"] = int(analysis.temp_size_in_bytes)
    return out
