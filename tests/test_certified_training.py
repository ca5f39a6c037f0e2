"""Certified training: bounds on the loss against hand-written ones, attacks, and the ball."""

import warnings
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits, predictor_of, trained_mlp, warm

from odejax import L2Ball, LinfBall, Predictor, load, save
from odejax.attacks import PGD, AutoAttack
from odejax.certificates import IntervalBounds, LinearRelaxation
from odejax.evaluation import bracket
from odejax.models import CNN, MLP, BatchNorm, Conv, EnResNet, ResNet, interval_init
from odejax.relaxation import (
    Interval,
    Margins,
    around,
    deterministic,
    interval_margins,
    linear_margins,
    plain_bounds,
    trace,
)
from odejax.training import (
    CertifiedTraining,
    CrossEntropy,
    RisingEps,
    fit,
)
from odejax.training.certified import _penalties

KEY = jax.random.key(3)
DATA = digits("train", 12)
IMAGES, LABELS = jnp.asarray(DATA.pixels), jnp.asarray(DATA.labels)
EPS = 0.03


@eqx.filter_jit
def loss_of(objective, model, state, images=IMAGES, labels=LABELS):
    """The loss, its aux, and its gradient."""

    def loss(model):
        copy = jax.tree.map(lambda leaf: leaf, state)
        return objective(model, copy, images, labels, key=KEY)

    return eqx.filter_value_and_grad(loss, has_aux=True)(model)


def make(cls, **settings):
    return eqx.nn.make_with_state(partial(cls, (8, 8, 1), 10, **settings))(key=KEY)


def cross_entropy_of(margins):
    """Of margins z_label - z_j, (n, k), of which the label's is 0."""
    return np.log(np.exp(-np.asarray(margins, np.float64)).sum(axis=1)).mean()


def margins_by_hand(model, images, eps):
    """Interval arithmetic through an MLP, in float64; the last layer is one with the margin."""
    x = np.asarray(images, np.float64).reshape(len(images), -1)
    low, high = np.maximum(x - eps, 0), np.minimum(x + eps, 1)
    *hidden, last = [(np.float64(v.weight), np.float64(v.bias)) for v in model.layers]
    for w, b in hidden:
        up, down = np.maximum(w, 0).T, np.minimum(w, 0).T
        low, high = low @ up + high @ down + b, high @ up + low @ down + b
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    (w, b), y = last, np.asarray(LABELS)
    rows = w[y][:, None] - w
    up, down = np.maximum(rows, 0), np.minimum(rows, 0)
    return np.einsum("nki,ni->nk", up, low) + np.einsum("nki,ni->nk", down, high) + b[y, None] - b


def test_the_bound_of_an_mlp_is_that_of_interval_arithmetic_by_hand():
    model, state = make(MLP, width=16)
    (loss, (_, correct)), _ = loss_of(CertifiedTraining(LinfBall(EPS)), model, state)
    expected = cross_entropy_of(margins_by_hand(model, IMAGES, EPS))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (
        int(correct) == (jax.vmap(lambda x: model(x, state)[0])(IMAGES).argmax(1) == LABELS).sum()
    )


def test_the_weight_mixes_the_bound_with_the_cross_entropy_of_clean_images():
    model, state = make(MLP, width=16)
    (bound, _), _ = loss_of(CertifiedTraining(LinfBall(EPS)), model, state)
    (plain, _), _ = loss_of(CrossEntropy(), model, state)
    (mixed, _), _ = loss_of(CertifiedTraining(LinfBall(EPS), weight=0.25), model, state)
    assert float(mixed) == pytest.approx(0.75 * float(plain) + 0.25 * float(bound), rel=1e-5)


def attacked(model, state, eps):
    """The images under the attack of the objectives below, with the same noise."""
    attack_key, _ = jax.random.split(KEY)
    keys = jax.random.split(attack_key, len(IMAGES))
    attack, predictor = PGD(3, last=True), Predictor(model, state)
    run = jax.jit(jax.vmap(lambda x, y, k: attack(predictor, x, y, LinfBall(eps), key=k).x_adv))
    return run(IMAGES, LABELS, keys)


