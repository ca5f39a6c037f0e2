"""Robust accuracy, the bracket and result files."""

import contextlib
import dataclasses
import gc
import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    LinearLogits,
    NoisyLogits,
    digits,
    linear_logits,
    predictor_of,
    trained_lipschitz,
    trained_mlp,
    trained_nmode,
)
from scipy.stats import binomtest

from odejax import L2Ball, LinfBall, MeanLogits, predict
from odejax._logits import hoist
from odejax.attacks import (
    APGD,
    FAB,
    FGSM,
    IFGSM,
    PGD,
    SPSA,
    AbstractAttack,
    AttackResult,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    Restarts,
    Square,
    Targeted,
    margin_loss,
)
from odejax.certificates import FiniteTimeStableMapping, LipschitzMargin, StableMapping
from odejax.data import ArrayDataset
from odejax.evaluation import (
    Bracket,
    ResultError,
    bracket,
    confidence_interval,
    load_result,
    masking_flags,
    provenance,
    robust_accuracy,
    save_result,
    transfer_matrix,
)

KEY = jax.random.key(11)
PGD5 = PGD(steps=5, step_size=None)
BRACKETS = {
    "nmode linf": (trained_nmode, LinfBall(0.01), [StableMapping(), FiniteTimeStableMapping()]),
    "nmode l2": (trained_nmode, L2Ball(0.02), [FiniteTimeStableMapping()]),
    "Lipschitz l2": (trained_lipschitz, L2Ball(0.1), [LipschitzMargin()]),
    "MLP": (trained_mlp, LinfBall(0.08), []),
}
SLOW_BRACKETS = ("nmode l2", "Lipschitz l2")  # what they certify is in the certificates' own tests


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_BRACKETS)) for name in BRACKETS
    ],
)
def measured(request):
    predictor, ball, certificates = BRACKETS[request.param]
    return bracket(
        predictor(),
        *digits("test", 100),
        ball,
        attacks=[FGSM(), PGD5],
        certificates=certificates,
        key=KEY,
        # Where there are certificates the flags are those of other tests.
        flag_images=0 if certificates else 64,
    )


def test_certified_is_at_most_attacked_is_at_most_clean(measured):
    assert 0 <= measured.certified <= measured.attacked <= measured.clean <= 1
    assert measured.clean > 0.8
    assert not (measured.certified_correct & ~measured.still_correct).any()


def test_the_ends_are_the_worst_attack_and_the_best_certificate_of_each_example(measured):
    assert all(accuracy >= measured.attacked for accuracy in measured.per_attack.values())
    assert all(proven <= measured.certified for proven in measured.per_certificate.values())
    assert measured.attacked == measured.still_correct.mean()
    assert measured.certified == measured.certified_correct.mean()
    np.testing.assert_array_equal(measured.certified_correct, (measured.radius >= measured.eps))


def test_the_images_of_a_bracket_are_those_that_broke_it(measured):
    predictor = next(
        p for p, ball, _ in BRACKETS.values()
        if (ball.name, np.float32(ball.eps)) == (measured.ball, np.float32(measured.eps))
    )()  # fmt: skip
    right = predict(predictor, measured.x_adv, key=KEY).argmax(axis=1) == digits("test", 100).labels
    np.testing.assert_array_equal(right, measured.still_correct)


def test_the_strongest_attack_counts_even_where_it_came_first():
    weak = PGD(1, 1e-6, random_start=False)
    result = bracket(
        trained_mlp(),
        *digits("test", 100),
        LinfBall(0.08),
        attacks={"strong": PGD5, "weak": weak},
        certificates=(),
        key=KEY,
        flag_images=0,
    )
    assert result.attacked == result.per_attack["strong"] < result.per_attack["weak"]


def test_the_best_certificate_counts_even_where_it_came_first():
    result = bracket(
        trained_nmode(),
        *digits("test", 100),
        LinfBall(0.008),
        attacks=[FGSM()],
        certificates=[FiniteTimeStableMapping(), StableMapping()],
        key=KEY,
        flag_images=0,
    )
    first, last = result.per_certificate.values()
    assert result.certified == first > last


