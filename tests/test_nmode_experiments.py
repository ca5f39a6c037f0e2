"""The scripts of *nmode*: Table 1 digit for digit, the other tables and figures on few digits."""

import dataclasses
import json
from functools import partial

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.lib.recipe import fitted
from experiments.lib.run import UsageError, execute
from experiments.nmode import (
    ablation as nmode_ablation,
    cifar as nmode_cifar,
    figures as nmode_figures,
    mnist as nmode_mnist,
    perturbations as nmode_perturbations,
    table1 as nmode_table1,
)
from odejax import data
from odejax.attacks import PGD
from odejax.models import MLP, NmODE, PreActResNet


@pytest.mark.parametrize(
    "chosen",
    [[("nmODE", 1.0), ("P-nmODE", 0.6)], pytest.param(nmode_table1.PAPER, marks=pytest.mark.slow)],
    ids=["two rows", "all rows"],
)
def test_table_1_is_the_papers_to_every_digit_but_its_misprint(chosen, tmp_path):
    paper = {row: nmode_table1.PAPER[row] for row in chosen}
    execute(nmode_table1.EXPERIMENT, nmode_table1.Config(out=tmp_path), chosen=paper)
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["family"], row["t"]) for row in rows] == list(chosen)
    for row in rows:
        ours = nmode_table1.printed_row(row["Dopri5, 1e-7"])
        printed = [nmode_table1.as_printed(value) for value in row["paper"]]
        if (row["family"], row["t"]) == ("P-nmODE", 0.6):
            assert (printed[2], ours[2]) == ("0.0837", "0.0891")
            printed[2] = ours[2]
        assert ours == printed
        # The second solver agrees to what the first one's tolerance promises.
        np.testing.assert_allclose(row["Dopri8, 1e-8"], row["Dopri5, 1e-7"], rtol=5e-5, atol=1e-5)


@pytest.mark.slow
def test_the_tables_resume_and_hold_the_interval(tmp_path):
    quick = {"dataset": "digits", "epochs": 2, "seeds": 1, "test_images": 30}
    attacks = {
        ball: {name: PGD(3, None) for name in named} for ball, named in nmode_mnist.ATTACKS.items()
    }
    networks = ("ReLU", "nmODE+ t=0.05, clip")
    config = nmode_mnist.Config(networks=networks, out=tmp_path, **quick)
    execute(nmode_mnist.EXPERIMENT, config, attacks=attacks)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]) == {f"{name}/{seed}" for name in networks for seed in (0,)}
    expected = {"ReLU/0": 1, "nmODE+ t=0.05, clip/0": 4}
    for name, record in result["runs"].items():
        for intervals in record["balls"].values():
            for interval in intervals:
                assert 0 <= interval["certified"] <= interval["attacked"] <= interval["clean"]
                assert len(interval["per_certificate"]) == expected[name]
        # The pixels' deviation is below 1: a smaller ball, which leaves more.
        for standardised in record["pgd_standardised"]:
            assert 0.3 < standardised["eps"] / standardised["eps_over_std"] < 0.5
        left = [s["PGD-40"] for s in record["pgd_standardised"]]
        assert left == sorted(left, reverse=True)
        assert left[-1] >= record["balls"]["linf"][-1]["per_attack"]["PGD-40"]
        if "clip" in name:
            assert record["tau"] <= 0.05 * 64 * (1 + 1e-5)
    console = Console(width=200, record=True)
    for table in nmode_mnist.tables(result):
        console.print(table)
    shown = console.export_text()
    assert shown.count("PGD-40, of std") == len(networks)
    lines = shown.splitlines()
    clip = lines[next(i for i, line in enumerate(lines) if "clip" in line) :]
    certified = [line.split() for line in clip if "certified, " in line][:4]
    intervals = result["runs"]["nmODE+ t=0.05, clip/0"]["balls"]["linf"]
    for row, name in zip(certified, nmode_mnist.CERTIFICATES, strict=True):
        assert row[1 : 1 + len(name.split())] == name.split()
        assert row[-3:] == [f"{100 * b['per_certificate'][name]:.1f}" for b in intervals]

    before = (tmp_path / "result.json").read_bytes()
    assert (tmp_path / "intervals.png").stat().st_size > 10_000

    config.resume = True
    execute(nmode_mnist.EXPERIMENT, config)  # nothing is left to do
    assert (tmp_path / "result.json").read_bytes() == before


