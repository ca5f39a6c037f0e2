"""What every attack promises, and what is known in closed form of the ones that climb gradients."""

import re
from collections import Counter
from functools import lru_cache, partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    IMAGE_SHAPE,
    LinearLogits,
    all_attacks,
    attack_queries,
    constant_image,
    digits,
    linear_logits,
    run_attack,
    stopping_attacks,
    trained_mlp,
)

from odejax import L2Ball, LinfBall, predict
from odejax.attacks import (
    APGD,
    DI2FGSM,
    EOT,
    FAB,
    FGSM,
    IFGSM,
    MIFGSM,
    PGD,
    SPSA,
    AttackProblem,
    AutoAttack,
    BestAdversarial,
    Boundary,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    Restarts,
    Square,
    Targeted,
    dlr,
    logit_margin,
    start,
    step,
)
from odejax.evaluation import robust_accuracy

KEY = jax.random.key(5)

# The fast pass attacks in one ball, those of `all_attacks` that are no settings of another there.
IN_L2 = ("PGD EOT", "IFGSM", "CarliniWagner", "FAB", "DeepFool", "Boundary", "APGD-T", "AutoAttack")
VARIANTS = ("PGD restarts", "PGD from the image", "APGD-DLR", "FAB-T")


def fast_ball(name):
    return L2Ball if name in IN_L2 else LinfBall