def test_more_restarts_lose_nothing_that_fewer_found():
    data, rows = digits("test", 30), np.arange(30)
    margins = []
    for n in (1, 6):
        attack = Restarts(PGD(1, 0.01), n)
        report = robust_accuracy(
            trained_mlp(),
            data.pixels,
            data.labels,
            LinfBall(0.1),
            attack,
            key=KEY,
            stop_at_first_success=False,
        )
        logits = predict(trained_mlp(), report.x_adv, key=KEY)
        own = logits[rows, data.labels]
        logits[rows, data.labels] = -np.inf
        margins.append(own - logits.max(axis=1))
    assert (margins[1] <= margins[0] + 1e-4).all()
    assert (margins[1] < margins[0] - 1e-2).sum() > 15


def test_copies_of_an_image_are_attacked_with_draws_of_their_own():
    images = np.full((4, *IMAGE_SHAPE), 0.5, np.float32)
    logits_fn = linear_logits(n_classes=10)
    labels = predict(logits_fn, images, key=KEY).argmax(axis=1)
    report = robust_accuracy(
        logits_fn,
        images,
        labels,
        LinfBall(0.01),
        PGD(1, 1e-4),
        key=KEY,
        stop_at_first_success=False,
    )
    assert len(np.unique(report.x_adv.reshape(4, -1), axis=0)) == 4


def test_a_bracket_is_summarised_in_json_with_intervals(measured):
    summary = json.loads(json.dumps(measured.summary()))
    low, high = summary["attacked_interval"]
    assert low <= summary["attacked"] <= high
    assert summary["n"] == 100


@pytest.mark.parametrize(
    ("certificates", "precision"), [([FiniteTimeStableMapping()], "highest"), ([], "high")]
)
def test_attacks_beside_certificates_are_as_precise_as_these(certificates, precision):
    seen = set()

    def attack(logits_fn, x, y, ball, *, key):
        seen.add(jax.config.jax_default_matmul_precision)
        return FGSM()(logits_fn, x, y, ball, key=key)

    predictor, images = predictor_of("NmODENet flow map"), digits("test", 5).images
    labels = predict(predictor, images, key=KEY).argmax(axis=1).astype(np.int32)
    with jax.default_matmul_precision("high"):
        bracket(
            predictor,
            *ArrayDataset(images, labels, n_classes=10),
            LinfBall(0.01),
            attacks=[attack],
            certificates=certificates,
            key=KEY,
            flag_images=0,
        )
    assert seen == {precision}


def test_two_attacks_of_one_class_need_names():
    with pytest.raises(ValueError, match="PGD"):
        bracket(trained_mlp(), *digits("test", 5), LinfBall(0.1), attacks=[PGD(), PGD5], key=KEY)


def test_a_bracket_of_several_radii_is_refused():
    with pytest.raises(ValueError, match=r"\(2,\)"):
        bracket(
            trained_mlp(), *digits("test", 5), LinfBall(np.array([0.1, 0.2])), attacks=[], key=KEY
        )


@pytest.mark.parametrize("n", [1, 10, 500])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_confidence_interval_is_scipys_exact_one(n, fraction, level):
    successes = round(fraction * n)
    # SciPy's comes from a root search to 2e-12.
    expected = binomtest(successes, n).proportion_ci(level, method="exact")
    actual = confidence_interval(successes, n, level=level)
    np.testing.assert_allclose(actual, (expected.low, expected.high), rtol=0, atol=1e-11)


