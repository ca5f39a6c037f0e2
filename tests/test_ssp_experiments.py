"""The experiment of *ssp*, small, and its place in the ledger."""

import io
import json
from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import pytest
from helpers import digits
from rich.console import Console

from experiments.ledger import claims
from experiments.lib.recipe import Recipe, adam, one_cycle
from experiments.lib.run import UsageError, execute
from experiments.ssp import networks as ssp
from odejax.attacks import APGD, PGD, AutoAttack, RelativeStep
from odejax.models import ResNet
from odejax.training import Adversarial, CrossEntropy, batch_logits


def printed(tables) -> str:
    console = Console(width=80, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two small networks, natural and robust, with two short attacks; resumed once."""
    folder = tmp_path_factory.mktemp("ssp")

    def network(name, training, dataset, preset, kind):
        make = partial(ResNet, width=2, depth=2, solver=ssp.SOLVERS[name](2))
        objective = CrossEntropy()
        if training != "natural":
            objective = Adversarial(PGD(2, 0.05, last=True), ssp.odejax.LinfBall(0.1))
        return Recipe(make, 2, 64, adam(one_cycle(2e-2)), objective)

    config = partial(
        ssp.Config, preset="smoke", test_images=8, out=folder, networks=("ResNet", "ark")
    )
    attacks = {"PGD-7": PGD(2, RelativeStep(0.2)), "PGD-50": APGD(3)}
    given = {
        "recipe_of": network,
        "attacks": lambda dataset: attacks,
        "last": AutoAttack({"APGD": APGD(4)}),
    }
    execute(ssp.EXPERIMENT, config(trainings=("natural",)), **given)
    execute(ssp.EXPERIMENT, config(resume=True), **given)
    result = json.loads((folder / "result.json").read_text())
    execute(ssp.EXPERIMENT, config(resume=True), recipe_of=None)  # nothing is trained again
    assert json.loads((folder / "result.json").read_text()) == result
    assert (folder / "ssp.png").exists()
    return folder, result


@pytest.mark.slow
def test_every_network_of_every_training_is_measured(run):
    _, result = run
    wanted = {f"{t}/{n}/0" for t in ("natural", "PGD-7") for n in ("ResNet", "ark")}
    assert set(result["runs"]) == wanted
    for record in result["runs"].values():
        assert [b["eps"] for b in record["brackets"]] == pytest.approx([0.025, 0.05, 0.1])
        for b in record["brackets"]:
            assert b["certified"] == 0 <= b["attacked"] <= min(b["per_attack"].values())


@pytest.mark.slow
def test_growth_begins_at_one_behind_the_first_block(run):
    _, result = run
    for record in result["runs"].values():
        for norms in record["growth"].values():
            for ratios in norms.values():
                assert len(ratios) == 2
                assert ratios[0] == 1
                assert ratios[1] > 0


@pytest.mark.slow
def test_images_that_nothing_moves_have_no_growth(run):
    _, result = run
    still = json.loads(json.dumps(result))
    for record in still["runs"].values():
        record["growth"]["attack"] = {"l1": [], "l2": []}
    assert printed(ssp.tables(still)).count("attack, l2: x -") == 4
    plt.close(ssp.figure(still))
    assert ssp.last_growth(list(still["runs"].values())) is None


class Flat(eqx.Module):
    """Logits that are the same everywhere, and states that are multiples of the image."""

    state: None = None

    @property
    def model(self):
        return self

    def __call__(self, x, *, key=None):
        return jnp.arange(10.0) + 0 * x.sum()

    def block_states(self, x, state):
        return [x, 2 * x, 3 * x]


def test_growth_is_the_mean_over_the_images_that_were_moved():
    attack = PGD(2, 0.05, random_start=False)
    images = digits("test").take(slice(4))
    found = ssp._growth(Flat(), images, attack, 0.1, jax.random.key(0))
    assert found["attack"] == {"l1": [], "l2": []}
    for ratios in found["random"].values():
        assert ratios == pytest.approx([1, 2, 3], rel=1e-5)


@pytest.mark.slow
def test_tables_fit_and_show_both_ends_of_the_argument(run):
    _, result = run
    text = printed(ssp.tables(result))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("all attacks") == 4 == text.count("attack, l2: x ")
    plt.close(ssp.figure(result))


@pytest.mark.slow
def test_the_ledger_sets_growth_beside_attacks(run, tmp_path):
    folder, result = run
    (tmp_path / "ssp_digits_smoke.json").write_text((folder / "result.json").read_text())
    (tmp_path / "ssp_burgers.json").write_text("{}")  # another experiment's
    rows = claims.side_by_side(tmp_path)
    assert len(rows) == 4
    by_run = {f"{row['training']}/{row['network']}/0": row for row in rows}
    for name, row in by_run.items():
        record = result["runs"][name]
        bracket = record["brackets"][0 if name.startswith("natural") else -1]
        assert row["eps"] == bracket["eps"]
        assert row["worst_attack"] == 100 * bracket["attacked"]
        assert row["growth"] == record["growth"]["attack"]["l2"][-1]
    text = printed(claims.ssp_tables(rows))
    assert max(map(len, text.splitlines())) <= 80
    assert "ssp, digits (ssp_digits_smoke.json)" in text


SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@lru_cache
def weights(name, dataset):
    """How many; the network is made and run without computing anything."""
    preset, shape = ssp.PRESETS["paper"][dataset], SHAPES[dataset]
    make = eqx.nn.make_with_state(ssp.recipe(name, "natural", dataset, preset, "paper").make)

    def made(key):
        model, state = make(shape, key=key)
        logits, _ = batch_logits(model, state, jnp.zeros((2, *shape)), key=key)
        return eqx.filter(model, eqx.is_array), logits

    arrays, logits = eqx.filter_eval_shape(made, jax.random.key(0))
    assert logits.shape == (2, 10)
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))


# Every network on one of the data sets in the fast pass.
FAST = {(name, ("mnist", "cifar10")[i % 2]) for i, name in enumerate(ssp.SOLVERS)}


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        pytest.param(name, dataset, marks=[] if (name, dataset) in FAST else pytest.mark.slow)
        for dataset in SHAPES
        for name in ssp.SOLVERS
    ],
)
def test_every_network_of_the_paper_is_made(name, dataset):
    """As many weights in all of them but for ark's coefficients, and steps that can be taken."""
    preset = ssp.PRESETS["paper"][dataset]
    extra = 12 if name.startswith("ark") else 0
    assert weights(name, dataset) - weights("ResNet", dataset) == extra
    recipe = ssp.recipe(name, "PGD-12", dataset, preset, "paper")
    assert isinstance(recipe.objective, Adversarial)
    assert recipe.objective.attack.steps == 12
    assert recipe.rise == 0


def test_small_networks_are_trained_in_a_ball_that_grows():
    preset = ssp.PRESETS["cpu"]["mnist"]
    rises = [
        ssp.recipe("ResNet", training, "mnist", preset, "cpu").rise for training in ssp.TRAININGS
    ]
    assert rises == [0, 0.6, 0.6]
    training = ssp.recipe("ResNet", "PGD-7", "digits", ssp.PRESETS["smoke"]["digits"], "smoke")
    rising = training.over(10)
    assert (rising.objective, rising.steps) == (training.objective, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge'; accepted: paper, cpu, smoke"),
        ({"dataset": "cifar10"}, "dataset for the preset cpu 'cifar10'; accepted: digits, mnist"),
        ({"networks": ("SSP-4",)}, "unknown network 'SSP-4'"),
        ({"trainings": ("PGD-9",)}, "unknown training 'PGD-9'; accepted: natural, PGD-7, PGD-12"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        execute(ssp.EXPERIMENT, ssp.Config(**arguments))
