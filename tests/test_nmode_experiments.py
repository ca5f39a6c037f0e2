"""The scripts of *nmode*: Table 1 digit for digit, and the MNIST tables on a few digits."""

import json

import equinox as eqx
import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import nmode_mnist, nmode_table1
from experiments._cli import UsageError
from odejax.attacks import PGD


def test_table_1_is_the_papers_to_every_digit_but_its_misprint(tmp_path):
    nmode_table1.main(nmode_table1.Config(out=tmp_path))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == 6
    for row in rows:
        ours = nmode_table1.printed_row(row["Dopri5, 1e-7"])
        printed = [nmode_table1.as_printed(value) for value in row["paper"]]
        if (row["family"], row["t"]) == ("P-nmODE", 0.6):
            assert (printed[2], ours[2]) == ("0.0837", "0.0891")
            printed[2] = ours[2]
        assert ours == printed
        # The second solver agrees to what the first one's tolerance promises.
        np.testing.assert_allclose(row["Dopri8, 1e-8"], row["Dopri5, 1e-7"], rtol=5e-5, atol=1e-5)


@pytest.fixture
def quick(monkeypatch):
    attacks = {
        ball: {name: PGD(3, None) for name in named} for ball, named in nmode_mnist.ATTACKS.items()
    }
    monkeypatch.setattr(nmode_mnist, "ATTACKS", attacks)
    return {"dataset": "digits", "epochs": 2, "seeds": 1, "test_images": 30}


def test_the_tables_resume_and_hold_the_interval(quick, tmp_path):
    networks = ("ReLU", "nmODE+ t=0.05, clip")
    config = nmode_mnist.Config(networks=networks, out=tmp_path, **quick)
    nmode_mnist.main(config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["runs"]) == {f"{name}/{seed}" for name in networks for seed in (0,)}
    for name, record in result["runs"].items():
        for intervals in record["balls"].values():
            for interval in intervals:
                assert 0 <= interval["certified"] <= interval["attacked"] <= interval["clean"]
                expected = 1 if name.startswith("ReLU") else 4
                assert len(interval["per_certificate"]) == expected
        if "clip" in name:
            assert record["tau"] <= 0.05 * 64 * (1 + 1e-5)
    console = Console(width=200, record=True)
    for table in nmode_mnist.tables(result):
        console.print(table)
    shown = console.export_text()
    assert all(f"Table {number}" in shown for number in (2, 3, 5))
    clip = next(line for line in shown.splitlines() if "clip" in line and " 0.01 " in line)
    proven = result["runs"]["nmODE+ t=0.05, clip/0"]["balls"]["linf"][0]["per_certificate"]
    assert clip.split()[-4:] == [f"{100 * fraction:.1f}" for fraction in proven.values()]

    before = (tmp_path / "result.json").stat().st_mtime_ns
    config.resume = True
    nmode_mnist.main(config)  # nothing is left to do
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


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
        nmode_mnist.main(nmode_mnist.Config(out=tmp_path, **settings))
    assert list(tmp_path.iterdir()) == []


def test_every_network_is_made_and_optimised_as_it_says():
    # One update by a gradient of zero: weight decay and clipping alone act.
    for name, network in nmode_mnist.NETWORKS.items():
        model, _ = eqx.nn.make_with_state(network.make)((8, 8, 1), key=jax.random.key(0), width=16)
        params = eqx.filter(model, eqx.is_inexact_array)
        optimizer = network.optimizer()
        zero = jax.tree.map(lambda p: 0 * p, params)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        weight = np.abs(nmode_mnist.first_weight(eqx.apply_updates(params, updates)))
        before = np.abs(nmode_mnist.first_weight(params))
        if "wd" in name:
            # Adam's first step is about the learning rate, whatever the gradient's size.
            far = before > 1e-2
            np.testing.assert_allclose(weight[far], before[far] - 1e-3, atol=2e-4)
        elif "clip" in name:
            np.testing.assert_allclose(weight, np.minimum(before, 0.05), atol=1e-7)
        else:
            np.testing.assert_array_equal(weight, before)
