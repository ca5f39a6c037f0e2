"""The bracket over several balls: what carries over, the last attack, transfers; its arguments."""

import dataclasses
import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, NoisyLogits, digits, linear_logits, trained_mlp

import odejax
from odejax import L2Ball, LinfBall
from odejax.attacks import FGSM, PGD, AutoAttack, Boundary, RelativeStep, Square
from odejax.certificates import (
    AbstractCertificate,
    AbstractDeterministicCertificate,
    IntervalBounds,
    StableMapping,
)
from odejax.data import ArrayDataset
from odejax.evaluation import (
    Bracket,
    bracket,
    confidence_interval,
    robust_accuracy,
    transfer_matrix,
    verify,
)
from odejax.evaluation.flags import (
    NO_ATTACK,
    NO_START,
    SHORT_STEPS,
    flags_seen,
    kinds_checked,
)
from odejax.evaluation.probes import kinds_probed
from odejax.evaluation.tables import Shown

KEY = jax.random.key(0)
EPS = (0.05, 0.1, 0.2)
GREYS = np.array([130, 145, 160, 200, 100])  # at 2.5, 17.5, 32.5, 72.5 from 127.5; the last wrong
DISTANCES = (GREYS - 127.5) / 255
DATA = ArrayDataset(
    np.broadcast_to(GREYS[:, None, None, None], (5, 4, 4, 1)).astype(np.uint8),
    np.zeros(5, np.int32),
    n_classes=2,
)
WEAK = PGD(1, 0.01, random_start=False)  # gets to image 0, at 0.0098
EXACT = AutoAttack({"FGSM": FGSM()})  # of a linear network


class Mean(eqx.Module):
    """Logits +-(mean - 1/2), whose distance from the boundary in L-infinity is |mean - 1/2|."""

    def __call__(self, x, state, *, key=None):
        mean = jnp.mean(x) - 0.5
        return jnp.stack([mean, -mean]), state


class NearlyExact(AbstractDeterministicCertificate):
    """Nine tenths of that distance."""

    def radius(self, predictor, x, logits, ball):
        return 0.9 * jnp.max(logits)


def predictor():
    return odejax.Predictor(Mean(), eqx.nn.State(Mean()))


def measured(**settings):
    settings = {
        "attacks": {"weak": WEAK},
        "certificates": (),
        "key": KEY,
        "flag_images": 0,
    } | settings
    return bracket(predictor(), *DATA, [LinfBall(eps) for eps in EPS], **settings)


# What is known in one ball, and said of the others


