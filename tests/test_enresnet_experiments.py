"""The experiments of *enresnet*, small."""

import dataclasses
import json
from functools import partial
from statistics import NormalDist

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import LinearLogits
from rich.console import Console

from experiments.enresnet import (
    cifar as enresnet_cifar,
    fig4 as enresnet_fig4,
    networks as enresnet,
    report as enresnet_report,
)
from experiments.ledger.printed import claims_of
from experiments.lib.run import UsageError, execute
from odejax import LinfBall, load as load_network, predict
from odejax.attacks import PGD, AutoAttack
from odejax.data import ArrayDataset, load
from odejax.evaluation import encode_array, save_result
from odejax.models import MLP, EnResNet, PreActResNet
from odejax.solvers import RelativeNoise


@pytest.mark.slow
def test_fig4_keeps_its_principles_where_the_grid_resolves_the_solution(tmp_path):
    config = enresnet_fig4.Config(points=32, steps=120, out=tmp_path)
    execute(enresnet_fig4.EXPERIMENT, config)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "fig4.png").stat().st_size > 10_000
    solutions = result["solutions"]
    # Diffusion makes every solution flatter.
    for records in solutions.values():
        gradients = [r["gradient"] for r in records if r["finite"]]
        assert gradients == sorted(gradients, reverse=True)
        assert records[-1]["finite"]
    for record in solutions["smooth"]:
        assert record["gradient"] < record["bound"]
        assert record["min"] > -0.03
        assert record["max"] < 1.03
        # Theorem 1's form, by coupling: beyond the scheme's own error.
        compared = record["differences"] if record["sigma"] else []
        assert all(one["difference"] < one["bound"] + 0.03 for one in compared)
        assert bool(compared) == (record["sigma"] > 0)
    assert (tmp_path / "fig4_theorem1.png").stat().st_size > 10_000


def test_fig4_shows_an_overflow_and_a_bound(tmp_path):
    picture = encode_array(np.linspace(0, 1, 16).reshape(4, 4))
    finite = {"finite": True, "u": picture, "gradient": 1.25, "min": 0.125, "max": 0.75}
    solutions = {name: [finite | {"sigma": s} for s in (0.0, 0.1)] for name in ("every", "smooth")}
    solutions["smooth"] = [record | {"bound": 7.0} for record in solutions["smooth"]]
    solutions["fixed"] = [{"sigma": 0.0, "finite": False}]
    solutions["every step"] = solutions.pop("every")
    settings = {"points": 4, "steps": 3}
    result = {"settings": settings, "terminal": picture, "solutions": solutions}
    console = Console(width=80, record=True)
    console.print(*enresnet_fig4.tables(result))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["smooth", "0.1", "0.12", "0.75", "1.25", "7"] in rows
    assert ["every", "step", "0", "0.12", "0.75", "1.25"] in rows
    assert ["fixed", "0", "overflow"] in rows
    drawn = enresnet_fig4.figure(result)
    said = [text.get_text() for axis in drawn.axes for text in axis.texts]
    plt.close(drawn)
    assert said == ["overflow"]


@pytest.mark.parametrize(("gamma", "sigma"), [(0.0, 0.5), (1.5, 0.5), (-1.0, 0.5)])
def test_two_paths_are_coupled_as_often_as_the_bound_says(gamma, sigma):
    # F(x) = gamma x has u in closed form, and of f = sign(x) the bound is attained at x = 0.
    spread = sigma * (np.expm1(2 * gamma) / (2 * gamma) if gamma else 1.0) ** 0.5
    distance = 0.4
    mean = np.exp(gamma) * distance / 2
    u = 2 * NormalDist().cdf(mean / spread) - 1  # u(distance / 2), and -u at -distance / 2
    assert enresnet_fig4.uncoupled(distance, gamma, sigma) == pytest.approx(u, rel=1e-6)


def test_nearby_points_are_compared_by_their_distance():
    x = np.arange(8) / 8
    u = np.cos(2 * np.pi * x)[:, None] * np.ones(8)
    measured = enresnet_fig4.differences(u, u, 0.0, 0.1)
    along = {one["distance"]: one["difference"] for one in measured}
    # |cos(a + h) - cos(a)| is at most 2 sin(h / 2), on a grid in phase with it.
    assert along[0.5] == pytest.approx(2.0)
    assert along[0.25] == pytest.approx(np.abs(np.roll(u, 2, 0) - u).max())
    assert all(one["bound"] <= 2 for one in measured)
    assert sorted(along) == pytest.approx([1 / 8, 2**0.5 / 8, 1 / 4, 2**0.5 / 4, 1 / 2, 2**0.5 / 2])


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="steps must be at least 1; got 0"):
        execute(enresnet_fig4.EXPERIMENT, enresnet_fig4.Config(steps=0))


