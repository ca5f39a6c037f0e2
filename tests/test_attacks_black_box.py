"""Attacks without gradients: their schedules, budgets, and what they find."""

from collections import Counter
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LinearLogits, attack_path, constant_image, linear_logits, run_attack

from odejax import L2Ball, LinfBall
from odejax.attacks import (
    PGD,
    SPSA,
    AttackProblem,
    BestAdversarial,
    Boundary,
    Square,
    Targeted,
)
from odejax.attacks.boundary import _proposals
from odejax.attacks.square import _bump
from odejax.evaluation import robust_accuracy

KEY = jax.random.key(41)
SHAPE = (4, 4, 1)
each_ball = pytest.mark.parametrize("ball_type", [LinfBall, L2Ball])


def usual_balls(**usual):
    """Every attack named in both balls; the fast pass has the one given alone."""
    return [
        pytest.param(name, ball, marks=[pytest.mark.slow] * (ball is not usual[name]))
        for name in usual
        for ball in (LinfBall, L2Ball)
    ]


run = partial(run_attack, key=KEY)
path = partial(attack_path, key=KEY)


def unmoved(x, *, key=None):
    """A network that no image can fool, and whose margin says nothing."""
    return jnp.eye(4)[0] + 0 * jnp.sum(x)


def linear_problem(distance, seed=0):
    """Two classes, and their hyperplane at this l2 distance from grey, far inside the box."""
    logits_fn, x = linear_logits(SHAPE, 2, seed=seed), constant_image(0.5, SHAPE)
    w = logits_fn.weight[0] - logits_fn.weight[1]
    bias = distance * jnp.linalg.norm(w) - w @ jnp.ravel(x)
    return LinearLogits(logits_fn.weight, jnp.stack([bias, 0.0])), x, jnp.asarray(0)


# Budgets, and what is never done


# Budgets of dozens are in the contract of all attacks. Programs that call back are compiled in
# every run of the suite.
@pytest.mark.parametrize(
    ("attack", "ball_type", "budgets"),
    [
        (Square, L2Ball, (1, 7)),
        (SPSA, LinfBall, (1, 7)),
        *(
            pytest.param(attack, ball_type, (1, 2, 7, 50), marks=pytest.mark.slow)
            for attack in (Square, Boundary, SPSA)
            for ball_type in (LinfBall, L2Ball)
        ),
    ],
)
def test_a_budget_is_spent_to_the_last_query_and_no_further(attack, ball_type, budgets):
    calls = Counter()

    @jax.jit
    def queries(x):
        def spent(n):
            def logits_fn(x, *, key):
                jax.debug.callback(lambda: calls.update([n]))
                return unmoved(x)

            ball = ball_type(0.1)
            return attack(n_queries=n)(logits_fn, x, jnp.asarray(0), ball, key=KEY).queries

        return [spent(n) for n in budgets]

    counted = [int(n) for n in queries(constant_image(0.5, SHAPE))]
    jax.effects_barrier()
    # One more is the judge's.
    assert counted == [calls[n] for n in budgets] == [n + 1 for n in budgets]


@jax.custom_jvp
def not_differentiable(x):
    return x


@not_differentiable.defjvp
def _(primals, tangents):
    raise AssertionError("a gradient was taken")


class Coarse(eqx.Module):
    """A network whose answer is a label, or a score in coarse steps: flat almost everywhere."""

    linear: LinearLogits
    label: bool
    smooth: bool = False  # whether a derivative may be asked for; it is zero

    def __call__(self, x, *, key=None):
        logits = self.linear(x if self.smooth else not_differentiable(x))
        if self.label:
            return jax.nn.one_hot(jnp.argmax(logits), 2)
        return jnp.round(5 * logits) / 5


BLIND = {
    "Square": Square(60),
    "Boundary": Boundary(400),
    "SPSA": SPSA(12 * 21, 10, 0.05, 0.05),
}
COARSE_EPS = {LinfBall: 0.2, L2Ball: 0.35}


