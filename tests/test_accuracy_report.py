"""The table, the figure and the sentences about robust accuracy that experiments share."""

import dataclasses
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from rich.console import Console

from experiments.lib import accuracy
from experiments.lib.networks import NetworksConfig
from experiments.lib.run import PresetConfig, UsageError


def bracket(eps, pgd, attacked, certified=None, **more):
    return {
        "ball": "linf",
        "eps": eps,
        "clean": 0.9,
        "attacked": attacked,
        "certified": certified or 0.0,
        "per_attack": {"PGD-7": pgd},
        "per_transfer": {},
        "per_certificate": {} if certified is None else {"slope": certified},
        "flags": {},
    } | more


def record(*brackets):
    return {"clean_accuracy": 0.95, "brackets": list(brackets)}


PAPER = {"paper": {("clean", "", 0): 97.0, ("PGD-7", "linf", 0.2): 81.5, ("PGD-7", "l2", 0.1): 1.0}}
NETWORKS = {
    "first": accuracy.Measured(
        [
            record(bracket(0.1, 0.8, 0.7), bracket(0.2, 0.6, 0.2, flags={"a flag": "why"})),
            record(bracket(0.1, 0.8, 0.5), bracket(0.2, 0.6, 0.4)),
        ],
        PAPER,
        ["a note"],
    ),
    "second": accuracy.Measured(
        [record(bracket(0.1, 0.6, 0.5, 0.25), bracket(0.2, 0.3, 0.1, 0.0))]
    ),
}


def rows(tables):
    console = Console(width=80, file=io.StringIO())
    for table in tables:
        console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_a_table_shows_means_deviations_certificates_and_the_papers_figures():
    shown = rows(accuracy.tables("a title", NETWORKS))
    assert ["first"] in shown
    assert ["clean", "90.0", "±", "0.0"] in shown
    assert ["all", "95.0", "±", "0.0"] in shown
    assert ["a", "note"] in shown
    assert ["PGD-7", "80.0", "±", "0.0", "60.0", "±", "0.0"] in shown
    assert ["all", "attacks", "60.0", "±", "14.1", "30.0", "±", "14.1"] in shown
    assert [row for row in shown if row[:1] == ["paper"]] == [["paper", "97.0"], ["paper", "81.5"]]
    # Of the second network alone there is a certificate; of the first a flag.
    assert [row for row in shown if row[:1] == ["certified"]] == [["certified", "25.0", "0.0"]]
    text = " ".join(word for row in shown for word in row)
    assert "flags: first: a flag" in text


def test_the_papers_figure_stands_below_its_own_eps():
    console = Console(width=80, file=io.StringIO())
    for table in accuracy.tables("a title", NETWORKS):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    pgd = next(line for line in lines if "PGD-7" in line)
    paper = next(line for line in lines if "81.5" in line)
    assert len(paper.rstrip()) == len(pgd.rstrip())  # both end in the last column


def test_more_than_five_columns_are_several_tables():
    eps = [0.1 * i for i in range(1, 8)]
    many = {"net": accuracy.Measured([record(*(bracket(e, 0.5, 0.5) for e in eps))])}
    made = accuracy.tables("", many, means={"mean": lambda brackets: brackets[0]})
    headers = [[str(column.header) for column in table.columns[1:]] for table in made]
    assert headers == [["0.1", "0.2", "0.3", "0.4", "0.5"], ["0.6", "0.7", "mean"]]


def test_a_figure_has_a_panel_a_network_and_crosses_in_the_ball_that_is_drawn():
    drawn = accuracy.figure("A finding", "some images", NETWORKS, ["PGD-7"])
    first, second = drawn.axes
    assert first.get_title() == "first\na note, flags: 1"
    lines = {line.get_label(): line.get_xydata() for line in first.lines}
    assert set(lines) == {"under all attacks, run at the dots", "under PGD-7 alone", "paper: PGD-7"}
    np.testing.assert_allclose(
        lines["under all attacks, run at the dots"], [[0, 90], [0.1, 60], [0.2, 30]]
    )
    np.testing.assert_allclose(lines["paper: PGD-7"], [[0.2, 81.5]])
    assert "certified" in {line.get_label() for line in second.lines}
    assert drawn.get_suptitle() == "A finding"
    assert drawn.legends[0].get_title().get_text() == "some images"
    plt.close(drawn)


def test_findings_are_computed():
    finding = "PGD-7 alone overstates robust accuracy by up to 30 points (first, eps 0.2)"
    assert accuracy.overstated(NETWORKS, "PGD-7") == finding
    finding = "At eps 0.2 robust accuracy is at most 10 % (second) and 30 % (first)"
    assert accuracy.compared(NETWORKS, 1) == finding
    three = NETWORKS | {"third": NETWORKS["first"]}
    finding = "At eps 0.2 robust accuracy is at most 10 % (second) to 30 % (third)"
    assert accuracy.compared(three, -1) == finding


@dataclasses.dataclass(frozen=True)
class Preset:
    epochs: int
    test_images: int
    attack: object = None


def test_a_result_says_which_preset_it_is_of():
    presets = {"cpu": {"digits": Preset(3, 10), "mnist": Preset(5, 20)}}
    config = PresetConfig(epochs=4)
    preset = config.choose(presets)
    assert config.run_name == "digits_cpu"
    expected = {"dataset": "digits", "preset": "cpu", "epochs": 4, "test_images": 10}
    assert config.settings(preset, "attack") == expected


def test_networks_are_all_or_those_asked_for():
    assert NetworksConfig().chosen({"a": 1, "b": 2}) == ("a", "b")
    assert NetworksConfig(networks=("b",)).chosen(("a", "b")) == ("b",)
    with pytest.raises(UsageError, match="unknown network 'c'; accepted: a, b"):
        NetworksConfig(networks=("c",)).chosen(("a", "b"))
    with pytest.raises(UsageError, match="no networks; accepted: a, b"):
        NetworksConfig(networks=()).chosen(("a", "b"))
    with pytest.raises(UsageError, match="seeds must be at least 1; got 0"):
        NetworksConfig(seeds=0).chosen(("a", "b"))
