"""The command line: evaluate, attack, compare, list."""

import dataclasses
import html
import io
import re
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import odejax
from odejax import commands, evaluation
from odejax.commands.command_line import command
from odejax.commands.compare import verdict
from odejax.commands.evaluate import Evaluate, _data
from odejax.commands.listing import listed
from odejax.commands.network import _from_file
from odejax.commands.page import _sentence
from odejax.commands.written import METHODS, methods, number, signature
from odejax.evaluation import FLAGS, decode_array, encode_array, load_result, save_result
from odejax.evaluation.robust_accuracy import rehearse
from odejax.plots import perturbation_grid

# Least squares on the digits, from the page on the command line, and functions that are wrong.
PAGE = Path(__file__).parents[1] / "docs" / "command.md"
NETWORK, OWN_CLASS = re.findall(
    r"^```python .*?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
)
NETWORK += """
import jax


def noisy(x, *, key):
    return logits(x) + 0.01 * jax.random.normal(key, (10,))

def make():
    return logits


def fails(x):
    return weights @ x


class Net:
    pass


class OfOtherImages:
    class model:
        image_shape = (4, 4, 1)

    def __call__(self, x):
        return logits(x)


other_images = OfOtherImages()


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


def test_a_network_is_evaluated_kept_and_shown(odejax_command, tmp_path):
    network = str(tmp_path / "<b>[a]net.py")  # a name that is no element, nor a mark
    Path(network).write_text(NETWORK)
    file, page = tmp_path / "result.json", tmp_path / "result.html"
    few = ("--images", "20", "--attacks", "PGD(3)", "--last", "none", "--linf", "2/255", "0.1")
    drawn = plt.get_fignums()
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
    assert result["images"] == "20 of 500 test images of digits (drawn with seed 0)" in out
    assert list(first["per_certificate"]) == ["CROWN"]
    # Without what is where on this machine.
    assert result["command"] == (
        "odejax evaluate '<b>[a]net.py:make' --images 20 --linf 2/255 0.1 --attacks 'PGD(3)' "
        "--last none"
    )
    text = page.read_text()
    assert f"<b>{100 * first['certified']:.1f} %</b>" in text
    classes = re.findall(r"<figcaption>class (\d)<.*?<figcaption>now class (\d)<", text)
    assert len(classes) == 4
    assert all(before != after for before, after in classes)
    assert ("<th>under PGD(3)</th>" in text, "<b>[a]net" in text) == (True, False)
    assert plt.get_fignums() == drawn
    assert result["images"] in text
    assert html.escape(result["command"]) in text
    assert "http" not in text.replace("http-equiv", "")  # it needs no network
    assert "20 images" in text
    low, high = first["per_attack_interval"]["PGD(3)"]
    assert f"<small>{100 * low:.1f} to {100 * high:.1f}</small>" in text
    assert "<th>certified by CROWN</th>" in text
    said = f"o flag was raised; {len(first['flags_checked'])} were checked"
    assert ("N" + said in text, "n" + said in out) == (True, True)
    assert "None" not in text
    assert text.count("<figure>") == 12
    (curve,) = re.findall(r'<svg class="curve".*?</svg>', text, re.DOTALL)
    assert ("currentColor" in curve, "#000000" in curve, "#ffffff" in curve) == (True, False, False)
    assert sorted(p.name for p in tmp_path.iterdir() if "state" in p.name) == []
    # Nothing is written over unasked.
    code, _, err = odejax_command("evaluate", f"{network}:make", *few, *written)
    assert (code, f"{file} is there already" in err) == (2, True)
    # The same again, beside itself.
    code, out, err = odejax_command("compare", file, file)
    assert (code, err) == (0, "")
    assert "decide alike" in " ".join(out.replace("│", "").split())
    assert "[a]net.py" in out


def test_the_last_attack_is_listed_and_an_unknown_commit_is_not(
    odejax_command, network, tmp_path, monkeypatch
):
    monkeypatch.setattr("odejax.evaluation.results._commit", lambda: None)
    file, page = tmp_path / "result.json", tmp_path / "result.html"
    few = ("--images", "5", "--attacks", "FGSM()", "--last", "PGD(2)", "--certificates", "none")
    code, out, _ = odejax_command(
        "evaluate", f"{network}:logits", *few, "--linf", "0.01", "--json", file, "--html", page
    )
    assert code == 0
    (measured,) = load_result(file, "odejax.evaluate")["brackets"]
    assert decode_array(measured["certified_correct"]).mean() == 0 < measured["attacked"]
    text = page.read_text()
    for shown in ("<th>then PGD</th>", f"<small>run on {measured['n_last']}</small>"):
        assert shown in text
    reason = "certificates: none was run, as certificates=() asks for"
    assert (reason in out, reason in text) == (True, True)
    assert "commit" not in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "between 40.0 %, which is proven, and 60.0 %, which no attack got below."),
        ({"certified": 0.6}, "is 60.0 %: so much is proven, and attacks got down to it."),
        ({"per_certificate": {}, "certified": 0.0}, "0.0 %, since no certificate was run, and 60"),
        ({"alpha": {"smoothing": 0.001}}, "certified with the confidence below the table, and"),
        ({"alpha": {"smoothing": 0.001}, "certified": 0.6}, "certified with the confidence below"),
        ({"per_attack": {}}, "60.0 %, the clean accuracy, since no attack was run."),
        ({"per_attack": {}, "certified": 0.6}, "60.0 %, the clean accuracy, since no attack"),
    ],
)
def test_a_page_claims_no_more_than_was_run(changed, said):
    measured = {"ball": "linf", "eps": 0.1, "certified": 0.4, "attacked": 0.6, "last": None}
    measured |= {"per_certificate": {"CROWN": 0.4}, "per_attack": {"PGD": 0.6}}
    one = SimpleNamespace(**measured | {"per_transfer": {}, "alpha": {}} | changed)
    sentence = _sentence([one], 0.9, "images", 5)  # pyright: ignore[reportArgumentType]
    assert said in re.sub("<.*?>", "", sentence)


def test_without_a_radius_clean_accuracy_alone_is_measured(odejax_command, network):
    code, out, _ = odejax_command("evaluate", f"{network}:logits", "--images", "all")
    assert code == 0
    assert "all 500 test images of digits\nclean accuracy 8" in out


def test_a_network_with_noise_is_judged_by_a_mean_and_attacked_last_by_means(
    odejax_command, network, tmp_path
):
    options = ("--images", "10", "--attacks", "none", "--json", tmp_path / "noisy.json")
    code, out, _ = odejax_command("evaluate", f"{network}:noisy", *options)
    assert code == 0
    assert "judged by its mean logits over 20 draws" in out
    settings = load_result(tmp_path / "noisy.json", "odejax.evaluate")["settings"]
    assert (settings["last"], settings["draws"]) == ("AutoAttack.rand()", 20)
    fixed = Evaluate("net.py:logits")._for(noisy=False, n_classes=10)
    assert (fixed.last, fixed.draws) == ("AutoAttack()", 1)


@pytest.mark.parametrize(("noisy", "n_classes"), [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3)])
def test_the_last_attack_by_default_can_be_run_on_few_classes(noisy, n_classes):
    word = Evaluate("net.py:logits")._for(noisy=bool(noisy), n_classes=n_classes).last
    assert ("margin_loss" in word) == (n_classes < 4 - noisy)
    x = np.full((2, 2, 1), 0.5, np.float32)
    for attack in methods((word,), "attack")[word].attacks.values():
        rehearse(attack, x, 0, odejax.LinfBall(0.1), n_classes, jax.random.key(0))


@pytest.fixture
def asked(monkeypatch):
    """What `bracket` is called with; nothing is measured."""
    calls = []

    def recorded(*arguments, **settings):
        calls.append(settings)
        return []

    monkeypatch.setattr("odejax.commands.evaluate.bracket", recorded)
    return calls


def test_every_run_has_its_own_state_and_seed(odejax_command, network, tmp_path, asked):
    for name in ("eps0.1", "eps0.2"):
        options = ("--images", "2", "--linf", "0.1", "--l2", "1", "--seed", "5")
        file = tmp_path / name
        assert odejax_command("evaluate", f"{network}:logits", *options, "--json", file)[0] == 0
    assert len({call["state_path"] for call in asked}) == 4
    assert {call["key"] for call in asked} == {5}
    settings = load_result(file, "odejax.evaluate")["settings"]
    assert (settings["seed"], "what" in settings) == (5, False)


def test_the_images_are_the_same_for_every_seed():
    digests = {
        _data(Evaluate("net.py:logits", images=9, seed=seed))[0].provenance()["digest"]
        for seed in (0, 1)
    }
    assert len(digests) == 1


def test_files_are_written_though_nobody_reads_what_is_printed(
    odejax_command, network, tmp_path, monkeypatch
):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("odejax.commands.command_line._silence", lambda: None)
    monkeypatch.setattr(sys, "stdout", Closed())
    few = ("evaluate", f"{network}:logits", "--images", "2")
    assert odejax_command(*few, "--json", tmp_path / "a.json")[0] == 0
    assert load_result(tmp_path / "a.json", "odejax.evaluate")["clean"] == 1.0
    for arguments in (few, ("list", "flags")):
        assert odejax_command(*arguments)[0] == 0


def test_a_network_of_a_class_of_ones_own_is_loaded_by_a_function(
    odejax_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_class.py").write_text(OWN_CLASS)
    module = __import__("own_class")
    odejax.save("own.odejax", odejax.Predictor(*module.untrained(jax.random.key(0))))
    code, out, err = odejax_command("evaluate", "own_class.py:trained", "--images", "10")
    assert (code, err) == (0, "")
    assert "clean accuracy" in out
    code, _, err = odejax_command("evaluate", "own.odejax")
    assert (code, err.count("\n")) == (2, 1)
    assert "FILE.py:NAME, a function without arguments that returns odejax.load(path, like" in err


def test_a_file_imports_its_neighbours(tmp_path):
    (tmp_path / "beside.py").write_text("number = 4")
    (tmp_path / "own.py").write_text("import beside\n\n\ndef logits(x):\n    return beside.number")
    assert _from_file(tmp_path / "own.py", "logits")(0) == 4


def test_an_image_is_attacked_and_drawn(odejax_command, network, tmp_path, monkeypatch):
    drawings = []

    def drawn(networks, **settings):
        drawings.append(networks["net.py:logits"])
        return perturbation_grid(networks, **settings)

    monkeypatch.setattr("odejax.commands.attack.perturbation_grid", drawn)
    out_file = tmp_path / "one.png"
    code, out, err = odejax_command(
        "attack", f"{network}:logits", "digits:3", "--linf", "0.2", "--out", out_file
    )
    assert (code, err) == (0, "")
    assert "class 3 before" in out
    assert "moved by 0.2 in L-infinity" in out
    ((label,), (prediction,)) = (drawings[0][name] for name in ("labels", "predictions"))
    assert f"class {label} before PGD(40), {prediction} after" in out
    with Image.open(out_file) as drawn:
        assert drawn.size[0] > 100
    # Another class is right where one says so.
    code, out, err = odejax_command(
        "attack", f"{network}:logits", "digits:3", "--linf", "0.2", "--label", "5"
    )
    assert (code, out, err) == (0, "class 3 without an attack; the right class is 5\n", "")
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
        (("evaluate", "NET:other_images"), r"shape \(4, 4, 1\), and those of --dataset digits"),
        (("evaluate", "NET:number"), "must be a function of one image; got 3"),
        (("evaluate", "NET:Net"), "is a class; name a function"),
        (("evaluate", "NET"), "named FILE.py:NAME; .* has logits, noisy, make, fails"),
        (
            ("evaluate", "NET:logits", "--eps", "0.1"),
            r"^error: unrecognized options: --eps, 0.1; ",
        ),
        (
            ("evaluate", "NET:logits", "--l1", "0.1"),
            "--help .a radius is given by --linf",
        ),
        (("evaluate", "NET:logits", "--attacks", "none", "FGSM"), "none is written alone"),
        (("evaluate", "NET:logits", "--attacks", "RelativeStep(1)"), "unknown attack 'Relative"),
        (("evaluate", "NET:logits", "--attacks", "EOT"), r"it is written EOT\(attack, draws=20\)"),
        (("evaluate", "NET:logits", "--attacks", "AutoAttack(3)"), "must be a mapping"),
        (("evaluate", "NET:logits", "--json", "r", "--html", "r"), "must be two files"),
        (("evaluate", "NET:fails"), r"\(8, 8, 1\) \(--dataset digits\): TypeError"),
        (("evaluate", "no/such/file.odejax"), "FILE.py:NAME"),
        (("evaluate", "missing.py:f"), "is not there"),
        (("evaluate", "missing.py"), "is not there"),
        (("evaluate", "NET:logits", "--dataset", "digitz"), "'digitz'; accepted: digits; those"),
        (("evaluate", "NET:logits", "--data-dir", "no", "--dataset", "mnist"), "data-dir.* exist"),
        (("evaluate", "NET:logits", "--images", "501"), "1 to 500"),
        (("evaluate", "NET:logits", "--linf", "0.2", "0.1"), "growing"),
        (("evaluate", "NET:logits", "--linf", "0"), "radii above 0; got 0"),
        (("evaluate", "NET:logits", "--linf", "True"), "'True' is no number"),
        (("evaluate", "NET:logits", "--seed", "9" * 20), "a seed must be an integer of 64 bits"),
        (("evaluate", "NET:logits", "--linf", "eight"), "'eight' is no number"),
        (("evaluate", "NET:logits", "--attacks", "PGD(steps=0)"), "steps must be at least 1"),
        (("evaluate", "NET:logits", "--attacks", "PDG"), "unknown attack 'PDG' .* accepted: APGD"),
        (("evaluate", "NET:logits", "--certificates", "Proof()"), "unknown certificate 'Proof'"),
        (("evaluate", "NET:logits", "--json", "."), "is a folder"),
        (("attack", "NET:logits", "digits:3"), "one radius"),
        (("attack", "NET:logits", "digits:3", "--linf", "0.1", "--attack", "none"), "got none"),
        (("attack", "NET:logits", "digits:500", "--linf", "0.1"), "500 test images"),
        (("attack", "NET:logits", "digits:²", "--linf", "0.1"), "picture file or DATASET:INDEX"),
        (("attack", "NET:logits", "digits:3", "--linf", "0.1", "--label", "10"), "0 to 9; got 10"),
        (("attack", "NET:logits", "digits:3", "--linf", "0.1", "--out", "a.py"), "png.* got a.py"),
        (("attack", "NET:logits", "NET", "--linf", "0.1", "--out", "NET"), "must end in the name"),
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
    made = methods(("EOT(PGD(2, step_size=1/4), 3)", "PGD(2, RelativeStep(0.1))"), "attack")
    assert made["EOT(PGD(2, step_size=1/4), 3)"].attack.steps == 2
    words = ("PGD.__init__", "PGD(2).steps", "[PGD for _ in (1,)]", "(lambda: 1)()", "PGD(")
    for word in words:
        with pytest.raises(commands.UsageError, match="written like"):
            methods((word,), "attack")
    with pytest.raises(commands.UsageError, match=r"unknown attack 'os\.system'"):
        methods(("os.system('x')",), "attack")
    with pytest.raises(commands.UsageError, match="unknown attack 'eval'"):
        methods(("eval('1')",), "attack")
    assert number("8/255") == 8 / 255
    with pytest.raises(commands.UsageError, match="no number"):
        number("1/0")


def bracket(certified, correct):
    correct = np.asarray(correct)
    return {
        "ball": "linf", "eps": 0.1, "n": len(correct), "certified": certified, "alpha": {},
        "attacked": correct.mean(), "still_correct": encode_array(correct),
    }  # fmt: skip


def test_a_verdict_is_certain_only_where_the_intervals_are_apart():
    ten = np.arange(10)
    low, high = bracket(0.0, ten < 4), bracket(0.5, ten < 8)
    assert verdict(high, low) == "A is more robust on these images, for certain"
    assert verdict(low, high) == "B is more robust on these images, for certain"
    tested = high | {"alpha": {"RandomizedSmoothing": 0.001}}
    assert verdict(tested, low) == "A is more robust on these images, with confidence 99 %"
    assert verdict(tested | {"alpha": {"RandomizedSmoothing": 0.1}}, low).startswith("under attack")
    # 1 against 5 of 6: 2 * (1 + 6) * (1 / 2)^6.
    some = bracket(0.0, (ten >= 1) & (ten < 8))
    assert verdict(bracket(0.0, ten < 3), some).endswith("by A alone 1, by B alone 5 (p = 0.22)")
    # 4 against none of 4: 2 * (1 / 2)^4.
    assert verdict(low, bracket(0.4, ten < 8)).endswith("by A alone 0, by B alone 4 (p = 0.12)")


def test_other_images_are_not_compared(odejax_command, tmp_path):
    for name in "ab":
        result = {"data": {"digest": name}, "network": name, "brackets": []}
        save_result(tmp_path / name, "odejax.evaluate", result)
    code, _, err = odejax_command("compare", tmp_path / "a", tmp_path / "b")
    assert (code, "different images" in err) == (2, True)
    for name, ball in (("linf", {"ball": "linf", "eps": 0.1}), ("l2", {"ball": "l2", "eps": 0.1})):
        result = {"data": {"digest": "a"}, "network": name, "brackets": [ball]}
        save_result(tmp_path / name, "odejax.evaluate", result)
    code, _, err = odejax_command("compare", tmp_path / "linf", tmp_path / "l2")
    assert (code, "no ball in common" in err) == (2, True)


def test_all_is_listed():
    assert set(listed("flags")) == set(FLAGS)
    assert {"PGD", "AutoAttack", "Square", "EOT(attack)"} <= set(listed("attacks"))
    assert "RelativeStep" not in listed("attacks")
    assert {"CROWN", "CROWN-IBP", "RandomizedSmoothing"} <= set(listed("certificates"))
    assert {"CNN", "ResNet", "NmODENet"} <= set(listed("networks"))
    assert not {"BatchNorm", "Stem"} & set(listed("networks"))
    for what in ("attacks", "certificates", "networks", "flags"):
        assert all(about and "*" not in about for about in listed(what).values())


def offered(kind):
    """Each as it is listed, with a short attack where it needs one."""
    return [signature(*one).replace("(attack)", "(PGD(2))") for one in METHODS[kind].items()]


@pytest.mark.parametrize("word", offered("attack"))
def test_an_offered_attack_can_be_run(word):
    x = np.full((6, 6, 1), 0.5, np.float32)
    rehearse(methods((word,), "attack")[word], x, 0, odejax.LinfBall(0.1), 10, jax.random.key(0))


OF_OTHER_NETWORKS = (
    "FiniteTimeStableMapping", "FlowMapSlope", "LipschitzMargin", "RandomizedSmoothing",
    "StableMapping",
)  # fmt: skip


@pytest.mark.parametrize("word", offered("certificate"))
def test_an_offered_certificate_says_something_or_why_not(word):
    certificate = methods((word,), "certificate")[word]
    x, ball, key = np.full((2, 2, 1), 0.5, np.float32), odejax.LinfBall(0.1), jax.random.key(0)
    model, state = eqx.nn.make_with_state(odejax.models.MLP)(x.shape, 3, width=4, depth=1, key=key)
    network, refuses = (
        odejax.Predictor(model, state),
        pytest.raises(ValueError, match=" certifies "),
    )
    with refuses if word in OF_OTHER_NETWORKS else nullcontext():
        eqx.filter_eval_shape(certificate, network, x, 0, ball, key=key)


@pytest.mark.parametrize("name", listed("networks"))
def test_a_listed_network_is_made_for_images_of_a_shape(name):
    make = eqx.nn.make_with_state(getattr(odejax.models, name))
    given = {"bases": [odejax.models.ResNet]} if name == "MixedEnResNet" else {}
    model, _ = eqx.filter_eval_shape(
        lambda key: make((8, 8, 1), key=key, **given), jax.random.key(0)
    )
    assert tuple(model.image_shape) == (8, 8, 1)


def test_a_bound_is_written_as_tables_name_it():
    assert methods(("CROWN-IBP(bisections=2)",), "certificate")[
        "CROWN-IBP(bisections=2)"
    ] == odejax.certificates.LinearRelaxation(intermediate="interval", bisections=2)
    assert methods(("CROWN",), "certificate")["CROWN"] == odejax.certificates.LinearRelaxation()


def linear(x):
    return x.ravel()[:10]


def test_a_text_is_no_attack_in_python():
    data = odejax.data.load("digits", "test").take(slice(2))
    with pytest.raises(ValueError, match=r"attacks must be a function such as PGD\(\).*'FGSM'"):
        evaluation.bracket(linear, *data, odejax.LinfBall(0.1), attacks="FGSM", key=0)


def test_an_attack_that_is_none_is_refused_before_any_work():
    data = odejax.data.load("digits", "test").take(slice(2))
    step = odejax.attacks.RelativeStep(0.1)
    with pytest.raises(ValueError, match=r"called as attack\(logits_fn, x, y, .*RelativeStep: "):
        evaluation.bracket(linear, *data, odejax.LinfBall(0.1), attacks=step, key=0)


def test_an_interrupt_is_not_lost_in_a_destructor(capsys):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    @command()
    def waits():
        Interrupted()
        time.sleep(10)

    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as stop:
            waits()
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert (stop.value.code, "interrupted" in capsys.readouterr().err) == (130, True)


def test_the_version_is_printed(odejax_command):
    assert odejax_command("--version") == (0, f"odejax {odejax.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_gets_its_completion(odejax_command, shell):
    code, out, err = odejax_command("--tyro-print-completion", shell)
    assert (code or 0, err) == (0, "")
    assert "--certificates" in out


def test_the_page_names_every_option():
    options = {field.name.replace("_", "-") for field in dataclasses.fields(Evaluate)}
    said = set(re.findall(r"`--([a-z0-9-]+)`", PAGE.read_text()))
    assert options - said == {"what"}
    assert said <= options