@pytest.mark.parametrize("noisy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_robust_accuracy_does_not_depend_on_the_batch_size(noisy):
    # The promise: image i draws from its own key, so batches change rounding alone.
    logits_fn = NoisyLogits(linear_logits(n_classes=10)) if noisy else trained_mlp()
    pixels = digits("test", 30).pixels
    labels = predict(logits_fn, pixels, key=KEY).argmax(axis=1)
    one, other = (
        robust_accuracy(logits_fn, pixels, labels, LinfBall(0.02), PGD5, key=KEY, batch_size=size)
        for size in (30, 7)
    )
    np.testing.assert_array_equal(one.still_correct, other.still_correct)
    np.testing.assert_allclose(one.x_adv, other.x_adv, atol=1e-6)
    np.testing.assert_array_equal(one.queries, other.queries)
    assert 0 < one.accuracy < 1


def test_logits_do_not_depend_on_the_batch_size():
    images, logits_fn = digits("test", 30).images, NoisyLogits(linear_logits(n_classes=10))
    one, other = (predict(logits_fn, images, key=KEY, batch_size=size) for size in (30, 7))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_report_counts_what_its_own_images_show():
    data = digits("test", 60)
    report = robust_accuracy(trained_mlp(), data.pixels, data.labels, LinfBall(0.08), PGD5, key=KEY)
    right = predict(trained_mlp(), report.x_adv, key=KEY).argmax(axis=1) == data.labels
    np.testing.assert_array_equal(report.still_correct, right)
    assert report.accuracy == right.mean()
    assert 0 < report.accuracy < 1
    assert np.abs(report.x_adv - data.pixels).max() <= 0.08 + 1e-6


def test_only_correct_images_are_attacked_and_only_until_an_attack_succeeds():
    data = digits("test", 60)
    report = robust_accuracy(trained_mlp(), data.pixels, data.labels, LinfBall(0.08), PGD5, key=KEY)
    wrong = predict(trained_mlp(), data.images, key=KEY).argmax(axis=1) != data.labels
    assert wrong.any()
    np.testing.assert_array_equal(report.x_adv[wrong], data.pixels[wrong])
    assert set(report.queries[wrong]) == {1}
    assert set(report.queries[report.still_correct]) == {1 + 5 + 1}
    broken = ~wrong & ~report.still_correct
    assert broken.any()
    assert set(report.queries[broken]) <= set(range(2, 1 + 5 + 2))
    assert min(report.queries[broken]) < 1 + 5 + 1


def test_images_already_broken_are_lost_without_another_attack():
    data, broken = digits("test", 60), np.arange(60) % 2 == 0
    report = robust_accuracy(
        trained_mlp(),
        data.pixels,
        data.labels,
        LinfBall(0.08),
        PGD5,
        key=KEY,
        already_broken=broken,
    )
    assert not report.still_correct[broken].any()
    np.testing.assert_array_equal(report.x_adv[broken], data.pixels[broken])


def test_no_image_of_a_random_network_is_lost_to_a_lucky_draw():
    # Judged by fixed draws, a network attacked within nothing loses nothing.
    data = digits("test", 120)
    predictor = NoisyLogits(trained_mlp())
    out = bracket(
        predictor,
        *data,
        LinfBall(1e-9),
        attacks=[FGSM(), PGD5],
        certificates=(),
        key=KEY,
        draws=4,
        flag_images=0,
    )
    assert out.attacked == out.clean
    assert all(accuracy == out.clean for accuracy in out.per_attack.values())
    judged = predict(out.judge, data.images, key=jax.random.key(77)).argmax(axis=1)
    assert np.mean(judged == data.labels) == out.clean


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", ["the first attack", "the attacks"])
def test_a_killed_bracket_goes_on_where_it_was(tmp_path, monkeypatch, after):
    path, module = tmp_path / "state.npz", sys.modules["odejax.evaluation.bracket_steps"]
    original, ran = module.robust_accuracy, []

    def attacked(*arguments, **settings):
        if after == "the first attack" and ran == ["FGSM"]:  # and so not in the second run
            raise Killed
        ran.append(type(arguments[4]).__name__)
        return original(*arguments, **settings)

    def certified(*arguments, **settings):
        raise Killed

    def measured(state_path=None):
        return bracket(
            trained_nmode(),
            *digits("test", 40),
            LinfBall(0.02),
            attacks=[FGSM(), PGD5],
            certificates=[FiniteTimeStableMapping()],
            key=KEY,
            flag_images=8,
            state_path=state_path,
        )

    whole = measured()
    with monkeypatch.context() as patch:
        patch.setattr(module, "robust_accuracy", attacked)
        if after == "the attacks":
            patch.setattr(module, "certified_radii", certified)
        with pytest.raises(Killed):
            measured(path)
    first = ran.copy()
    monkeypatch.setattr(module, "robust_accuracy", attacked)
    ran.append("again")
    again = measured(path)
    assert [*first, *ran[len(first) + 1 :]] == ["FGSM", "PGD"]  # neither ran twice
    assert list(tmp_path.iterdir()) == []
    for field in dataclasses.fields(Bracket):
        if field.name not in ("seconds", "judge"):
            assert eqx.tree_equal(getattr(again, field.name), getattr(whole, field.name)), (
                field.name
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be at least 1; got 0"),
        ({"flag_images": -1}, "flag_images must be at least 0; got -1"),
        ({"ball": 0.1}, r"ball must be a ball, such as LinfBall\(0.1\); got 0.1"),
        ({"state_path": "s3://here"}, "state_path must be a local path; got s3://here"),
    ],
    ids=str,
)
def test_a_bracket_of_other_settings_is_refused(settings, message, unchecked):
    arguments = {"ball": LinfBall(0.1), "attacks": [FGSM()], "key": KEY} | settings
    with pytest.raises(ValueError, match=message):
        bracket(trained_mlp(), *digits("test", 5), arguments.pop("ball"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"successes": 11, "n": 10}, "successes must be at most n = 10; got 11"),
        ({"successes": 0, "n": 0}, "n must be at least 1; got 0"),
        ({"successes": 5, "n": 10, "level": 95}, "level must be at least 0 and below 1; got 95"),
    ],
    ids=str,
)
def test_an_interval_of_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        confidence_interval(**arguments)


