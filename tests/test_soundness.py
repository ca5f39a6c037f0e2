"""The study of soundness: what it counts as wrong, and that its attacks reach what they can."""

import json

import jax
import numpy as np
import pytest
from helpers import linear_logits
from rich.console import Console

from experiments import soundness
from experiments.lib.run import UsageError, execute
from odejax import L2Ball, LinfBall

LABELS = np.array([0, 1])


def test_a_bound_above_an_attacked_margin_is_a_violation_and_so_is_nan():
    attacked = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, -1.0]])
    exact = soundness.summary({"c": attacked}, attacked, LABELS)
    assert exact["certificates"]["c"] == {"violations": 0, "smallest_gap": 0.0, "median_gap": 0.0}
    assert exact["bounds"] == 4
    assert exact["worst"] == {"c": [1.0, -1.0], "attacked": [1.0, -1.0]}
    low = attacked - 0.5
    low[0, 0] = 9.0  # the label's own, which is no bound
    low[1, 0] = 3.0001
    low[0, 2] = np.nan
    wrong = soundness.summary({"c": low}, attacked, LABELS)["certificates"]["c"]
    assert wrong["violations"] == 2
    assert wrong["smallest_gap"] == pytest.approx(-1e-4)
    nothing = np.full_like(attacked, -np.inf)
    unbounded = soundness.summary({"c": nothing}, attacked, LABELS)
    assert unbounded["certificates"]["c"]["violations"] == 0
    assert unbounded["certificates"]["c"]["median_gap"] is None
    assert unbounded["worst"]["c"] == [soundness.LOWEST] * 2


@pytest.mark.parametrize("ball", [LinfBall(0.05), L2Ball(0.3)])
def test_descent_reaches_the_least_margin_of_a_linear_network(ball):
    network = linear_logits(n_classes=3)
    images = np.full((2, 8, 8, 1), 0.5, np.float32)
    keys = jax.random.split(jax.random.key(0), (2, 2))
    points = soundness._descend(network, images, LABELS, ball, keys, 20)
    assert points.shape == (2, 3 * 2, 8, 8, 1)
    least = soundness.least_margins(network, images, LABELS, ball, np.asarray(points))
    weight, bias = (np.asarray(a, np.float64) for a in (network.weight, network.bias))
    order = 1 if isinstance(ball, LinfBall) else 2
    for i, label in enumerate(LABELS):
        rows = weight[label] - weight
        exact = rows.sum(axis=1) / 2 + bias[label] - bias
        exact -= float(ball.eps) * np.linalg.norm(rows, order, axis=1)
        np.testing.assert_allclose(least[i], exact, atol=1e-3)
        assert (least[i] >= exact - 1e-9).all()  # float64, and in the ball


def test_points_outside_the_ball_are_projected():
    network, images = linear_logits(n_classes=3), np.full((2, 8, 8, 1), 0.5, np.float32)
    points = np.random.default_rng(0).uniform(size=(2, 3, 8, 8, 1))
    least = soundness.least_margins(network, images, LABELS, LinfBall(0.0), points)
    logits = np.asarray(network.weight, np.float64).sum(axis=1) / 2 + np.asarray(network.bias)
    assert least.dtype == np.float64
    np.testing.assert_allclose(least, logits[LABELS][:, None] - logits, atol=1e-12)


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'paper'; accepted: cpu, ci"):
        execute(soundness.EXPERIMENT, soundness.Config(preset="paper", out=tmp_path))


@pytest.mark.slow
def test_no_proven_margin_is_above_an_attacked_one(tmp_path):
    execute(soundness.EXPERIMENT, soundness.Config(preset="ci", out=tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["networks"]) == ["MLP", "ResNet, BatchNorm"]
    preset = soundness.PRESETS["ci"]["digits"]
    total = 0
    for network in result["networks"].values():
        assert network["clean_accuracy"] > 0.6
        for rows in network["balls"].values():
            for row in rows:
                for of in row["certificates"].values():
                    assert of["violations"] == 0
                    assert of["smallest_gap"] >= 0
                    total += row["bounds"]
            worst = rows[0]["worst"]
            # Within the least radius CROWN is tight: the attacks and the proof nearly meet.
            assert np.median(np.subtract(worst["attacked"], worst["CROWN"])) < 0.1
    assert total == 2 * 2 * 2 * preset.test_images * 9 * len(soundness.CERTIFICATES)
    assert soundness.finding(result) == f"None of {total:,} proven margins is above an attacked one"
    console = Console(width=80, record=True)
    for table in soundness.tables(result):
        console.print(table)
    assert "smallest gap" in console.export_text()
    assert (tmp_path / "margins.png").exists()
    row = result["networks"]["MLP"]["balls"]["l2"][0]
    row["certificates"]["CROWN"]["violations"] = 1
    assert soundness.finding(result).startswith("1 of 1,728 proven margins are above")
