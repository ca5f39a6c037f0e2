"""What every attack promises, and what is known in closed form of the ones that climb gradients."""

from collections import Counter
from itertools import pairwise

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    all_attacks,
    attack_queries,
    constant_image,
    digits,
    linear_logits,
    trained_mlp,
)
from hypothesis.extra.numpy import arrays

from odejax import L2Ball, LinfBall
from odejax.attacks import FGSM, PGD, Restarts, logit_margin
from odejax.evaluation import robust_accuracy

KEY = jax.random.key(5)
SMALL = (3, 3, 1)
each_attack = pytest.mark.parametrize("attack", all_attacks.values(), ids=all_attacks)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
either_single_attack = pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=100, step_size=0.01)], ids=["FGSM", "PGD"]
)


@eqx.filter_jit
def run(attack, logits_fn, x, y, ball, key=KEY):
    return attack(logits_fn, x, y, ball, key=key)


@eqx.filter_jit
def run_batch(attack, logits_fn, images, labels, ball, key=KEY):
    def one(x, y, key):
        return attack(logits_fn, x, y, ball, key=key)

    return jax.vmap(one)(images, labels, jax.random.split(key, len(images)))


pixel = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1, width=32))


@each_attack
@each_ball
@hypothesis.given(
    x=arrays(np.float32, SMALL, elements=pixel),
    y=st.integers(0, 2),
    eps=st.one_of(st.just(0.0), st.floats(0, 2, width=32)),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_the_adversarial_image_is_in_ball_and_box(attack, ball_type, x, y, eps):
    logits_fn = linear_logits(SMALL, 3)
    result = run(attack, logits_fn, jnp.asarray(x), jnp.asarray(y), ball_type(eps))
    x_adv = np.asarray(result.x_adv)
    v = (x_adv.astype(np.float64) - x).ravel()
    assert x_adv.min() >= -1e-6
    assert x_adv.max() <= 1 + 1e-6
    assert (np.abs(v).max() if ball_type is LinfBall else np.linalg.norm(v)) <= eps + 1e-6


@each_attack
@each_ball
def test_success_and_margin_are_those_of_the_image_returned(attack, ball_type):
    data, predictor = digits("test", 64), trained_mlp()
    ball = ball_type(0.1 if ball_type is LinfBall else 0.6)
    result = run_batch(attack, predictor, data.pixels, data.labels, ball)
    logits = np.asarray(jax.vmap(lambda x: predictor(x))(result.x_adv), np.float64)
    np.testing.assert_array_equal(result.success, logits.argmax(axis=1) != data.labels)
    own = logits[np.arange(64), data.labels]
    logits[np.arange(64), data.labels] = -np.inf
    np.testing.assert_allclose(result.margin, own - logits.max(axis=1), atol=1e-4)
    np.testing.assert_array_equal(result.success, np.asarray(result.margin) < 0)
    assert 0 < np.mean(result.success) < 1  # both outcomes were seen


@each_attack
def test_queries_are_counted(attack):
    calls = Counter()

    def logits_fn(x, *, key):
        jax.debug.callback(lambda: calls.update(["logits"]))
        return linear_logits()(x)

    result = run(attack, logits_fn, constant_image(0.5), jnp.asarray(0), LinfBall(0.1))
    jax.effects_barrier()
    name = next(name for name, other in all_attacks.items() if other is attack)
    assert int(result.queries) == attack_queries[name] == calls["logits"]


@each_attack
@each_ball
def test_a_sweep_over_eps_traces_once(attack, ball_type):
    class Counted(eqx.Module):
        inner: eqx.Module

        def __call__(self, x, *, key=None):
            traces["logits"] += 1
            return self.inner(x, key=key)

    traces = Counter()
    logits_fn, x, y = Counted(linear_logits()), constant_image(0.5), jnp.asarray(1)
    run(attack, logits_fn, x, y, ball_type(0.1))
    first = traces["logits"]
    for eps in (0.0, 0.2, 1.0):
        run(attack, logits_fn, x, y, ball_type(eps))
    assert traces["logits"] == first > 0


@each_attack
@each_ball
def test_all_is_float32(attack, ball_type):
    dtypes = []

    def logits_fn(x, *, key):
        dtypes.append(x.dtype)
        return linear_logits()(x)

    result = attack(logits_fn, constant_image(0.5), 1, ball_type(0.1), key=KEY)
    assert set(dtypes) == {jnp.dtype("float32")}
    assert result.x_adv.dtype == result.margin.dtype == jnp.float32


@each_attack
@each_ball
def test_the_same_key_gives_the_same_image(attack, ball_type):
    x, y = jnp.asarray(digits().pixels[0]), jnp.asarray(0)
    first, second = (run(attack, trained_mlp(), x, y, ball_type(0.2)).x_adv for _ in range(2))
    np.testing.assert_array_equal(first, second)


@each_attack
@each_ball
def test_an_eps_of_zero_leaves_the_image_alone(attack, ball_type):
    x = jnp.asarray(digits().pixels[0])
    x_adv = run(attack, trained_mlp(), x, jnp.asarray(0), ball_type(0.0)).x_adv
    np.testing.assert_array_equal(x_adv, x)


# Robust accuracy on a trained net. Where a longer attack contains the shorter one (the same start
# and steps, and the worst iterate kept) every example that falls must stay fallen; where it does
# not (another eps, other restarts), the accuracy must not rise.


def still_correct(attack, ball):
    data = digits("test", 200)
    return robust_accuracy(
        attack, trained_mlp(), data.pixels, data.labels, ball, key=KEY
    ).still_correct


@each_attack
@each_ball
def test_robust_accuracy_does_not_rise_with_eps(attack, ball_type):
    radii = (0.0, 0.03, 0.1, 0.2) if ball_type is LinfBall else (0.0, 0.2, 0.6, 1.2)
    accuracy = [still_correct(attack, ball_type(eps)).mean() for eps in radii]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.85
    assert accuracy[-1] < accuracy[0] - 0.2


@each_ball
def test_more_steps_break_all_that_fewer_did(ball_type):
    ball = ball_type(0.1 if ball_type is LinfBall else 0.6)
    left = [
        still_correct(PGD(steps=n, step_size=0.02, random_start=False), ball) for n in (1, 2, 5, 20)
    ]
    for fewer, more in pairwise(left):
        assert not (more & ~fewer).any()
    assert left[-1].sum() < left[0].sum()


@each_ball
def test_robust_accuracy_does_not_rise_with_restarts(ball_type):
    ball = ball_type(0.08 if ball_type is LinfBall else 0.5)
    left = [still_correct(Restarts(PGD(steps=2, step_size=0.02), n), ball).mean() for n in (1, 3, 9)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]


@either_single_attack
@each_ball
@pytest.mark.parametrize("y", [0, 1])
def test_a_binary_linear_classifier_loses_eps_times_the_dual_norm(attack, ball_type, y):
    logits_fn, eps = linear_logits(scale=0.1), 0.05
    x = constant_image(0.5)  # further from the box than eps
    w = np.asarray(logits_fn.weight[y] - logits_fn.weight[1 - y], np.float64)
    b = float(logits_fn.bias[y] - logits_fn.bias[1 - y])
    dual = np.abs(w).sum() if ball_type is LinfBall else np.linalg.norm(w)
    expected = w @ np.full(64, 0.5) + b - eps * dual
    result = run(attack, logits_fn, x, jnp.asarray(y), ball_type(eps))
    np.testing.assert_allclose(result.margin, expected, atol=1e-4)


def test_pgd_keeps_the_worst_iterate_not_the_last():
    # Down the slopes of |mean(x) - 0.56| in steps of 0.05 from 0.5, the iterates go to and fro
    # between 0.55 and 0.60, and the last one is at 0.60, further from the valley.
    seen = []

    def logits_fn(x, *, key):
        margin = jnp.abs(jnp.mean(x) - 0.56) + 0.01
        jax.debug.callback(lambda m: seen.append(float(m)), margin)
        return jnp.stack([margin, jnp.zeros(())])

    attack = PGD(steps=4, step_size=0.05, random_start=False)
    with jax.disable_jit():
        result = attack(logits_fn, constant_image(0.5), 0, LinfBall(0.5), key=KEY)
    jax.effects_barrier()
    iterates = seen[:-1]  # the last value is the judge's
    assert len(iterates) == 5
    assert iterates[-1] > min(iterates) + 0.01
    np.testing.assert_allclose(result.margin, min(iterates), atol=1e-6)


def test_pgd_returns_the_best_of_its_restarts():
    # Two valleys of the margin, the deeper one narrow: only some starts fall into it.
    def logits_fn(x, *, key):
        z = jnp.mean(x)
        margin = 1 + jnp.minimum(jnp.abs(z - 0.3), 3 * jnp.abs(z - 0.56) - 0.4)
        return jnp.stack([margin, jnp.zeros(())])

    x, ball = constant_image(0.45, (1, 1, 1)), LinfBall(0.2)
    best = run(Restarts(PGD(40, 0.01), 20), logits_fn, x, jnp.asarray(0), ball).margin
    single = [
        float(run(PGD(40, 0.01), logits_fn, x, jnp.asarray(0), ball, jax.random.key(i)).margin)
        for i in range(20)
    ]
    np.testing.assert_allclose(best, 0.6, atol=0.03)
    assert max(single) > 0.9  # the other valley is where many runs end
    assert min(single) < 0.65


def test_the_margin_is_to_the_runner_up():
    logits = jnp.asarray([1.0, 5.0, 3.0])
    assert logit_margin(logits, jnp.asarray(1)) == 2.0
    assert logit_margin(logits, jnp.asarray(2)) == -2.0


@each_attack
@pytest.mark.usefixtures("unchecked")
def test_a_batch_in_place_of_an_image_is_refused(attack):
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\)"):
        attack(linear_logits(), jnp.zeros((2, *IMAGE_SHAPE)), 0, LinfBall(0.1), key=KEY)