def but_slow(names, slow):
    """All of the names, those that are `slow` marked as such."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


each_name = pytest.mark.parametrize("name", but_slow(all_attacks, VARIANTS))
each_attack_and_ball = pytest.mark.parametrize(
    ("name", "ball_type"),
    [
        pytest.param(
            name,
            ball_type,
            marks=[pytest.mark.slow] * (name in VARIANTS or ball_type is not fast_ball(name)),
        )
        for name in all_attacks
        for ball_type in (LinfBall, L2Ball)
    ],
)
# Every attack judges and refuses in one place, a sequence of attacks in another.
sample = pytest.mark.parametrize(
    "attack", [FGSM(), AutoAttack({"FGSM": FGSM()})], ids=["one", "sequence"]
)


run = partial(run_attack, key=KEY)


traces, dtypes = Counter(), set()


class Counted(eqx.Module):
    """The small network; its traces are counted, and what it was traced with."""

    inner: eqx.Module

    def __call__(self, x, *, key=None):
        traces["logits"] += 1
        dtypes.add(x.dtype)
        return self.inner(x, key=key)


@eqx.filter_jit
def run_batch(attack, logits_fn, images, labels, ball, keys):
    """A ball for each image: all that the contract asks of an attack comes from one program."""

    def one(x, y, ball, key):
        return attack(logits_fn, x, y, ball, key=key)

    return jax.vmap(one)(images, labels, ball, keys)


# Real digits in growing balls, and noise of any label, with pixels at the faces of the box.
N = 16
RADII = {LinfBall: (0.0, 0.03, 0.1, 0.2), L2Ball: (0.0, 0.2, 0.6, 1.2)}
_RNG = np.random.default_rng(0)
_NOISE = np.clip(_RNG.uniform(-0.3, 1.3, (N, *IMAGE_SHAPE)), 0, 1).astype(np.float32)
IMAGES = np.concatenate([*[digits("test", N).pixels] * 4, _NOISE])
LABELS = np.concatenate([*[digits("test", N).labels] * 4, _RNG.integers(0, 10, N)]).astype(np.int32)
KEYS = jax.random.split(KEY, len(IMAGES))


def balls(ball_type):
    noise = np.random.default_rng(1).uniform(0, 2, N)
    return ball_type(np.concatenate([np.repeat(RADII[ball_type], N), noise]).astype(np.float32))


def attack_all(attack, ball, keys=KEYS):
    result = run_batch(attack, Counted(trained_mlp()), IMAGES, LABELS, ball, keys)
    return jax.tree.map(np.asarray, result)


@lru_cache
def result_of(name, ball_type):
    return attack_all(all_attacks[name], balls(ball_type))


@each_attack_and_ball
def test_the_adversarial_image_is_in_ball_and_box(name, ball_type):
    x_adv, eps = result_of(name, ball_type).x_adv, np.asarray(balls(ball_type).eps)
    v = (x_adv.astype(np.float64) - IMAGES).reshape(len(IMAGES), -1)
    assert x_adv.min() >= -1e-6
    assert x_adv.max() <= 1 + 1e-6
    size = np.abs(v).max(axis=1) if ball_type is LinfBall else np.linalg.norm(v, axis=1)
    assert (size <= eps + 1e-6).all()
    np.testing.assert_array_equal(x_adv[eps == 0], IMAGES[eps == 0])


@each_attack_and_ball
def test_success_and_margin_are_those_of_the_image_returned(name, ball_type):
    result = result_of(name, ball_type)
    logits = predict(trained_mlp(), result.x_adv, key=KEY).astype(np.float64)
    np.testing.assert_array_equal(result.success, logits.argmax(axis=1) != LABELS)
    rows = np.arange(len(LABELS))
    own = logits[rows, LABELS]
    logits[rows, LABELS] = -np.inf
    np.testing.assert_allclose(result.margin, own - logits.max(axis=1), atol=1e-4)
    np.testing.assert_array_equal(result.success, result.margin < 0)
    assert 0 < np.mean(result.success) < 1  # both outcomes were seen


@each_attack_and_ball
def test_success_does_not_fall_with_eps(name, ball_type):
    success = result_of(name, ball_type).success[: 4 * N].reshape(4, N).mean(axis=1)
    assert (np.diff(success) >= 0).all()
    assert success[0] < 0.15
    assert success[-1] > success[0] + 0.2


@each_name
def test_another_eps_is_not_another_trace_and_a_key_is_all_that_is_drawn_from(name):
    ball_type, attack = fast_ball(name), all_attacks[name]
    first, before = result_of(name, ball_type), traces["logits"]
    # An attack that draws nothing does the same again under any key.
    draws = isinstance(attack, AutoAttack) or attack.random
    keys = KEYS if draws else jax.random.split(jax.random.key(6), len(KEYS))
    # Every second image has another ball.
    eps = np.array(balls(ball_type).eps)
    eps[1::2] = 0.07 if ball_type is LinfBall else 0.5
    again = attack_all(attack, ball_type(eps), keys)
    np.testing.assert_array_equal(again.x_adv[::2], first.x_adv[::2])
    assert not np.array_equal(again.x_adv[1::2], first.x_adv[1::2])
    assert traces["logits"] == before > 0


@each_name
def test_attacks_say_the_queries_of_their_settings(name):
    queries = result_of(name, fast_ball(name)).queries
    if name in stopping_attacks:
        assert 1 < queries.min() < queries.max() <= attack_queries[name]
    else:
        assert set(queries) == {attack_queries[name]}


# An attack of `all_attacks`, and a shorter one that it begins with: the same draws and steps, and
# the worst image kept. Every example that the shorter breaks must stay broken.
SHORTER = {
    "PGD restarts": Restarts(PGD(steps=1, step_size=0.05), 1),
    "PGD EOT": EOT(PGD(steps=1, step_size=0.05), 2),
    "CarliniWagnerLinf": CarliniWagnerLinf(steps=2, learning_rate=0.1),
    "CarliniWagner": CarliniWagner(steps=20, search_steps=1, learning_rate=0.1, c=0.1),
    "APGD-T": Targeted(APGD(steps=6, loss=dlr), 1),
    "FAB": FAB(steps=1),
    "FAB-T": Targeted(FAB(steps=6), 1),
    "DeepFool": DeepFool(steps=1),
    "Square": Square(n_queries=1),
    "Boundary": Boundary(n_queries=60),
    "SPSA": SPSA(n_queries=1 + 13, samples=6, learning_rate=0.05),
}


@pytest.mark.parametrize(
    "name",
    but_slow(SHORTER, ("PGD restarts", "FAB-T", "CarliniWagnerLinf", "DeepFool", "Boundary")),
)
def test_an_attack_breaks_all_that_its_beginning_did(name):
    ball_type = fast_ball(name)
    shorter = attack_all(SHORTER[name], balls(ball_type)).success
    longer = result_of(name, ball_type).success
    assert not (shorter & ~longer).any()
    assert longer.sum() > shorter.sum()


calls = Counter()


class Counting(eqx.Module):
    """A linear network that counts how often it was really evaluated."""

    linear: LinearLogits

    def __call__(self, x, *, key):
        # Given the key, since a batch of draws differs in nothing else.
        jax.debug.callback(lambda _: calls.update(["logits"]), jax.random.key_data(key))
        return self.linear(x)


def evaluations(name, linear, eps):
    """The result on a grey image, and the evaluations that it took."""
    calls.clear()
    x, y = constant_image(0.5), jnp.asarray(0)
    result = run(all_attacks[name], Counting(linear), x, y, LinfBall(eps))
    jax.effects_barrier()
    return result, calls["logits"]


# Programs that call back are compiled in every run of the suite. These evaluate as others do.
EVALUATED_ALIKE = (
    *("PGD", "PGD from the image", "IFGSM", "MIFGSM", "DI2FGSM", "CarliniWagnerLinf"),
    *("APGD", "APGD-DLR", "FAB-T"),
)


@pytest.mark.parametrize("name", but_slow(all_attacks, EVALUATED_ALIKE))
def test_an_attack_that_cannot_succeed_makes_all_its_queries(name):
    constant = LinearLogits(jnp.zeros((4, 64)), jnp.asarray([1.0, 0.0, 0.0, 0.0]))
    result, calls = evaluations(name, constant, 0.1)
    assert not result.success
    assert int(result.queries) == attack_queries[name] == calls


# The programs are those of the test before.
@pytest.mark.parametrize("name", [*stopping_attacks, "PGD restarts", "FAB", "DeepFool"])
def test_queries_are_counted_up_to_the_first_success_of_attacks_that_stop(name):
    result, calls = evaluations(name, linear_logits(n_classes=4), 0.4)
    assert result.success
    assert int(result.queries) == calls
    if name in stopping_attacks:
        assert calls < attack_queries[name]
    else:
        assert calls == attack_queries[name]


@each_name
def test_all_is_float32(name):
    result = result_of(name, fast_ball(name))
    assert dtypes == {jnp.dtype("float32")}  # what the network was given, by all that have run
    assert result.x_adv.dtype == result.margin.dtype == np.float32


@each_name
def test_images_and_networks_in_half_precision_are_attacked_in_float32(name):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), linear_logits(n_classes=10))
    ball = fast_ball(name)(0.1)

    def attacked(x, key):
        return all_attacks[name](half, x, 3, ball, key=key)

    result = jax.eval_shape(attacked, jax.ShapeDtypeStruct(IMAGE_SHAPE, jnp.bfloat16), KEY)
    assert result.x_adv.dtype == result.margin.dtype == jnp.float32


# Robust accuracy on a trained net. Where a longer attack contains the shorter one (the same draws
# and steps, and the worst image kept) every example that it breaks must stay broken; where it does
# not (another eps, another schedule), the accuracy must not rise.


def still_correct(attack, ball, n=200):
    data = digits("test", n)
    return robust_accuracy(
        trained_mlp(), data.pixels, data.labels, ball, attack, key=KEY
    ).still_correct


# Of those that are in no list of growing attacks below.
@pytest.mark.parametrize(
    "name",
    but_slow(["FGSM", "DI2FGSM", "PGD EOT", "AutoAttack"], ("DI2FGSM", "PGD EOT", "AutoAttack")),
)
def test_robust_accuracy_does_not_rise_with_eps(name):
    accuracy = [still_correct(all_attacks[name], LinfBall(eps)).mean() for eps in (0.0, 0.1, 0.2)]
    assert accuracy == sorted(accuracy, reverse=True)
    assert accuracy[0] > 0.85
    assert accuracy[-1] < accuracy[0] - 0.2


# Longer and longer attacks, each of which begins with the one before.
growing = {
    "PGD steps": [PGD(n, 0.02) for n in (1, 20)],
    "PGD steps from the image": [PGD(n, 0.02, random_start=False) for n in (2, 20)],
    "IFGSM steps": [IFGSM(n, 0.02) for n in (1, 20)],
    "MIFGSM steps": [MIFGSM(n, 0.02) for n in (1, 20)],
    "CarliniWagnerLinf steps": [CarliniWagnerLinf(n, 0.05) for n in (2, 20)],
    "CarliniWagner rounds": [CarliniWagner(10, n, 0.1) for n in (1, 4)],
    "FAB steps": [FAB(n) for n in (1, 10)],
    "DeepFool steps": [DeepFool(n) for n in (1, 10)],
    "PGD restarts": [Restarts(PGD(1, 0.03), n) for n in (1, 9)],
    "APGD restarts": [Restarts(APGD(2), n) for n in (1, 9)],
    "FAB restarts": [Restarts(FAB(1), n) for n in (1, 9)],
    "target classes": [Targeted(APGD(2), n) for n in (1, 9)],
    "Square queries": [Square(n) for n in (1, 100)],
    "Boundary queries": [Boundary(n) for n in (30, 200)],
    "SPSA queries": [SPSA(n, 4, learning_rate=0.05) for n in (10, 100)],
}


# Of whole evaluations; `test_an_attack_breaks_all_that_its_beginning_did` is the fast one.
@pytest.mark.slow
@pytest.mark.parametrize("attacks", growing.values(), ids=growing)
@pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])
def test_a_longer_attack_breaks_all_that_the_shorter_one_did(attacks, ball_type):
    ball = ball_type(0.08 if ball_type is LinfBall else 0.5)
    correct = [still_correct(attack, ball, 100) for attack in attacks]
    for shorter, longer in pairwise(correct):
        assert not (longer & ~shorter).any()
    assert correct[-1].sum() < correct[0].sum()


@pytest.mark.parametrize("ball_type", [pytest.param(LinfBall, marks=pytest.mark.slow), L2Ball])
def test_robust_accuracy_does_not_rise_with_the_steps_of_apgd(ball_type):
    ball = ball_type(0.1 if ball_type is LinfBall else 0.6)
    accuracies = [still_correct(APGD(n), ball).mean() for n in (1, 20)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < accuracies[0]


@pytest.mark.parametrize(
    ("attack", "ball_type"),
    [
        (FGSM(), LinfBall),
        (PGD(steps=100, step_size=0.01), L2Ball),
        pytest.param(FGSM(), L2Ball, marks=pytest.mark.slow),
        pytest.param(PGD(steps=100, step_size=0.01), LinfBall, marks=pytest.mark.slow),
    ],
    ids=["FGSM-linf", "PGD-l2", "FGSM-l2", "PGD-linf"],
)
@pytest.mark.parametrize("y", [0, 1])
def test_a_binary_linear_classifier_loses_eps_times_the_dual_norm(attack, ball_type, y):
    logits_fn, eps = linear_logits(scale=0.1), 0.05
    x = constant_image(0.5)  # further from the box than eps
    weight, bias = np.float64(logits_fn.weight), np.float64(logits_fn.bias)
    w, b = weight[y] - weight[1 - y], bias[y] - bias[1 - y]
    dual = np.abs(w).sum() if ball_type is LinfBall else np.linalg.norm(w)
    expected = w @ np.full(64, 0.5) + b - eps * dual
    result = run(attack, logits_fn, x, jnp.asarray(y), ball_type(eps))
    np.testing.assert_allclose(result.margin, expected, atol=1e-4)


def test_pgd_keeps_the_worst_iterate_not_the_last():
    # Down the slopes of |mean(x) - 0.56| in steps of 0.05 from 0.5, the iterates go to and fro
    # between 0.55 and 0.60, and the last one is at 0.60, further from the valley.
    def logits_fn(x, *, key):
        margin = jnp.abs(jnp.mean(x) - 0.56) + 0.01
        return jnp.stack([margin, jnp.zeros(())])

    attack = PGD(steps=4, step_size=0.05, random_start=False)
    x, y, ball = constant_image(0.5), jnp.asarray(0), LinfBall(0.5)

    @jax.jit
    def both():
        """The images that were evaluated, and the result."""
        problem = AttackProblem(logits_fn, x, y, ball)
        state, run_key = start(attack, problem, BestAdversarial.none(x), jnp.asarray(0), KEY)

        def advance(state, i):
            return step(attack, problem, run_key, i, state), state.x_adv

        _, seen = jax.lax.scan(advance, state, jnp.arange(attack.n_steps))
        return seen, attack(logits_fn, x, y, ball, key=KEY)

    seen, result = both()
    iterates = np.abs(np.mean(seen, axis=(1, 2, 3)) - 0.56) + 0.01
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
        float(run(PGD(40, 0.01), logits_fn, x, jnp.asarray(0), ball, key=jax.random.key(i)).margin)
        for i in range(20)
    ]
    np.testing.assert_allclose(best, 0.6, atol=0.03)
    assert max(single) > 0.9  # the other valley is where many runs end
    assert min(single) < 0.65


def test_the_margin_is_to_the_runner_up():
    logits = jnp.asarray([1.0, 5.0, 3.0])
    assert logit_margin(logits, jnp.asarray(1)) == 2.0
    assert logit_margin(logits, jnp.asarray(2)) == -2.0
    assert logit_margin(-logits, jnp.asarray(0)) == 2.0  # the others are all below 0


@sample
@pytest.mark.usefixtures("unchecked")
def test_a_batch_in_place_of_an_image_is_refused(attack):
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\)"):
        attack(linear_logits(), jnp.zeros((2, *IMAGE_SHAPE)), 0, LinfBall(0.1), key=KEY)


@sample
@pytest.mark.usefixtures("unchecked")
def test_integer_pixels_are_refused(attack):
    with pytest.raises(ValueError, match="uint8"):
        attack(linear_logits(), jnp.zeros(IMAGE_SHAPE, jnp.uint8), 0, LinfBall(0.1), key=KEY)


@sample
@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
def test_pixels_outside_the_box_are_refused(attack, value):
    x = constant_image(0.5).at[0, 0, 0].set(value)
    with pytest.raises(ValueError, match=str(value)):
        attack(linear_logits(), x, 0, LinfBall(0.1), key=KEY)


@sample
@pytest.mark.parametrize("y", [10, -1])
def test_a_label_that_is_no_class_is_refused(attack, y):
    logits_fn = linear_logits(n_classes=10)
    with pytest.raises(ValueError, match=f"0 to 9; got {y}"):
        attack(logits_fn, constant_image(0.5), y, LinfBall(0.1), key=KEY)


@sample
@pytest.mark.usefixtures("unchecked")
def test_a_label_that_is_no_integer_is_refused(attack):
    with pytest.raises(ValueError, match="float32"):
        attack(linear_logits(), constant_image(0.5), np.float32(0.0), LinfBall(0.1), key=KEY)


ALL_REFUSED = [
    (AutoAttack, dict(attacks={}), "a sequence of attacks needs at least one"),
    (DI2FGSM, dict(probability=-0.1), "probability must lie in [0, 1]; got -0.1"),
    (DI2FGSM, dict(probability=1.1), "probability must lie in [0, 1]; got 1.1"),
    (DI2FGSM, dict(probability=float("nan")), "probability must lie in [0, 1]; got nan"),
    (DI2FGSM, dict(smallest=0.0), "smallest must lie between 0 and 1; got 0.0"),
    (DI2FGSM, dict(smallest=1.0), "smallest must lie between 0 and 1; got 1.0"),
    (FAB, dict(largest_pull=1.5), "largest_pull must lie in [0, 1]; got 1.5"),
    (FAB, dict(beta=-0.5), "beta must lie in [0, 1]; got -0.5"),
    (FAB, dict(eta=0.9), "eta must be at least 1, to step over the boundary; got 0.9"),
    (FAB, dict(eta=float("inf")), "eta must be finite; got inf"),
    (DeepFool, dict(overshoot=-0.1), "overshoot must be finite and not negative; got -0.1"),
    (DeepFool, dict(overshoot=float("inf")), "overshoot must be finite and not negative; got inf"),
    (DeepFool, dict(classes=1), "classes must be at least 2; got 1"),
    (Square, dict(p_initial=0.0), "p_initial must be finite and positive; got 0.0"),
    (Square, dict(p_initial=1.1), "p_initial must lie in (0, 1]; got 1.1"),
    (Boundary, dict(adaptation=0.9), "adaptation must be at least 1; got 0.9"),
    (Boundary, dict(adaptation=float("nan")), "adaptation must be finite; got nan"),
    (APGD, dict(rho=9.0), "rho must lie in [0, 1]; got 9.0"),
    (MIFGSM, dict(decay=float("nan")), "decay must be finite; got nan"),
    (SPSA, dict(delta=0.6), "delta must be at most 0.5; got 0.6"),
    (PGD, dict(loss="ce"), "loss must be a function; got 'ce'"),
    (PGD, dict(step_size="x"), "step_size must be finite and positive; got 'x'"),
    (Targeted, dict(attack=PGD(), target=1.5), "target must be an integer; got 1.5"),
    (Targeted, dict(attack=PGD(), target=-1), "target must be at least 0; got -1"),
    (CarliniWagner, dict(kappa=-1.0), "kappa must be finite and not negative; got -1.0"),
    (CarliniWagnerLinf, dict(kappa=float("inf")), "kappa must be finite and not negative; got inf"),
    (
        Restarts,
        dict(attack=IFGSM()),
        "IFGSM has no random start: restarts would repeat the same attack",
    ),
    (
        Restarts,
        dict(attack=PGD(random_start=False)),
        "PGD has no random start: restarts would repeat the same attack",
    ),
    (
        Restarts,
        dict(attack=Targeted(APGD())),
        "Targeted has runs of its own: put the restarts inside it",
    ),
    (
        Restarts,
        dict(attack=Restarts(PGD(), 2)),
        "Restarts has runs of its own: put the restarts inside it",
    ),
]
COUNTS = {
    "steps": (PGD, IFGSM, MIFGSM, DI2FGSM, APGD, FAB, DeepFool, CarliniWagner, CarliniWagnerLinf),
    "search_steps": (CarliniWagner,),
    "n_queries": (Square, Boundary, SPSA),
    "samples": (SPSA,),
    "spherical_window": (Boundary,),
    "source_window": (Boundary,),
}
POSITIVE = {
    "step_size": (PGD, IFGSM, MIFGSM, DI2FGSM),
    "learning_rate": (CarliniWagner, CarliniWagnerLinf, SPSA),
    "c": (CarliniWagner, CarliniWagnerLinf),
    "delta": (SPSA,),
    "spherical_step": (Boundary,),
    "source_step": (Boundary,),
}
ALL_REFUSED += [
    (attack, {name: n}, f"{name} must be {accepted}; got {n}")
    for name, attacks in COUNTS.items()
    for attack in attacks
    for n, accepted in ((0, "at least 1"), (2.5, "an integer"), (float("nan"), "an integer"))
]
ALL_REFUSED += [
    (attack, dict(attack=PGD()) | {name: 0}, f"{name} must be at least 1; got 0")
    for attack, name in ((EOT, "draws"), (Restarts, "n"), (Targeted, "classes"))
]
ALL_REFUSED += [
    (attack, {name: value}, f"{name} must be finite and positive; got {value}")
    for name, attacks in POSITIVE.items()
    for attack in attacks
    for value in (0.0, -0.1, float("nan"), float("inf"))
]


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    ALL_REFUSED,
    ids=[f"{attack.__name__}-{message}" for attack, _, message in ALL_REFUSED],
)
def test_settings_that_make_no_attack_are_refused(attack, settings, message, unchecked):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attack(**settings)


def test_a_number_of_numpys_is_checked_too(unchecked):
    with pytest.raises(ValueError, match="step_size must be finite and positive"):
        PGD(10, np.float32(-0.01))
