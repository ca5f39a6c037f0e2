"""The small experiments of *structured*, smaller still."""

import dataclasses
import io
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from scipy.integrate import solve_ivp

from experiments.lib.run import UsageError, execute
from experiments.structured import (
    flows as structured_flows,
    flows_figure as structured_flows_report,
)
from experiments.structured.flows import Config, iterate, target
from odejax.solvers import apply_layers

SMALL = {"width": 4, "step_size": 0.25}
KEY = jax.random.key(2)
REGRESSION = structured_flows.REGRESSION
SIR, PENDULUM = (structured_flows.FLOWS[name].nets for name in ("sir", "pendulum"))


def printed(*tables):
    out = io.StringIO()
    console = Console(width=80, file=out)
    for table in tables:
        console.print(table)
    return out.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a run of small networks, and what was trained and solved on the way."""
    flows = {
        name: dataclasses.replace(flow, steps=30) for name, flow in structured_flows.FLOWS.items()
    }
    smaller = {"SIZES": SMALL, "POINTS": 256, "BATCH": 32}
    smaller["REGRESSION"] = {"both": REGRESSION["both"]}
    calls = {"train": [], "solve": []}

    def recorded(name, function):
        def call(*args):
            calls[name].append(function(*args))
            return calls[name][-1]

        return call

    out = tmp_path_factory.mktemp("flows")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(structured_flows, name, value)
        for name in calls:
            patch.setattr(structured_flows, name, recorded(name, getattr(structured_flows, name)))
        execute(structured_flows.EXPERIMENT, Config(seeds=2, steps=100, out=out), flows=flows)
    return out, calls


@pytest.fixture(scope="module")
def folder(measured):
    return measured[0]


@pytest.fixture(scope="module")
def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def pendulum(measured):
    """Both networks, trained, and exact states from where the test starts."""
    calls = measured[1]
    return dict(zip(PENDULUM, calls["train"][-2:], strict=True)), calls["solve"][-1]


@pytest.mark.slow
def test_the_mass_stays_to_rounding_with_the_structure_alone(result):
    nets = result["sir"]["nets"]
    assert max(nets["mass-preserving"]["largest_drift"]) < 1e-5
    assert min(nets["ResNet"]["largest_drift"]) > 1e-3


@pytest.mark.parametrize(("nets", "n"), [(REGRESSION, 2), (SIR, 3), (PENDULUM, 2)])
def test_all_networks_of_an_experiment_have_as_many_weights(nets, n):
    counts = set()
    for make, depth in nets.values():
        shapes = eqx.filter_eval_shape(make, n, **SMALL, key=KEY)
        counts.add(depth * sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    assert len(counts) == 1


@pytest.mark.slow
def test_the_result_counts_the_weights_of_one_seed(result):
    nets = result["pendulum"]["nets"]
    assert [net["weights"] for net in nets.values()] == [5 * 2 * 3 * 4, 6 * 5 * 4]


@pytest.mark.slow
def test_the_figure_and_the_tables_are_written(result, folder):
    assert (folder / "flows.png").exists()
    text = printed(*structured_flows_report.tables(result))
    for net in ("both", "mass-preserving", "symplectic", "ResNet"):
        assert net in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_widest_table_fits():
    """Three seeds far apart, in every cell."""
    values = [1.1e-5, 1.2e-3, 9.9e3]
    nets = {name: {"layers": 10, "weights": 1000, "test_error": values} for name in REGRESSION}
    text = printed(structured_flows_report._table("", {"nets": nets}, {"test_error": "test error"}))
    assert text.count("1.1e-5 to 9900") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"steps": -1}, "steps must be at least 1; got -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        execute(structured_flows.EXPERIMENT, Config(**arguments, out=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_reduces_the_error(pendulum):
    nets, exact = pendulum
    standing_still = np.sqrt(np.mean((exact[:, 0] - exact[:, 1]) ** 2))
    for layers in nets.values():
        error = iterate(layers, exact[:, 0], 30)[:, :, 1] - exact[:, 1]
        assert np.sqrt(np.mean(error**2)) < standing_still / 2


def one_seed(layers, seed):
    return jax.tree.map(lambda a: a[seed] if eqx.is_array(a) else a, layers)


@pytest.mark.slow
def test_the_trained_network_is_symplectic_and_the_resnet_is_not(pendulum):
    """In the plane that is the determinant of the Jacobian."""
    nets, exact = pendulum
    off = {}
    for name, layers in nets.items():
        net = one_seed(layers, 0)
        jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda y, net=net: apply_layers(net, y))))
        matrix = np.asarray(jacobian(jnp.asarray(exact[:, 0], jnp.float32)), np.float64)
        off[name] = np.abs(np.linalg.det(matrix) - 1).max()
    assert off["symplectic"] < 1e-5
    assert off["ResNet"] > 1e-3


@pytest.mark.slow
def test_states_are_those_of_the_layers_one_after_the_other(pendulum):
    nets, exact = pendulum
    layers, starts = nets["symplectic"], exact[:, 0]
    states = iterate(layers, starts, 30)
    assert states.shape == (2, len(starts), 31, 2)
    np.testing.assert_allclose(states[1, :, 0], starts, rtol=1e-6)
    net, y = one_seed(layers, 1), jnp.asarray(starts[5], jnp.float32)
    expected = apply_layers(net, apply_layers(net, y))
    np.testing.assert_allclose(states[1, 5, 2], expected, atol=1e-6)


@pytest.mark.slow
def test_the_data_are_exact_far_below_what_is_learned(pendulum):
    """By another solver."""
    exact = pendulum[1]
    for states in exact[:5]:
        expected = solve_ivp(
            lambda t, y: [y[1], -np.sin(y[0])], (0, 6), states[0], rtol=1e-10, atol=1e-10
        )
        np.testing.assert_allclose(states[-1], expected.y[:, -1], atol=1e-7)


def test_the_target_folds_nowhere_and_keeps_no_areas():
    z, h = np.random.default_rng(0).uniform(-1, 1, (1000, 2)), 1e-6
    columns = [(target(z + h * e) - target(z - h * e)) / (2 * h) for e in np.eye(2)]
    areas = np.linalg.det(np.stack(columns, axis=-1))
    # R keeps areas, so these are those of G, det [[3/2 + u/2, -v/2], [-v/2, 1 - u/2]].
    assert areas.min() > 0.1
    assert np.quantile(areas, 0.9) > 1.3 * np.quantile(areas, 0.1)


def test_the_energy_drift_is_relative_to_the_height_above_rest():
    y = np.array([[0.0, 1.0], [np.pi / 2, 0.0], [0.0, 2.0]])  # 1/2, 1 and 2 above rest
    np.testing.assert_allclose(structured_flows._energy_drift(y), [0, 1, 3])
