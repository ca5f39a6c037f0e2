"""Attacks against the PyTorch libraries and against the limit: the network's own evaluations.

    python -m benchmarks.attacks [--quick]

On one set of weights and the same MNIST images (`$ODEJAX_DATA_DIR`), in one run on the CPU: PGD-40,
APGD-CE with 100 steps, Square with 1,000 queries and the standard AutoAttack suite, with the robust
accuracy under each. odejax runs twice: "vmap" is every step on every image in one compiled program
(not for AutoAttack), as the libraries' PGD does it; "robust_accuracy" stops attacking an image when
an attack on it succeeds. Seconds are medians without compilation. "x odejax" is the time divided by
that of the vmap (for AutoAttack, of robust_accuracy), "x limit" the time divided by that of the
evaluations alone: as many calls of the jitted, batched gradient (for Square, of the logits) as the
attack makes, timed in turn with it.

The goals: PGD-40 and APGD at most 1.15 x limit, Square 1.3; PGD-40 (vmap) no slower than the
fastest library and twice as fast as Foolbox and ART; AutoAttack three times as fast as its authors'
code; the robust accuracy never higher. ART's Square evaluates three times an iteration and has a
schedule of its own. Memory is that of the compiled batch: linear in the batch, the same for any
number of steps. Writes `benchmarks/results/attacks.json`; with --quick, nothing.
"""

import argparse
import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
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
            # Not torchattacks' AutoAttack, whose APGD and FAB take 10 steps instead of 100.
            "pyautoattack": lambda p, eps: p.autoattack(LinfBall(eps)),
        },
        rounds=1,
    ),
}


@eqx.filter_jit
def attack_batch(attack, predictor, images, labels, ball):
    def one(x, y, key):
        return attack(predictor, x, y, ball, key=key)

    return jax.vmap(one)(images, labels, jax.random.split(KEY, len(images)))


@eqx.filter_jit
def batch_logits(predictor, images):
    return jax.vmap(predictor)(images)


@eqx.filter_jit
def batch_gradient(predictor, images, labels):
    def loss(images):
        return jnp.sum(jax.vmap(cross_entropy)(jax.vmap(predictor)(images), labels))

    return jax.grad(loss)(images)


def evaluations(attack: AbstractIterativeAttack, gradients: bool, predictor, images, labels):
    """The attack's evaluations of the batch and nothing else: the last one needs no gradient."""
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    for _ in range(attack.n_runs * attack.n_steps - 1):
        if gradients:
            out = batch_gradient(predictor, images, labels)
        else:
            out = batch_logits(predictor, images)
        out.block_until_ready()
    return batch_logits(predictor, images)


def run(name: str, job: Job, predictor, images, labels, quick: bool) -> dict:
    """Seconds and robust accuracy of every library at one job, and odejax's ratio to the limit."""
    peers = Peers(NETWORK, images, labels)
    adversarial = {}

    def kept(who, call):
        def timed():
            adversarial[who] = call()

        return timed

    calls = {
        "odejax, robust_accuracy": lambda: (
            robust_accuracy(
                predictor, images, labels, job.ball, job.attack, key=KEY, batch_size=len(images)
            ).x_adv
        )
    }
    if not isinstance(job.attack, AutoAttack):
        calls["odejax, vmap"] = lambda: np.asarray(
            attack_batch(job.attack, predictor, images, labels, job.ball).x_adv
        )
    eps = float(job.ball.eps)
    for library, call in job.peers.items():
        calls[library] = lambda call=call: call(peers, eps)
    timed = {who: kept(who, call) for who, call in calls.items()}
    timed["odejax, robust_accuracy"]()  # a first run may compile what the second shrinks to
    if isinstance(job.attack, AbstractIterativeAttack):
        timed["limit"] = partial(evaluations, job.attack, job.gradients, predictor, images, labels)
    seconds = medians(timed, rounds=1 if quick else job.rounds)
    out = {
        who: {
            "seconds": seconds[who],
            "robust_accuracy": float(
                1 - broken(predictor, adversarial[who], images, labels, job.ball).mean()
            ),
        }
        for who in calls
    }
    if "limit" in seconds:
        out["odejax, vmap"]["x_limit"] = seconds["odejax, vmap"] / seconds["limit"]
    return out


def memory(predictor, images, labels) -> dict[str, int]:
    """Bytes of temporary memory of a compiled PGD, by batch size and steps."""
    out = {}
    for n in (64, 256):
        for steps in (10, 100):
            lowered = attack_batch.lower(
                PGD(steps), predictor, images[:n], labels[:n], LinfBall(0.2)
            )
            analysis = lowered.compile().compiled.memory_analysis()
            out[f"batch {n}, {steps} steps"] = int(analysis.temp_size_in_bytes)
    return out


def main(quick: bool):
    if jax.default_backend() != "cpu":
        raise SystemExit("the PyTorch libraries run on the CPU here: set JAX_PLATFORMS=cpu")
    warnings.simplefilter("ignore")  # of the libraries compared with
    origin = provenance(0)
    predictor = classifier(NETWORK)
    data = odejax.data.load("mnist", "test")
    console, result = Console(), {}
    for name, job in JOBS.items():
        n = min(job.images, 64) if quick else job.images
        images, labels = data.pixels[:n], data.labels[:n]
        result[name] = run(name, job, predictor, images, labels, quick)
        whole = result[name]["odejax, robust_accuracy"]
        unit = result[name].get("odejax, vmap", whole)["seconds"]
        title = f"{name}, {n} images, {job.ball.name} {float(job.ball.eps):g}"
        table = Table(title=f"{title} ({jax.devices()[0].device_kind})")
        for column in ("", "seconds", "x odejax", "robust accuracy", "x limit"):
            table.add_column(column, justify="right" if column else "left")
        for who, row in result[name].items():
            limit = f"{row['x_limit']:.2f}" if "x_limit" in row else ""
            accuracy = f"{100 * row['robust_accuracy']:.1f}"
            seconds = row["seconds"]
            table.add_row(who, f"{seconds:.3f}", f"{seconds / unit:.2f}", accuracy, limit)
        console.print(table)
    bytes_used = memory(predictor, data.pixels[:256], data.labels[:256])
    console.print(bytes_used)
    if not quick:
        measured = {"data": [data.provenance()], "jobs": result, "memory": bytes_used}
        save_result(RESULT, KIND, origin | measured)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Attacks against the PyTorch libraries and against the limit."
    )
    parser.add_argument("--quick", action="store_true", help="64 images, one round")
    main(parser.parse_args().quick)