@pytest.mark.parametrize(
    ("name", "ball_type"), usual_balls(Square=LinfBall, Boundary=L2Ball, SPSA=LinfBall)
)
def test_networks_that_have_no_gradient_are_fooled(name, ball_type):
    linear, x, y = linear_problem(0.1)
    logits_fn, ball = Coarse(linear, label=name == "Boundary"), ball_type(COARSE_EPS[ball_type])
    assert run(BLIND[name], logits_fn, x, y, ball).success
    with pytest.raises(AssertionError, match="a gradient was taken"):
        run(PGD(1), logits_fn, x, y, ball)


@each_ball
def test_gradients_alone_do_not_fool_these(ball_type):
    linear, x, y = linear_problem(0.1)
    stairs, ball = Coarse(linear, label=False, smooth=True), ball_type(COARSE_EPS[ball_type])
    assert not run(PGD(20, random_start=False), stairs, x, y, ball).success


# Square


SIDES = {  # round(sqrt(p h w)) for p = 0.8, 0.4, ..., 0.8 / 512; in l2 odd and at least 3
    (LinfBall, (28, 28, 1)): (25, 18, 13, 9, 6, 4, 3, 2, 2, 1),
    (LinfBall, (32, 32, 3)): (29, 20, 14, 10, 7, 5, 4, 3, 2, 1),
    (L2Ball, (28, 28, 1)): (25, 19, 13, 9, 7, 5, 3, 3, 3, 3),
    (L2Ball, (32, 32, 3)): (29, 21, 15, 11, 7, 5, 5, 3, 3, 3),
}


@pytest.mark.parametrize(("ball_type", "shape"), SIDES)
def test_the_sides_of_the_squares_are_those_of_the_paper(ball_type, shape):
    assert Square()._sides(shape, ball_type(0.1)) == SIDES[ball_type, shape]


# (first proposal, last, side) on 10 x 10 pixels: sqrt(80), sqrt(40), ..., rounded.
STAGES = {
    False: [(0, 10, 9), (11, 50, 6), (51, 200, 4), (201, 500, 3), (501, 700, 2)],
    True: [(0, 0, 9), (1, 3, 6), (4, 14, 4), (15, 35, 3), (36, 70, 2), (71, 140, 2), (141, 280, 1)],
}


@pytest.mark.parametrize("rescale", [False, True])
def test_squares_shrink_after_the_published_queries(rescale):
    # On a margin that never moves each proposal changes the first image by one square.
    shape, eps = (10, 10, 8), 0.1
    x = constant_image(0.5, shape)
    states = path(Square(702, rescale=rescale), unmoved, x, jnp.asarray(0), LinfBall(eps))
    proposals, first = np.asarray(states.x_adv[1:]), np.asarray(states.best[1])
    assert (np.asarray(states.best[1:]) == first).all()
    np.testing.assert_allclose(np.abs(proposals - 0.5), eps, atol=1e-6)
    assert (first == first[:1]).all()  # stripes
    assert (first != first[:, :1]).any()
    corners = set()
    for low, high, side in STAGES[rescale]:
        for i in range(low, high + 1):
            changed = (proposals[i] != first).any(axis=2)
            rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
            window = np.ix_(
                np.arange(rows[0], rows[-1] + 1), np.arange(columns[0], columns[-1] + 1)
            )
            assert len(rows) == rows[-1] - rows[0] + 1 == side
            assert len(columns) <= columns[-1] - columns[0] + 1 <= side
            # One sign for all of the square, in each channel.
            assert (np.ptp(proposals[i][window], axis=(0, 1)) == 0).all()
            corners.add((side, rows[0]))
    assert {row for side, row in corners if side == 2} == set(range(9))
    assert {row for side, row in corners if side == 9} <= {0, 1}


@pytest.mark.parametrize("value", [0.02, 0.5, 0.97])
def test_linf_squares_change_pixels_by_eps_or_up_to_the_box(value):
    logits_fn, x = linear_logits((4, 4, 4), 4), constant_image(value, (4, 4, 4))
    states = path(Square(60), logits_fn, x, jnp.argmax(logits_fn(x)), LinfBall(0.05))
    ends = np.float32([max(value - 0.05, 0), min(value + 0.05, 1)])
    apart = np.abs(np.asarray(states.x_adv)[..., None] - ends).min(axis=-1)
    assert apart.max() < 1e-6
    assert len({image.tobytes() for image in np.asarray(states.x_adv)}) > 30


