"""Attacks with gradients against closed forms, brute force and independent implementations."""

from functools import lru_cache, partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, attack_path, constant_image, linear_logits, run_attack
from scipy.optimize import linprog

from odejax import L2Ball, LinfBall
from odejax.attacks import (
    APGD,
    DI2FGSM,
    FAB,
    IFGSM,
    MIFGSM,
    PGD,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    Restarts,
    Square,
    Targeted,
    cross_entropy,
    dlr,
    margin_loss,
)
from odejax.attacks.momentum import resize_and_pad

KEY = jax.random.key(31)
SHAPE = (4, 4, 1)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])


run = partial(run_attack, key=KEY)
path = partial(attack_path, key=KEY)


class Net(eqx.Module):
    """A small smooth network, in JAX and, to compare with, in NumPy at float64."""

    first: jax.Array
    shift: jax.Array
    second: jax.Array

    def __call__(self, x, *, key=None):
        return self.second @ jnp.tanh(self.first @ jnp.ravel(x) + self.shift)

    def logits64(self, x):
        first, shift, second = (np.float64(leaf) for leaf in (self.first, self.shift, self.second))
        return second @ np.tanh(first @ np.ravel(x) + shift)

    def gradient64(self, x, cotangent):
        first, shift, second = (np.float64(leaf) for leaf in (self.first, self.shift, self.second))
        slope = 1 - np.tanh(first @ np.ravel(x) + shift) ** 2
        return (first.T @ (slope * (second.T @ cotangent))).reshape(np.shape(x))


def net(size, classes, seed, width=16, gain=3.0):
    rng = np.random.default_rng(seed)
    parts = (
        gain * rng.normal(size=(width, size)),
        gain * rng.normal(size=width),
        rng.normal(size=(classes, width)),
    )
    return Net(*(jnp.asarray(part, jnp.float32) for part in parts))


# Closed forms: the distance to the nearest of the hyperplanes between linear logits


class Nearest(NamedTuple):
    logits_fn: LinearLogits
    x: jax.Array
    y: jax.Array
    distance: float


def linear_problem(ball_type, classes, seed=0, distance=0.1):
    """The box does not bind, and the nearest hyperplane is at this distance."""
    logits_fn, x = linear_logits(SHAPE, classes, seed=seed), constant_image(0.5, SHAPE)
    weight = np.float64(logits_fn.weight)
    order = 1 if ball_type is LinfBall else 2
    dual = np.linalg.norm(weight[0] - weight[1:], order, axis=1)
    others = weight[1:] @ np.full(16, 0.5) + np.float64(logits_fn.bias[1:])
    own = np.max(others + distance * dual)
    bias = logits_fn.bias.at[0].set(own - weight[0] @ np.full(16, 0.5))
    return Nearest(LinearLogits(logits_fn.weight, bias), x, jnp.asarray(0), distance)


# (attack, how far above the smallest distance it must succeed)
NEAREST = {
    "FAB": (FAB(20), 1.01),
    "FAB-T": (Targeted(FAB(20), 3), 1.01),
    "DeepFool": (DeepFool(5), 1.02 * 1.002),  # its nudge is a thousandth of the distance
    "APGD": (APGD(40, margin_loss), 1.002),
    "APGD-T": (Targeted(APGD(40, margin_loss), 3), 1.002),
    "APGD-T on DLR": (Targeted(APGD(40, dlr), 3), 1.002),
    "CarliniWagner": (CarliniWagner(150, 7, 0.03, c=1.0), 1.05),
}


# Every attack in one ball, those that use more than two classes with four; FAB and DeepFool, whose
# steps are of the ball's own geometry, in both.
FAST = {
    ("FAB", LinfBall, 4),
    ("FAB", L2Ball, 2),
    ("FAB-T", L2Ball, 4),
    ("DeepFool", LinfBall, 2),
    ("DeepFool", L2Ball, 4),
    ("APGD", LinfBall, 2),
    ("APGD-T on DLR", L2Ball, 4),
    ("CarliniWagner", L2Ball, 4),
}