def test_the_papers_numbers_stand_beside_its_own_data_alone():
    interval = {"eps": 0.05, "clean": 0.98, "attacked": 0.3, "certified": 0.0, "flags": {}}
    interval |= {"per_attack": dict.fromkeys(nmode_mnist.ATTACKS["linf"], 0.3)}
    interval |= {"per_certificate": {}, "per_transfer": {}}
    balls = {ball: [interval | {"ball": ball}] for ball in ("linf", "l2")}
    record = {"balls": balls, "clean_accuracy": 0.98}
    record |= {"pgd_standardised": [{"PGD-40": 0.9}]}
    for dataset, seen in (("mnist", True), ("digits", False)):
        settings = {"dataset": dataset, "test_images": 10}
        result = {"settings": settings, "runs": {"NODE/0": record, "nmODE t=0.05/0": record}}
        console = Console(width=200, record=True)
        for table in nmode_mnist.tables(result):
            console.print(table)
        shown = console.export_text().split()
        # NODE under PGD and nmODE in Tables 2 and 5.
        assert all((str(value) in shown) == seen for value in (47.4, 90.2, 96.7))
        drawn = nmode_mnist.figure(result)
        labels = {line.get_label() for line in drawn.axes[1].lines}
        assert ("paper, Table 5: PGD-40" in labels) == seen
        assert "certified" not in labels  # there was no certificate to draw
        plt.close("all")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar10"}, "unknown dataset 'cifar10'; accepted: mnist"),
        ({"networks": ("nmODE",)}, "unknown network 'nmODE'; accepted: ReLU"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"test_images": 10**6, "dataset": "digits"}, "has 500 test images"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        execute(nmode_mnist.EXPERIMENT, nmode_mnist.Config(out=tmp_path, **settings))
    assert list(tmp_path.iterdir()) == []


def test_every_network_is_made_and_optimised_as_it_says():
    @jax.jit
    def first_weights(key):
        """Before and after one update by a gradient of zero: decay and clipping alone act."""
        found = {}
        for name, network in nmode_mnist.NETWORKS.items():
            if not network.certificates:  # the neural ODEs: no first weight, nothing done to it
                continue
            model, _ = eqx.nn.make_with_state(network.make)((8, 8, 1), key=key, width=16)
            params = eqx.filter(model, eqx.is_inexact_array)
            optimizer = network.optimizer(1, 1)
            zero = jax.tree.map(lambda p: 0 * p, params)
            updates, _ = optimizer.update(zero, optimizer.init(params), params)
            both = params, eqx.apply_updates(params, updates)
            found[name] = [nmode_mnist.first_weight(p) for p in both]
        return found

    for name, both in first_weights(jax.random.key(0)).items():
        before, weight = np.abs(both)
        if "wd" in name:
            # Adam's first step is about the learning rate, whatever the gradient's size.
            far = before > 1e-2
            np.testing.assert_allclose(weight[far], before[far] - 1e-3, atol=2e-4)
        elif "clip" in name:
            np.testing.assert_allclose(weight, np.minimum(before, 0.05), atol=1e-7)
        else:
            np.testing.assert_array_equal(weight, before)


