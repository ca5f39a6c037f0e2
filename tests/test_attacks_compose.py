"""Attacks made from attacks, and sequences of them, alone and in `robust_accuracy`.

Run as a program, this file evaluates until its state has been saved 9 times and is then killed:
`python test_attacks_compose.py STATE`.
"""

import functools
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, constant_image, digits, linear_logits, run_attack, trained_mlp

from odejax import L2Ball, LinfBall, MeanLogits, predict
from odejax.attacks import (
    APGD,
    EOT,
    FAB,
    FGSM,
    IFGSM,
    PGD,
    SPSA,
    AttackProblem,
    AutoAttack,
    BestAdversarial,
    CarliniWagnerLinf,
    Restarts,
    Square,
    Targeted,
    cross_entropy,
    dlr,
    logit_margin,
    margin_loss,
    start,
    step,
)
from odejax.attacks.iterative import Draws
from odejax.evaluation import StateError, robust_accuracy
from odejax.evaluation.saved_state import SavedState

EVALUATION = sys.modules["odejax.evaluation.robust_accuracy"]
SURVIVORS = sys.modules["odejax.evaluation.attack_loop"]
KEY = jax.random.key(23)
SMALL = (3, 3, 1)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])


def slow(*case):
    """A case of which another, in the fast pass, says the same."""
    return pytest.param(*case, marks=pytest.mark.slow)


run = functools.partial(run_attack, key=KEY)


class NoisyLinear(eqx.Module):
    """A linear classifier whose weights are drawn anew for every evaluation."""

    linear: LinearLogits
    noise: float = eqx.field(static=True)

    def __call__(self, x, *, key):
        noise = self.noise * jax.random.normal(key, self.linear.weight.shape)
        return self.linear(x) + noise @ jnp.ravel(x)


def random_image(shape=SMALL, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(0.3, 0.7, shape), jnp.float32)


# Expectation over transformation


LOSSES = (cross_entropy, margin_loss, dlr)
DRAWS = 6


@eqx.filter_jit
def averaged_and_each(logits_fn, x, y, target):
    """By loss: its value and gradient over draws at once, and one by one; the logits likewise."""
    problem = AttackProblem(Draws(logits_fn, DRAWS), x, y, LinfBall(0.1), target)
    keys = jax.random.split(KEY, DRAWS)

    def one(x, loss, key):
        return loss(logits_fn(x, key=key), y, target)

    losses = [
        (
            problem.value_and_gradient(loss, x, KEY),
            jax.vmap(lambda key, loss=loss: jax.value_and_grad(one)(x, loss, key))(keys),
        )
        for loss in LOSSES
    ]
    return losses, problem.logits(x, KEY), jax.vmap(lambda key: logits_fn(x, key=key))(keys)