@pytest.mark.parametrize(
    ("name", "ball_type", "classes"),
    [
        pytest.param(
            name,
            ball_type,
            classes,
            marks=[pytest.mark.slow] * ((name, ball_type, classes) not in FAST),
        )
        for name in NEAREST
        for ball_type in (LinfBall, L2Ball)
        for classes in (2, 4)
        if not (name == "CarliniWagner" and ball_type is LinfBall)
        and not ("-T" in name and classes == 2)
    ],
)
def test_the_nearest_hyperplane_is_found_at_its_distance(name, ball_type, classes):
    attack, slack = NEAREST[name]
    # In 29 and 33 the smallest gap of four logits is not at the nearest hyperplane, where climbs of
    # the loss may miss it.
    seeds = (0, 1, 2, 29, 33) if name in ("DeepFool", "FAB") else range(3)
    for seed in seeds:
        logits_fn, x, y, distance = linear_problem(ball_type, classes, seed)
        above, below = (
            run(attack, logits_fn, x, y, ball_type(distance * factor)) for factor in (slack, 0.998)
        )
        assert above.success
        assert not below.success


def smallest_in_box(ball_type, logits_fn, x):
    """The distance to the hyperplane of two classes within the box: a program, or a bisection."""
    w = np.float64(logits_fn.weight[1] - logits_fn.weight[0])
    flat = np.float64(x).ravel()
    gap = -(w @ flat + float(logits_fn.bias[1] - logits_fn.bias[0]))
    assert gap > 0
    if ball_type is LinfBall:
        n = len(w)
        sides = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        bounds = [*zip(-flat, 1 - flat, strict=True), (0, None)]
        return linprog([*np.zeros(n), 1], sides, np.zeros(2 * n), [[*w, 0]], [gap], bounds).fun
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        d = np.clip(middle * w, -flat, 1 - flat)
        low, high = (middle, high) if w @ d < gap else (low, middle)
    return np.linalg.norm(d)


@each_ball
@pytest.mark.parametrize("attack", [FAB(30), DeepFool(30)], ids=["FAB", "DeepFool"])
def test_the_boundary_is_crossed_where_the_box_holds_pixels_back(ball_type, attack):
    # Half of the pixels are black or white and can go one way alone.
    x = jnp.asarray(np.tile([0.0, 1.0, 0.3, 0.6], 4).reshape(SHAPE), jnp.float32)
    for seed in range(4):
        logits_fn = linear_logits(SHAPE, 2, seed=seed)
        weight = np.asarray(logits_fn.weight)
        margin = (weight[0] - weight[1]) @ np.ravel(x)
        logits_fn = LinearLogits(logits_fn.weight, jnp.asarray([1.5 - margin, 0.0], jnp.float32))
        distance = smallest_in_box(ball_type, logits_fn, x)
        y = jnp.asarray(0)
        slack = 1.02 if isinstance(attack, FAB) else 1.5
        result = run(attack, logits_fn, x, y, ball_type(slack * distance))
        assert result.margin < -1e-5  # not by rounding: `robust_accuracy` believes it
        assert not run(attack, logits_fn, x, y, ball_type(0.998 * distance)).success


# Brute force: nets of two pixels, and every image of a fine grid


SEEDS = 40


class Searched(NamedTuple):
    nets: Net  # one of each seed, stacked
    x: jax.Array
    y: jax.Array
    ball: LinfBall | L2Ball
    smallest: np.ndarray  # the smallest margin anywhere in ball and box


@lru_cache
def searched(ball_type):
    ball = ball_type(0.25 if ball_type is LinfBall else 0.3)
    nets = [net(2, 3 + seed % 3, seed, gain=4.0) for seed in range(SEEDS)]
    # A class that is never predicted makes them all of one size.
    pad = [Net(n.first, n.shift, np.pad(n.second, ((0, 5 - len(n.second)), (0, 0)))) for n in nets]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *pad)
    x = jax.random.uniform(KEY, (SEEDS, 1, 2, 1))
    line = np.linspace(-float(ball.eps), float(ball.eps), 301, dtype=np.float32)
    square = jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 1, 2, 1))

    @eqx.filter_jit
    @eqx.filter_vmap
    def search(n, x):
        """The class at the image, and its smallest margin."""
        y = jnp.argmax(n(x))
        points = jax.vmap(lambda v: ball.project(x + v, x))(square)
        logits = jax.vmap(n)(points)
        own = logits[:, y]
        others = jnp.where(jnp.arange(logits.shape[1]) == y, -jnp.inf, logits)
        return y, jnp.min(own - jnp.max(others, axis=1))

    y, smallest = search(stacked, x)
    return Searched(stacked, x, y, ball, np.asarray(smallest))