def test_what_is_broken_in_a_ball_is_broken_in_all_larger_ones():
    """By an attack that moves by 0.01 in the smallest ball alone."""

    def timid(logits_fn, x, y, ball, *, key):
        reach = jnp.where(ball.eps < 0.06, 0.01, 0.0)
        return FGSM()(logits_fn, x, y, LinfBall(reach), key=key)

    brackets = measured(attacks={"timid": timid}, anew={"timid"})
    assert [b.per_attack["timid"] for b in brackets] == [0.6, 0.8, 0.8]
    assert [b.attacked for b in brackets] == [0.6] * 3
    for b in brackets:
        moved = np.abs(b.x_adv - DATA.pixels).max(axis=(1, 2, 3))
        np.testing.assert_allclose(moved, [0.01, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("anew", [(), {"weak"}])
def test_an_attack_that_could_repeat_a_perturbation_does_not_lose_it(anew):
    seen = []

    def attack(logits_fn, x, y, ball, *, key):
        return FGSM()(logits_fn, x, y, LinfBall(jnp.where(ball.eps < 0.06, 0.01, 0.0)), key=key)

    brackets = measured(attacks={"weak": attack}, anew=anew)
    assert [b.per_attack["weak"] for b in brackets] == ([0.6, 0.8, 0.8] if anew else [0.6] * 3)
    assert not seen


@pytest.mark.slow
def test_branch_and_bound_closes_the_interval():
    """It decides what one attack step and intervals do not, in two balls."""
    data, balls = digits("test", 8), [LinfBall(0.03), LinfBall(0.06)]
    settings = {"attacks": {"FGSM": FGSM()}, "key": KEY, "flag_images": 0, "progress": False}
    settings["certificates"] = {"intervals": IntervalBounds()}
    plain = bracket(trained_mlp(), *data, balls, **settings)
    closed = bracket(trained_mlp(), *data, balls, verify_seconds=30.0, **settings)
    for before, after in zip(plain, closed, strict=True):
        assert before.certified < after.certified == after.attacked <= before.attacked
        assert after.per_certificate["intervals"] == before.per_certificate["intervals"]
        assert after.per_certificate["branch and bound"] == after.certified
        assert "with branch and bound" in str(after)
        moved = np.abs(after.x_adv - data.pixels).max(axis=(1, 2, 3))
        assert (moved <= after.eps + 1e-6).all()
        assert (moved[before.still_correct & ~after.still_correct] > 0).all()
    alone = verify(trained_mlp(), *data, balls[-1], key=KEY, progress=False)
    np.testing.assert_array_equal(closed[-1].certified_correct, alone.status == "proven")


def test_branch_and_bound_refuses_what_it_is_not_about_before_any_work():
    def measure(network, **settings):
        return bracket(network, *digits("test", 4), LinfBall(0.1), key=KEY, **settings)

    with pytest.raises(ValueError, match="draws noise"):
        measure(NoisyLogits(linear_logits(n_classes=10)), verify_seconds=1.0, certificates=())
    with pytest.raises(ValueError, match="draws must be 1 and bits None; got 1 and 8"):
        measure(linear_logits(), verify_seconds=1.0, bits=8)
    with pytest.raises(ValueError, match="verify_seconds must be"):
        measure(linear_logits(), verify_seconds=-1.0)


def test_one_step_attacks_are_run_anew_in_every_ball():
    data, settings = digits("test", 60), {"certificates": (), "key": KEY, "flag_images": 0}
    attacks = {"FGSM": FGSM(), "PGD": PGD(5)}
    small, large = bracket(
        trained_mlp(), *data, [LinfBall(0.05), LinfBall(0.1)], attacks=attacks, **settings
    )
    alone = bracket(trained_mlp(), *data, LinfBall(0.1), attacks={"FGSM": FGSM()}, **settings)
    np.testing.assert_array_equal(
        large.still_correct_under["FGSM"], alone.still_correct_under["FGSM"]
    )
    broken = ~small.still_correct_under["PGD"]
    assert broken.any()
    assert not (large.still_correct_under["PGD"] & broken).any()
    assert not (large.still_correct & ~small.still_correct).any()


def test_the_first_of_several_balls_is_measured_as_it_would_be_alone():
    data = digits("test", 60)
    settings = {"attacks": {"FGSM": FGSM(), "PGD": PGD(5)}, "certificates": (), "key": KEY}
    first, _ = bracket(trained_mlp(), *data, [LinfBall(0.05), LinfBall(0.1)], **settings)
    alone = bracket(trained_mlp(), *data, LinfBall(0.05), **settings)
    for field in dataclasses.fields(Bracket):
        if field.name not in ("seconds", "judge"):
            assert eqx.tree_equal(getattr(first, field.name), getattr(alone, field.name))


# The last attack


@pytest.fixture
def attacked(monkeypatch):
    """Which images the last attack was run on, in the order of its calls."""
    calls = []
    module = __import__("odejax.evaluation.bracket_steps", fromlist=["robust_accuracy"])
    original = module.robust_accuracy

    def recorded(*arguments, **settings):
        if arguments[4] is EXACT:
            calls.append(np.flatnonzero(~settings["already_broken"]).tolist())
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "robust_accuracy", recorded)
    return calls


def test_images_correct_under_the_last_attack_are_not_attacked_in_smaller_balls(attacked):
    brackets = measured(last=EXACT)
    # Image 3 is still correct at 0.2, image 2 at 0.1.
    assert attacked == [[1, 2, 3], [1, 2], [1]]
    assert [b.n_last for b in brackets] == [1, 2, 3]
    for eps, summary in zip(EPS, brackets.summaries(), strict=True):
        assert summary["attacked"] == np.mean(eps < DISTANCES)
        assert summary["attacked_interval"][0] < summary["attacked"]
        assert summary["per_attack"] == {"weak": 0.6}
        assert summary["seconds"]["AutoAttack"] > 0
        assert (summary["last"], summary["after_last"]) == ("AutoAttack", summary["attacked"])
        assert summary["after_last_interval"] == summary["attacked_interval"]
    assert [(b.last, b.after_last, b.n_last) for b in measured()] == [(None, None, None)] * 3
    _, head, rows, _ = brackets.table()
    column = head.index("then AutoAttack")
    assert [row[column] for row in rows] == ["60.0 (on 1)", "40.0 (on 2)", "20.0 (on 3)"]
    assert ["then AutoAttack, on 2 images", "40.0"] in brackets[1].table()[2]


def test_what_is_certified_is_not_attacked_last(attacked):
    brackets = measured(last=EXACT, certificates=NearlyExact())
    assert attacked == [[1, 2], [1], []]
    assert [b.certified for b in brackets] == [0.6, 0.4, 0.2]
    assert [b.attacked for b in brackets] == [0.6, 0.4, 0.2]


def test_a_black_box_that_breaks_more_than_the_gradients_is_flagged():
    blind = AutoAttack({"PGD": PGD(1, 1e-4, random_start=False), "Square": Square(50)})
    flags = [[f.name for f in b.flags if f.name != "steps too short"] for b in measured(last=blind)]
    assert flags == [[], [], ["black box beats white box"]]


# Transfers


def test_images_crafted_on_another_network_are_counted_and_flagged():
    """One whose gradient is hidden, and its own without that."""

    class Hidden(eqx.Module):
        inner: eqx.Module

        def __call__(self, x, *, key=None):
            return self.inner(jnp.round(255 * x) / 255, key=key)

    data, attack = digits("test", 60), PGD(5)
    open_one, hidden = trained_mlp(), Hidden(trained_mlp())
    brackets = bracket(
        hidden,
        *data,
        [LinfBall(0.05), LinfBall(0.1)],
        attacks=attack,
        oracles={"open": open_one},
        transfer_attack=attack,
        certificates=(),
        key=KEY,
        flag_images=0,
    )
    for b in brackets:
        assert b.per_transfer["open"] == b.attacked < b.per_attack["PGD"] - 0.2
        assert "transfer beats white box" in {flag.name for flag in b.flags}
        judged = odejax.predict(hidden, b.x_adv, key=KEY).argmax(axis=1) == data.labels
        np.testing.assert_array_equal(judged, b.still_correct)


def test_an_attack_and_an_oracle_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"different names; both have \['weak'\]"):
        measured(oracles={"weak": predictor()})