@each_attack
@pytest.mark.usefixtures("unchecked")
def test_integer_pixels_are_refused(attack):
    with pytest.raises(ValueError, match="uint8"):
        attack(linear_logits(), jnp.zeros(IMAGE_SHAPE, jnp.uint8), 0, LinfBall(0.1), key=KEY)


@each_attack
@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
def test_pixels_outside_the_box_are_refused(attack, value):
    x = constant_image(0.5).at[0, 0, 0].set(value)
    with pytest.raises(ValueError, match=str(value)):
        attack(linear_logits(), x, 0, LinfBall(0.1), key=KEY)


@each_attack
@pytest.mark.parametrize("y", [10, -1])
def test_a_label_that_is_no_class_is_refused(attack, y):
    logits_fn = linear_logits(n_classes=10)
    with pytest.raises(ValueError, match=f"0 to 9; got {y}"):
        attack(logits_fn, constant_image(0.5), y, LinfBall(0.1), key=KEY)


@each_attack
@pytest.mark.usefixtures("unchecked")
def test_a_label_that_is_no_integer_is_refused(attack):
    with pytest.raises(ValueError, match="float32"):
        attack(linear_logits(), constant_image(0.5), jnp.asarray(0.0), LinfBall(0.1), key=KEY)


def test_pgd_without_steps_is_refused():
    with pytest.raises(ValueError, match="got 0 and 1"):
        PGD(steps=0)


def test_pgd_without_runs_is_refused():
    with pytest.raises(ValueError, match="got 40 and 0"):
        PGD(restarts=0)


def test_restarts_from_one_point_are_refused():
    with pytest.raises(ValueError, match="random start"):
        PGD(restarts=2, random_start=False)


@pytest.mark.parametrize("step_size", [-0.1, float("nan"), float("inf")])
def test_a_step_size_that_cannot_climb_is_refused(step_size):
    with pytest.raises(ValueError, match=f"step_size .* got {step_size}"):
        PGD(step_size=step_size)