@eqx.filter_jit
def attack_each(attack, problem):
    def one(n, x, y, key):
        return attack(n, x, y, problem.ball, key=key)

    keys = jax.random.split(KEY, SEEDS)
    return eqx.filter_vmap(one)(problem.nets, problem.x, problem.y, keys)


# attack, the nets that it may fail to break although it could
STRONG = {
    "APGD": (Restarts(APGD(30), 8), set()),
    "APGD on the margin": (Restarts(APGD(30, margin_loss), 8), set()),
    "APGD-T": (Targeted(Restarts(APGD(30, dlr), 4), 4), set()),
    "FAB": (Restarts(FAB(20), 8), set()),
    # On two pixels it visits the corners of the L-infinity ball alone.
    "Square": (Restarts(Square(150), 3), {1}),
}


@pytest.mark.parametrize(
    ("name", "ball_type"),
    [
        # Each in one ball, and slow in the other.
        pytest.param(name, ball_type, marks=[pytest.mark.slow] * (i % 2 == j))
        for i, name in enumerate(STRONG)
        for j, ball_type in enumerate((L2Ball, LinfBall))
    ],
)
def test_strong_attacks_agree_with_a_search_of_every_image(name, ball_type):
    problem, (attack, may_miss) = searched(ball_type), STRONG[name]
    result = attack_each(attack, problem)
    broken, breakable = np.asarray(result.success), problem.smallest < 0
    assert 15 < breakable.sum() < 25
    assert not (broken & ~breakable).any()
    assert set(np.flatnonzero(breakable & ~broken)) <= may_miss
    above = np.asarray(result.margin) - problem.smallest
    assert above.min() > -1e-3  # of the grid's spacing
    if "APGD" in name:
        assert np.quantile(above, 0.9) < 0.01
        assert above.max() < 0.2


# Auto-PGD's schedule


def test_the_checkpoints_are_the_published_ones():
    assert APGD(steps=100).checkpoints == (22, 41, 57, 70, 80, 87, 93, 99)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 33, 250])
def test_checkpoints_come_in_ever_shorter_intervals(steps):
    at = np.asarray([0, *APGD(steps=steps).checkpoints])
    assert at[1] == max(int(0.22 * steps), 1)
    assert at[-1] <= steps
    shortest = max(int(0.06 * steps), 1)
    assert steps - at[-1] < max(at[-1] - at[-2], shortest)
    assert (np.diff(at) >= shortest).all()
    assert (np.diff(at, 2) <= 0).all()


def test_auto_pgd_on_one_pixel_is_what_it_is_by_hand():
    # The loss -|x - 0.53|, from 0.6 in [0.4, 0.6], with checkpoints at 2, 3, 4, ...
    #   step 2: one rise in two, so halved, from the best point 0.5 on, with the path's momentum
    #   step 3: no rise, halved        step 4: a rise, and it had been halved: kept
    #   step 5: no rise, halved        steps 6 and 7: rises    step 8: no rise, halved
    def logits_fn(x, *, key):
        return jnp.stack([-jnp.abs(x[0, 0, 0] - 0.53), jnp.zeros(())])

    def loss(logits, y, target=None):
        return logits[0]

    attack, x, ball = APGD(steps=10, loss=loss), constant_image(0.5, (1, 1, 1)), LinfBall(0.1)
    assert attack.checkpoints == tuple(range(2, 11))
    states = next(
        states
        for seed in range(20)
        if (states := path(attack, logits_fn, x, jnp.asarray(0), ball, key=jax.random.key(seed)))
        .x_adv[0, 0, 0, 0] > 0.5
    )  # fmt: skip
    expected = [0.6, 0.4, 0.5, 0.6, 0.5375, 0.509375, 0.51875, 0.5328125, 0.517578125, 0.5234375]
    np.testing.assert_allclose(states.x_adv[:10, 0, 0, 0], expected, atol=1e-6)
    sizes = [0.2, 0.2, 0.2, 0.1, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125]
    np.testing.assert_allclose(states.step_size[:10], sizes, rtol=1e-5)
    best = [0.6, 0.6, 0.6, 0.5, 0.5, 0.5375, 0.5375, 0.5375, 0.5328125, 0.5328125]
    np.testing.assert_allclose(states.best[:10, 0, 0, 0], best, atol=1e-6)