def test_mean_logits_are_the_mean_over_the_given_draws():
    predictor, x = NoisyLogits(trained_mlp()), jnp.asarray(digits("test", 1).pixels[0])
    keys = jax.random.split(KEY, 3)
    expected = np.mean([predictor(x, key=k) for k in keys], axis=0)
    np.testing.assert_allclose(MeanLogits(predictor, keys)(x), expected, atol=1e-5)


def test_prediction_traces_once_however_many_batches():
    traces = []

    def logits_fn(x, *, key):
        traces.append(None)
        return jnp.ravel(x)[:3]

    predict(logits_fn, digits("test", 50).images, key=KEY, batch_size=8)
    assert len(traces) == 1


PIXELS, LABELS = np.full((3, *IMAGE_SHAPE), 0.5, np.float32), np.zeros(3, np.int32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (PIXELS.astype(np.int32), LABELS, "int32"),
        (PIXELS[..., 0], LABELS, r"\(3, 8, 8\)"),
        (PIXELS[:0], LABELS[:0], "no images"),
        (PIXELS + 1, LABELS, r"1\.5"),
        (PIXELS - 1, LABELS, r"-0\.5"),
        (PIXELS * np.nan, LABELS, "nan"),
        (PIXELS, LABELS[:2], r"\(2,\)"),
        (PIXELS, np.eye(10)[LABELS], r"\(3, 10\); use labels.argmax\(axis=1\)"),
        (PIXELS, LABELS[:, None], r"\(3, 1\); use labels.ravel\(\)"),
        (PIXELS, LABELS.astype(np.float32), "float32"),
        (PIXELS, LABELS + 10, "0 to 9; got 10"),
        (PIXELS, LABELS - 1, "0 to 9; got -1"),
    ],
)
def test_arrays_of_another_form_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        robust_accuracy(linear_logits(n_classes=10), images, labels, LinfBall(0.1), FGSM(), key=KEY)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size .* got {batch_size}"):
        robust_accuracy(
            linear_logits(),
            PIXELS,
            LABELS,
            LinfBall(0.1),
            FGSM(),
            key=KEY,
            batch_size=batch_size,
        )


