"""The page of results: it has what the results have, claims no more, and loads nothing."""

import base64
import io
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments.certified import networks as certified
from experiments.ledger.report import not_reached
from experiments.lib.report import KEPT
from experiments.page import __main__ as command, content as content_module, pictures, render
from experiments.page.claims import VERDICTS, verdict
from experiments.page.rows import _last, eps_text
from odejax.evaluation import FLAGS
from odejax.plots.pictures import example, picture_uri

REPOSITORY = "https://github.com/odejax/odejax"
RESULTS = {path.stem: json.loads(path.read_text()) for path in (KEPT / "results").glob("*.json")}


@pytest.fixture(scope="module")
def made():
    """All but the figures, which take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_figure", lambda file: {"name": file.stem, "uri": "data:,"})
        return content_module.content()


def brackets(value):
    """Every bracket in a result, wherever it is."""
    if isinstance(value, dict):
        if {"attacked", "per_attack", "ball"} <= set(value):
            yield value
        for inner in value.values():
            yield from brackets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from brackets(inner)


def test_every_bracket_of_every_result_is_one_seed_of_one_row(made):
    ends = ("clean", "certified", "attacked", "attacked_interval", "certified_interval")
    stored = Counter(
        (name, b["ball"], b["eps"], b["n"], *(str(b[end]) for end in ends))
        for name, result in RESULTS.items()
        for b in brackets(result)
    )
    shown = Counter(
        (row["result"], row["norm"], row["eps"], row["n"], *(str(seed[end]) for end in ends))
        for row in made["rows"]
        for seed in row["seeds"]
    )
    assert shown == stored
    assert len(stored) > 300
    assert max(Counter(row["id"] for row in made["rows"]).values()) == 1


def test_a_row_has_the_means_over_the_seeds_and_where_they_are_from(made):
    rows = {row["id"]: row for row in made["rows"]}
    row = rows["nmode_mnist_mnist: clean images: nmODE t=1: linf 0.05"]
    records = [RESULTS["nmode_mnist_mnist"]["runs"][f"nmODE t=1/{seed}"] for seed in range(3)]
    of_eps = [record["balls"]["linf"][2] for record in records]
    for end in ("clean", "certified", "attacked"):
        assert row[end] == pytest.approx(np.mean([b[end] for b in of_eps]))
    assert row["attacks"] == pytest.approx(
        {name: np.mean([b["per_attack"][name] for b in of_eps]) for name in of_eps[0]["per_attack"]}
    )
    assert set(row["certificates"]) == {"Eq. 4", "finite t", "slope", "relaxed"}
    assert [seed["commit"] for seed in row["seeds"]] == [record["commit"] for record in records]
    assert [seed["seed"] for seed in row["seeds"]] == [0, 1, 2]
    assert row["last"] == []
    # The last attack has no accuracy of its own.
    last = rows["structured_mnist_cpu: hinge, margin 1: SDP-based: l2 1.58"]
    record = RESULTS["structured_mnist_cpu"]["runs"]["SDP-based/0"]
    assert last["last"] == ["AutoAttack"]
    assert last["seeds"][0]["n_last"] == record["brackets"][-1]["n_last"] > 0
    assert last["certified_of_all"] == record["certified_of_all"][-1]
    solver = rows["benchmark_mnist: clean images: ConvODENet: linf 0.1"]
    assert {flag["name"] for flag in solver["flags"]} <= set(made["flags"]) == set(FLAGS)
    assert solver["flags"][0]["evidence"]
    assert solver["seeds"][0]["command"] == "python -m experiments.benchmark --dataset mnist"


@pytest.mark.parametrize("last", ["PGD", None])
def test_the_last_attack_is_the_one_that_the_result_names(last):
    seconds = {"PGD": 1.0, "CROWN": 2.0}
    of = {"per_attack": {"PGD": 0.5}, "per_transfer": {}, "per_certificate": {"CROWN": 0.0}}
    assert _last({"last": last, "n_last": 3, "seconds": seconds, **of}) == ([last] if last else [])


def test_an_end_of_a_row_is_no_stronger_than_what_is_behind_it(made):
    for row in made["rows"]:
        assert row["certified"] <= row["attacked"] + 1e-9, row["id"]
        assert row["attacked"] <= min([row["clean"], *row["attacks"].values()]) + 1e-9, row["id"]
        assert row["certified"] >= max([0, *row["certificates"].values()]) - 1e-9, row["id"]
        if not row["certificates"]:
            assert row["certified"] == 0


def test_curves_claim_no_more_than_was_measured(made):
    rows = Counter(row["curve"] for row in made["rows"])
    for curve in made["curves"]:
        of = [row for row in made["rows"] if row["curve"] == curve["id"]]
        assert rows[curve["id"]] == len(of) == len(curve["eps"]) - 1
        assert curve["eps"] == [0.0, *(row["eps"] for row in of)] == sorted(curve["eps"])
        assert curve["attacked"][1:] == pytest.approx([row["attacked"] for row in of])
        if curve["certified"] is None:
            assert not any(row["certificates"] for row in of)
            continue
        certified = dict(zip(curve["proven_at"], curve["certified"], strict=True))
        assert all(certified[row["eps"]] == pytest.approx(row["certified"]) for row in of)
        assert max(curve["proven_at"]) == curve["eps"][-1]
        assert np.all(np.diff(curve["certified"]) <= 1e-9)


def test_a_curve_of_radii_is_never_above_the_share_of_images_certified(made):
    curves = {curve["id"]: curve for curve in made["curves"]}
    curve = curves["benchmark_mnist: clean images: LipschitzNet: l2"]
    stored = RESULTS["benchmark_mnist"]["models"]["LipschitzNet"]["balls"]["l2"]
    radii = np.asarray(stored["radii"])
    assert 20 < len(curve["proven_at"]) <= 160 < len(np.unique(radii))
    at = {b["eps"] for b in stored["brackets"]} | {0.0}
    for eps, share in zip(curve["proven_at"], curve["certified"], strict=True):
        assert eps in at or share == (radii >= eps).mean()


def test_every_result_is_listed_with_its_commits_and_figures(made):
    listed = {result["name"]: result for result in made["results"]}
    assert set(listed) == set(RESULTS)
    for name, result in RESULTS.items():
        commits = set(re.findall(r'"commit": "(.*?)"', json.dumps(result)))
        assert {origin["commit"] for origin in listed[name]["origins"]} == commits
        assert listed[name]["command"].startswith("python -m experiments.")
        assert listed[name]["title"]
    assert {name for name, r in RESULTS.items() if '"commit"' not in json.dumps(r)} == {"claims"}
    figures = [figure["name"] for result in listed.values() for figure in result["figures"]]
    assert len(figures) == len(set(figures)) > 25
    assert {row["result"] for row in made["rows"]} == {
        name for name, result in RESULTS.items() if [*brackets(result)]
    }


def test_only_what_was_measured_as_in_the_paper_says_something_about_a_claim(made):
    claims = made["claims"]
    assert len(claims) == len(RESULTS["claims"]["claims"]) == len({c["id"] for c in claims})
    for claim in claims:
        as_in_paper = "not_measured" not in claim
        assert (claim["verdict"] == "not measured") == (not as_in_paper)
        assert (claim["verdict"] == "refuted") == not_reached(claim)
        if claim["verdict"] in ("refuted", "within", "below"):
            assert "worst_attack" in claim
    assert set(VERDICTS) >= {claim["verdict"] for claim in claims}


@pytest.mark.parametrize(
    ("claimed", "expected"), [(99, "refuted"), (82, "within"), (50, "within"), (30, "below")]
)
def test_a_verdict_allows_for_sampling_error(claimed, expected):
    entry = {"claimed": claimed, "worst_attack": 80.0, "certified": 52.0, "n": 100}
    assert verdict(entry) == expected
    assert verdict(entry | {"not_measured": "smaller network"}) == "not measured"


def test_networks_measured_in_several_norms_are_listed_in_each():
    bracket = {"ball": "linf", "eps": 0.1}
    record = {"balls": {"linf": [bracket], "l2": []}}
    result = {"settings": {}, "runs": {"plain/CNN/0": record, "plain/CNN/1": record}}
    (network,) = certified.EXPERIMENT.networks(result)
    assert (network.network, network.training) == ("CNN", "clean images")
    assert network.brackets == [[bracket], [bracket]]
    record["balls"]["l2"] = [bracket | {"ball": "l2"}]
    norms = [network.brackets[0][0]["ball"] for network in certified.EXPERIMENT.networks(result)]
    assert norms == ["linf", "l2"]


def test_radii_are_in_grey_levels_on_cifar_alone():
    assert eps_text(8 / 255, "cifar10") == "8/255"
    assert eps_text(np.float32(2 / 255).item(), "cifar100") == "2/255"
    assert eps_text(0.25, "cifar10") == "0.25"
    assert eps_text(0.2, "mnist") == "0.2"  # 51 grey levels


def pixels_of(uri):
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_a_picture_is_the_stored_array_pixel_for_pixel():
    pixels = np.linspace(0, 1, 12).reshape(2, 2, 3)
    assert np.array_equal(pixels_of(picture_uri(pixels)), np.round(255 * pixels))


def test_a_pixel_that_grew_is_red_and_one_that_fell_is_blue():
    image = np.full((1, 3, 1), 0.5)
    x_adv = image + np.array([0.2, 0.0, -0.1])[None, :, None]
    shown = example(image, x_adv, 3, 5)
    assert (shown["label"], shown["prediction"], shown["largest"]) == (3, 5, pytest.approx(0.2))
    assert (shown["image"], shown["x_adv"]) == (picture_uri(image), picture_uri(x_adv))
    grew, same, fell = pixels_of(shown["change"])[0]
    red, blue = 0, 2
    assert (grew[red] > grew[blue], fell[blue] > fell[red]) == (True, True)
    assert grew.min() < fell.min() - 30 < same.min() - 60  # the larger, the further from white


def test_adversarial_examples_are_those_of_the_results(made):
    assert {p["result"] for p in made["pictures"]} == {
        "benchmark_digits", "benchmark_mnist", "enresnet_cifar10_cpu"
    }  # fmt: skip
    for picture in made["pictures"]:
        for one in picture["examples"]:
            assert one["largest"] <= picture["eps"] + 1e-3


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def test_nothing_in_the_data_ends_the_script_or_becomes_an_element(made):
    hostile = "</script><img src=x onerror=alert(1)><!-- {{style}} \u2028"
    page = render.render(made | {"verdicts": {hostile: "a & b"}})
    plain = Elements(render.render(made))
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags] == [tag for tag, _ in plain.tags]
    data, script = elements.scripts
    assert json.loads(data)["verdicts"] == {hostile: "a & b"}
    assert len(json.loads(data)["rows"]) == len(made["rows"])
    assert "{{" not in page.replace("{{style}}", "")
    assert "innerHTML" not in script  # text goes in as text


def test_the_page_loads_nothing(made):
    page = render.render(made | {"rows": [], "results": [], "claims": [], "pictures": []})
    for tag, attributes in Elements(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            given = attributes.get(name, "#")
            assert given.startswith(("#", "data:")) or (tag, given) == ("a", REPOSITORY)
        assert tag not in ("link", "base", "iframe") or attributes == {
            "rel": "icon",
            "href": "data:,",
        }
    assert {path.stem for path in (render.FOLDER / "js").iterdir()} == set(render.SCRIPTS)
    without_names = page.replace("http://www.w3.org/2000/svg", "").replace(REPOSITORY, "")
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(", without_names)


def test_a_file_that_is_no_result_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_text('{"kind": "of another kind"}')
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "page.html")])
    monkeypatch.setattr(command, "content", lambda: content_module.content(tmp_path))
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "other.json is of kind 'of another kind'" in error
    assert not (tmp_path / "page.html").exists()


def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "--out must be a file" in capsys.readouterr().err
