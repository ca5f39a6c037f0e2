"""The experiments of *structured* and *ssp*, small."""

import dataclasses
import io
import json
from functools import partial

import diffrax
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.ledger import claims
from experiments.ledger.printed import all_claims
from experiments.lib.recipe import Recipe, adam, one_cycle, train
from experiments.lib.run import UsageError, execute
from experiments.ssp import burgers as ssp_burgers
from experiments.structured import networks as structured
from odejax.attacks import APGD, AutoAttack
from odejax.data import load
from odejax.evaluation import save_result
from odejax.models import LipschitzNet
from odejax.solvers import SSPRK33
from odejax.training import CrossEntropy, Hinge, Penalised


def printed(*tables) -> str:
    console = Console(width=80, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def quick_recipe(name, kind, preset, loss, eta):
    """One small network, which compiles fast."""
    make = partial(LipschitzNet, width=2, depth=1, features=16)
    return Recipe(make, 8, 64, adam(one_cycle(2e-2)), loss)


QUICK = {"preset": "smoke", "test_images": 16}
GIVEN = {"recipe_of": quick_recipe, "last": AutoAttack({"APGD": APGD(steps=3)})}


@pytest.mark.slow
def test_the_table_and_figure_hold_the_interval(tmp_path):
    networks = ("convex potential",)
    config = structured.Config(**QUICK, networks=networks, out=tmp_path)
    execute(structured.EXPERIMENT, config, **GIVEN)
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["runs"]) == ["convex potential/0"]
    record = result["runs"]["convex potential/0"]
    for bracket in record["brackets"]:
        assert bracket["certified"] <= bracket["attacked"] <= bracket["per_attack"]["PGD-10"]
    assert record["lipschitz_bound"] == pytest.approx(1, abs=1e-3)
    assert record["brackets"][0]["certified"] > 0
    assert record["steps"] == [1.0] * 2  # one of convolutions, one dense
    text = printed(*structured.tables(result))
    assert "convex potential" in text
    assert max(map(len, text.splitlines())) <= 80
    plt.close(structured.figure(result))
    # Nothing is trained or attacked again.
    config.resume = True
    execute(structured.EXPERIMENT, config, recipe_of=None)
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_held_out_images_and_a_loss_are_as_asked_for(tmp_path):
    losses = []

    def recipe(name, kind, preset, loss, eta):
        losses.append(loss)
        raise KeyboardInterrupt

    config = structured.Config(
        **QUICK, networks=("convex potential",), margin=0.5, temperature=0.25, held_out=100
    )
    config.out = tmp_path
    with pytest.raises(KeyboardInterrupt):
        execute(structured.EXPERIMENT, config, recipe_of=recipe)
    assert losses == [CrossEntropy(0.25, 0.5)]
    train, test = structured.plan(config).data
    assert test.split == "validation"
    assert (len(train), len(test)) == (len(load("digits", "train")) - 100, 100)
    settings = json.loads((tmp_path / "result.json").read_text())["settings"]
    shown = "digits, 16 held-out images, margin 0.5, temperature 0.25"
    assert structured._setting(settings) == shown
    with pytest.raises(UsageError, match="started with held_out 100, not 200"):
        execute(structured.EXPERIMENT, dataclasses.replace(config, held_out=200, resume=True))


def test_means_over_eps_are_interpolated_but_for_what_is_certified():
    # Of accuracies 1, 1/2, 0 at 0, 1, 3: 3/4 over a third of the way and 1/4 over the rest.
    brackets = [
        {"eps": eps, "clean": 1.0, "per_attack": {"PGD-10": at}, "per_certificate": {}}
        | dict.fromkeys(("attacked", "certified", "certified of all"), at)
        for eps, at in ((1.0, 0.5), (3.0, 0.0))
    ]
    mean = structured.mean_over_eps(brackets)
    for interpolated in (mean["per_attack"]["PGD-10"], mean["attacked"]):
        assert interpolated == pytest.approx((0.75 + 2 * 0.25) / 3)
    for certified in (mean["certified"], mean["certified of all"]):
        assert certified == pytest.approx(0.5 / 3)


def test_the_table_fits_with_several_seeds_and_the_papers_figures():
    preset = structured.PRESETS["paper"]["cifar10"]
    bracket = {"ball": "l2", "clean": 0.9, "attacked": 0.5, "certified": 0.25, "flags": {}}
    bracket |= {"per_attack": {"PGD-10": 0.75}, "per_certificate": {"LipschitzMargin": 0.25}}
    brackets = [bracket | {"eps": eps, "per_transfer": {}} for eps in preset.eps]
    records = {
        f"{name}/{seed}": {
            "clean_accuracy": 0.8 + seed / 10,
            "lipschitz_bound": 1.0,
            "certified_of_all": [0.2 + seed / 10] * len(brackets),
            "brackets": brackets,
        }
        for name in structured.NAMES
        for seed in range(2)
    }
    settings = dataclasses.asdict(preset) | {"dataset": "cifar10"}
    text = printed(*structured.tables({"settings": settings, "runs": records}))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    papers = [line.split()[1:] for line in lines if line.split()[:1] == ["paper"]]
    assert any("79.4" in figures for figures in papers)  # of non-expansive
    assert text.count("25.0 ± 7.1") == len(structured.NAMES) * (len(brackets) + 1)  # the mean