class Cheat(AbstractAttack):
    """Claims success with an image of its own choice: no `__call__` of the base class."""

    def perturb(self, logits_fn, x, y, ball, *, key):
        return jnp.zeros_like(x), 0


def cheat(logits_fn, x, y, ball, *, key):
    return AttackResult(jnp.ones_like(x), jnp.asarray(True), jnp.asarray(-1.0), jnp.asarray(1))


def boast(logits_fn, x, y, ball, *, key):
    return AttackResult(x, jnp.asarray(True), jnp.asarray(-1.0), jnp.asarray(1))


def test_an_attack_whose_image_lies_outside_the_ball_is_refused():
    labels = predict(linear_logits(), PIXELS, key=KEY).argmax(axis=1)
    with pytest.raises(RuntimeError, match="outside the ball"):
        robust_accuracy(linear_logits(), PIXELS, labels, LinfBall(0.1), cheat, key=KEY)


def test_an_attack_written_as_perturb_cannot_leave_the_ball():
    labels = predict(linear_logits(), PIXELS, key=KEY).argmax(axis=1)
    report = robust_accuracy(linear_logits(), PIXELS, labels, LinfBall(0.1), Cheat(), key=KEY)
    np.testing.assert_allclose(report.x_adv, 0.4, atol=1e-6)


def test_an_attacks_own_word_does_not_count():
    labels = predict(linear_logits(), PIXELS, key=KEY).argmax(axis=1)
    report = robust_accuracy(linear_logits(), PIXELS, labels, LinfBall(0.1), boast, key=KEY)
    assert report.still_correct.all()


FORMS = {
    "a column": (lambda z: z[:, None], r"float32 of shape \(10, 1\)"),
    "a row": (lambda z: z[None], r"float32 of shape \(1, 10\)"),
    "one output": (lambda z: z[:1], r"float32 of shape \(1,\)"),
    "a scalar": (lambda z: z[0], r"float32 of shape \(\)"),
    "integers": (lambda z: jnp.round(z).astype(jnp.int32), r"int32 of shape \(10,\)"),
    "logits and state": (lambda z: (z, None), "a tuple"),
    "a dictionary": (lambda z: {"logits": z}, "a dict"),
}


@pytest.mark.parametrize(("form", "got"), FORMS.values(), ids=FORMS)
def test_logits_of_another_form_are_refused_everywhere(form, got, unchecked):
    def network(x, *, key=None):
        return form(linear_logits(n_classes=10)(x))

    mean = MeanLogits(network, jax.random.split(KEY, 2))
    data = PIXELS, LABELS
    for call in (
        lambda: predict(network, PIXELS, key=KEY),
        lambda: robust_accuracy(mean, *data, LinfBall(0.1), FGSM(), key=KEY),
        lambda: transfer_matrix({"a": network}, *data, LinfBall(0.1), FGSM(), key=KEY),
        lambda: masking_flags(network, *data, LinfBall(0.1), key=KEY),
        lambda: FGSM()(network, PIXELS[0], LABELS[0], LinfBall(0.1), key=KEY),
    ):
        with pytest.raises(ValueError, match=f"logits_fn must return one array .* got {got}"):
            call()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (255 * PIXELS, "pixels must lie in"),
        (PIXELS.astype(np.int32), "got int32"),
        (PIXELS[0], r"of shape \(8, 8, 1\)"),
        (PIXELS[:0], "there are no images"),
        ([[0.5]], "got a list"),
    ],
    ids=["0 to 255", "integers", "one image", "none", "a list"],
)
def test_images_of_another_form_are_not_predicted(images, message, unchecked):
    with pytest.raises(ValueError, match=message):
        predict(linear_logits(), images, key=KEY)


def closed_over(weight):
    return lambda x, *, key: weight @ jnp.ravel(x)