def test_the_mixture_with_attacks_and_the_small_box_are_of_the_attacked_images():
    model, state = make(MLP, width=16)
    objective = partial(CertifiedTraining, LinfBall(EPS), attack=PGD(3, last=True))
    x_adv = attacked(model, state, EPS)
    logits = np.float64(jax.vmap(lambda x: model(x, state)[0])(x_adv))
    plain = cross_entropy_of(logits[np.arange(len(LABELS)), LABELS][:, None] - logits)
    bound = cross_entropy_of(margins_by_hand(model, IMAGES, EPS))
    mixed = float(loss_of(objective(weight=0.5), model, state)[0][0])
    assert mixed == pytest.approx((plain + bound) / 2, rel=1e-4)

    inner = margins_by_hand(model, attacked(model, state, 0.8 * EPS), 0.2 * EPS)
    value = float(loss_of(objective(box=0.2), model, state)[0][0])
    assert value == pytest.approx(cross_entropy_of(inner), rel=1e-4)
    assert plain < value < bound


@pytest.mark.parametrize(
    "name",
    [
        "ResNet BatchNorm",
        pytest.param("SSPNet SSPRK22", marks=pytest.mark.slow),
        "NmODENet flow map",
        pytest.param("DenseODENet", marks=pytest.mark.slow),
    ],
)
def test_no_attack_is_above_the_bound_and_the_certificate_is_the_same(name):
    predictor, x, ball = predictor_of(name), IMAGES[0], LinfBall(0.005)
    if name == "DenseODENet":  # whose loop has nothing to go through but the state
        grid = predictor.model.ode.on_grid(3)
        predictor = eqx.tree_at(lambda p: p.model.ode, predictor, grid)

    @jax.jit
    def margins(x, label, points):
        graph = trace(deterministic(predictor, x), x)
        in_reals = Margins(graph, x, ball, plain_bounds(graph, [around(x, ball)]))
        low = interval_margins(in_reals, label)
        linear = jnp.maximum(low, linear_margins(in_reals, label))
        proven = [
            certificate.margins(graph, x, label, ball)
            for certificate in (IntervalBounds(), LinearRelaxation(intermediate="interval"))
        ]
        logits = jax.vmap(predictor)(points)
        return (low, linear), proven, (logits[:, label, None] - logits).min(0)

    signs = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (64, *x.shape))
    points = jnp.clip(x + jnp.asarray(0.005 * signs, jnp.float32), 0, 1)
    of_training, of_proof, sampled = margins(x, LABELS[0], points)
    for low, proven in zip(of_training, of_proof, strict=True):
        assert (low <= sampled + 1e-5).all()
        assert low[LABELS[0]] == 0
        # A certificate gives up what float32 may lose besides.
        size = jnp.abs(low).max()
        coarser = 2e-4 * size if name.startswith("NmODENet") else 0.0  # fewer samples
        assert (proven <= low + coarser).all()
        assert (low - proven <= 2e-3 * size).all()


def test_a_network_without_a_kink_is_bounded_from_its_pixels():
    """An affine network: the least value over the box is known."""
    linear = eqx.nn.Linear(64, 10, key=KEY)

    class Affine(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x, state, *, key=None):
            return self.layer(x.ravel()), state

    (loss, _), _ = loss_of(CertifiedTraining(LinfBall(EPS)), Affine(linear), eqx.nn.State(None))
    w, b, y = np.float64(linear.weight), np.float64(linear.bias), np.asarray(LABELS)
    rows, x = w[y][:, None] - w, np.asarray(IMAGES, np.float64).reshape(len(y), -1)
    least = np.where(rows > 0, np.maximum(x - EPS, 0)[:, None], np.minimum(x + EPS, 1)[:, None])
    margins = (rows * least).sum(-1) + b[y, None] - b
    assert float(loss) == pytest.approx(cross_entropy_of(margins), rel=1e-5)