def quick(out, **settings):
    """The smoke preset on digits, with short attacks and networks that compile in a second."""
    ensemble = partial(EnResNet, members=2, noise=RelativeNoise(0.1), depth=1, width=4)
    smoke = dataclasses.replace(
        enresnet_cifar.SIZES["smoke"], batch_size=64, ball=LinfBall(0.3), epochs=3, test_images=40
    )
    return execute(
        enresnet_cifar.EXPERIMENT,
        enresnet_cifar.Config(preset="smoke", out=out, **settings),
        presets={"smoke": {"cifar10": smoke}},
        known={"ResNet20": lambda _: partial(MLP, width=16), "En2 ResNet20": lambda _: ensemble},
        attacks={name: PGD(1, None) for name in enresnet_cifar.ATTACKS},
        rand=lambda draws: AutoAttack({"APGD": PGD(2, None)}),
        load=lambda config, n: (load("digits", "train"), load("digits", "test")),
    )


@pytest.mark.slow
def test_the_tables_are_of_what_was_trained_and_resume(tmp_path):
    quick(tmp_path)
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    pair = ("ResNet20", "En2 ResNet20")
    trained = {f"{training}/{name}/0" for training in ("natural", "robust") for name in pair}
    blind = {f"blind/{a} <- {b}/0" for a, b in (pair, pair[::-1])}
    joined = {f"integrated/ResNet20 + {second}/0" for second in pair}
    assert set(runs) == trained | blind | joined
    # The control is of two networks, not of one twice.
    folders = {path.parent.name for path in (tmp_path / "checkpoints").rglob("network.odejax")}
    assert {"robust_ResNet20_0", "robust_ResNet20again_0"} <= folders
    first, second = (
        load_network(tmp_path / "checkpoints" / f"robust_{name}_0" / "network.odejax").model
        for name in ("ResNet20", "ResNet20again")
    )
    assert not eqx.tree_equal(first, second)
    for name, record in runs.items():
        if name in trained:
            assert len(record["history"]) == 3
            best = max(record["history"], key=lambda epoch: epoch["validation"])
            assert record["history"][record["best_epoch"] - 1] == best
            # Noise was seen where there is some, and nowhere else.
            assert ("randomised output" in record["flags"]) == ("En2" in name)

    result = json.loads((tmp_path / "result.json").read_text())
    console = Console(width=200, record=True)
    for table in enresnet_report.tables(result):
        console.print(table)
    shown = console.export_text()
    assert all(f"Table{number}" in shown for number in (" 1", "s 2", " 3", " 7"))
    assert "En2 ResNet8" in shown
    row = next(line for line in shown.splitlines() if "paper, En2 ResNet20" in line)
    assert row.split()[-2:] == ["92.6", "0.0"]
    assert (tmp_path / "fig5.png").stat().st_size > 10_000
    broken = any(runs[f"robust/{name}/0"]["example"]["labels"] for name in pair)
    assert (tmp_path / "fig6.png").exists() == broken

    before = (tmp_path / "result.json").read_bytes()
    quick(tmp_path, resume=True)
    assert (tmp_path / "result.json").read_bytes() == before

    # Networks are joined only where that is asked for.
    for name in joined:
        del result["runs"][name]
    without = {name: part for name, part in result.items() if name != "digest"}
    save_result(tmp_path / "result.json", enresnet_cifar.KIND, without)
    quick(tmp_path, resume=True, integrate=False)
    kept = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert set(kept) == trained | blind


