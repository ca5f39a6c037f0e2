"""What an installed odejax does without the extras: `python -I tests/smoke.py`."""

import doctest
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import odejax


def main():
    assert Path(odejax.__file__).is_relative_to(sys.prefix), odejax.__file__  # not a checkout
    for extra in ("pytest", "hypothesis", "hatchling", "flax", "playwright", "tensorflow"):
        assert importlib.util.find_spec(extra) is None, extra
    network = trained()
    evaluated(network)
    commands(network)
    docstrings()


def trained():
    """A small network after a few epochs."""
    key = jax.random.key(0)
    train = odejax.data.load("digits", "train")
    net = eqx.nn.make_with_state(odejax.models.MLP)(train.image_shape, width=16, key=key)
    settings = {"epochs": 5, "batch_size": 64, "key": key, "progress": False}
    fitted = odejax.training.fit(
        *net, train, odejax.training.CrossEntropy(), optax.adam(1e-2), **settings
    )
    return odejax.Predictor(fitted.model, fitted.state)


def evaluated(network):
    """Attacked, certified and drawn."""
    interval = odejax.evaluation.bracket(
        network,
        *odejax.data.load("digits", "test").take(slice(50)),
        odejax.LinfBall(0.01),
        attacks=[odejax.attacks.PGD(steps=4)],
        key=0,
        progress=False,
    )
    assert 0.5 < interval.certified <= interval.attacked <= interval.clean
    odejax.plots.draw_interval(plt.gca(), [0, 0.01], [1, interval.attacked], [1, 0])
    print(interval)


def commands(network):
    """The command `odejax`, on a file."""
    with tempfile.TemporaryDirectory() as folder:
        odejax.save(f"{folder}/net.odejax", network)
        few = ("--images", "8", "--attacks", "PGD(4)", "--last", "none")
        for arguments, said in (
            (("list", "attacks"), "AutoAttack"),
            (("evaluate", "net.odejax", "--dataset", "digits", "--linf", "0.01", *few), "PGD(4)"),
        ):
            command = Path(sys.executable).with_name("odejax")
            done = subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), done
            assert said in done.stdout, done.stdout


def docstrings():
    """Examples of docstrings."""
    names = {"odejax": odejax, "eqx": eqx, "jax": jax, "jnp": jnp, "np": np, "optax": optax}
    for member in (odejax.LinfBall, odejax.attacks.PGD, odejax.evaluation.Bracket):
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for example in doctest.DocTestFinder(recurse=False).find(member, globs=dict(names)):
            runner.run(example)
        assert runner.summarize().attempted > 0, member
        assert runner.summarize().failed == 0, member


if __name__ == "__main__":
    main()