@pytest.mark.parametrize("name", structured.NAMES)
def test_switching_steps_alone_are_trained_with_a_penalty(name):
    preset = structured.PRESETS["smoke"]["digits"]
    objective = structured.recipe(name, "smoke", preset, Hinge(1.0), 0.5).objective
    assert isinstance(objective, Penalised) == ("switching" in name)


# Like "switching flexible": of StructuredNet, bounded by 1, two or three seconds each.
OF_THE_SAME_KIND = ("non-expansive", "switching prescribed")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in OF_THE_SAME_KIND else [])
        for name in structured.NAMES
    ],
)
def test_every_name_makes_its_network(name):
    preset = structured.PRESETS["smoke"]["digits"]
    make = eqx.nn.make_with_state(structured.network(name, preset))

    @eqx.filter_jit
    def bound_of(key):
        return make((8, 8, 1), key=key)[0].lipschitz_bound()

    bound = float(bound_of(jax.random.key(0)))
    assert bound > 1.5 if "constrained" in name else bound <= 1 + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1e-6, 10.0])
def test_switching_steps_expand_where_maps_are_kept_orthogonal(eta):
    preset = dataclasses.replace(structured.PRESETS["smoke"]["digits"], depth=2, epochs=4)
    recipe = structured.recipe("switching prescribed", "smoke", preset, Hinge(1.0), eta)
    predictor, _ = train(recipe, load("digits", "train"), jax.random.key(0))
    first, second = structured._steps(predictor.model)
    assert first > 0
    assert second < -1 if eta > 1 else second > -0.5
    assert float(predictor.model.lipschitz_bound()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; accepted: paper, cpu, smoke"),
        ({"dataset": "cifar10"}, "dataset for the preset cpu 'cifar10'; accepted: digits, mnist"),
        ({"networks": ("ResNet",)}, "unknown network 'ResNet'"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"held_out": 0}, "held-out must be at least 1; got 0"),
        ({"held_out": 50}, "held-out must be at least the 100 images that are attacked"),
        ({"held_out": 5000}, "less than the .* of digits's training set; got 5000"),
        ({"margin": -1.0}, "margin must be finite and positive; got -1.0"),
        ({"margin": float("nan")}, "margin must be finite and positive; got nan"),
        ({"orthogonality": -0.1}, "orthogonality must be finite and positive; got -0.1"),
        ({"temperature": 0.0}, "temperature must be finite and positive; got 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        execute(structured.EXPERIMENT, structured.Config(**arguments))


def test_the_ledger_reads_a_run_of_the_papers_size_alone(tmp_path):
    claim = next(c for c in all_claims() if c.paper == "structured" and c.eps == "36/255")
    preset = structured.PRESETS["paper"]["cifar10"]
    record = {
        "device": "cpu",
        "clean_accuracy": 0.9,
        "brackets": [
            {
                "eps": 36 / 255, "n": 1024, "attacked": 0.5, "certified": 0.25, "flags": {},
                "per_attack": {"PGD-10": 0.75}, "per_certificate": {"LipschitzMargin": 0.25},
            }
        ],
    }  # fmt: skip
    settings = {"epochs": preset.epochs, "margin": preset.margin}
    result = {"settings": settings, "runs": {f"{claim.model}/0": record}}

    def measured():
        save_result(tmp_path / "structured_cifar10_paper.json", "structured", result)
        entries = claims.ledger(["structured"], tmp_path)
        return [e for e in entries if e.get("eps") == claim.eps and "not_measured" not in e]

    (found,) = measured()
    assert (found["papers_attack"], found["worst_attack"], found["certified"]) == (75, 50, 25)
    for other in ({"margin": 0.3}, {"epochs": 1}):
        result["settings"] = settings | other
        assert measured() == []


def test_every_network_of_the_paper_is_one_of_the_experiment():
    models = {c.model for c in all_claims() if c.paper == "structured"}
    assert models <= set(structured.NAMES)


@pytest.mark.slow
def test_burgers_tells_the_methods_apart(tmp_path):
    methods = {
        "Euler": (diffrax.Euler(), 1),
        "midpoint, published": ssp_burgers.METHODS["midpoint, published"],
        "SSPRK(3,3)": (SSPRK33(), 3),
    }
    config = ssp_burgers.Config(cells=100, out=tmp_path)
    given = {"methods": methods, "courants": (0.8, 4.0), "shown": 0.8}
    execute(ssp_burgers.EXPERIMENT, config, **given)
    result = json.loads((tmp_path / "result.json").read_text())
    euler, stable = (
        result["methods"][name]["largest_variation"] for name in ("Euler", "SSPRK(3,3)")
    )
    assert euler["0.8"] > 2.2 > 2.01 > stable["0.8"]
    assert euler["4"] is None
    assert "inf" in printed(*ssp_burgers.tables(result))
    assert len(result["methods"]["Euler"]["profile"]) == 100
    assert np.isfinite(result["methods"]["SSPRK(3,3)"]["profile"]).all()
    assert (tmp_path / "burgers.png").exists()


def test_burgers_needs_cells():
    with pytest.raises(UsageError, match="cells must be at least 1; got 0"):
        execute(ssp_burgers.EXPERIMENT, ssp_burgers.Config(cells=0))