@pytest.mark.parametrize("target", [None, 2])
def test_an_averaged_gradient_is_the_mean_of_those_of_the_draws(target):
    logits_fn, x, y = NoisyLinear(linear_logits(SMALL, 5), 0.7), random_image(), jnp.asarray(1)
    target = None if target is None else jnp.asarray(target)
    losses, mean_logits, each_logits = averaged_and_each(logits_fn, x, y, target)
    mean = np.mean(each_logits, axis=0)
    np.testing.assert_allclose(mean_logits, mean, rtol=1e-5)
    for (value, gradient, logits), (values, gradients) in losses:
        assert np.ptp(values) > 0.01  # the draws differ
        np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)
        np.testing.assert_allclose(gradient, np.mean(gradients, axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(logits, mean, rtol=1e-5)


@pytest.mark.parametrize(
    "attack",
    # One that takes gradients of a loss, one of each logit, and one that takes none.
    [
        PGD(3, 0.03),
        FAB(3),
        Square(9),
        slow(APGD(4)),
        slow(CarliniWagnerLinf(4, 0.1)),
        slow(SPSA(10, 2)),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_averaging_a_deterministic_network_changes_nothing_but_the_queries(attack):
    x, y, ball = random_image(), jnp.asarray(0), LinfBall(0.02)
    logits_fn = linear_logits(SMALL, 4)
    logits_fn = eqx.tree_at(lambda net: net.bias, logits_fn, jnp.asarray([9.0, 0, 0, 0]))
    one = run(attack, logits_fn, x, y, ball)
    averaged = run(EOT(attack, 4), logits_fn, x, y, ball)
    np.testing.assert_allclose(averaged.x_adv, one.x_adv, atol=1e-6)
    assert not one.success
    assert averaged.queries == 4 * (one.queries - 1) + 1


COMPOSED = {
    "restarts of EOT": (Restarts(EOT(PGD(2, 0.1), 4), 3), 4 * 3 * 3),
    "EOT of targets": (EOT(Targeted(PGD(2, 0.1), 3), 4), 4 * 3 * (1 + 3)),
    "targets of EOT": (Targeted(EOT(PGD(2, 0.1), 4), 3), 3 * (1 + 4 * 3)),
    "restarts of a target": (Restarts(Targeted(PGD(2, 0.1), target=2), 3), 3 * 3),
    "EOT of EOT": (EOT(EOT(PGD(2, 0.1), 2), 3), 2 * 3 * 3),
}


@pytest.mark.parametrize(
    "name",
    [
        "EOT of targets",
        "EOT of EOT",
        slow("restarts of EOT"),
        slow("targets of EOT"),
        slow("restarts of a target"),
    ],
)
def test_queries_of_attacks_made_from_attacks_are_those_really_made(name):
    attack, expected = COMPOSED[name]
    calls = Counter()

    def logits_fn(x, *, key):
        # Given the key, since a batch of draws differs in nothing else.
        jax.debug.callback(lambda _: calls.update(["logits"]), jax.random.key_data(key))
        return linear_logits(SMALL, 4)(x)

    result = run(attack, logits_fn, random_image(), jnp.asarray(0), LinfBall(0.1))
    jax.effects_barrier()
    assert int(result.queries) == expected + 1 == calls["logits"]


@pytest.mark.parametrize("ball_type", [slow(LinfBall), L2Ball])
def test_averaging_finds_what_noise_hides(ball_type):
    # The mean network is linear: the largest loss of its margin is eps times the dual norm.
    linear = linear_logits(seed=3)
    logits_fn, x, y = NoisyLinear(linear, 1.5), constant_image(0.5), jnp.asarray(0)
    ball = ball_type(0.05)
    weight = np.asarray(linear.weight)
    w = weight[0] - weight[1]
    most = 0.05 * (np.linalg.norm(w) if ball_type is L2Ball else np.abs(w).sum())
    pgd = PGD(5, step_size=None, random_start=False)

    @eqx.filter_jit
    def all_found():
        """What it finds under each of 32 keys, from one draw for every gradient and from many."""
        keys = jax.random.split(KEY, 32)
        return [
            jax.vmap(lambda key, attack=attack: attack(logits_fn, x, y, ball, key=key).x_adv)(keys)
            for attack in (pgd, EOT(pgd, 100))
        ]

    plain, averaged = (
        np.mean((0.5 - np.asarray(images)).reshape(32, -1) @ w) / most for images in all_found()
    )
    assert averaged <= 1 + 1e-5
    assert averaged > 0.9
    assert plain < averaged - 0.15


# Restarts


@eqx.filter_jit
def run_by_hand(attack, logits_fn, x, y, ball, key, r):
    """One run from nothing, with a key of its own: its worst image."""
    problem = AttackProblem(logits_fn, x, y, ball)
    perturb_key, _ = jax.random.split(key)
    state, run_key = start(attack, problem, BestAdversarial.none(x), r, perturb_key)
    return jax.lax.fori_loop(
        0, attack.n_steps, lambda i, state: step(attack, problem, run_key, i, state), state
    ).adversarial


@pytest.mark.parametrize(
    ("attack", "ball"),
    [
        (PGD(3, 0.03), LinfBall(0.05)),
        slow(APGD(2), L2Ball(0.4)),
        slow(EOT(PGD(2, 0.03), 2), LinfBall(0.05)),
    ],
    ids=["PGD", "APGD", "EOT"],
)
def test_restarts_return_the_worst_of_runs_with_keys_of_their_own(attack, ball):
    data, logits_fn = digits("test"), trained_mlp()
    x, y = jnp.asarray(data.pixels[3]), jnp.asarray(data.labels[3])
    runs = [
        run_by_hand(attack, logits_fn, x, y, ball, KEY, jnp.asarray(r, jnp.int32)) for r in range(4)
    ]
    margins = [float(worst.margin) for worst in runs]
    assert len(set(margins)) == 4
    for n in (1, 4):
        result = run(Restarts(attack, n), logits_fn, x, y, ball)
        worst = runs[int(np.argmin(margins[:n]))]
        np.testing.assert_allclose(result.x_adv, worst.x_adv, atol=1e-6)
        assert result.queries == sum(int(worst.queries) for worst in runs[:n]) + 1
        if n == 1:
            single = run(attack, logits_fn, x, y, ball)
            np.testing.assert_array_equal(single.x_adv, result.x_adv)


def test_classes_that_follow_a_success_without_gradients_cost_nothing():
    logits_fn, x, ball = linear_logits(SMALL, 4), random_image(), LinfBall(0.5)
    y = jnp.argmax(logits_fn(x))
    one, all_ = (run(Targeted(Square(50), n), logits_fn, x, y, ball) for n in (1, 3))
    assert one.success
    assert one.queries == all_.queries < 50


@eqx.filter_jit
def begun(attack, problem, r, key):
    """The state before the first step of run number `r`."""
    return start(attack, problem, BestAdversarial.none(problem.x), r, key)[0]


def test_classes_that_come_again_start_elsewhere():
    # Three wrong classes, five runs: the fourth is the first's again, from another start.
    logits_fn, x, y = linear_logits(SMALL, 4), random_image(), jnp.asarray(0)
    problem = AttackProblem(logits_fn, x, y, LinfBall(0.1))
    states = [begun(Targeted(FAB(2), 5), problem, jnp.asarray(r), KEY) for r in range(5)]
    assert [int(s.target) for s in states[3:]] == [int(s.target) for s in states[:2]]
    for again, first in zip(states[3:], states[:2], strict=True):
        assert not np.array_equal(again.inner.x_adv, first.inner.x_adv)


def test_of_a_network_with_noise_every_class_is_aimed_at():
    noisy = NoisyLinear(linear_logits(SMALL, 10), 5.0)
    x, y = random_image(), jnp.asarray(9)
    problem = AttackProblem(noisy, x, y, LinfBall(0.1))
    targets = [
        begun(Targeted(FAB(2), 9), problem, jnp.asarray(r), jax.random.key(r)) for r in range(9)
    ]
    assert sorted(int(s.target) for s in targets) == list(range(9))


@pytest.mark.slow  # the loop over runs is the same for classes
def test_restarts_that_follow_a_success_without_gradients_cost_nothing():
    logits_fn, x, ball = linear_logits(SMALL, 4), random_image(), LinfBall(0.3)
    y = jnp.argmax(logits_fn(x))
    one = run(Square(50), logits_fn, x, y, ball)
    assert one.success
    assert run(Restarts(Square(50), 4), logits_fn, x, y, ball).queries == one.queries < 50


@pytest.mark.parametrize("attack", [PGD(2, 0.02), APGD(2), FAB(2)], ids=["PGD", "APGD", "FAB"])
def test_the_restarts_of_an_attack_on_one_class_differ(attack):
    # Whichever way round they are written, the runs must not all be the same.
    logits_fn, x, y = trained_mlp(), jnp.asarray(digits("test").pixels[3]), jnp.asarray(3)
    problem = AttackProblem(logits_fn, x, y, LinfBall(0.1))
    for composed in (
        Targeted(Restarts(attack, 3), target=5),
        Restarts(Targeted(attack, target=5), 3),
    ):
        starts = [
            start(composed, problem, BestAdversarial.none(x), jnp.asarray(r), KEY)[0].inner.x_adv
            for r in range(3)
        ]
        assert not np.array_equal(starts[1], starts[2])


# Targets


@pytest.mark.parametrize("y", [0, 3])
def test_targets_are_the_wrong_classes_by_their_logits_at_the_image(y):
    logits_fn, x = linear_logits(SMALL, 6), random_image()
    problem = AttackProblem(logits_fn, x, jnp.asarray(y), LinfBall(0.1))
    order = [j for j in np.argsort(-np.asarray(logits_fn(x))) if j != y]

    def targets(attack):
        return [
            int(start(attack, problem, BestAdversarial.none(x), jnp.asarray(r), KEY)[0].target)
            for r in range(attack.n_runs)
        ]

    assert targets(Targeted(PGD(1), 3)) == order[:3]
    assert targets(Targeted(PGD(1), 8)) == [*order, *order[:3]]
    assert targets(Targeted(Restarts(PGD(1), 2), 2)) == [*2 * order[:1], *2 * order[1:2]]
    assert targets(Targeted(PGD(1), target=4)) == [4]
    assert targets(Targeted(Restarts(PGD(1), 3), target=4)) == [4, 4, 4]
    assert targets(Restarts(Targeted(PGD(1), 1), 3)) == 3 * order[:1]


@pytest.mark.parametrize(
    ("ball_type", "loss", "target"),
    [
        (LinfBall, margin_loss, 4),
        (L2Ball, margin_loss, 1),
        (L2Ball, cross_entropy, 4),
        slow(LinfBall, margin_loss, 1),
        slow(L2Ball, margin_loss, 4),
        slow(L2Ball, cross_entropy, 1),
        slow(LinfBall, cross_entropy, 1),
        slow(LinfBall, cross_entropy, 4),
    ],
)
def test_an_aimed_attack_moves_towards_its_class(ball_type, loss, target):
    logits_fn, x, y = linear_logits(SMALL, 5, seed=2), random_image(), jnp.asarray(0)
    ball = ball_type(0.05)
    result = run(Targeted(FGSM(loss), target=target), logits_fn, x, y, ball)
    before, after = (np.asarray(logits_fn(image)) for image in (x, result.x_adv))
    if loss is margin_loss:
        w = (logits_fn.weight[target] - logits_fn.weight[0]).reshape(SMALL)
        gain = (after[target] - after[0]) - (before[target] - before[0])
        np.testing.assert_allclose(gain, ball.eps * ball.dual_norm(w), rtol=1e-4)
    assert jax.nn.log_softmax(after)[target] > jax.nn.log_softmax(before)[target]


@pytest.mark.parametrize(
    ("attack", "ball_type"),
    [
        (IFGSM(4, 0.02), L2Ball),
        slow(IFGSM(4, 0.02), LinfBall),
        slow(FGSM(), L2Ball),
        slow(FGSM(), LinfBall),
    ],
    ids=["IFGSM-l2", "IFGSM-linf", "FGSM-l2", "FGSM-linf"],
)
def test_aiming_at_every_class_is_as_good_as_aiming_at_the_best_of_them(attack, ball_type):
    logits_fn, ball, y = linear_logits(SMALL, 4, seed=2), ball_type(0.05), jnp.asarray(0)
    for seed in range(3):
        x = random_image(seed=seed)
        every = run(Targeted(attack, 3), logits_fn, x, y, ball).margin
        each = [run(Targeted(attack, target=t), logits_fn, x, y, ball).margin for t in (1, 2, 3)]
        np.testing.assert_allclose(every, np.min(each), atol=1e-5)


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(ValueError, match=f"(0 to 4|at least 0); got {target}"):
        Targeted(PGD(), target=target)(
            linear_logits(SMALL, 5), random_image(), 0, LinfBall(0.1), key=KEY
        )


def test_an_image_counts_as_broken_whichever_class_it_became():
    # Towards the far class 2 lies class 1, whose region begins earlier.
    logits_fn = LinearLogits(jnp.asarray([[0.0], [10.0], [11.0]]), jnp.asarray([0.0, -5.2, -6.6]))
    x, y = constant_image(0.5, (1, 1, 1)), jnp.asarray(0)
    result = run(Targeted(PGD(10, 0.01), target=2), logits_fn, x, y, LinfBall(0.05))
    assert result.success
    assert jnp.argmax(logits_fn(result.x_adv)) == 1


# AutoAttack


def test_the_three_versions_are_the_published_ones():
    assert eqx.tree_equal(AutoAttack(), AutoAttack.standard())
    assert AutoAttack.standard().attacks == {
        "APGD-CE": APGD(100, cross_entropy),
        "APGD-T": Targeted(APGD(100, dlr), 9),
        "FAB-T": Targeted(FAB(100), 9),
        "Square": Square(5000),
    }
    assert AutoAttack.standard(2, loss=margin_loss).attacks == {
        "APGD-CE": APGD(100, cross_entropy),
        "APGD-T": Targeted(APGD(100, margin_loss), 2),
        "FAB-T": Targeted(FAB(100), 2),
        "Square": Square(5000),
    }
    assert AutoAttack.rand().attacks == {
        "APGD-CE": EOT(APGD(100, cross_entropy), 20),
        "APGD-DLR": EOT(APGD(100, dlr), 20),
    }
    assert AutoAttack.plus().attacks == {
        "APGD-CE": Restarts(APGD(100, cross_entropy), 5),
        "APGD-DLR": Restarts(APGD(100, dlr), 5),
        "FAB": Restarts(FAB(100), 5),
        "Square": Square(5000),
        "APGD-T": Targeted(APGD(100, dlr), 9),
        "FAB-T": Targeted(FAB(100), 9),
    }
    order = {name: list(getattr(AutoAttack, name)().attacks) for name in ("standard", "plus")}
    assert order["standard"] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert order["plus"] == ["APGD-CE", "APGD-DLR", "FAB", "Square", "APGD-T", "FAB-T"]


# In an order that is not the alphabet's, with runs and draws, and with a part that stops.
SUITE = AutoAttack(
    {
        "Square": Square(12),
        "IFGSM": IFGSM(2, 0.02),
        "FAB-T": Targeted(FAB(2), 2),
        "PGD": PGD(4, 0.02),
    }
)


# Two of its parts, for what is compiled for a batch of its own.
PAIR = AutoAttack({name: SUITE.attacks[name] for name in ("Square", "FAB-T")})
# Quicker to compile, for one example.
TRIO = AutoAttack({"Square": Square(12), "IFGSM": IFGSM(2, 0.02), "PGD": PGD(3, 0.02)})


@pytest.fixture(scope="module")
def one_example():
    x, y = jnp.asarray(digits("test").pixels[0]), jnp.asarray(digits("test").labels[0])
    return x, y, run(TRIO, trained_mlp(), x, y, LinfBall(0.04))


@eqx.filter_jit
def part_of(attack, logits_fn, x, y, ball, key):
    """The margin at what a part of a sequence finds, and its queries."""
    x_adv, spent = attack.perturb(logits_fn, x, y, ball, key=key)
    return logit_margin(logits_fn(ball.project(x_adv, x)), y), spent


def test_a_sequence_on_one_example_returns_the_worst_of_its_parts(one_example):
    x, y, whole = one_example
    ball, key = LinfBall(0.04), jax.random.split(KEY)[0]
    key = jax.random.split(key)[1]
    margins, queries = [], 1
    for i, attack in enumerate(TRIO.attacks.values()):
        part_key = jax.random.fold_in(key, i)
        margin, spent = part_of(attack, trained_mlp(), x, y, ball, part_key)
        margins.append(float(margin))
        queries += int(spent) + 1
    assert len(set(margins)) > 2
    np.testing.assert_allclose(whole.margin, min(margins), atol=1e-5)
    assert whole.queries == queries
    # The order of the attacks, which their keys depend on, survives a trip through JAX.
    assert list(jax.tree.map(lambda leaf: leaf, TRIO).attacks) == list(TRIO.attacks)


@pytest.mark.slow
def test_a_sequence_is_the_same_compiled_or_not(one_example):
    x, y, compiled = one_example
    eager = TRIO(trained_mlp(), x, y, LinfBall(0.04), key=KEY)
    np.testing.assert_allclose(compiled.x_adv, eager.x_adv, atol=1e-5)
    assert compiled.queries == eager.queries


# Sequences in `robust_accuracy`


def evaluate(attack=SUITE, logits_fn=None, n=24, eps=0.06, key=KEY, **settings):
    data = digits("test", n)
    logits_fn = trained_mlp() if logits_fn is None else logits_fn
    settings = {"batch_size": 8, **settings}
    return robust_accuracy(
        logits_fn, data.pixels, data.labels, LinfBall(eps), attack, key=key, **settings
    )


@pytest.fixture
def unrehearsed(monkeypatch):
    """What is known before an attack runs, without tracing the attacks."""
    monkeypatch.setattr(EVALUATION, "rehearse", lambda *arguments: None)


def same(one, other):
    np.testing.assert_array_equal(one.still_correct, other.still_correct)
    np.testing.assert_array_equal(one.queries, other.queries)
    np.testing.assert_array_equal(one.x_adv, other.x_adv)
    assert one.after == other.after
    assert one.accuracy == other.accuracy


@pytest.mark.usefixtures("unrehearsed")
def test_a_sequence_breaks_every_image_that_one_of_its_attacks_breaks():
    # Parts without draws, so that alone they do what they do in the sequence.
    parts = {
        "CW": CarliniWagnerLinf(4, 0.1),
        "IFGSM": IFGSM(2, 0.02),
    }
    still_correct, after = np.ones(60, bool), {}
    for name, attack in parts.items():
        still_correct &= evaluate(attack, n=60).still_correct
        after[name] = still_correct.mean()
    report = evaluate(AutoAttack(parts), n=60)
    np.testing.assert_array_equal(report.still_correct, still_correct)
    assert report.after == after
    assert 0 < after["IFGSM"] < after["CW"] < 1
    assert report.accuracy == still_correct.mean()


@pytest.mark.usefixtures("unrehearsed")
def test_a_longer_sequence_breaks_all_that_its_beginning_did():
    names = list(SUITE.attacks)
    reports = [
        evaluate(AutoAttack({name: SUITE.attacks[name] for name in names[:n]})) for n in (2, 3, 4)
    ]
    for shorter, longer in pairwise(reports):
        assert not (longer.still_correct & ~shorter.still_correct).any()
        assert list(longer.after.items())[: len(shorter.after)] == list(shorter.after.items())
        assert (longer.queries >= shorter.queries).all()
    assert reports[-1].accuracy < reports[0].accuracy
    accuracies = list(reports[-1].after.values())
    assert accuracies == sorted(accuracies, reverse=True)


# Of the sizes that other tests compile for as well; slow are one at a time, and all at once.
@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("sizes", [(5, 8), slow((1, 7, 64))], ids=str)
def test_a_sequence_does_not_depend_on_the_batch_size(sizes):
    reports = [evaluate(PAIR, batch_size=size) for size in sizes]
    for report in reports[1:]:
        np.testing.assert_array_equal(report.still_correct, reports[0].still_correct)
        np.testing.assert_array_equal(report.queries, reports[0].queries)
        np.testing.assert_allclose(report.x_adv, reports[0].x_adv, atol=1e-5)
        assert report.after == reports[0].after
    # Its first classification, Square's queries, and both runs of FAB, each with its ranking.
    assert set(reports[0].queries[reports[0].still_correct]) == {1 + 12 + 2 * (1 + 2 + 1)}
    assert 0 < reports[0].accuracy < 1


@pytest.mark.usefixtures("unrehearsed")
def test_what_becomes_of_an_image_does_not_depend_on_the_others():
    data = digits("test", 24)
    kept = np.arange(24) % 3 == 0
    images, labels = data.pixels.copy(), data.labels.copy()
    images[~kept] = np.random.default_rng(0).uniform(size=images[~kept].shape)
    labels[~kept] = np.random.default_rng(1).integers(0, 10, (~kept).sum())
    one = evaluate()
    other = robust_accuracy(
        trained_mlp(), images, labels, LinfBall(0.06), SUITE, key=KEY, batch_size=8
    )
    np.testing.assert_array_equal(one.still_correct[kept], other.still_correct[kept])
    np.testing.assert_array_equal(one.queries[kept], other.queries[kept])
    np.testing.assert_array_equal(one.x_adv[kept], other.x_adv[kept])
    assert 0 < one.still_correct[kept].mean() < 1


class Traced(eqx.Module):
    linear: LinearLogits

    def __call__(self, x, *, key=None):
        TRACES["logits"] += 1
        return self.linear(x)


TRACES = Counter()


def test_a_shape_is_traced_once_for_each_attack(monkeypatch):
    monkeypatch.setattr(SURVIVORS, "_slow_in_loops", lambda logits_fn, image: False)
    rng = np.random.default_rng(0)

    suite = AutoAttack({"Square": Square(12), "PGD-T": Targeted(PGD(2, 0.02), 2)})

    def spent(seed, n, eps):
        images = rng.uniform(size=(n, *SMALL)).astype(np.float32)
        linear = linear_logits(SMALL, 5, seed=seed)
        logits = images.reshape(n, -1) @ np.asarray(linear.weight).T + np.asarray(linear.bias)
        labels = logits.argmax(axis=1)
        before = TRACES["logits"]
        robust_accuracy(Traced(linear), images, labels, LinfBall(eps), suite, key=KEY, batch_size=4)
        return TRACES["logits"] - before

    assert spent(0, 4, 0.02) > 0
    for seed, n in ((0, 30), (1, 30), (2, 13)):
        assert spent(seed, n, 0.01 * (seed + 1)) == 0


# A state that a killed evaluation goes on from


class Killed(BaseException):
    pass


@pytest.fixture
def one_step_at_a_time(monkeypatch):
    """A save after every step, counted, and an evaluation that is killed after so many."""
    counted, original = Counter(), EVALUATION._PeriodicState.save
    advance = SURVIVORS.AttackLoop.advance

    def save(self, *arrays):
        self.pause = 0.0
        original(self, *arrays)
        counted["saves"] += 1
        if counted["saves"] == counted["limit"]:
            raise Killed

    def counted_advance(self):
        counted["steps"] += 1
        return advance(self)

    monkeypatch.setattr(SURVIVORS, "_CHUNK_SECONDS", 0.0)
    # It traces every attack anew for what an attack refuses, and these refuse nothing.
    monkeypatch.setattr(EVALUATION, "rehearse", lambda *arguments: None)
    monkeypatch.setattr(SURVIVORS.AttackLoop, "advance", counted_advance)
    monkeypatch.setattr(EVALUATION._PeriodicState, "save", save)
    return counted


def killed(counted, limit, **settings):
    counted.update(saves=-counted["saves"], limit=limit - counted["limit"])
    with pytest.raises(Killed):
        evaluate(**settings)
    counted.update(saves=-counted["saves"], limit=-counted["limit"])


@pytest.mark.parametrize("at_more", [(), slow((2, 13, 14, 25, -7, 0))], ids=["few", "many"])
def test_a_killed_evaluation_goes_on_where_it_was(one_step_at_a_time, tmp_path, at_more):
    counted, path = one_step_at_a_time, tmp_path / "new" / "state.npz"
    whole = evaluate(state_path=path)
    steps = counted["steps"]
    assert 0 < whole.accuracy < 1
    assert counted["saves"] == steps > 40
    for limit in (1, steps // 2, -1, *at_more):
        counted["steps"] = 0
        killed(counted, limit if limit > 0 else steps + limit, state_path=path)
        assert path.exists()
        same(evaluate(state_path=path), whole)
        assert counted["steps"] == steps
        assert list(path.parent.iterdir()) == []


def test_an_evaluation_may_be_killed_again_and_again(one_step_at_a_time, tmp_path):
    counted, path = one_step_at_a_time, tmp_path / "state.npz"
    whole = evaluate(PAIR)
    for _ in range(3):
        killed(counted, 9, attack=PAIR, state_path=path)
    same(evaluate(PAIR, state_path=path, batch_size=5), whole)


def test_a_batch_that_shrinks_at_the_end_changes_nothing(one_step_at_a_time, monkeypatch, tmp_path):
    counted, path, sizes = one_step_at_a_time, tmp_path / "state.npz", []
    advance = SURVIVORS.AttackLoop.advance
    settings = dict(attack=PAIR, n=18, batch_size=8)
    whole = evaluate(**settings)

    def steps_are_slow(self, seconds, steps):
        self.compiled, self.step_seconds, self.chunk = True, 1.0, 1

    def noted_advance(self):
        sizes.append(len(self.slots.index))
        return advance(self)

    monkeypatch.setattr(SURVIVORS, "_COMPILE_SECONDS", [0.0])
    monkeypatch.setattr(SURVIVORS.AttackLoop, "_set_pace", steps_are_slow)
    monkeypatch.setattr(SURVIVORS.AttackLoop, "advance", noted_advance)
    reports = [evaluate(**settings)]
    smaller = int(np.flatnonzero(np.asarray(sizes) < 8)[0])
    for limit in (smaller, smaller + 1):
        killed(counted, limit, state_path=path, **settings)
        reports.append(evaluate(state_path=path, **settings))
    for report in reports:
        np.testing.assert_array_equal(report.still_correct, whole.still_correct)
        np.testing.assert_array_equal(report.queries, whole.queries)
        np.testing.assert_allclose(report.x_adv, whole.x_adv, atol=1e-5)
    assert 0 < whole.accuracy < 1


def test_an_old_style_key_resumes_too(one_step_at_a_time, tmp_path):
    path, settings = tmp_path / "state.npz", {"key": jax.random.PRNGKey(0), "n": 12}
    whole = evaluate(**settings)
    killed(one_step_at_a_time, 9, state_path=path, **settings)
    same(evaluate(state_path=path, **settings), whole)


def test_without_a_path_nothing_is_written(one_step_at_a_time, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_process_is_continued_by_another(tmp_path):
    # As after a crash: another interpreter, with nothing at the same address.
    path = tmp_path / "state.npz"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # With shape checks, as here: they are part of the functions' code.
    program = "import conftest, runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", program, __file__, path]
    child = subprocess.run(command, env=environment, check=False)
    assert child.returncode == 9
    assert path.exists()
    same(of_another_process(path), of_another_process())
    assert not path.exists()


class Activated(eqx.Module):
    """A network with a function among its leaves, as those of Equinox have."""

    linear: LinearLogits
    activation: Callable

    def __call__(self, x, *, key=None):
        return self.activation(self.linear(x))


def of_another_process(state_path=None):
    images = np.random.default_rng(3).uniform(size=(9, *SMALL)).astype(np.float32)
    logits_fn = Activated(linear_logits(SMALL, 5), jax.nn.relu)
    labels = np.asarray(jax.vmap(logits_fn)(images)).argmax(axis=1)
    return robust_accuracy(
        logits_fn,
        images,
        labels,
        LinfBall(0.03),
        AutoAttack({"PGD": PGD(5, 0.01), "Square": Square(9)}),
        key=KEY,
        batch_size=4,
        state_path=state_path,
    )


FOREIGN = {
    "key": dict(key=jax.random.key(1)),
    "eps": dict(eps=0.07),
    "images": dict(n=23),
    "attack": dict(attack=AutoAttack({**SUITE.attacks, "IFGSM": IFGSM(3, 0.02)})),
    "order": dict(attack=AutoAttack(dict(reversed(SUITE.attacks.items())))),
    "network": dict(logits_fn=linear_logits(n_classes=10)),
    "judge": dict(judge=linear_logits(n_classes=10)),
    "already broken": dict(already_broken=np.arange(24) < 12),
    "stop": dict(stop_at_first_success=False),
}
FOREIGN["loss"] = dict(
    attack=AutoAttack(
        SUITE.attacks | {"PGD": PGD(4, 0.02, loss=lambda logits, y, target: logits[0])}
    )
)


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """The bytes of the state of an evaluation that was killed."""
    path = tmp_path_factory.mktemp("state") / "state.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EVALUATION, "rehearse", lambda *arguments: None)
        original = EVALUATION._PeriodicState.save

        def save(self, *arrays):
            self.pause = 0.0
            original(self, *arrays)
            raise Killed

        patch.setattr(EVALUATION._PeriodicState, "save", save)
        with pytest.raises(Killed):
            evaluate(state_path=path)
    return path.read_bytes()


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("settings", FOREIGN.values(), ids=FOREIGN)
def test_the_state_of_another_evaluation_is_refused(left_behind, tmp_path, settings):
    path = tmp_path / "state.npz"
    path.write_bytes(left_behind)
    with pytest.raises(StateError, match=r"state\.npz is the state of another evaluation"):
        evaluate(state_path=path, **settings)
    assert path.read_bytes() == left_behind


class Opaque:
    """A network that is no PyTree, as a wrapped one may be."""

    def __init__(self, seed):
        self.net = linear_logits(n_classes=10, seed=seed)

    def __call__(self, x, *, key=None):
        return self.net(x)


def test_networks_of_one_fingerprint_are_distinguished_by_their_logits(
    one_step_at_a_time, tmp_path
):
    path = tmp_path / "state.npz"
    settings = {"attack": AutoAttack({"PGD": PGD(30, 1e-4)}), "n": 100, "state_path": path}
    killed(one_step_at_a_time, 3, logits_fn=Opaque(0), **settings)
    with pytest.raises(StateError, match="another evaluation"):
        evaluate(logits_fn=Opaque(1), **settings)


@pytest.mark.parametrize("suite", [AutoAttack(), AutoAttack.plus()], ids=["standard", "plus"])
def test_what_the_last_attack_refuses_comes_before_the_first_has_run(monkeypatch, suite):
    monkeypatch.setattr(SURVIVORS.AttackLoop, "advance", lambda self: pytest.fail("an attack ran"))
    with pytest.raises(ValueError, match="4 classes"):
        robust_accuracy(
            linear_logits(n_classes=3),
            np.full((2, 8, 8, 1), 0.5, np.float32),
            np.zeros(2, np.int32),
            LinfBall(0.1),
            suite,
            key=KEY,
        )


def npy(path, content):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def npz(path, content):
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(3))


def flipped(path, content):
    place = content.index(b"x_adv.npy") + 1000  # among the images, which a checksum covers
    path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])


CORRUPT = {
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_text("not a state"),
    "first half": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "last half": lambda path, content: path.write_bytes(content[len(content) // 2 :]),
    "a flipped byte": flipped,
    "an array": npy,
    "other arrays": npz,
}


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize("corrupt", CORRUPT.values(), ids=CORRUPT)
def test_a_state_that_cannot_be_read_is_refused_by_name(left_behind, tmp_path, corrupt):
    path = tmp_path / "state.npz"
    corrupt(path, left_behind)
    with pytest.raises(StateError, match=r"state\.npz"):
        evaluate(state_path=path)


@pytest.mark.usefixtures("unrehearsed")
def test_no_flipped_bit_of_a_state_is_used(left_behind, tmp_path):
    path, rng = tmp_path / "state.npz", np.random.default_rng(0)
    arrays, outcomes = dict(np.load(io.BytesIO(left_behind))), Counter()
    for place in rng.integers(0, 8 * len(left_behind), 40):
        damaged = bytearray(left_behind)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            loaded = SavedState(path, (), arrays["logits"])._read()
        except StateError:
            outcomes["refused"] += 1
        else:  # a bit that nothing is read from, such as a date in the archive
            outcomes["the same"] += all(np.array_equal(arrays[k], v) for k, v in loaded.items())
    assert outcomes.total() == 40


@pytest.mark.usefixtures("unrehearsed")
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("a folder", "must be a file; .*a folder is a folder"),
        ("a file/state.npz", "state_path: .*a file cannot be written to"),
        ("gs://bucket/state.npz", "must be a local path; got gs://bucket/state.npz"),
    ],
)
def test_a_state_path_that_cannot_be_written_is_refused_before_any_attack(
    tmp_path, monkeypatch, place, message
):
    monkeypatch.setattr(SURVIVORS.AttackLoop, "advance", lambda self: pytest.fail("an attack ran"))
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").write_text("")
    path = place if "://" in place else tmp_path / place
    with pytest.raises(ValueError, match=message):
        evaluate(state_path=path)


@pytest.mark.usefixtures("unrehearsed")
def test_a_tilde_is_the_users_home(one_step_at_a_time, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    killed(one_step_at_a_time, 3, state_path="~/state.npz")
    assert (tmp_path / "state.npz").exists()


# Other attacks and networks


def sign_step(logits_fn, x, y, ball, *, key):
    return FGSM()(logits_fn, x, y, ball, key=key)


def test_any_function_of_the_form_is_an_attack():
    expected = evaluate(FGSM())
    settings = functools.partial(sign_step)
    for attack, name in ((sign_step, "sign_step"), (settings, "partial")):
        report = evaluate(attack)
        np.testing.assert_array_equal(report.still_correct, expected.still_correct)
        np.testing.assert_allclose(report.x_adv, expected.x_adv, atol=1e-6)
        right = predict(trained_mlp(), digits("test", 24).images, key=KEY).argmax(axis=1)
        right = right == digits("test", 24).labels
        assert set(report.queries[right]) == {1 + 3}
        assert report.after == {name: report.accuracy}
    assert 0 < expected.accuracy < 1


class Convolution(eqx.Module):
    """A network of `lax.conv`, which XLA's CPU backend is slow with inside loops."""

    kernel: jax.Array
    linear: LinearLogits

    def __call__(self, x, *, key=None):
        features = jax.lax.conv_general_dilated(
            x[None], self.kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return self.linear(jnp.tanh(features[0]))


def test_a_network_is_attacked_alike_inside_a_loop_and_outside(monkeypatch):
    kernel_key, key = jax.random.split(KEY)
    net = Convolution(jax.random.normal(kernel_key, (3, 3, 1, 2)), linear_logits((4, 4, 2), 5))
    images = np.asarray(jax.random.uniform(key, (12, 4, 4, 1)))
    labels = predict(net, images, key=KEY).argmax(axis=1)
    assert SURVIVORS._slow_in_loops(net, images[0])
    assert not SURVIVORS._slow_in_loops(linear_logits((4, 4, 1)), images[0])

    def evaluate():
        attack = Targeted(FAB(2), 2)
        return robust_accuracy(net, images, labels, LinfBall(0.03), attack, key=KEY, batch_size=5)

    outside = evaluate()
    monkeypatch.setattr(SURVIVORS, "_slow_in_loops", lambda logits_fn, image: False)
    inside = evaluate()
    np.testing.assert_array_equal(outside.still_correct, inside.still_correct)
    np.testing.assert_array_equal(outside.queries, inside.queries)
    np.testing.assert_allclose(outside.x_adv, inside.x_adv, atol=1e-5)
    assert 0 < outside.accuracy < 1


def test_an_attack_ends_with_its_first_success_unless_that_was_a_draw():
    images = np.random.default_rng(0).uniform(0.3, 0.7, (10, *SMALL)).astype(np.float32)
    linear = linear_logits(SMALL, 5)
    labels = predict(linear, images, key=KEY).argmax(axis=1)
    attack, most = PGD(6, 0.02), 1 + 7

    def queries(logits_fn, **settings):
        return robust_accuracy(
            logits_fn, images, labels, LinfBall(0.1), attack, key=KEY, **settings
        ).queries

    noisy = NoisyLinear(linear, 0.3)
    judge = MeanLogits(noisy, jax.random.split(KEY, 64))
    attacked = predict(judge, images, key=KEY).argmax(axis=1) == labels
    assert attacked.sum() > 5
    assert (queries(linear) < most).any()
    assert (queries(linear, stop_at_first_success=False) == most).all()
    assert (queries(noisy, judge=judge)[attacked] == most).all()
    assert (queries(noisy, judge=judge, stop_at_first_success=True)[attacked] < most).any()
    # Judged by itself: whatever it says of an image is one draw.
    assert set(queries(noisy)) <= {1, most}
    # Deterministic, but not what it is judged by.
    other = jax.tree.map(lambda leaf: 2 * leaf, linear)
    assert (queries(linear, judge=other) == most).all()


if __name__ == "__main__":
    saves = Counter()
    original = EVALUATION._PeriodicState.save

    def save(self, *arrays):
        self.pause = 0.0
        original(self, *arrays)
        saves["all"] += 1
        if saves["all"] == 9:
            os._exit(9)

    SURVIVORS._CHUNK_SECONDS = 0.0
    EVALUATION._PeriodicState.save = save
    of_another_process(Path(sys.argv[2]))