def test_a_function_that_holds_its_weights_lets_them_go():
    def evaluate(seed):
        weight = jnp.asarray(np.random.default_rng(seed).normal(size=(10, 64)), jnp.float32)
        robust_accuracy(closed_over(weight), PIXELS, LABELS, LinfBall(0.1), FGSM(), key=KEY)

    evaluate(0)
    gc.collect()
    before = len(jax.live_arrays())
    for seed in range(10):
        evaluate(seed)
    gc.collect()
    assert len(jax.live_arrays()) <= before


def test_functions_of_one_program_are_compiled_once(tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiled.append(event)
            if event == "/jax/core/compile/backend_compile_duration"
            else None
        )
    )
    labels = []
    for seed in (1, 2, 3):
        weight = np.random.default_rng(seed).normal(size=(10, 64)).astype(np.float32)
        logits = predict(closed_over(jnp.asarray(weight)), PIXELS, key=KEY)
        np.testing.assert_allclose(logits, PIXELS.reshape(3, -1) @ weight.T, atol=1e-4)
        labels.append(len(compiled))
    assert labels[0] < labels[1] + 1 == labels[2] + 1  # none after the first


def quantised(slope):
    """Rounded pixels, whose derivative is said to be `slope`."""

    @jax.custom_jvp
    def rounded(x):
        return jnp.round(10 * x) / 10

    @rounded.defjvp
    def rule(x, moved):
        return rounded(*x), slope * moved[0]

    return lambda x, *, key: jnp.stack([jnp.sum(rounded(x)), 0.0])


def test_programs_that_differ_in_a_derivative_rule_alone_are_two():
    functions = [quantised(1.0), quantised(-1.0)]
    hoisted = [hoist(function, PIXELS[0], KEY) for function in functions]
    for slope, network in zip((1.0, -1.0), hoisted, strict=True):
        gradient = jax.grad(lambda x, network=network: network(x, key=KEY)[0])(PIXELS[0])
        np.testing.assert_array_equal(gradient, np.full_like(PIXELS[0], slope))
    # A function of rules is still compiled once, however often it is evaluated.
    assert hoist(functions[0], PIXELS[0], KEY).program is hoisted[0].program


WEIGHT = np.ones((10, 64), np.float32)


def test_a_global_is_read_again_in_every_evaluation(monkeypatch):
    """A notebook trains `model` anew, and the function below, made before, refers to it."""

    def logits_fn(x, *, key):
        return WEIGHT @ jnp.ravel(x)

    for scale in (1.0, 2.0):
        monkeypatch.setitem(globals(), "WEIGHT", scale * np.ones((10, 64), np.float32))
        np.testing.assert_allclose(predict(logits_fn, PIXELS, key=KEY), 32.0 * scale, rtol=1e-6)


class Masked(eqx.Module):
    """Never the last class, whose logit is minus infinity."""

    linear: LinearLogits

    def __call__(self, x, *, key=None):
        return self.linear(x).at[-1].set(-jnp.inf)


@pytest.mark.parametrize("attack", [PGD5, Square(20)], ids=["PGD", "Square"])
def test_a_masked_class_is_never_predicted(attack):
    linear, rng = linear_logits(n_classes=4), np.random.default_rng(0)
    images = rng.uniform(size=(16, *IMAGE_SHAPE)).astype(np.float32)
    three = LinearLogits(linear.weight[:3], linear.bias[:3])
    labels = predict(three, images, key=KEY).argmax(axis=1)
    assert (predict(Masked(linear), images, key=KEY).argmax(axis=1) == labels).all()
    ball = LinfBall(0.05)
    masked, alone = (
        robust_accuracy(net, images, labels, ball, attack, key=KEY)
        for net in (Masked(linear), three)
    )
    np.testing.assert_array_equal(masked.still_correct, alone.still_correct)
    assert 0 < masked.accuracy < 1