@pytest.mark.parametrize(
    "shape", [pytest.param((8, 8, 1), marks=pytest.mark.slow), (9, 7, 3), (4, 4, 1)]
)
def test_l2_squares_use_the_whole_radius(shape):
    logits_fn, x = linear_logits(shape, 4), constant_image(0.5, shape)
    ball = L2Ball(0.4)
    states = path(Square(80), logits_fn, x, jnp.argmax(logits_fn(x)), ball)
    norms = np.linalg.norm(np.asarray(states.x_adv - x, np.float64).reshape(81, -1), axis=1)
    np.testing.assert_allclose(norms, 0.4, rtol=1e-5)
    assert len({image.tobytes() for image in np.asarray(states.x_adv)}) > 70


@each_ball
def test_the_best_square_never_gets_worse(ball_type):
    logits_fn, x = linear_logits((8, 8, 2), 5), jax.random.uniform(KEY, (8, 8, 2))
    y, eps = jnp.argmax(logits_fn(x)), 0.1 if ball_type is LinfBall else 0.5
    states = path(Square(150), logits_fn, x, y, ball_type(eps))
    values, margins = np.asarray(states.best_value[1:]), np.asarray(states.adversarial.margin[1:])
    assert (np.diff(values) >= 0).all()
    assert len(set(values)) > 5
    np.testing.assert_allclose(margins, -values, atol=1e-5)
    flat = np.float64(states.best[1:]).reshape(150, -1)
    logits = flat @ np.float64(logits_fn.weight).T + np.float64(logits_fn.bias)
    own = logits[:, y].copy()
    logits[:, y] = -np.inf
    np.testing.assert_allclose(values, logits.max(axis=1) - own, atol=1e-4)


