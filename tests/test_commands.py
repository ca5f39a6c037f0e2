"""The command line: evaluate, attack, compare, list."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odejax import attacks, commands
from odejax.commands.compare import verdict
from odejax.commands.evaluate import Evaluate
from odejax.commands.listing import listed
from odejax.commands.written import methods, number, public_classes
from odejax.evaluation import FLAGS, encode_array, load_result, save_result

# Least squares on the digits, from the page on the command line, and functions that are wrong.
PAGE = Path(__file__).parents[1] / "docs" / "command.md"
NETWORK = re.search(r"^```python .*?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
NETWORK += """

def make():
    return logits


def fails(x):
    return weights @ x


number = 3
"""


@pytest.fixture
def network(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    return str(tmp_path / "net.py")


@pytest.fixture
def odejax_command(capsys, monkeypatch):
    """Runs a command in this process: (exit code, what it printed, what it printed of errors)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["odejax", *map(str, arguments)])
        code = 0
        try:
            commands.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_a_network_is_evaluated_kept_and_shown(odejax_command, network, tmp_path):
    file, page = tmp_path / "result.json", tmp_path / "result.html"
    few = ("--images", "20", "--attacks", "PGD(3)", "--last", "none", "--linf", "2/255", "0.1")
    written = ("--json", file, "--html", page)
    code, out, err = odejax_command("evaluate", f"{network}:make", *few, *written)
    assert (code, err) == (0, "")
    assert "PGD(3)" in out
    result = load_result(file, "odejax.evaluate")
    first, second = result["brackets"]
    assert first["eps"] == pytest.approx(2 / 255)
    assert first["certified"] <= first["attacked"] <= first["clean"]
    assert second["attacked"] <= first["attacked"]
    assert result["settings"]["attacks"] == ["PGD(3)"]
    text = page.read_text()
    assert f"{100 * first['certified']:.1f} %" in text
    assert "http" not in text.replace("http-equiv", "")  # it needs no network
    assert sorted(p.name for p in tmp_path.iterdir() if "state" in p.name) == []
    # The same again, beside itself.
    code, out, err = odejax_command("compare", file, file)
    assert (code, err) == (0, "")
    assert "decide alike" in " ".join(out.replace("│", "").split())


def test_without_a_radius_clean_accuracy_alone_is_measured(odejax_command, network):
    code, out, _ = odejax_command("evaluate", f"{network}:logits", "--images", "50")
    assert code == 0
    assert "50 images: clean accuracy 9" in out