@pytest.mark.parametrize(
    "attack", [Square(60), PGD(20, 0.002, loss=margin_loss)], ids=["Square", "PGD"]
)
def test_small_logits_end_an_attack_as_early_as_large_ones(attack):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(16, *IMAGE_SHAPE)).astype(np.float32)
    queries = []
    for scale in (1.0, 1e-7):
        net = linear_logits(n_classes=10)
        net = LinearLogits(net.weight * scale, net.bias * scale)
        labels = predict(net, images, key=KEY).argmax(axis=1)
        report = robust_accuracy(net, images, labels, LinfBall(0.2), attack, key=KEY)
        assert report.accuracy < 0.5
        queries.append(report.queries[~report.still_correct].mean())
    assert queries[1] == pytest.approx(queries[0], rel=0.2)


class FiniteAround(eqx.Module):
    """A linear network that diverges further from grey than `reach`."""

    linear: LinearLogits
    reach: jax.Array

    def __call__(self, x, *, key=None):
        return jnp.where(jnp.max(jnp.abs(x - 0.5)) <= self.reach, self.linear(x), jnp.nan)


@pytest.mark.parametrize(
    "attack",
    [
        FAB(10),
        DeepFool(10),
        SPSA(600, samples=8, delta=0.02, learning_rate=0.02),
        CarliniWagner(20, 2, learning_rate=0.1),
        AutoAttack({"APGD": APGD(5), "FAB-T": Targeted(FAB(10), 2)}),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_network_that_diverges_outside_the_ball_alone_is_attacked(attack):
    """An ODE at its step limit, say: outside, a candidate is not adversarial, and no more."""
    images = np.full((4, *IMAGE_SHAPE), 0.5, np.float32)
    images += np.random.default_rng(0).uniform(-0.01, 0.01, images.shape).astype(np.float32)
    near = linear_logits(n_classes=3)
    labels = predict(near, images, key=KEY).argmax(axis=1)
    # Another whose boundary lies at 0.2: the search for it leads out of the ball.
    others = near.weight[labels[0]] - np.delete(near.weight, labels[0], axis=0)
    lead = 0.2 * float(np.abs(others).sum(axis=1).max())
    far = LinearLogits(near.weight, near.bias.at[labels[0]].add(lead))
    for linear, broken in ((near, True), (far, False)):
        net = FiniteAround(linear, jnp.asarray(0.115))
        report = robust_accuracy(net, images, labels, LinfBall(0.1), attack, key=KEY)
        assert np.isfinite(report.x_adv).all()
        assert (report.accuracy < 1) == broken


def not_finite(x, *, key):
    return jnp.where(jnp.mean(x) > 0.9, jnp.nan, linear_logits(n_classes=10)(x))


def test_logits_that_are_not_finite_are_refused_with_their_index():
    images = PIXELS.copy()
    images[1] = 1.0
    with pytest.raises(FloatingPointError, match=r"1 of 3 images .* index 1"):
        robust_accuracy(not_finite, images, LABELS, LinfBall(0.1), FGSM(), key=KEY)


class Rooted(eqx.Module):
    """A linear network and, if `rooted`, 0 times a root without a derivative at black pixels."""

    linear: LinearLogits
    rooted: jax.Array

    def __call__(self, x, *, key=None):
        return self.linear(x) + 0.0 * jnp.sqrt(jnp.where(self.rooted, jnp.sum(x[:2, :2] ** 2), 1.0))


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        APGD(5),
        pytest.param(IFGSM(10, None), marks=pytest.mark.slow),
        pytest.param(PGD(10, None, random_start=False), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_a_derivative_that_does_not_exist_saves_no_image(attack):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(20, *IMAGE_SHAPE)).astype(np.float32)
    images[:, :2, :2] = 0.0
    smooth, rooted = (
        Rooted(linear_logits(n_classes=10), jnp.asarray(rooted)) for rooted in (False, True)
    )
    slope = eqx.filter_jit(jax.grad(lambda x, net: net(x)[0]))
    assert np.isfinite(slope(images[0], smooth)).all()
    assert np.isnan(slope(images[0], rooted)).any()
    labels = predict(smooth, images, key=KEY).argmax(axis=1)
    accuracies = [
        robust_accuracy(net, images, labels, LinfBall(0.2), attack, key=KEY).accuracy
        for net in (smooth, rooted)
    ]
    assert accuracies[1] <= accuracies[0] + 0.1 < 0.5


def finite_at_the_image_alone(x, *, key=None):
    return jnp.where(jnp.all(x == 0.5), linear_logits(n_classes=10)(x), jnp.nan)


@pytest.mark.parametrize(
    "attack",
    [
        PGD5,
        pytest.param(Square(20), marks=pytest.mark.slow),
        pytest.param(AutoAttack({"FGSM": FGSM()}), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_logits_that_are_not_finite_within_the_ball_are_no_robustness(attack):
    labels = predict(finite_at_the_image_alone, PIXELS, key=KEY).argmax(axis=1)
    with pytest.raises(FloatingPointError, match="tried on image 0"):
        robust_accuracy(
            finite_at_the_image_alone, PIXELS, labels, LinfBall(0.1), attack, key=KEY, batch_size=1
        )


@pytest.mark.parametrize(
    "eps", [np.array([0.1, 0.2]), np.full((8, 1), 0.1)], ids=["two", "a column"]
)
def test_robust_accuracy_for_several_eps_is_refused(eps):
    with pytest.raises(ValueError, match="one eps; got shape"):
        robust_accuracy(linear_logits(), PIXELS, LABELS, LinfBall(eps), FGSM(), key=KEY)


@pytest.mark.parametrize(
    "broken", [np.array([0, 1, 0]), np.array([True])], ids=["integers", "short"]
)
def test_already_broken_that_is_no_mask_is_refused(broken):
    with pytest.raises(ValueError, match=r"already_broken must be bool of shape \(3,\)"):
        robust_accuracy(
            linear_logits(),
            PIXELS,
            LABELS,
            LinfBall(0.1),
            FGSM(),
            key=KEY,
            already_broken=broken,
        )


# Result files


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "result.json"
    result = {"attacked": 0.125, "per_attack": {"PGD": 0.5}, "flags": ["x"], "none": None}
    save_result(path, "table1", result)
    assert load_result(path, "table1") == {"format": 2, "kind": "table1", **result}


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    save_result(path, "table1", {"value": 1})
    with pytest.raises(TypeError):
        save_result(path, "table1", {"value": object()})
    assert load_result(path, "table1")["value"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 0, "kind": "table1"}',
        '{"format": 1, "kind": "table1"}',
        '{"format": 2, "kind": "table1"}',  # without a digest
        '{"format": 2, "kind": "table2"}',
        "{}",
        "[1, 2]",
        "not json",
        '{"format": 2, "kind": "tab',
        "",
    ],
)
def test_a_file_that_is_no_such_result_is_refused_by_name(tmp_path, text):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=r"odd\.json"):
        load_result(path, "table1")


def test_no_flipped_bit_of_a_result_is_used(tmp_path):
    path, rng = tmp_path / "result.json", np.random.default_rng(0)
    save_result(path, "table1", {"value": 0.25, "name": "ResNet", "list": [1, 2.5, None, True]})
    whole, good = load_result(path, "table1"), path.read_bytes()
    for place in rng.permutation(8 * len(good))[:200]:
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ResultError):
            assert load_result(path, "table1") == whole  # a blank for a line's end


def test_binary_and_missing_files_are_refused_by_name(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("binary", "missing"):
        with pytest.raises(ResultError, match=rf"{name}\.json"):
            load_result(tmp_path / f"{name}.json", "table1")


def test_provenance_says_what_was_run_and_is_json():
    stored = json.loads(json.dumps(provenance(3)))
    assert stored["seed"] == 3
    assert stored["versions"]["jax"] == jax.__version__
    assert stored["device"].startswith(jax.devices()[0].platform)


def test_a_process_names_the_commit_that_it_began_with(monkeypatch):
    first = provenance(0)["commit"]
    monkeypatch.setattr(subprocess, "run", None)  # what is committed now is not asked for
    assert provenance(1)["commit"] == first