def pyramid(height, width):
    """Rectangles around the middle, growing by one pixel to each side, as in the authors' code."""
    delta = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(height // 2 + 1, width // 2 + 1)):
        delta[
            max(row - k, 0) : min(row + k + 1, height),
            max(column - k, 0) : min(column + k + 1, width),
        ] += 1 / (k + 1) ** 2
    return delta / np.linalg.norm(delta)


@pytest.mark.parametrize("side", [2, 3, 4, 5, 9, 14])
def test_the_bumps_of_the_l2_attack_are_the_published_ones(side):
    top = side // 2
    expected = np.concatenate([pyramid(top, side), -pyramid(side - top, side)])
    np.testing.assert_allclose(_bump(side), expected / np.linalg.norm(expected), atol=1e-12)


# Boundary


@pytest.fixture(scope="module", params=[0, 1, 2])
def walk(request):
    logits_fn, x, y = linear_problem(0.2, request.param)
    # A ball that no point is in: the walk goes on.
    states = path(Boundary(1500), logits_fn, x, y, L2Ball(0.01))
    return logits_fn, x, y, jax.tree.map(np.asarray, states)


def test_every_point_that_is_kept_is_misclassified(walk):
    logits_fn, x, y, states = walk
    has_start = states.walked > -11
    assert has_start[-1400:].all()
    weight, bias = np.asarray(logits_fn.weight), np.asarray(logits_fn.bias)
    labels = (states.point[has_start].reshape(has_start.sum(), -1) @ weight.T + bias).argmax(axis=1)
    assert (labels != int(y)).all()
    assert (states.point[~has_start] == np.asarray(x)).all()


def test_the_walk_never_goes_away_from_the_image(walk):
    _, x, _, states = walk
    points = states.point[states.walked >= 0].astype(np.float64)
    distances = np.linalg.norm((points - np.asarray(x)).reshape(len(points), -1), axis=1)
    assert (np.diff(distances) <= 1e-6).all()
    assert distances[-1] < 0.6 * distances[0]


def test_the_walk_comes_near_the_smallest_distance(walk):
    _, x, _, states = walk
    assert 0.2 <= np.linalg.norm(states.point[-1] - np.asarray(x)) < 0.2 * 1.1


def test_bisections_bring_the_noise_to_the_boundary(walk):
    logits_fn, x, y, states = walk
    noise = states.point[np.flatnonzero(states.walked == -10)[0]].astype(np.float64)
    point = states.point[np.flatnonzero(states.walked == 0)[0]].astype(np.float64)
    x = np.asarray(x, np.float64)
    part = np.linalg.norm(point - x) / np.linalg.norm(noise - x)
    np.testing.assert_allclose(point, x + part * (noise - x), atol=1e-6)
    before = jnp.asarray(x + (part - 2.0**-10) * (noise - x), jnp.float32)
    assert jnp.argmax(logits_fn(before)) == y


def test_the_defaults_are_those_of_the_natural_paper():
    attack = Boundary()
    assert (attack.n_queries, attack.spherical_step, attack.source_step) == (1000, 0.1, 0.1)


@pytest.mark.parametrize(
    ("counts", "window", "high", "low", "factor"),
    [
        ((16, 30), 30, 0.5, 0.2, 1.5),
        ((15, 30), 30, 0.5, 0.2, 1.0),
        ((6, 30), 30, 0.5, 0.2, 1.0),
        ((5, 30), 30, 0.5, 0.2, 1 / 1.5),
        ((0, 29), 30, 0.5, 0.2, 1.0),
        ((29, 29), 30, 0.5, 0.2, 1.0),
        ((3, 10), 10, 0.25, 0.1, 1.5),
        ((0, 10), 10, 0.25, 0.1, 1 / 1.5),
    ],
)
def test_steps_adapt_to_the_rate_of_success(counts, window, high, low, factor):
    change, counts_after = Boundary()._adapt(jnp.asarray(counts), window, high, low)
    np.testing.assert_allclose(change, factor, rtol=1e-6)
    assert tuple(counts_after) == ((0, 0) if counts[1] >= window else counts)


class Fooled(eqx.Module):
    """Class 1 everywhere; or outside the ball of radius 1 around grey, where no step stays."""

    everywhere: jax.Array

    def __call__(self, x, *, key=None):
        far = jnp.stack([1.0, jnp.linalg.norm(x - 0.5)])
        return jnp.where(self.everywhere, jnp.stack([0.0, 1.0]), far)


@pytest.mark.parametrize("adaptation", [1.0, 1.5])
def test_steps_grow_where_all_succeed_and_shrink_where_none_does(adaptation):
    x, y, ball = constant_image(0.5, SHAPE), jnp.asarray(0), L2Ball(1e-6)
    # An array, so that both are one program.
    attack = eqx.tree_at(lambda a: a.adaptation, Boundary(1500), jnp.asarray(adaptation))
    free, stuck = (
        jax.tree.map(np.asarray, path(attack, Fooled(jnp.asarray(everywhere)), x, y, ball))
        for everywhere in (True, False)
    )
    if adaptation == 1:
        for states in (free, stuck):
            assert (states.spherical_step == np.float32(0.1)).all()
            assert (states.source_step == np.float32(0.1)).all()
        return
    assert (np.diff(free.spherical_step) >= 0).all()
    assert (np.diff(free.source_step) >= 0).all()
    # A sideways query in twelve and ten candidates, 30 of them to a window.
    np.testing.assert_allclose(free.spherical_step[400], 0.1 * 1.5, rtol=1e-5)
    np.testing.assert_allclose(free.source_step[400], 0.1 * 1.5 ** (1 + 10), rtol=1e-4)
    assert stuck.source_step[-1] < 0.01


@jax.jit
def proposals(x, point, spherical, source):
    """Ten of them."""
    keys = jax.random.split(KEY, 10)
    return jax.vmap(lambda key: _proposals(x, point, spherical, source, key))(keys)


@pytest.mark.parametrize("value", [0.5, 0.95])
def test_proposals_keep_the_radius_and_then_shorten_it(value):
    shape, spherical, source = (6, 6, 2), 0.2, 0.1
    x = constant_image(value, shape)
    noise = np.random.default_rng(0).normal(size=shape)
    point = np.clip(value + 0.1 * noise, 0, 1).astype(np.float32)
    outward = np.float64(point) - np.float64(x)
    radius = np.linalg.norm(outward)
    proposed = proposals(x, point, jnp.asarray(spherical), jnp.asarray(source))
    for sideways, candidate in zip(*map(np.float64, proposed), strict=True):
        assert candidate.min() >= 0
        assert candidate.max() <= 1
        np.testing.assert_allclose(np.linalg.norm(candidate - value), 0.9 * radius, rtol=1e-4)
        if value == 0.5:
            np.testing.assert_allclose(np.linalg.norm(sideways - value), radius, rtol=1e-5)
            # The angle's tangent is the step.
            cosine = np.sum((sideways - value) * outward) / radius**2
            np.testing.assert_allclose(cosine, 1 / np.hypot(1, spherical), rtol=1e-4)


WHOLE_BOX = L2Ball(np.prod(SHAPE) ** 0.5)


class NoiseIsOneClass(eqx.Module):
    """Class 1 for what is bright on one half and dark on the other; all noise is class 0."""

    kind: jax.Array

    def __call__(self, x, *, key=None):
        rows = jnp.mean(x, axis=(1, 2))
        apart = jnp.abs(rows[0] - rows[-1])
        flat = jnp.max(jnp.abs(x - jnp.mean(x)))
        one = jnp.where(self.kind == 0, apart > 0.45, (flat < 1e-3) & (jnp.mean(x) > 0.8))
        return jnp.stack([0.5, one.astype(x.dtype)])


@pytest.mark.parametrize("kind", [0, 1], ids=["blocks", "one colour"])
def test_an_image_whose_class_all_noise_has_finds_another_start(kind):
    x, net = constant_image(0.3, SHAPE), NoiseIsOneClass(jnp.asarray(kind))
    report = robust_accuracy(
        net, x[None], np.zeros(1, np.int32), WHOLE_BOX, Boundary(1000), key=KEY
    )
    assert report.accuracy == 0
    assert not report.no_start.any()


def never(x, *, key=None):
    return jnp.stack([1.0 + 0 * jnp.sum(x), 0.0])


def only_this(x, *, key=None):
    """Class 1 for a checkerboard alone."""
    board = jnp.indices(x.shape).sum(axis=0) % 2
    return jnp.stack([0.5, jnp.where(jnp.max(jnp.abs(x - board)) < 0.3, 1.0, 0.0)])


def test_an_image_without_a_start_is_said_to_have_none():
    images, labels = np.full((3, *SHAPE), 0.4, np.float32), np.zeros(3, np.int32)
    with pytest.warns(UserWarning, match="Boundary found no start for 3 of 3 images"):
        report = robust_accuracy(never, images, labels, WHOLE_BOX, Boundary(50), key=KEY)
    assert report.no_start.all()
    assert report.still_correct.all()  # not broken, but said to be unattacked


def test_starts_may_be_given():
    images, labels = np.full((2, *SHAPE), 0.4, np.float32), np.zeros(2, np.int32)
    board = (np.indices(SHAPE).sum(axis=0) % 2).astype(np.float32)
    attack = Boundary(60, starts=jnp.stack([jnp.asarray(images[0]), jnp.asarray(board)]))
    report = robust_accuracy(only_this, images, labels, WHOLE_BOX, attack, key=KEY)
    assert report.accuracy == 0
    with pytest.raises(ValueError, match=r"starts must be images \(m, h, w, c\); got shape"):
        Boundary(starts=jnp.asarray(board))


def test_the_boundary_attack_has_no_targeted_version():
    with pytest.raises(ValueError, match="no targeted version"):
        Targeted(Boundary(5))(
            linear_logits(SHAPE, 4), constant_image(0.5, SHAPE), 0, L2Ball(1.0), key=KEY
        )


# SPSA


def test_on_one_pixel_the_estimated_gradient_is_exact():
    logits_fn = LinearLogits(jnp.asarray([[2.0], [-1.5]]), jnp.zeros(2))
    x, attack = constant_image(0.5, (1, 1, 1)), SPSA(21, 10, 0.1, 0.03)
    states = path(attack, logits_fn, x, jnp.asarray(0), LinfBall(0.2))
    np.testing.assert_allclose(
        states.gradient[2:21:2, 0, 0, 0], -3.5 * np.arange(10), rtol=1e-5, atol=1e-6
    )
    # Adam's first step has the length of the learning rate.
    np.testing.assert_allclose(states.x_adv[21] - states.x_adv[20], -0.03, rtol=1e-4)
    assert (states.x_adv[:21] == states.x_adv[0]).all()


def test_the_estimated_gradient_of_a_linear_loss_is_right_in_the_mean():
    # An estimate is <w, v> v: w, and noise of variance |w|^2 - w_i^2 in place i.
    logits_fn, x, n = linear_logits((3, 2, 1), 2), constant_image(0.5, (3, 2, 1)), 4000
    states = path(SPSA(2 * n + 2, n + 1, 0.05), logits_fn, x, jnp.asarray(0), LinfBall(0.2))
    w = np.float64(logits_fn.weight[1] - logits_fn.weight[0])
    estimate = np.ravel(states.gradient[2 * n + 1]) / n
    deviation = np.sqrt((np.sum(w**2) - w**2) / n)
    assert (np.abs(estimate - w) < 4 * deviation).all()
    assert np.linalg.norm(estimate - w) > 1e-3 * np.linalg.norm(w)


def test_every_query_lies_in_the_box():
    seen = []

    def logits_fn(x, *, key=None):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.stack([1.0 + 0.01 * jnp.sum(x), 0.0])  # never another class

    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, SHAPE), jnp.float32)
    run(SPSA(45, 7, 0.05, 0.1), logits_fn, x, jnp.asarray(0), LinfBall(0.3))
    jax.effects_barrier()
    assert len(seen) >= 45
    assert min(map(np.min, seen)) >= 0
    assert max(map(np.max, seen)) <= 1


