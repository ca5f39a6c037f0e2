"""What the solves of a neural ODE take: counted, in the history of a training, never silent."""

from functools import cache, partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odejax.data import ArrayDataset
from odejax.models import DenseODENet, ODESolve
from odejax.training import CrossEntropy, TrainingDiverged, fit

SHAPE = (5, 5, 1)


@pytest.mark.parametrize(
    ("solver", "dt0"),
    [
        (diffrax.Dopri5(), None),
        (diffrax.Heun(), None),
        (diffrax.Bosh3(), 0.1),
        (diffrax.Euler(), 0.1),
    ],
)
def test_evaluations_of_the_field_are_those_that_were_made(solver, dt0):
    calls = []

    def on_host(y):
        calls.append(y)
        return -(np.asarray(y) ** 2) * np.array([1, 3], np.float32)

    def field(t, y, args):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(on_host, shape, y, vmap_method="sequential")

    controller = None if dt0 is None else diffrax.ConstantStepSize()
    ode = ODESolve(solver=solver, dt0=dt0, stepsize_controller=controller)
    statistics = ode.statistics(jax.jit(lambda y: ode(field, y, None))(np.ones(2, np.float32)))
    assert statistics["evaluations"] == len(calls)
    assert statistics["unsolved"] == 0
    if dt0 is not None:
        assert (statistics["steps"], statistics["rejected"]) == (10, 0)
    else:
        assert 0 <= statistics["rejected"] < statistics["steps"]


def test_evaluations_of_an_implicit_method_are_not_guessed():
    ode = ODESolve(solver=diffrax.Kvaerno3())
    # Of shapes: which statistics there are does not depend on the numbers, and an implicit solve
    # compiles long.
    statistics = []

    def solve(y):
        statistics.append(ode.statistics(ode(lambda t, y, args: -y, y, None)))
        return y

    jax.eval_shape(solve, jnp.ones(2))
    assert "evaluations" not in statistics[0]
    assert "steps" in statistics[0]


def dark(n=32):
    return ArrayDataset(np.zeros((n, *SHAPE), np.uint8), np.arange(n, dtype=np.int32) % 3, 3)


def bright(n=32):
    images = np.random.default_rng(0).integers(0, 256, (n, *SHAPE)).astype(np.uint8)
    return ArrayDataset(images, np.arange(n, dtype=np.int32) % 3, 3)


@cache
def built(max_steps):
    settings = {"width": 8, "t1": 20.0, "max_steps": max_steps}
    make = partial(eqx.nn.make_with_state(DenseODENet), SHAPE, 3, **settings)
    return eqx.filter_jit(lambda key: make(key=key))(jax.random.key(3))


def network(max_steps=256):
    model, state = built(max_steps)
    # Weights as large as this make fields whose solves take more or fewer steps.
    model = jax.tree.map(lambda a: 2 * np.asarray(a) if eqx.is_inexact_array(a) else a, model)
    return model, jax.tree.map(np.asarray, state)  # which may be used once


def run(dataset, max_steps=256, **settings):
    return fit(
        *network(max_steps),
        dataset,
        CrossEntropy(),
        optax.sgd(0.0),
        epochs=1,
        batch_size=16,
        key=jax.random.key(0),
        progress=False,
        **settings,
    )


@eqx.filter_jit
def steps_of(model, state, images):
    return jax.vmap(lambda x: model.solve(x, state)[0].stats["num_steps"])(images)


@cache
def steps_at(dataset):
    """Of each of the images of `dark` or `bright`."""
    return np.asarray(steps_of(*network(), dataset().pixels))


def test_the_history_has_the_means_over_the_first_images():
    validation = bright(8)
    (record,) = run(dark(), validation=validation).history
    assert record["steps"] == np.mean(steps_at(bright)[:8])
    assert record["evaluations"] == 6 * record["steps"] + 1
    assert 0 <= record["rejected"] < record["steps"]
    assert record["unsolved"] == 0
    (record,) = run(bright()).history
    assert record["steps"] == np.mean(steps_at(bright))


def test_the_logits_come_with_their_solve():
    model, state = network()
    x = jnp.asarray(bright().pixels[0])

    @eqx.filter_jit
    def both(model, x):
        logits, _, solution = model.with_solution(x, state)
        return logits, solution.stats["num_steps"], model(x, state)[0]

    logits, steps, again = both(model, x)
    np.testing.assert_array_equal(logits, again)
    assert steps == steps_at(bright)[0]


def test_solves_at_their_limit_are_warned_of_and_counted():
    few, many = steps_at(dark).max(), steps_at(bright)
    expected = np.mean(many > few)
    assert expected > 0
    with pytest.warns(RuntimeWarning, match=f"of 32 solves need more than max_steps={few}"):
        (record,) = run(dark(), int(few), validation=bright(), score=lambda *args, key: 0.0).history
    assert record["unsolved"] == pytest.approx(expected)


def test_training_on_solves_at_their_limit_is_refused():
    with pytest.raises(TrainingDiverged, match="let an ODE solve take more steps"):
        run(bright(), int(steps_at(bright).min()) - 1)
