"""The networks in `experiments/weights` are those of the results, and can be attacked again."""

import json
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import odejax
from experiments.benchmark import FAMILIES
from experiments.certified.families import MIDDLES, family
from experiments.certified.networks import PRESETS
from experiments.lib.networks import folder_name
from odejax.attacks import PGD
from odejax.certificates import IntervalBounds
from odejax.evaluation import bracket

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
MOST_BYTES = 30e6


def result(name):
    return json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text())


def published(name):
    return {path.stem: path for path in (EXPERIMENTS / "weights" / name).glob("*.odejax")}


DIGITS, MNIST = published("benchmark_digits"), published("certified_mnist_cpu")


def test_every_network_is_one_of_a_result():
    runs = result("certified_mnist_cpu")["runs"]
    names = {folder_name(*name.rsplit("/", 1)) for name in runs}
    assert set(DIGITS) == set(result("benchmark_digits")["models"])
    assert MNIST
    assert set(MNIST) <= names
    files = [path for path in (EXPERIMENTS / "weights").rglob("*") if path.is_file()]
    assert sorted(files) == sorted([*DIGITS.values(), *MNIST.values()])
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize(
    "name", ["MLP", *(pytest.param(n, marks=pytest.mark.slow) for n in DIGITS if n != "MLP")]
)
def test_a_network_of_the_main_job_is_as_robust_as_published(name):
    """The number of its PGD-40, but for an image that rounding decides."""
    record = result("benchmark_digits")["models"][name]["balls"]["linf"]["brackets"][0]
    images = odejax.data.load("digits", "test").take(slice(record["n"]))
    measured = bracket(
        odejax.load(DIGITS[name]),
        *images,
        odejax.LinfBall(record["eps"]),
        attacks={"PGD-40": PGD(40, step_size=None)},
        certificates=(),
        key=jax.random.key(1),
        draws=FAMILIES[name].draws,
    )
    summary = measured.summary()
    one = 1.001 / record["n"]
    assert summary["clean"] == pytest.approx(record["clean"], abs=one)
    assert summary["per_attack"]["PGD-40"] == pytest.approx(record["per_attack"]["PGD-40"], abs=one)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", MNIST)
def test_a_certified_network_is_as_accurate_and_as_certain_as_published(name):
    """All test images: clean accuracy, and what intervals prove."""
    runs = result("certified_mnist_cpu")["runs"]
    (run,) = (run for run in runs if folder_name(*run.rsplit("/", 1)) == name)
    bracket_of_run, network = runs[run]["balls"]["linf"][0], run.split("/")[1]
    like = None
    if network in MIDDLES:  # a class of the experiment
        preset = PRESETS["cpu"]["mnist"]
        make = family(network, preset.channels, preset.width, preset.neurons)
        like = odejax.Predictor(
            *eqx.filter_eval_shape(
                lambda key: eqx.nn.make_with_state(make)((28, 28, 1), 10, key=key),
                jax.random.key(0),
            )
        )
    predictor = odejax.load(MNIST[name], like=like)
    images = odejax.data.load("mnist", "test")
    ball = odejax.LinfBall(bracket_of_run["eps"])
    radii = odejax.evaluation.certified_radii(
        predictor, images.pixels, images.labels, ball, IntervalBounds(), key=jax.random.key(1)
    )
    logits = odejax.predict(predictor, images.pixels, key=jax.random.key(1))
    clean = np.mean(logits.argmax(axis=1) == images.labels)
    proven = np.mean(radii >= ball.eps)
    assert clean == pytest.approx(runs[run]["clean_accuracy"], abs=5e-4)
    assert proven == pytest.approx(bracket_of_run["per_certificate"]["intervals"], abs=5e-4)