@pytest.mark.parametrize("ball_type", [LinfBall, pytest.param(L2Ball, marks=pytest.mark.slow)])
def test_a_climb_by_estimates_ends_where_gradients_do(ball_type):
    logits_fn, x, y = linear_problem(0.5)
    w = logits_fn.weight[0] - logits_fn.weight[1]
    ball = ball_type(0.05 if ball_type is LinfBall else 0.15)
    result = run(SPSA(100 * 41, 20, 0.01, 0.01), logits_fn, x, y, ball)
    most = float(ball.eps * ball.dual_norm(w.reshape(SHAPE)))
    lost = float(0.5 * jnp.linalg.norm(w)) - float(result.margin)
    assert not result.success
    assert 0.95 * most < lost <= most * (1 + 1e-4)


@eqx.filter_jit
def margins_at_the_projection(logits_fn, x, far, ball):
    """Of a class that the projection of `far` is not in, as it counts for the nearest image."""

    def one(x, far):
        x_adv = ball.project(far, x)
        logits = logits_fn(x_adv)
        problem = AttackProblem(logits_fn, x, 1 - jnp.argmax(logits), ball)
        return BestAdversarial.none(x).nearest(problem, x_adv, logits).margin

    return jax.vmap(one)(x, far)


@each_ball
@pytest.mark.parametrize("eps", [4 / 255, 8 / 255, 0.05, 0.1, 0.2, 0.3])
def test_an_image_on_the_surface_of_the_ball_counts_as_inside(ball_type, eps):
    # Projection rounds: hardly any of its images is within eps to the last bit.
    logits_fn = linear_logits((28, 28, 1))
    x, far = np.random.default_rng(0).uniform(size=(2, 10, 28, 28, 1)).astype(np.float32)
    assert (margins_at_the_projection(logits_fn, x, far, ball_type(eps)) < 0).all()
