"""The page of results as a reader uses it: in Chromium, from a file, without a network.

Needs Playwright (the extra `page`) and Chromium, of Debian or by `playwright install chromium`.
"""

import copy
import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
from helpers import digits, linear_logits

from experiments.page.content import content
from experiments.page.render import render
from odejax import LinfBall, predict
from odejax.attacks import PGD
from odejax.commands.page import page as write_page
from odejax.data import ArrayDataset
from odejax.evaluation import FLAGS, bracket, provenance

pytestmark = pytest.mark.slow
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
VIEWS = ("leaderboard", "ledger", "curves", "images", "experiments")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        with playwright.chromium.launch(executable_path=found) as browser:
            yield browser


@pytest.fixture(scope="module")
def made():
    return content()


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "a folder with spaces" / "index.html"
    file.parent.mkdir()
    file.write_text(render(made), encoding="utf-8")
    assert file.stat().st_size < 6e6
    return file


@pytest.fixture
def open_page(browser, file):
    """Opens the page at a fragment; whatever it reports or asks for makes the test fail."""
    contexts, wrong = [], []

    def opened(fragment="", viewport=DESK, at=None, **settings):
        context = browser.new_context(viewport=viewport, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: re.match("data:|file:", request.url) or wrong.append(request.url),
        )
        page.goto(f"{(at or file).as_uri()}{fragment}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def column(page, key, view="leaderboard"):
    """The texts of a column, from top to bottom."""
    return page.locator(f"#view-{view} tr.row > .c-{key}").all_inner_texts()


def fragment_of(page):
    view, _, query = page.evaluate("location.hash").removeprefix("#").partition("?")
    return view, {name: values[0] for name, values in parse_qs(query).items()}


def test_it_starts_with_what_the_readme_shows_best_first(open_page, made):
    page = open_page()
    shown = page.locator("#leaderboard-dataset").input_value()
    ball = page.locator("#leaderboard-ball").input_value()
    rows = [r for r in made["rows"] if (r["dataset"], r["ball"]) == (shown, ball)]
    balls = [(r["dataset"], r["ball"]) for r in made["rows"]]
    assert (shown, ball) == ("mnist", "L-infinity 0.1")
    assert column(page, "training")[0].startswith("by bounds")
    assert page.locator("#view-leaderboard .count").inner_text() == (
        f"{len(rows)} intervals of {len(balls)}"
    )
    proven = [r["certified"] for r in rows if r["certificates"]]
    expected = [f"{100 * share:.1f}" for share in sorted(proven, reverse=True)]
    assert column(page, "certified") == expected + ["no proof"] * (len(rows) - len(proven))
    listed = page.locator("#leaderboard-ball option").evaluate_all("all => all.map(o => o.value)")
    radii = [float(name.split()[1]) for name in listed if name.startswith("L-infinity")]
    assert radii == sorted(radii)
    assert len(radii) > 5


def test_a_column_sorts_both_ways_and_says_so(open_page, made):
    page = open_page("#leaderboard?dataset=all&ball=all")
    button = page.get_by_role("button", name="Attacked", exact=True)
    head = page.locator("th.c-attacked")
    expected = sorted((row["attacked"] for row in made["rows"]), reverse=True)
    for order, values in (("descending", expected), ("ascending", expected[::-1])):
        button.click()
        assert head.get_attribute("aria-sort") == order
        assert column(page, "attacked") == [f"{100 * value:.1f}" for value in values]
    assert page.locator("th[aria-sort]").count() == 1
    page.get_by_role("button", name="Network", exact=True).click()
    names = column(page, "network")
    assert names.index("CNN") < names.index("MLP") < names.index("ReLU")


def test_filters_are_in_the_address_and_survive_a_reload(open_page, made):
    page = open_page()
    part = page.locator("#view-leaderboard")
    part.get_by_label("Data set").select_option("digits")
    part.get_by_label("Certificate", exact=True).select_option("with")
    part.get_by_label("Search").fill("lipschitznet L2")
    expected = [
        row["id"]
        for row in made["rows"]
        if (row["dataset"], row["network"], row["norm"]) == ("digits", "LipschitzNet", "l2")
    ]
    assert len(expected) == 4
    for _ in range(2):
        ids = page.locator("#view-leaderboard tr.row").evaluate_all(
            "rows => rows.map((row) => row.dataset.id)"
        )
        assert sorted(ids) == sorted(expected)
        view, parameters = fragment_of(page)
        assert (view, parameters["dataset"], parameters["proof"]) == (
            "leaderboard",
            "digits",
            "with",
        )
        page.reload()
    part.get_by_label("Search").fill("no such network")
    assert "Nothing matches" in part.locator("tbody").inner_text()
    part.get_by_role("button", name="Show all").click()
    assert page.locator("#view-leaderboard tr.row").count() == len(made["rows"])


def test_a_row_opens_by_keyboard_and_has_a_link_of_its_own(open_page, made):
    (row,) = [
        row
        for row in made["rows"]
        if row["id"] == "benchmark_mnist: clean images: ConvODENet: linf 0.1"
    ]
    page = open_page("#leaderboard?dataset=mnist&ball=L-infinity+0.1&q=convodenet")
    opener = page.get_by_role("button", name="ConvODENet")
    page.locator("#leaderboard-flagged").focus()
    while not opener.evaluate("node => node === document.activeElement"):
        page.keyboard.press("Tab")
    outline = opener.evaluate("node => getComputedStyle(node).outlineStyle")
    assert outline == "solid"  # one sees where one is
    page.keyboard.press("Enter")
    assert opener.get_attribute("aria-expanded") == "true"
    assert opener.evaluate("node => node === document.activeElement")
    details = page.locator("tr.details")
    shown = details.inner_text()
    for name, accuracy in row["attacks"].items():
        assert re.search(rf"{name}\s+{100 * accuracy:.1f}", shown)
    for flag in row["flags"]:
        assert flag["evidence"][0] in shown
        assert FLAGS[flag["name"]].why in shown
        assert FLAGS[flag["name"]].what_to_do in shown
    assert row["seeds"][0]["command"] in shown
    assert row["seeds"][0]["commit"][:10] in shown
    link = details.get_by_role("link", name="Link to this row").get_attribute("href")
    page.keyboard.press("Space")
    assert details.count() == 0
    again = open_page(link)
    assert again.locator("tr.row.open").get_attribute("data-id") == row["id"]
    assert again.locator("tr.details").is_visible()
    assert again.locator("tr.row.open").bounding_box()["y"] < DESK["height"]


def test_a_bar_is_where_its_numbers_are(open_page, made):
    row = max(made["rows"], key=lambda row: (row["certified"] > 0.3) * (row["attacked"] < 0.9))
    page = open_page("#leaderboard?dataset=all&ball=all")
    bar = page.locator(f"tr[data-id={json.dumps(row['id'])}] .interval")
    inside = bar.evaluate("node => [node.clientLeft, node.clientWidth]")
    start = bar.bounding_box()["x"] + inside[0]
    for selector, share in (
        (".end.certified", row["certified"]),
        (".end.attacked", row["attacked"]),
    ):
        box = bar.locator(selector).bounding_box()
        middle = box["x"] + box["width"] / 2
        assert middle == pytest.approx(start + share * inside[1], abs=1)
    band = bar.locator(".band").bounding_box()
    assert band["width"] == pytest.approx((row["attacked"] - row["certified"]) * inside[1], abs=1)
    low, high = zip(*(seed["attacked_interval"] for seed in row["seeds"]), strict=True)
    whisker = bar.locator(".whisker.attacked").bounding_box()
    assert whisker["width"] == pytest.approx((max(high) - min(low)) * inside[1], abs=1)


def test_the_ledger_counts_and_filters_by_verdict_and_paper(open_page, made):
    page = open_page("#ledger")
    for verdict in ("refuted", "within"):
        expected = [claim for claim in made["claims"] if claim["verdict"] == verdict]
        tile = page.locator(".tile").filter(has=page.get_by_text(verdict, exact=True))
        assert tile.locator("b").inner_text() == str(len(expected))
        tile.click()
        rows = page.locator("#view-ledger tr.row")
        page.wait_for_function("n => document.querySelectorAll('#view-ledger tr.row').length === n",
                               arg=len(expected))  # fmt: skip
        assert rows.count() == len(expected)
        assert [float(text) for text in column(page, "claimed", "ledger")] == [
            claim["claimed"] for claim in expected
        ]
    page.locator("#view-ledger").get_by_role("button", name="Show all").click()
    page.locator("#ledger-paper").select_option("structured")
    assert set(column(page, "verdict", "ledger")) == {"not measured"}
    assert page.locator("#view-ledger tr.row").count() == 45
    page.locator("#view-ledger .opener").first.click()
    claim = next(claim for claim in made["claims"] if claim["paper"] == "structured")
    assert claim["command"] in page.locator("#view-ledger tr.details").inner_text()


def test_a_curve_reads_out_only_what_follows_from_the_measurements(open_page, made):
    (curve,) = [
        curve
        for curve in made["curves"]
        if curve["id"] == "nmode_mnist_mnist: clean images: nmODE t=1: linf"
    ]
    page = open_page("#curves?of=nmode_mnist_mnist%3A+clean+images%3A+nmODE+t%3D1%3A+linf")
    panel = page.locator(".plot.chosen")
    picture, readout = panel.locator("svg.curve"), panel.locator(".readout")

    def says(text, at_least, at_most):
        assert readout.inner_text().startswith(f"eps {text}")
        bounds = re.findall(r"at (?:least|most) ([\d.]+) %", readout.inner_text())
        assert bounds == [f"{100 * at_least:.1f}", f"{100 * at_most:.1f}"]

    picture.focus()
    page.keyboard.press("Home")
    says("0", curve["certified"][0], curve["attacked"][0])
    for i in range(1, len(curve["eps"])):
        page.keyboard.press("ArrowRight")
        says(curve["texts"][i], curve["certified"][i], curve["attacked"][i])
    # Between two eps: what was attacked in the smaller ball, and is certified in the larger one.
    box = picture.bounding_box()
    scale = box["width"] / 300
    inside = 30 + (300 - 30 - 16) * 0.02 / curve["eps"][-1]
    page.mouse.move(box["x"] + inside * scale, box["y"] + 60)
    assert readout.inner_text().endswith("(attacked at 0.01)")
    low, high = re.findall(r"at (?:least|most) ([\d.]+) %", readout.inner_text())
    assert (low, high) == (
        f"{100 * curve['certified'][2]:.1f}",
        f"{100 * curve['attacked'][1]:.1f}",
    )
    # Attacks are dots alone; what follows from them, and from proofs, is flat: not interpolated.
    for kind in ("certified", "band"):
        drawn = panel.locator(f"path.{kind}").get_attribute("d")
        assert set(re.findall("[A-Za-z]", drawn)) <= set("MHVZ")
    assert panel.locator("circle").count() == len(curve["eps"])
    page.get_by_label("each attack alone").check()
    marks = len(curve["eps"]) + 1  # and in the key
    assert panel.locator("path.single").count() == marks * len(curve["attacks"])
    page.get_by_label("logarithmic eps").check()
    assert panel.locator("circle").count() == len(curve["eps"])


def test_pictures_are_shown_and_figures_enlarge(open_page, made):
    page = open_page("#images")
    count = 3 * sum(len(picture["examples"]) for picture in made["pictures"])
    pictures = page.locator(".gallery img")
    assert pictures.count() == count
    pictures.last.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('.gallery img')].at(-1).naturalWidth > 0")
    page.locator("nav").get_by_role("link", name="Experiments").click()
    assert page.locator(".card:visible").count() == len(made["results"])
    page.locator("#experiments-q").fill("burgers")
    figure = page.get_by_role("button", name="Enlarge the figure ssp_burgers")
    figure.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    assert page.locator("dialog img").evaluate("image => image.naturalWidth") > 1000
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()
    page.go_back()
    assert page.locator("#view-images").is_visible()


