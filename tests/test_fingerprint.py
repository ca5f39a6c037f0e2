"""A fingerprint is equal for what computes the same, and unequal for what may not."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import linear_logits

from odejax import LinfBall
from odejax._fingerprint import fingerprint
from odejax.attacks import PGD
from odejax.training import YOPO, Penalised, energy_penalty


def scaled(factor):
    return lambda logits, y, target=None: factor * logits[y]


def network_in_a_closure(seed):
    linear = linear_logits(n_classes=10, seed=seed)

    def logits_fn(x, *, key=None):
        return linear(x)

    return logits_fn


class Net(eqx.Module):
    weight: jax.Array
    activation: object = eqx.field(static=True, default=jnp.tanh)


# one(), other(): the same thing made twice is equal, the two are not
PAIRS = {
    "closures over constants": (lambda: scaled(1.0), lambda: scaled(2.0)),
    "closures over networks": (partial(network_in_a_closure, 0), partial(network_in_a_closure, 1)),
    "names in a lambda": (lambda: lambda model: model.a, lambda: lambda model: model.b),
    "constants in a lambda": (lambda: lambda z: z[0], lambda: lambda z: z[1]),
    "inner functions": (lambda: lambda: lambda z: z[0], lambda: lambda: lambda z: z[1]),
    "sets in a lambda": (lambda: lambda z: z in {"a", "b"}, lambda: lambda z: z in {"a", "c"}),
    "defaults": (lambda: lambda z, k=1: z, lambda: lambda z, k=2: z),
    "arguments of a partial": (
        lambda: partial(scaled, factor=1.0),
        lambda: partial(scaled, factor=2.0),
    ),
    "static functions": (lambda: PGD(loss=scaled(1.0)), lambda: PGD(loss=scaled(2.0))),
    "penalties": (
        lambda: Penalised(penalty=energy_penalty(0.01, 0.01), eta=1.0),
        lambda: Penalised(penalty=energy_penalty(1.0, 0.0), eta=1.0),
    ),
    "layers": (
        lambda: YOPO(LinfBall(0.1), lambda model: model.stem),
        lambda: YOPO(LinfBall(0.1), lambda model: model.head),
    ),
    "compiled functions": (lambda: jax.jit(scaled(1.0)), lambda: jax.jit(scaled(2.0))),
    "weights": (lambda: Net(jnp.zeros(3)), lambda: Net(jnp.ones(3))),
    "shapes": (lambda: Net(jnp.zeros(4)), lambda: Net(jnp.zeros((2, 2)))),
    "dtypes": (lambda: np.zeros(2, np.float32), lambda: np.zeros(1, np.float64)),
    "activations": (
        lambda: Net(jnp.zeros(3), jnp.tanh),
        lambda: Net(jnp.zeros(3), jnp.sin),
    ),
    "keys": (lambda: jax.random.key(0), lambda: jax.random.key(1)),
    "brackets": (lambda: ([1], 2), lambda: ([1, 2],)),
    "words": (lambda: ("ab", "c"), lambda: ("a", "bc")),
    "dictionaries": (lambda: {"a": 1}, lambda: {"b": 1}),
    "numbers": (lambda: 1, lambda: 1.0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equal_for_the_same_and_unequal_for_another(name):
    one, other = PAIRS[name]
    assert fingerprint(one()) == fingerprint(one()) != fingerprint(other())


def test_functions_that_close_over_each_other_have_one():
    def one(x):
        return other(x)

    def other(x):
        return one(x)

    def unfinished():
        return late

    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(unfinished)
    late = 0


@pytest.mark.slow
def test_it_is_the_same_in_every_process():
    program = (
        "from test_fingerprint import PAIRS, fingerprint;"
        "print([fingerprint(one()) for one, _ in PAIRS.values()])"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert printed[0].count(",") == len(PAIRS) - 1