def test_an_image_is_attacked_and_drawn(odejax_command, network, tmp_path):
    out_file = tmp_path / "one.png"
    code, out, err = odejax_command(
        "attack", f"{network}:logits", "digits:3", "--linf", "0.2", "--out", out_file
    )
    assert (code, err) == (0, "")
    assert "class 3 before" in out
    assert "moved by 0.2 in L-infinity" in out
    with Image.open(out_file) as drawn:
        assert drawn.size[0] > 100
    # A picture of one's own: what the network says is the right class.
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "grey.png")
    code, out, err = odejax_command(
        "attack", f"{network}:logits", tmp_path / "grey.png", "--l2", "0.01", "--out", out_file
    )
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evaluate", "NET:nothing"), "has no 'nothing'; it has"),
        (("evaluate", "NET:number"), "must be a function of one image; got 3"),
        (("evaluate", "NET:fails"), r"fails on an image of shape \(8, 8, 1\): TypeError"),
        (("evaluate", "no/such/file.odejax"), "FILE.py:NAME"),
        (("evaluate", "missing.py:f"), "is not there"),
        (("evaluate", "NET:logits", "--dataset", "digitz"), "'digitz'"),
        (("evaluate", "NET:logits", "--images", "501"), "1 to 500"),
        (("evaluate", "NET:logits", "--linf", "0.2", "0.1"), "growing"),
        (("evaluate", "NET:logits", "--linf", "eight"), "'eight' is no number"),
        (("evaluate", "NET:logits", "--attacks", "PGD(steps=0)"), "steps must be at least 1"),
        (("evaluate", "NET:logits", "--attacks", "PDG"), "unknown attack 'PDG' .* accepted: APGD"),
        (("evaluate", "NET:logits", "--certificates", "Proof()"), "unknown certificate 'Proof'"),
        (("evaluate", "NET:logits", "--json", "."), "is a folder"),
        (("attack", "NET:logits", "digits:3"), "one radius"),
        (("attack", "NET:logits", "digits:500", "--linf", "0.1"), "500 test images"),
        (("attack", "NET:logits", "NET", "--linf", "0.1"), "it is no picture"),
        (("attack", "NET:logits", "digits:3", "--linf", "-1"), "eps"),
        (("compare", "NET", "NET"), "result file"),
        (("list", "weights"), "attacks"),
        (("evaluat",), "evaluate"),
    ],
)
def test_wrong_arguments_end_in_one_line(odejax_command, network, arguments, said, tmp_path):
    arguments = [a.replace("NET", network) for a in arguments]
    code, _, err = odejax_command(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert re.search(said, err), err


def test_nothing_but_the_named_classes_is_evaluated():
    accepted = public_classes(attacks, attacks.AbstractAttack)
    made = methods(("EOT(PGD(2, step_size=1/4), 3)", "FGSM"), "attack", accepted)
    assert made["EOT(PGD(2, step_size=1/4), 3)"].attack.steps == 2
    words = ("os.system('x')", "PGD.__init__", "[PGD for _ in (1,)]", "(lambda: 1)()", "PGD(")
    for word in words:
        with pytest.raises(commands.UsageError, match="written like"):
            methods((word,), "attack", accepted)
    with pytest.raises(commands.UsageError, match="unknown attack 'eval'"):
        methods(("eval('1')",), "attack", accepted)
    assert number("8/255") == 8 / 255
    with pytest.raises(commands.UsageError, match="no number"):
        number("1/0")


def bracket(certified, correct):
    correct = np.asarray(correct)
    return {
        "ball": "linf", "eps": 0.1, "n": len(correct), "certified": certified,
        "attacked": correct.mean(), "still_correct": encode_array(correct),
    }  # fmt: skip


def test_a_verdict_is_certain_only_where_the_intervals_are_apart():
    ten = np.arange(10)
    low, high = bracket(0.0, ten < 4), bracket(0.5, ten < 8)
    assert verdict(high, low) == "A is more robust on these images, for certain"
    assert verdict(low, high) == "B is more robust on these images, for certain"
    # 4 against none of 4: 2 * (1 / 2)^4.
    assert verdict(low, bracket(0.4, ten < 8)).endswith("by A alone 0, by B alone 4 (p = 0.12)")


def test_other_images_are_not_compared(odejax_command, tmp_path):
    for name in "ab":
        result = {"data": {"digest": name}, "network": name, "brackets": []}
        save_result(tmp_path / name, "odejax.evaluate", result)
    code, _, err = odejax_command("compare", tmp_path / "a", tmp_path / "b")
    assert (code, "different images" in err) == (2, True)
    code, _, err = odejax_command("compare", tmp_path / "a", tmp_path / "a")
    assert (code, "no ball in common" in err) == (2, True)


def test_all_is_listed():
    assert set(listed("flags")) == set(FLAGS)
    assert {"PGD", "AutoAttack", "Square"} <= set(listed("attacks"))
    assert {"LinearRelaxation", "RandomizedSmoothing"} <= set(listed("certificates"))
    assert {"CNN", "ResNet", "NmODENet"} <= set(listed("networks"))
    assert "BatchNorm" not in listed("networks")
    assert json.dumps(listed("attacks"))


def test_the_page_names_every_option():
    options = {field.name.replace("_", "-") for field in dataclasses.fields(Evaluate)}
    said = set(re.findall(r"`--([a-z0-9-]+)`", PAGE.read_text()))
    assert options - said == {"what", "data-dir", "draws", "seed"}
    assert said - options == set()