def test_every_network_of_the_paper_is_built_with_its_depth():
    preset = enresnet_cifar.SIZES["paper"]
    for dataset, networks in (("cifar10", 14), ("cifar100", 6)):
        tables = (*enresnet.TABLES["natural"], *enresnet.TABLES["robust"])
        shown = {claim.model for claim in claims_of("enresnet", dataset, *tables)}
        assert shown <= set(enresnet.NETWORKS)
        assert len(shown) == networks
        for kind in ("blind", "integrated"):
            pairs = enresnet.printed_pairs(kind, dataset)
            assert {name for pair in pairs for name in pair} <= set(enresnet.NETWORKS)
    base = enresnet.NETWORKS["ResNet110"](preset)
    assert (base.func, base.keywords) == (PreActResNet, {"depth": 110})
    ensemble = enresnet.NETWORKS["En5 ResNet20"](preset).keywords
    assert (ensemble["members"], ensemble["depth"]) == (5, 20)
    silent = enresnet.NETWORKS["2 ResNet20, no noise"](preset).keywords
    assert (silent["members"], float(np.asarray(silent["noise"].a))) == (2, 0.0)
    wide = enresnet.NETWORKS["En1 WRN-34-10"](preset).keywords
    assert (wide["depth"], wide["width"], wide["members"]) == (34, 10, 1)
    small = {str(paper): depth for paper, depth in enresnet_cifar.SIZES["cpu"].depths.items()}
    assert enresnet.shown("En1 ResNet20 & En1 ResNet32", small) == "En1 ResNet8 & En1 ResNet14"


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("ResNet20",), [("ResNet20", "ResNet20")]),
        (
            ("ResNet20", "En2 ResNet20"),
            [("ResNet20", "En2 ResNet20"), ("ResNet20", "ResNet20")],
        ),
        (("ResNet20", "ResNet44"), [("ResNet20", "ResNet20"), ("ResNet20", "ResNet44")]),
        (("En1 ResNet20",), []),
    ],
)
def test_two_resnets_of_one_kind_are_integrated_as_a_control(names, pairs):
    published = enresnet.printed_pairs("integrated", "cifar10")
    assert enresnet_cifar._pairs(names, published) == pairs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "large"}, "unknown preset 'large'; accepted: paper, cpu, smoke"),
        ({"dataset": "mnist"}, "dataset for the preset cpu 'mnist'; accepted: cifar10, cifar100"),
        ({"networks": ("ResNet18",)}, "unknown network 'ResNet18'"),
        ({"trainings": ()}, "no trainings; accepted: natural, robust"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        execute(enresnet_cifar.EXPERIMENT, enresnet_cifar.Config(**settings))


def test_the_attacks_and_the_schedule_are_the_papers():
    paper = enresnet_cifar.SIZES["paper"]
    ifgsm, cw = enresnet_cifar.ATTACKS["IFGSM-20"], enresnet_cifar.ATTACKS["C&W"]
    assert (ifgsm.steps, ifgsm.step_size, ifgsm.random_start) == (20, 2 / 255, False)
    assert (cw.steps, cw.learning_rate, cw.c, cw.kappa) == (50, 6e-4, 10, 0)
    assert float(enresnet.BALL.eps) == pytest.approx(8 / 255)
    assert (paper.train_images - paper.held_out, paper.pgd_steps) == (45_000, 10)
    assert paper.batch_size == 128
    steps = 45_000 // paper.batch_size
    rate = enresnet.schedule(paper)(steps, paper.epochs)
    for epoch, expected in ((0, 0.1), (79, 0.1), (80, 0.01), (119, 0.01), (120, 1e-3), (160, 1e-4)):
        assert float(rate(epoch * steps + 1)) == pytest.approx(expected)


def test_a_blind_attack_is_made_on_the_oracle_and_judged_by_the_target():
    two = {name: enresnet_cifar.ATTACKS[name] for name in ("FGSM", "IFGSM-20")}
    data = load("digits", "test").take(slice(30))
    size = data.images[0].size
    target = LinearLogits(
        jnp.asarray(np.random.default_rng(0).normal(size=(10, size))), jnp.zeros(10)
    )
    labels = predict(target, data.images, key=jax.random.key(0)).argmax(axis=1).astype(np.int32)
    data = ArrayDataset(data.images, labels, data.n_classes)
    constant = LinearLogits(jnp.zeros((10, size)), jnp.zeros(10))
    unmoved = enresnet_cifar._blind(target, constant, data, 0, two, enresnet.BALL)["per_attack"]
    assert set(unmoved.values()) == {1.0}  # a constant oracle has no gradient to follow
    attacked = enresnet_cifar._blind(target, target, data, 0, two, enresnet.BALL)["per_attack"]
    assert attacked["IFGSM-20"] < 0.5


def test_the_tables_print_what_the_paper_has_and_nothing_where_it_has_nothing():
    attacks = dict.fromkeys(("FGSM", "IFGSM-20", "C&W", "AA-rand"), 0.5)
    record = {"clean_accuracy": 0.8, "per_attack": attacks}
    names = ("natural/En2 ResNet20", "natural/WRN-14-2", "robust/WRN-14-2")
    names += ("blind/ResNet20 <- En5 ResNet20", "integrated/ResNet20 + ResNet44")
    depths = {str(depth): depth for depth in enresnet_cifar.SIZES["paper"].depths}
    result = {"settings": {"dataset": "cifar10", "depths": depths, "clean_images": 10_000}}
    result["runs"] = {f"{name}/{seed}": record for name in names for seed in (0, 1)}
    console = Console(width=120, record=True)
    for table in enresnet_report.tables(result):
        console.print(table)
    rows = [line.split() for line in console.export_text().splitlines()]
    printed = [row[1:] for row in rows if row[:1] == ["paper"]]
    assert printed == [
        ["92.6", "0.0"],
        ["78.4", "52.9", "48.9", "60.3"],
        ["61.7", "58.7", "73.8"],
        ["77.9", "54.7", "51.5", "61.8"],
    ]
    assert ["WRN-14-2", "80.0", "±", "0.0", "50.0", "±", "0.0"] in rows