def test_batch_norm_bounds_with_the_statistics_of_the_batch():
    """In a ball of radius 0 the bound is the cross-entropy in training mode.

    But for the running variance, which is without bias: n / (n - 1) of the batch's.
    """
    model, state = make(ResNet, width=8, depth=2, norm=BatchNorm)
    many = digits("train", 250)
    batch = jnp.asarray(many.pixels), jnp.asarray(many.labels)
    (bound, (moved, _)), slope = loss_of(CertifiedTraining(LinfBall(0.0)), model, state, *batch)
    (plain, (usual, _)), expected = loss_of(CrossEntropy(), model, state, *batch)
    assert float(bound) == pytest.approx(float(plain), rel=1e-4)
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b) + 1e-6


def test_its_gradient_is_that_of_finite_differences():
    model, state = make(CNN, channels=(4,), width=8, norm=BatchNorm)
    objective = CertifiedTraining(LinfBall(EPS), progress=0.5)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    with jax.enable_x64(True):
        params, wide_state = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (params, state))
        images = jnp.asarray(IMAGES, jnp.float64)
        rng = np.random.default_rng(0)
        along = jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape)), params)

        @jax.jit
        def value(t):
            model = eqx.combine(jax.tree.map(lambda v, d: v + t * d, params, along), static)
            copy = jax.tree.map(lambda leaf: leaf, wide_state)
            return objective(model, copy, images, LABELS, key=KEY)[0]

        slope = jax.jit(jax.grad(value))(0.0)
        difference = (value(1e-7) - value(-1e-7)) / 2e-7
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)


@pytest.mark.slow
def test_linear_bounds_come_first_and_intervals_last():
    model = trained_mlp().model
    state = trained_mlp().state

    def at(progress, **settings):
        ball = LinfBall(EPS / progress if progress else EPS)
        objective = CertifiedTraining(ball, penalty=0.0, progress=progress, **settings)
        return float(loss_of(objective, model, state)[0][0])

    # The eps of each is EPS.
    intervals, ends = at(1.0), [at(p, bounds="linear") for p in (0.25, 0.5, 1.0)]
    assert ends[2] == pytest.approx(intervals, rel=1e-6)
    assert ends[0] < ends[1] < ends[2]

    crown = LinearRelaxation(intermediate="interval")

    @jax.jit
    def margins(x, label):
        graph = trace(deterministic(trained_mlp(), x), x)
        return crown.margins(graph, x, label, LinfBall(EPS))

    linear = np.asarray(jax.vmap(margins)(IMAGES, LABELS))
    by_hand = margins_by_hand(model, IMAGES, EPS)
    half = (linear + by_hand) / 2
    half[np.arange(len(LABELS)), LABELS] = 0
    assert ends[1] == pytest.approx(cross_entropy_of(half), rel=1e-3)


def test_rising_eps_is_the_warm_up_of_the_objective():
    model, state = make(MLP, width=16)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    rule = RisingEps(CertifiedTraining(LinfBall(EPS)), steps=4, wait=2)

    @eqx.filter_jit
    def step(carry):
        copy = jax.tree.map(lambda leaf: leaf, state)
        return rule(params, static, copy, carry, IMAGES, LABELS, key=KEY)

    carry = rule.init(IMAGES.shape)
    for share in (0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
        (value, _), _, carry = step(carry)
        at = CertifiedTraining(LinfBall(EPS), progress=jnp.asarray(share))
        assert float(value) == pytest.approx(float(loss_of(at, model, state)[0][0]), rel=1e-6)
    with pytest.raises(ValueError, match="wait must be at least 0; got -1"):
        RisingEps(CertifiedTraining(LinfBall(EPS)), steps=4, wait=-1)


def test_the_penalties_are_those_of_the_paper():
    """Written once more in NumPy, for a kink of a loop of two turns and for one without."""
    rng, tau, expected = np.random.default_rng(1), 0.5, []
    at_kinks = []
    for turns, size in ((2, 30), (1, 50)):
        centre, reach = rng.normal(0.3, 1.0, (4, turns, size)), rng.uniform(0, 1, (4, turns, size))
        at_kinks.append(Interval(jnp.asarray(centre - reach), jnp.asarray(centre + reach)))
        for t in range(turns):
            c, r = centre[:, t], reach[:, t]
            active, inactive = c > r, c < -r
            means = c[active].sum(), -c[inactive].sum()
            squares = [((c[which] - c.mean()) ** 2).sum() for which in (active, inactive)]
            ratios = [0.1 / (2 * r.mean())]
            ratios += [min(pair) / max(pair) for pair in (means, squares)]
            expected.append(sum(max(0.0, tau - ratio) / tau for ratio in ratios))
    value = _penalties(jnp.asarray(0.1), at_kinks)
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-4)