@pytest.mark.slow
def test_the_attractor_and_the_example_keep_to_the_theorem(tmp_path):
    execute(nmode_figures.EXPERIMENT, nmode_figures.Config(out=tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    attractor, example = result["attractor"], result["example"]
    assert np.all(np.array(attractor["spread"]) <= attractor["bound"])
    apart = {family: np.array(ys) for family, ys in example["apart"].items()}
    assert apart["nmODE"].max() < example["epsilon"] < apart["P-nmODE"].max()
    at = int(np.argmin(np.abs(np.array(example["times"]) - 0.6)))
    for family in apart:  # Table 1's columns
        row = np.array(nmode_table1.PAPER[family, 0.6])
        np.testing.assert_allclose(apart[family][at], np.abs(row[[0, 3]] - row[[1, 4]]), atol=1e-4)
    # The largest slope is below Eq. (4)'s, and both fall as lambda grows.
    eq4, slope = np.array(result["epsilon"]["eq4"]), np.array(result["epsilon"]["slope"])
    assert np.all(slope < eq4)
    assert np.all(np.diff(slope) < 0)
    assert {f"fig{i}.png" for i in (2, 3, 4)} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_ablation_resumes_and_draws(tmp_path):
    attacks = {name: PGD(3, None) for name in nmode_ablation.ATTACKS}
    config = nmode_ablation.Config(dataset="digits", sweeps=("scale",), epochs=2, test_images=30)
    config.out = tmp_path
    execute(nmode_ablation.EXPERIMENT, config, attacks=attacks)
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["runs"]) == 4
    for record in result["runs"].values():
        interval = record["interval"]
        assert 0 <= interval["certified"] <= interval["attacked"] <= interval["clean"]
    assert (tmp_path / "ablation.png").stat().st_size > 10_000

    config.resume = True
    execute(nmode_ablation.EXPERIMENT, config, attacks={})  # nothing is measured again
    assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.slow
def test_rescaling_is_to_multiply_the_activation(tmp_path):
    train = data.load("digits", "train").take(slice(512))
    factor, nmode = 7.0, NmODE(3.0, 0.05)

    def activation(gamma):
        return factor * nmode(gamma)

    def make(*args, **settings):
        return MLP(*args, depth=1, activation=activation, **settings)

    networks = {
        "direct": nmode_mnist.Network(make),
        "rescaled": nmode_ablation.Point(32, 5, 0.05, factor=factor).network(),
        "plain": nmode_ablation.Point(32, 5, 0.05).network(),
    }
    logits = {}
    for name, network in networks.items():
        predictor, _ = nmode_mnist.train_network(network, train, 5, 32, 0, tmp_path / name)
        logits[name] = np.asarray(jax.vmap(predictor)(train.pixels))
    np.testing.assert_allclose(logits["rescaled"], logits["direct"], rtol=1e-3, atol=2e-3)
    assert np.abs(logits["plain"] - logits["direct"]).max() > 0.03


def test_every_dimension_and_time_is_what_its_name_says():
    setting = nmode_ablation.SETTINGS["digits"]
    lines = nmode_ablation.sweeps(setting)
    assert set(lines) == set(nmode_ablation.Config.sweeps)
    for value, point in lines["dimension"].items():
        assert (point.width, point.epochs) == (int(value), 2 * setting.epochs)
    for line, name in (("time", "t1"), ("lambda", "lam")):
        for value, point in lines[line].items():
            model = point.network().make((8, 8, 1), 10, width=4, key=jax.random.key(0))
            assert getattr(model.nmode, name) == float(value)


@pytest.mark.slow
def test_perturbed_digits(tmp_path):
    contenders = {name: nmode_perturbations.CONTENDERS[name] for name in ("ReLU", "nmODE t=1")}
    config = nmode_perturbations.Config(dataset="digits", epochs=5, test_images=100, out=tmp_path)
    execute(nmode_perturbations.EXPERIMENT, config, contenders=contenders)
    result = json.loads((tmp_path / "result.json").read_text())
    for record in result["runs"].values():
        unperturbed = {accuracies[0] for accuracies in record["accuracy"].values()}
        assert len(unperturbed) == 1
        assert unperturbed.pop() > 0.5
        for kind in ("Gaussian noise", "resize"):
            assert record["accuracy"][kind][-1] < record["accuracy"][kind][0]
    assert (tmp_path / "perturbations.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", [nmode_ablation, nmode_perturbations], ids=lambda s: s.KIND)
def test_scripts_name_wrong_arguments(script, tmp_path):
    for settings, message in (
        ({"dataset": "cifar10"}, "unknown dataset 'cifar10'; accepted: mnist"),
        ({"epochs": 0}, "epochs must be at least 1; got 0"),
        ({"dataset": "digits", "test_images": 501}, "has 500 test images; got 501"),
    ):
        with pytest.raises(UsageError, match=message):
            execute(script.EXPERIMENT, script.Config(out=tmp_path, **settings))
    with pytest.raises(UsageError, match="unknown sweep 'depth'; accepted: time"):
        execute(
            nmode_ablation.EXPERIMENT,
            nmode_ablation.Config(dataset="digits", sweeps=("depth",), out=tmp_path),
        )
    with pytest.raises(UsageError, match="no sweeps; accepted: time"):
        execute(
            nmode_ablation.EXPERIMENT,
            nmode_ablation.Config(dataset="digits", sweeps=(), out=tmp_path),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_cifar_script_goes_on_from_a_pretrained_network(tmp_path):
    name = "ResNet + nmODE"
    network = dataclasses.replace(nmode_cifar.NETWORKS[name], eps={"linf": (1 / 255,), "l2": ()})
    names = (*nmode_cifar.PAPERS_ATTACK, *nmode_cifar.STRONGEST)
    execute(
        nmode_cifar.EXPERIMENT,
        nmode_cifar.Config(preset="smoke", networks=(name,), out=tmp_path),
        networks={name: network},
        attacks={name: PGD(2, None) for name in names},
        load=lambda config, n: (data.load("digits", "train"), data.load("digits", "test")),
    )
    record = json.loads((tmp_path / "result.json").read_text())["runs"]["ResNet + nmODE"]
    (interval,) = record["balls"]["linf"]
    assert 0 <= interval["attacked"] <= interval["clean"]
    assert (tmp_path / "cifar.png").stat().st_size > 10_000

    # Read from the checkpoints: batch statistics go on too, nothing is left in inference mode.
    train = data.load("digits", "train").take(slice(256))
    preset, folder = nmode_cifar.PRESETS["smoke"]["cifar10"], tmp_path / "checkpoints"
    recipe = nmode_cifar._recipe(partial(PreActResNet, depth=8), nmode_cifar.PRETRAINED, 1)
    first = fitted(recipe, train, jax.random.key(0), folder / "pretrained")
    second, _ = nmode_cifar.train_network(name, network, train, preset, 0, folder)
    for one, other in zip(jax.tree.leaves(first.state), jax.tree.leaves(second.state), strict=True):
        assert not np.array_equal(one, other)