def project64(ball_type, x_adv, x, eps):
    if ball_type is LinfBall:
        return np.clip(np.clip(x_adv, x - eps, x + eps), 0, 1)
    norm = np.linalg.norm(x_adv - x)
    return np.clip(x + (x_adv - x) * min(1.0, eps / norm if norm else 1.0), 0, 1)


def steepest64(ball_type, gradient):
    return np.sign(gradient) if ball_type is LinfBall else gradient / np.linalg.norm(gradient)


def auto_pgd64(ball_type, loss_and_gradient, x, start, eps, steps, rho=0.75):
    """Algorithm 1 of the paper, with its restarts where the authors' code has them."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    eta, iterates, values, gradients, reasons = 2 * eps, [start], [], [], []
    checkpoints, interval = [], int(0.22 * steps)
    while sum(checkpoints[-1:]) + interval <= steps:
        checkpoints.append(sum(checkpoints[-1:]) + interval)
        interval = max(interval - int(0.03 * steps), int(0.06 * steps))
    last, just_halved, best_then, here, before = 0, True, None, start, start
    for k in range(steps + 1):
        value, gradient = loss_and_gradient(iterates[k])
        values.append(value)
        gradients.append(gradient)
        best = int(np.argmax(values))
        best_then = values[0] if k == 0 else best_then
        here, uphill = iterates[k], gradient
        if k in checkpoints:
            rises = sum(values[i] > values[i - 1] for i in range(last + 1, k + 1))
            too_few = rises <= rho * (k - last)
            stuck = not just_halved and values[best] <= best_then
            just_halved = too_few or stuck
            if just_halved:
                eta, here, uphill = eta / 2, iterates[best], gradients[best]
            reasons.append((too_few, stuck))
            last, best_then = k, values[best]
        a = 1.0 if k == 0 else 0.75
        z = project64(ball_type, here + eta * steepest64(ball_type, uphill), x, eps)
        ahead = here + a * (z - here) + (1 - a) * (here - before)
        before = here
        iterates.append(project64(ball_type, ahead, x, eps))
    return np.asarray(iterates), reasons


@each_ball
def test_auto_pgd_takes_the_steps_of_the_paper(ball_type):
    shape, steps, eps = (2, 3, 2), 50, 0.3 if ball_type is LinfBall else 0.8
    attack, reasons = APGD(steps=steps), []
    for seed in range(6):
        logits_fn = net(12, 4, seed, gain=1.5)
        x = jax.random.uniform(jax.random.key(seed), shape)
        y = int(jnp.argmax(logits_fn(x)))

        def loss_and_gradient(x, logits_fn=logits_fn, y=y):
            z = logits_fn.logits64(x)
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            return -np.log(p[y]), logits_fn.gradient64(x, p - np.eye(4)[y])

        actual = np.asarray(path(attack, logits_fn, x, jnp.asarray(y), ball_type(eps)).x_adv)
        np.testing.assert_allclose(ball_type(0.0).norm(actual[0] - x), eps, rtol=0.5)
        expected, why = auto_pgd64(
            ball_type, loss_and_gradient, np.float64(x), np.float64(actual[0]), eps, steps
        )
        # float32 against float64 over 50 steps (2e-5 seen); the smallest step is 1e-3 and more.
        np.testing.assert_allclose(actual, expected, atol=5e-5)
        reasons += why
    # Both kinds of checkpoint were seen; in l2 also one that fails by the second condition alone.
    seen = {(bool(too_few), bool(stuck)) for too_few, stuck in reasons}
    assert seen >= {(True, False), (False, False)}
    assert (False, True) in seen or ball_type is LinfBall


# The other climbs, step by step


@each_ball
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_momentum_is_gathered_as_published(ball_type, decay):
    # m = decay m + g / mean|g|, and a step of size eps / steps along it.
    shape, steps, eps = (2, 3, 2), 8, 0.2 if ball_type is LinfBall else 0.6
    logits_fn, x = net(12, 4, 1, gain=1.5), jax.random.uniform(KEY, shape)
    y = int(jnp.argmax(logits_fn(x)))
    # An array, so that all decays are one program.
    attack = eqx.tree_at(lambda a: a.decay, MIFGSM(steps, eps / steps), jnp.asarray(decay))
    states = path(attack, logits_fn, x, jnp.asarray(y), ball_type(eps))
    here, momentum = np.float64(x), np.zeros(shape)
    for k in range(steps + 1):
        np.testing.assert_allclose(states.x_adv[k], here, atol=1e-6)
        np.testing.assert_allclose(states.momentum[k], momentum, rtol=1e-3, atol=1e-4)
        z = logits_fn.logits64(here)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        gradient = logits_fn.gradient64(here, p - np.eye(4)[y])
        momentum = decay * momentum + gradient / np.abs(gradient).mean()
        ahead = here + eps / steps * steepest64(ball_type, momentum)
        here = project64(ball_type, ahead, np.float64(x), eps)


@pytest.mark.parametrize("ball_type", [pytest.param(LinfBall, marks=pytest.mark.slow), L2Ball])
def test_without_momentum_and_diversity_they_are_one_attack(ball_type):
    logits_fn, x = net(12, 4, 1, gain=1.5), jax.random.uniform(KEY, (2, 3, 2))
    y, ball = jnp.argmax(logits_fn(x)), ball_type(0.2)
    plain, with_momentum = (
        run(attack, logits_fn, x, y, ball) for attack in (IFGSM(6, 0.05), MIFGSM(6, 0.05))
    )
    same = [
        (DI2FGSM(6, 0.05, decay=0.0, probability=0.0), plain),
        (DI2FGSM(6, 0.05, probability=0.0), with_momentum),
        (PGD(6, 0.05, random_start=False), plain),
    ]
    for attack, expected in same:
        result = run(attack, logits_fn, x, y, ball)
        np.testing.assert_allclose(result.x_adv, expected.x_adv, atol=1e-6)
        assert result.queries == expected.queries
    assert np.abs(plain.x_adv - with_momentum.x_adv).max() > 1e-3


@each_ball
def test_a_step_of_no_size_crosses_the_ball_twice_and_a_half(ball_type):
    logits_fn, x, y, _ = linear_problem(ball_type, 2)
    ball = ball_type(0.3)
    first = path(IFGSM(10), logits_fn, x, y, ball).x_adv[1]
    np.testing.assert_allclose(ball.norm(first - x), 2.5 * 0.3 / 10, rtol=1e-5)
    for attack in (PGD(), IFGSM(), MIFGSM(), DI2FGSM()):
        np.testing.assert_allclose(attack.size(ball), 2.5 * 0.3 / attack.steps, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "smallest"), [((8, 8, 1), 0.5), ((10, 6, 2), 0.7), ((1, 1, 1), 0.9)]
)
def test_a_shrunk_constant_image_is_constant_in_a_window_and_black_around_it(shape, smallest):
    h, w, _ = shape
    keys = jax.random.split(KEY, 300)
    shrunk = jax.jit(jax.vmap(lambda key: resize_and_pad(jnp.full(shape, 0.7), smallest, key=key)))
    seen = set()
    for image in np.asarray(shrunk(keys), np.float64):
        inside = image > 0.35
        rows, columns = (np.flatnonzero(inside.any(axis=(axis, 2))) for axis in (1, 0))
        top, left = rows[0], columns[0]
        window = np.zeros(shape, bool)
        window[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_allclose(image, np.where(window, 0.7, 0.0), atol=1e-6)
        side = len(rows)
        assert abs(len(columns) - side * w / h) < 1
        seen.add((side, top, left))
    sides = {side for side, _, _ in seen}
    assert sides == set(range(max(int(smallest * h), 1), max(h, 2)))
    if h == w:
        places = {
            (side, i, j) for side in sides for i in range(h - side + 1) for j in range(w - side + 1)
        }
        assert seen <= places
        assert len(seen) > 0.8 * len(places)


def test_an_image_is_shrunk_by_linear_interpolation():
    x = jax.random.uniform(KEY, (8, 8, 2))
    all_shrunk = jax.jit(jax.vmap(lambda key: resize_and_pad(x, 0.5, key=key)))
    for shrunk in np.asarray(all_shrunk(jax.random.split(KEY, 5))):
        rows, columns = (np.flatnonzero((shrunk > 0).any(axis=(axis, 2))) for axis in (1, 0))
        side = len(rows)
        # Pixel centres: the middle of pixel i of the small image is at (i + 1/2) 8 / side.
        at = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
        below, part = np.floor(at).astype(int), at - np.floor(at)
        above = np.minimum(below + 1, 7)
        image = np.float64(x)
        image = image[below] * (1 - part)[:, None, None] + image[above] * part[:, None, None]
        image = image[:, below] * (1 - part)[:, None] + image[:, above] * part[:, None]
        window = shrunk[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(window, image, atol=1e-5)


# Losses


def dlr64(z, y, target=None):
    order = np.sort(z)[::-1]
    if target is None:
        other = order[0] if z[y] != order[0] else order[1]
        return (other - z[y]) / (order[0] - order[2])
    return (z[target] - z[y]) / (order[0] - (order[2] + order[3]) / 2)


def cross_entropy64(z, y, target=None):
    log_p = z - z.max() - np.log(np.sum(np.exp(z - z.max())))
    return -log_p[y] if target is None else log_p[target]


def margin64(z, y, target=None):
    other = np.max(np.delete(z, y)) if target is None else z[target]
    return other - z[y]


LOSSES = {"dlr": (dlr, dlr64), "cross_entropy": (cross_entropy, cross_entropy64)}
LOSSES["margin_loss"] = (margin_loss, margin64)


@eqx.filter_jit
def value_and_gradient(loss, z, y, target):
    return jax.value_and_grad(lambda z: loss(z, y, target))(z)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target", [None, 0, 3])
def test_losses_and_their_gradients_are_those_of_the_formula(name, target):
    loss, formula = LOSSES[name]
    t = None if target is None else jnp.asarray(target)
    rng, h = np.random.default_rng(0), 1e-6
    for n in (4, 10):
        for _ in range(10):
            z = np.float64(np.float32(3 * rng.normal(size=n)))
            value, gradient = value_and_gradient(
                loss, jnp.asarray(z, jnp.float32), jnp.asarray(2), t
            )
            np.testing.assert_allclose(value, formula(z, 2, target), rtol=1e-5, atol=1e-6)
            ends = [[formula(z + s * h * e, 2, target) for s in (1, -1)] for e in np.eye(n)]
            expected = [(up - down) / (2 * h) for up, down in ends]
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", [None, 1])
def test_the_dlr_loss_is_blind_to_shift_and_scale(target):
    target = None if target is None else jnp.asarray(target)
    z = np.random.default_rng(1).normal(size=6).astype(np.float32)

    def value(z):
        z = jnp.asarray(z, jnp.float32)
        return value_and_gradient(dlr, z, jnp.asarray(3), target)[0]

    for a, b in ((1e-3, 0.0), (1e3, 0.0), (1.0, 5.0), (20.0, -7.0)):
        np.testing.assert_allclose(value(a * z + b), value(z), rtol=1e-4)
    assert np.isfinite(value(np.ones(6)))


@pytest.mark.parametrize(
    ("classes", "target", "message"),
    [
        (2, None, "the DLR loss needs 3 classes; got 2"),
        (3, 1, "the targeted DLR loss needs 4 classes; got 3"),
    ],
)
def test_the_dlr_loss_refuses_too_few_classes(classes, target, message):
    target = None if target is None else jnp.asarray(target)
    with pytest.raises(ValueError, match=message):
        dlr(jnp.arange(1.0 * classes), jnp.asarray(0), target)


@pytest.mark.parametrize("gap", [1.0, 20.0, 50.0, 80.0])
def test_the_cross_entropys_gradient_keeps_its_digits_where_the_network_is_sure(gap):
    z = np.asarray([gap, 0.0, -1.0, 0.5])
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    p[0] = -p[1:].sum()
    z = jnp.asarray(z, jnp.float32)
    _, gradient = value_and_gradient(cross_entropy, z, jnp.asarray(0), None)
    np.testing.assert_allclose(gradient, p, rtol=1e-4)


# Carlini and Wagner


def adam64(gradient_of, u, learning_rate, steps):
    """The iterates of Adam with its usual constants."""
    iterates, m, v = [u], np.zeros_like(u), np.zeros_like(u)
    for k in range(1, steps + 1):
        g = gradient_of(u)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = u - learning_rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        iterates.append(u)
    return np.asarray(iterates)


@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_carlini_and_wagner_in_linf_minimise_equation_18(kappa):
    shape, classes, c, rate, steps = (2, 3, 1), 4, 5.0, 0.02, 40
    # Pixels apart from each other, so that it is clear which has moved furthest.
    x = np.asarray([0.02, 0.2, 0.45, 0.6, 0.75, 0.9]).reshape(shape)
    logits_fn = net(6, classes, 2, gain=1.0)
    y = int(np.argmax(logits_fn.logits64(x)))

    def gradient(u):
        moved = (np.tanh(u) + 1) / 2
        away = np.abs(moved - x)
        furthest = (away == away.max()) * np.sign(moved - x)
        z = logits_fn.logits64(moved)
        other = max((j for j in range(classes) if j != y), key=z.__getitem__)
        active = z[y] - z[other] > -kappa
        down = logits_fn.gradient64(moved, np.eye(classes)[y] - np.eye(classes)[other])
        return (furthest + c * active * down) * (1 - np.tanh(u) ** 2) / 2

    u = np.arctanh((2 * x - 1) * 0.999999)
    expected = (np.tanh(adam64(gradient, u, rate, steps)) + 1) / 2
    # An array, so that both are one program.
    attack = eqx.tree_at(lambda a: a.kappa, CarliniWagnerLinf(steps, rate, c), jnp.asarray(kappa))
    image, ball = jnp.asarray(x, jnp.float32), LinfBall(0.3)
    states = path(attack, logits_fn, image, jnp.asarray(y), ball)
    np.testing.assert_allclose((np.tanh(states.u[: steps + 1]) + 1) / 2, expected, atol=1e-5)
    margins = [-margin64(logits_fn.logits64(moved), y) for moved in expected]
    assert margins[0] > 0 > min(margins)
    result = run(attack, logits_fn, image, jnp.asarray(y), ball)
    np.testing.assert_allclose(result.margin, min(margins), atol=1e-4)


def test_the_published_constants_move_no_pixel_further_than_said():
    logits_fn, x = linear_logits(SHAPE, 10), constant_image(0.5, SHAPE)
    x_adv = run(
        CarliniWagnerLinf(), logits_fn, x, jnp.argmax(logits_fn(x)), LinfBall(8 / 255)
    ).x_adv
    assert 0.0145 < np.abs(x_adv - x).max() <= 0.015


def test_a_ball_smaller_than_the_moves_of_carlini_and_wagner_is_attacked_all_the_same():
    logits_fn, x, y, distance = linear_problem(LinfBall, 2, distance=0.002)
    for part, broken in ((0.9, False), (1.2, True)):
        result = run(CarliniWagnerLinf(), logits_fn, x, y, LinfBall(part * distance))
        assert bool(result.success) == broken


def test_carlini_and_wagner_in_l2_bisect_the_weight():
    # Linear and two classes: |d|^2 + c max(m - <w, d>, 0) is smallest across the boundary only
    # for c > 2 m / |w|^2. It fails, succeeds twice, fails again, and goes up from there.
    rounds, steps, first = 5, 150, 0.026
    logits_fn, x, y, distance = linear_problem(L2Ball, 2, distance=0.2)
    dual = np.linalg.norm(np.float64(logits_fn.weight[0] - logits_fn.weight[1]))
    needed = 2 * distance / dual
    attack = CarliniWagner(steps, rounds, 0.01, first)
    tried = path(attack, logits_fn, x, y, L2Ball(0.3)).c[: rounds * steps : steps]
    expected, c, low, high = [], first, 0.0, np.inf
    for _ in range(rounds):
        expected.append(c)
        low, high = (max(low, c), high) if c < needed else (low, min(high, c))
        c = (low + high) / 2 if high < np.inf else 10 * c
    assert [c > needed for c in expected] == [False, True, True, False, True]
    assert min(abs(c / needed - 1) for c in expected) > 0.05
    np.testing.assert_allclose(tried, expected, rtol=1e-5)