def test_intervals_stay_as_wide_through_weights_drawn_for_them():
    def widths(model):
        low, high = jnp.full(400, 0.4), jnp.full(400, 0.6)
        out = []
        for layer in model.layers:
            middle, reach = layer.weight @ ((low + high) / 2), jnp.abs(layer.weight) @ (high - low)
            out.append(float(reach.mean()))
            low, high = (jax.nn.relu(middle + s * reach / 2) for s in (-1, 1))
        return np.array(out)

    model, _ = eqx.nn.make_with_state(MLP)((20, 20, 1), 400, width=400, depth=5, key=KEY)
    drawn = interval_init(model, key=0)
    usual, new = widths(model), widths(drawn)
    assert 0.3 < new[-1] / new[0] < 1.5
    assert usual[-1] / usual[0] > 100
    # Any layer, stacked ones too; biases and norms stay.
    layers = {
        "conv": (Conv(8, 16, 3, key=KEY), lambda v: v.kernel, 72),
        "equinox": (eqx.nn.Conv2d(8, 16, 3, key=KEY), lambda v: v.weight, 72),
        "stacked": (
            eqx.filter_vmap(lambda k: Conv(8, 16, 3, key=k))(jax.random.split(KEY, 3)),
            lambda v: v.kernel,
            72,
        ),
    }
    for layer, weight, fan_in in layers.values():
        new = interval_init(layer, key=0)
        assert weight(new).shape == weight(layer).shape
        assert float(weight(new).std()) == pytest.approx((2 * np.pi) ** 0.5 / fan_in, rel=0.1)
        np.testing.assert_array_equal(new.bias, layer.bias)


def test_networks_trained_so_are_certified_and_no_attack_breaks_it():
    """Digits at eps 0.05: a plain network of the same size is certified on hardly any image."""
    train, test = digits("train"), digits("test", 200)
    ball, xs, ys = LinfBall(0.05), jnp.asarray(test.pixels), jnp.asarray(test.labels)

    @eqx.filter_jit
    def certified_and_correct(predictor):
        """What is proven, and what is still right under PGD."""

        def of_image(x, y):
            proof = IntervalBounds()(predictor, x, y, ball, key=KEY)
            attacked = PGD(20)(predictor, x, y, ball, key=KEY)
            return proof.certified, predictor(attacked.x_adv).argmax() == y

        return jax.vmap(of_image)(xs, ys)

    shares = {}
    for name, rule in {
        "plain": CrossEntropy(),
        "certified": RisingEps(CertifiedTraining(ball), steps=150, wait=20),
    }.items():
        model, state = eqx.nn.make_with_state(CNN)(
            (8, 8, 1), channels=(8,), width=32, norm=BatchNorm, key=KEY
        )
        settings = {"epochs": 14, "batch_size": 64, "key": KEY, "progress": False}
        trained = fit(
            interval_init(model, key=KEY), state, train, rule, optax.adam(3e-3), **settings
        )
        predictor = Predictor(trained.model, trained.state)
        certified, correct = certified_and_correct(predictor)
        assert not (certified & ~correct).any()
        shares[name] = float(certified.mean())
    assert shares["certified"] > 0.6 > 0.1 > shares["plain"]