def test_dark_and_light(open_page):
    def ground(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert ground(light) != ground(dark)
    button = light.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert ground(light) == ground(dark)
    light.reload()
    assert ground(light) == ground(dark)  # it is remembered


@pytest.mark.parametrize("width", [390, 700, 1061])
def test_no_width_makes_the_page_scroll_sideways(open_page, width):
    page = open_page(viewport={"width": width, "height": 844}, reduced_motion="reduce")
    for view in VIEWS:
        page.evaluate("view => { location.hash = view; }", view)
        page.locator(f"#view-{view}").wait_for()
        if view in ("leaderboard", "ledger"):
            page.locator(f"#view-{view}").get_by_role("button", name="Show all").click()
            page.locator(f"#view-{view} .opener").first.click()
        if view == "experiments":
            for summary in page.locator("#view-experiments summary").all():
                summary.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width, view
    assert page.locator(".opener").first.evaluate(
        "node => getComputedStyle(node, '::before').transitionDuration"
    ) in ("0s", "")  # fmt: skip


def test_on_a_phone_one_can_sort_and_filter(open_page):
    page = open_page(viewport=PHONE, has_touch=True)
    part = page.locator("#view-leaderboard")
    part.get_by_label("Sort by").select_option("attacked")
    shown = [float(text) for text in column(page, "attacked")]
    assert shown == sorted(shown, reverse=True)
    assert part.get_by_label("Training").is_hidden()
    part.get_by_role("button", name="More filters").tap()
    part.get_by_label("Training").select_option(index=1)
    assert len(column(page, "attacked")) <= len(shown)


def test_every_control_has_a_name_and_every_part_a_heading(open_page):
    page = open_page()
    for view in VIEWS:
        page.evaluate("view => { location.hash = view; }", view)
        part = page.locator(f"#view-{view}")
        part.wait_for()
        assert part.get_by_role("heading", level=2).count() == 1
        for control in part.locator("select:visible, input:visible").all():
            assert control.evaluate("node => node.labels.length") == 1
        unnamed = part.locator("button:visible").evaluate_all(
            "nodes => nodes.filter((n) => !n.textContent.trim() && !n.ariaLabel).length"
        )
        assert unnamed == 0
        assert page.locator("nav [aria-current=page]").inner_text().lower() == view


def test_a_name_is_shown_as_text_whatever_is_in_it(open_page, made, tmp_path):
    hostile = "<img src=x onerror=alert(1)></script>"
    changed = copy.deepcopy(made | {"results": made["results"][:3], "pictures": []})
    names = {result["name"] for result in changed["results"]}
    for part in ("rows", "curves"):
        changed[part] = [one for one in changed[part] if one["result"] in names]
    changed["rows"][0] |= {"network": hostile, "training": hostile}
    changed["curves"][0] |= {"network": hostile}
    changed["claims"][0] |= {"model": hostile, "verdict": "refuted"}
    changed["results"][0] |= {"title": hostile, "about": hostile}
    file = tmp_path / "hostile.html"
    file.write_text(render(changed), encoding="utf-8")
    page = open_page("#leaderboard?dataset=all&ball=all", at=file)
    assert hostile in column(page, "network")
    for view in ("ledger", "curves", "experiments"):
        page.evaluate("view => { location.hash = view; }", view)
        page.locator(f"#view-{view}").wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_the_page_of_an_evaluation_fits_a_phone(open_page, tmp_path):
    images, network = digits("test", 20).images, linear_logits((8, 8, 1), n_classes=10)
    labels = predict(network, images, key=0).argmax(axis=1).astype(np.int32)
    data = ArrayDataset(images, labels, n_classes=10)
    balls = [LinfBall(eps) for eps in (0.02, 0.04, 0.06, 0.08, 0.1, 0.2)]
    measured = bracket(network, *data, balls, attacks=PGD(3), key=0, flag_images=0)
    result = {"settings": {}, "images": "20 images", **provenance(seed=0)}
    write_page(tmp_path / "page.html", "a_long_name_" * 6, [measured], data, result)
    for viewport, columns in ((PHONE, 3), (DESK, 6)):
        page = open_page(at=tmp_path / "page.html", viewport=viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        tops = page.locator("figure").evaluate_all("all => all.map(one => one.offsetTop)")
        assert tops.count(tops[0]) == columns
    page = open_page(at=tmp_path / "page.html", viewport=PHONE)
    table = page.locator(".scrolls")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    # The curve has the page's colours, in dark and light, and is as wide as a phone.
    text = "svg => getComputedStyle(svg.querySelector('g[id^=text] g')).fill"
    for scheme, color in (("light", "rgb(0, 0, 0)"), ("dark", "rgb(255, 255, 255)")):
        page = open_page(at=tmp_path / "page.html", viewport=PHONE, color_scheme=scheme)
        curve = page.locator("svg.curve")
        assert curve.evaluate(text) == color
        assert 300 < curve.bounding_box()["width"] <= PHONE["width"]