# A run that was killed


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(7))
def test_a_killed_bracket_of_several_balls_goes_on_where_it_was(at, tmp_path, monkeypatch):
    module = __import__("odejax.evaluation.bracket_steps", fromlist=["robust_accuracy"])
    original, ran = module.robust_accuracy, []
    settings = dict(last=EXACT, certificates=NearlyExact(), oracles={"same": predictor()})
    whole = measured(**settings)

    def dying(*arguments, **settings):
        ran.append(1)
        if len(ran) == at + 1:
            raise Killed
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "robust_accuracy", dying)
    path = tmp_path / "state"
    with pytest.raises(Killed):
        measured(state_path=path, **settings)
    again = measured(state_path=path, **settings)
    assert len(ran) == 9 + 1  # two attacks and the last in three balls, one of them twice
    assert list(tmp_path.iterdir()) == []
    for one, other in zip(again, whole, strict=True):
        for field in dataclasses.fields(Bracket):
            if field.name not in ("seconds", "judge"):
                assert eqx.tree_equal(getattr(one, field.name), getattr(other, field.name))


# Forms of the arguments


def test_short_forms_say_the_same_as_long_ones():
    data, logits = digits("test", 20), trained_mlp()
    expected = bracket(
        logits,
        data.pixels,
        data.labels,
        LinfBall(0.1),
        attacks=[FGSM()],
        certificates=(),
        key=KEY,
        flag_images=0,
    )
    for arguments, settings in (
        ((logits, *data), {"attacks": FGSM()}),
        ((logits, *data), {"attacks": [FGSM]}),
        ((lambda x: logits(x), *data), {"attacks": FGSM}),
        ((logits, data.images.tolist(), data.labels.tolist()), {"attacks": {"FGSM": FGSM()}}),
        ((logits, data.images, data.labels.astype(np.int64)), {"attacks": (FGSM(),)}),
        ((logits, *data), {"attacks": FGSM, "key": 0}),
        ((logits, *data), {"attacks": FGSM, "key": jax.random.PRNGKey(0)}),
    ):
        images = np.asarray(arguments[1])
        images = images.astype(np.uint8) if images.dtype == np.int64 else images
        result = bracket(
            arguments[0], images, arguments[2], LinfBall(0.1), certificates=(), flag_images=0,
            **{"key": KEY, **settings},
        )  # fmt: skip
        assert result.per_attack == expected.per_attack
        np.testing.assert_array_equal(result.x_adv, expected.x_adv)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balls": 0.1}, r"ball must be a ball, such as LinfBall\(0.1\); got 0.1"),
        ({"balls": []}, "balls must hold at least one ball"),
        ({"balls": [LinfBall(0.2), LinfBall(0.1)]}, r"balls must grow; got eps \[0.2.*, 0.1"),
        ({"balls": [LinfBall(0.1), L2Ball(0.2)]}, "balls must be of one norm"),
        ({"attacks": [AbstractCertificate]}, "AbstractCertificate is a class that needs arguments"),
        ({"attacks": [3]}, r"attacks must be a function, such as PGD\(\); got 3"),
        ({"attacks": 3}, "attacks must be a function such as PGD.*; got 3"),
        ({"anew": {"PGD"}}, r"anew names \['PGD'\]; the attacks are \['FGSM'\]"),
        ({"bits": 8, "images": DATA.pixels * 0.99}, "bits=8 is for images of 8 bits a pixel"),
        ({"bits": 0}, "bits must be at least 1; got 0"),
        (
            {"logits_fn": Mean()},
            r"Mean takes 2 arguments, x and state: .*Predictor",
        ),
        ({"certificates": StableMapping()}, "certifies .* got Mean"),
        ({"certificates": "best"}, "certificates must be methods or \"auto\"; got 'best'"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(settings, message, unchecked):
    arguments = {"logits_fn": predictor(), "images": DATA.images, "labels": DATA.labels}
    arguments |= {"balls": LinfBall(0.1), "attacks": FGSM(), "key": KEY} | settings
    with pytest.raises(ValueError, match=message):
        bracket(**arguments)


def test_a_data_set_in_the_place_of_images_and_labels_is_named():
    for call in (bracket, robust_accuracy, verify):
        with pytest.raises(ValueError, match=r"give images and labels, \*dataset; got the Array"):
            call(predictor(), DATA, LinfBall(0.1), key=KEY)


def test_an_accuracy_no_better_than_chance_is_pointed_out():
    """Also for one image, which is counted as one."""
    images, labels = DATA.images[:1], 1 - DATA.labels[:1]
    result = bracket(predictor(), images, labels, LinfBall(0.1), certificates=(), key=KEY)
    note = "clean accuracy 0.0 % is not significantly above chance, 50.0 %: are labels and pixels"
    assert (note in repr(result), "linf, eps 0.1, 1 image: " in repr(result)) == (True, True)
    assert (result.n_classes, "chance" in repr(measured()[0])) == (2, False)


def test_a_ball_larger_than_the_box_is_pointed_out():
    with pytest.warns(UserWarning, match=r"LinfBall\(8\) holds every image: .* 8 / 255"):
        robust_accuracy(predictor(), *DATA, LinfBall(8), FGSM(), key=KEY)


def test_a_bracket_without_an_attack_says_so():
    result = measured(attacks=())[1]
    assert result.attacked == result.clean == 0.8
    assert [flag.name for flag in result.flags] == ["no attack"]
    assert f"flag: no attack, linf 0.1 ({result.flags[0].evidence}): {NO_ATTACK.why}" in notes(
        result
    )


def notes(shown):
    return " ".join(repr(shown).split())


def test_a_flag_is_explained_once_with_its_balls():
    said = notes(measured())
    assert said.count("flag: steps too short") == 1
    assert "linf 0.05 (PGD: 1 step of 0.01, eps 0.05); 0.1 (PGD" in said
    assert said.endswith(f"eps 0.2): {SHORT_STEPS.why}")
    assert measured()[0].flags_checked == ("no attack", "steps too short")


def test_a_flag_of_a_ball_that_is_shown_as_another_is_not_lost():
    flag = SHORT_STEPS("one")
    raised = [("linf", 0.1001, [flag]), ("linf", 0.1002, []), ("l2", 1.0, [flag])]
    assert flags_seen(raised) == {flag.name: "linf 0.1 (one); l2 1 (one)"}


@pytest.mark.parametrize(
    ("settings", "checked"),
    [
        ({"attacks": [PGD(2), Square(2)]}, {"black box beats white box", "steps too short"}),
        ({"attacks": Square(2)}, set()),
        ({"attacks": PGD(2), "last": Square(2)}, {"steps too short"}),
        ({"oracles": {"same": predictor()}}, {"steps too short", "transfer beats white box"}),
        ({"last": EXACT, "attacks": ()}, {"attack ignores the noise"}),
        ({"attacks": (), "flag_images": 2}, {kind.name for kind in kinds_probed(predictor())}),
    ],
    ids=["white and black box", "black box", "last is black", "oracle", "exact", "probes"],
)
def test_where_no_flag_was_raised_it_says_how_many_were_checked(settings, checked):
    result = measured(**settings)[0]
    assert set(result.flags_checked) == checked | {"no attack"}
    if not result.flags:
        number = {1: "1 was", 2: "2 were", 3: "3 were"}.get(len(result.flags_checked))
        names = f": {', '.join(result.flags_checked)}" if number else " (.flags_checked names them)"
        number = number or f"{len(result.flags_checked)} were"
        assert repr(result).endswith(f"no flag was raised; {number} checked{names}")


def test_an_attack_that_needs_a_start_is_checked_for_one():
    assert kinds_checked([Boundary()], None, None) == (NO_ATTACK, NO_START)


class Nothing(AbstractDeterministicCertificate):
    """Proves nothing."""

    def radius(self, predictor, x, logits, ball):
        return 0.0 * jnp.max(logits)


def test_where_nothing_is_certified_it_says_what_ran():
    for certificates, reason in (
        ((), "none was run, as certificates=() asks for"),
        (Nothing(), "Nothing ran and proved none of 5 images"),
    ):
        result = measured(certificates=certificates)
        assert {b.uncertified for b in result} == {(reason,)}
        for shown in (result, result[0]):
            assert f"certificates: {reason}" in notes(shown)
        assert result.table()[2][0][2] == ("0.0" if certificates else "none")
    some = measured(certificates=[Nothing(), NearlyExact()])
    assert {b.uncertified for b in some} == {()}
    assert some.table()[1][-2:] == ["by Nothing", "by NearlyExact"]


def test_every_accuracy_has_its_confidence_interval():
    settings = {"last": EXACT, "certificates": NearlyExact(), "oracles": {"same": predictor()}}
    measured_one = measured(**settings)[1]
    one = measured_one.summary()
    for name in ("clean", "certified", "attacked", "after_last"):
        assert one[f"{name}_interval"] == confidence_interval(round(5 * one[name]), 5)
    for name in ("per_attack", "per_transfer", "per_certificate"):
        (of,) = one[name]
        assert one[f"{name}_interval"][of] == confidence_interval(round(5 * one[name][of]), 5)
    assert one["flags"] == {flag.name: flag.evidence for flag in measured_one.flags} != {}
    hundred = dataclasses.replace(measured_one, n=100)
    assert hundred.interval(0.29) == confidence_interval(29, 100)  # 100 * 0.29 is below 29


def test_the_accuracy_after_the_last_attack_is_not_that_under_all():
    """Branch and bound, which comes later, breaks images as well."""
    one = dataclasses.replace(measured(last=EXACT)[1], after_last=0.5, attacked=0.25)
    assert one.behind_attacked()[-1].accuracy == 0.5
    assert ["then AutoAttack, on 2 images", "50.0"] in one.table()[2]


@pytest.mark.parametrize(
    ("attack", "network", "raised"),
    [
        (AutoAttack({"PGD": PGD(2)}), NoisyLogits(linear_logits(n_classes=10)), True),
        (AutoAttack.rand(2), NoisyLogits(linear_logits(n_classes=10)), False),
        (AutoAttack({"PGD": PGD(2)}), linear_logits(n_classes=10), False),
    ],
    ids=["standard", "rand", "deterministic"],
)
def test_a_sequence_that_ignores_noise_is_flagged(attack, network, raised):
    report = robust_accuracy(network, *digits("test", 4), LinfBall(0.02), attack, key=KEY)
    assert ("attack ignores the noise" in {flag.name for flag in report.flags}) == raised


def test_a_report_has_the_flags_of_its_attack():
    report = robust_accuracy(predictor(), *DATA, LinfBall(0.1), WEAK, key=KEY)
    assert [flag.name for flag in report.flags] == ["steps too short"]


def test_a_relative_step_is_the_same_share_of_every_ball():
    data = digits("test", 30)
    for eps in (0.02, 0.1):
        one, other = (
            robust_accuracy(trained_mlp(), *data, LinfBall(eps), PGD(4, step), key=KEY)
            for step in (RelativeStep(0.25), jnp.asarray(0.25 * eps))
        )
        np.testing.assert_allclose(one.x_adv, other.x_adv, atol=1e-6)
    with pytest.raises(ValueError, match=r"share must be finite and positive; got 0\.0"):
        PGD(4, RelativeStep(0.0))


# Adversarial examples of 8 bits


@pytest.mark.parametrize("ball", [LinfBall(0.1), LinfBall(8 / 255), L2Ball(1.0)], ids=str)
def test_adversarial_examples_are_judged_as_images_of_8_bits(ball):
    data = digits("test", 60)
    report = robust_accuracy(trained_mlp(), *data, ball, PGD(10), key=KEY, bits=8)
    levels = report.x_adv * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert jax.vmap(ball.contains)(report.x_adv, data.pixels).all()
    right = odejax.predict(trained_mlp(), report.x_adv, key=KEY).argmax(axis=1) == data.labels
    np.testing.assert_array_equal(right, report.still_correct)
    exact = robust_accuracy(trained_mlp(), *data, ball, PGD(10), key=KEY)
    assert exact.accuracy <= report.accuracy <= exact.accuracy + 0.1
    # They are as far out as levels allow, not rounded inwards by habit.
    moved = np.abs(report.x_adv - data.pixels).max(axis=(1, 2, 3))
    if ball.name == "linf":
        assert np.isclose(moved.max(), np.floor(float(ball.eps) * 255 + 1e-3) / 255)


def test_rounding_to_two_levels_undoes_what_is_small():
    images = np.round(digits("test", 20).pixels).astype(np.float32)
    logits = LinearLogits(*jax.tree.leaves(linear_logits((8, 8, 1), n_classes=10)))
    labels = odejax.predict(logits, images, key=KEY).argmax(axis=1)
    report = robust_accuracy(logits, images, labels, LinfBall(0.4), PGD(5), key=KEY, bits=1)
    np.testing.assert_array_equal(report.x_adv, images)
    assert report.accuracy == 1


# Shown as tables


def test_results_are_shown_as_tables():
    brackets = measured(last=EXACT, certificates=NearlyExact(), oracles={"same": predictor()})
    report = robust_accuracy(predictor(), *DATA, LinfBall(0.1), WEAK, key=KEY)
    matrix = transfer_matrix({"a": predictor()}, *DATA, LinfBall(0.1), FGSM(), key=KEY)
    for shown in (brackets, brackets[1], report, matrix):
        text, html = repr(shown), shown._repr_html_()
        assert len(text.splitlines()) >= 3
        assert max(map(len, text.splitlines())) <= 100
        _, head, rows, _ = shown.table()
        assert re.findall("<th>(.*?)</th>", html) == head
        assert len(re.findall("<tr>", html)) == 1 + len(rows)
    assert "certified 40.0 % <= robust accuracy <= 40.0 %" in repr(brackets[1])
    assert json.dumps(brackets.summaries())


class Wide(Shown):
    """A table of more columns than a terminal has room for, with names that are no elements."""

    def table(self):
        head = ["", *(f"<b>{i} {'x' * 30}" for i in range(7))]
        return "wide", head, [[f"row {r}", *(f"{r}.{i}" for i in range(7))] for r in (1, 2)], []


def test_a_wide_table_is_shown_in_blocks_and_every_name_as_it_is():
    title, *lines = repr(Wide()).splitlines()
    assert (title, len(lines)) == ("wide", 4 * 3)
    assert max(map(len, lines)) <= 100
    assert [line.split()[-1] for line in lines[1::3]] == ["1.1", "1.3", "1.5", "1.6"]
    assert all(line.startswith(f"  row {r}") for r in (1, 2) for line in lines[r::3])
    assert "<b>" not in Wide()._repr_html_().removeprefix("<div><b>wide</b></div>")