def test_what_cannot_be_trained_so_is_refused():
    ball = LinfBall(EPS)
    for settings, message in [
        ({"weight": 1.5}, r"weight must lie in \[0, 1\]; got 1.5"),
        ({"box": 0.0, "attack": PGD(3)}, "box must be above 0"),
        ({"box": 0.5}, "box=0.5 needs an attack"),
        ({"attack": PGD(3)}, "of no use with box=1 and weight=1"),
        ({"bounds": "crown"}, "bounds must be interval or linear; got 'crown'"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"attack": "PGD"}, "attack must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            CertifiedTraining(ball, **settings)
    model, state = make(EnResNet, width=4, depth=2)
    with pytest.raises(ValueError, match="EnResNet draws noise"):
        loss_of(CertifiedTraining(ball), model, state)


def test_the_cube_around_an_l2_ball_is_what_is_bounded():
    model, state = make(MLP, width=16)
    (round_, _), _ = loss_of(CertifiedTraining(L2Ball(EPS)), model, state)
    (cube, _), _ = loss_of(CertifiedTraining(LinfBall(EPS)), model, state)
    assert float(round_) == float(cube)


def test_warm_statistics_do_not_change_the_bound():
    """Those of the batch are used, whatever the running ones are."""
    model, state = make(ResNet, width=8, depth=1, norm=BatchNorm)
    moved = warm(model, state, digits().pixels[:16], KEY)
    (fresh, _), _ = loss_of(CertifiedTraining(LinfBall(EPS)), model, state)
    (used, _), _ = loss_of(CertifiedTraining(LinfBall(EPS)), model, moved)
    assert float(used) == pytest.approx(float(fresh), rel=1e-4)


def test_the_rows_of_all_labels_give_what_those_of_one_give(monkeypatch):
    """Of many classes only the rows of the label are taken."""
    predictor, x = trained_mlp(), IMAGES[0]
    graph = trace(deterministic(predictor, x), x)
    ball = LinfBall(EPS)
    margins = Margins(graph, x, ball, plain_bounds(graph, [around(x, ball)]))
    at_once = interval_margins(margins, LABELS[0])
    monkeypatch.setattr("odejax.relaxation.in_reals.MOST_CLASSES", 2)
    np.testing.assert_allclose(interval_margins(margins, LABELS[0]), at_once, rtol=1e-4, atol=1e-4)


def test_a_ball_that_does_not_grow_is_warned_of():
    """On the line of whoever calls `fit`."""
    model, state = eqx.nn.make_with_state(CNN)((8, 8, 1), channels=(2,), width=2, key=KEY)
    settings = {"epochs": 1, "batch_size": 4, "key": KEY, "progress": False}
    data, bound, rate = digits("test", 4), CertifiedTraining(LinfBall(EPS)), optax.sgd(0.1)
    with pytest.warns(UserWarning, match="give RisingEps") as seen:
        fit(model, state, data, bound, rate, **settings)
    assert seen[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        fit(model, state, data, RisingEps(bound, steps=1), rate, **settings)


@pytest.mark.slow
def test_trained_saved_attacked_and_verified_end_to_end(tmp_path):
    """Digits: what AutoAttack does not break is proven, by CROWN, or by branch and bound."""
    model, state = eqx.nn.make_with_state(CNN)(
        (8, 8, 1), channels=(8,), width=32, norm=BatchNorm, key=KEY
    )
    ball = LinfBall(0.05)
    rule = RisingEps(CertifiedTraining(ball), steps=150, wait=20)
    settings = {"epochs": 14, "batch_size": 64, "key": KEY, "progress": False}
    trained = fit(
        interval_init(model, key=KEY), state, digits(), rule, optax.adam(3e-3), **settings
    )
    save(tmp_path / "cnn.odejax", Predictor(trained.model, trained.state))
    measured = bracket(
        load(tmp_path / "cnn.odejax"),
        *digits("test", 100),
        ball,
        attacks={"PGD": PGD(20)},
        last=AutoAttack(),
        verify_seconds=10.0,
        key=0,
        progress=False,
    )
    assert list(measured.per_certificate) == ["CROWN", "branch and bound"]
    assert 0.6 < measured.certified == measured.attacked
