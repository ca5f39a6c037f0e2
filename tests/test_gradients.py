"""Gradient rules against the same steps written out with `jax.grad`, and what they achieve."""

import dataclasses
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits, train
from scipy.special import log_softmax, softmax

from odejax import LinfBall, Predictor
from odejax.attacks import PGD, cross_entropy
from odejax.evaluation import robust_accuracy
from odejax.models import (
    MLP,
    BatchNorm,
    EnResNet,
    FlexibleSteps,
    LipschitzNet,
    PreActResNet,
    ResNet,
    SpherePreservingNet,
    Structured,
    StructuredNet,
)
from odejax.solvers import ConstantNoise
from odejax.training import (
    TRADES,
    YOPO,
    Adversarial,
    CertifiedTraining,
    CrossEntropy,
    Derivative,
    FreeAdversarial,
    MixedPrecision,
    RisingEps,
    batch_logits,
    fit,
)

KEY = jax.random.key(4)
BALL = LinfBall(0.1)
IMAGES = np.asarray(digits().pixels[:12])
LABELS = np.asarray(digits().labels[:12])
BATCH = jnp.asarray(IMAGES), jnp.asarray(LABELS)


def build(cls, **settings):
    make = partial(eqx.nn.make_with_state(cls), (8, 8, 1), 10, **settings)
    return eqx.filter_jit(lambda key: make(key=key))(KEY)


def make(cls, **settings):
    model, state = build(cls, **settings)
    return (*eqx.partition(model, eqx.is_inexact_array), state)


def apply(rule, model, carry=None, key=KEY, images=IMAGES):
    params, static, state = model
    return _apply(rule, params, static, state, carry, images, LABELS, key)


@eqx.filter_jit
def _apply(rule, params, static, state, carry, images, labels, key):
    return rule(params, static, clone(state), carry, images, labels, key=key)


def clone(state):
    return jax.tree.map(lambda leaf: leaf, state)  # Equinox lets a state be used once


def loss(params, static, state, images):
    logits, _ = batch_logits(eqx.combine(params, static), clone(state), images, key=KEY)
    return jnp.mean(jax.vmap(cross_entropy)(logits, LABELS))


@eqx.filter_jit
def slopes(params, static, state, images):
    """The loss, and its gradients by weights and by images."""
    return jax.value_and_grad(loss, (0, 3))(params, static, state, images)


@jax.jit
def starts(key):
    return jax.vmap(lambda x, key: BALL.sample(x, key=key))(IMAGES, jax.random.split(key, 12))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_close(actual, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    model = make(MLP, width=8)
    (value, (_, correct)), whole, _ = apply(Derivative(CrossEntropy()), model)
    (sum_of, (_, also)), parts, _ = apply(Derivative(CrossEntropy(), 4), model)
    assert float(value) == pytest.approx(float(sum_of), rel=1e-6)
    assert correct == also
    assert_close(parts, whole, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="parts must divide the batch of 12; got 5"):
        Derivative(CrossEntropy(), 5).init(IMAGES.shape)


def test_parts_hand_the_batch_statistics_on():
    model = make(ResNet, width=4, depth=1, norm=BatchNorm)
    (_, (state, _)), _, _ = apply(Derivative(CrossEntropy(), 3), model)
    params, static, expected = model
    hand_on = eqx.filter_jit(lambda *args: batch_logits(*args, key=KEY)[1])
    for part in np.split(np.arange(12), 3):
        expected = hand_on(eqx.combine(params, static), expected, IMAGES[part])
    assert_close(state, expected, rtol=1e-5, atol=1e-6)


def test_free_training_moves_weights_and_images_by_one_gradient():
    params, static, state = make(MLP, width=8)
    rule = FreeAdversarial(BALL, replays=3)
    carry = rule.init(IMAGES.shape)
    delta = np.zeros(IMAGES.shape, np.float32)
    for images in (IMAGES, IMAGES, IMAGES[::-1]):  # the last batch meets another's perturbation
        x_adv = np.clip(images + delta, 0, 1)
        _, (expected, slope) = slopes(params, static, state, x_adv)
        # In the ball, and not cut to this image's box, which is not the next one's.
        delta = np.clip(delta + 0.1 * np.sign(slope), -0.1, 0.1)
        _, gradient, carry = apply(rule, (params, static, state), carry, images=images)
        assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(carry, delta, atol=1e-6)


@pytest.mark.parametrize("kind", [Adversarial, TRADES])
def test_eps_rises_linearly_to_its_own(kind):
    model = make(MLP, width=8)

    def objective(eps):
        attack = PGD(2, 0.05, last=True)
        if kind is TRADES:
            return TRADES(LinfBall(eps), attack=attack)
        return Adversarial(attack, LinfBall(eps))

    rule = RisingEps(objective(0.1), steps=4)
    carry = rule.init(IMAGES.shape)

    @eqx.filter_jit
    def fixed(eps, params, static, state):
        plain = Derivative(objective(eps))
        return plain(params, static, clone(state), None, *BATCH, key=KEY)

    for eps in (0.025, 0.05, 0.075, 0.1, 0.1):
        (value, _), gradient, carry = apply(rule, model, carry)
        (expected, _), slope, _ = fixed(jnp.asarray(eps), *model)
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        assert_close(gradient, slope, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        RisingEps(objective(0.1), steps=0)
    with pytest.raises(ValueError, match="TRADES have; got CrossEntropy"):
        RisingEps(CrossEntropy(), steps=1)


def linear(layer, x):
    return layer(jnp.ravel(x))


@pytest.mark.parametrize("n", [1, 3])
def test_behind_a_linear_layer_yopo_is_projected_gradient_ascent(n):
    """<p, W (x + eta)> has the slope W^T p, that of the loss, wherever the n steps have got to."""
    params, static, state = model = make(MLP, width=8)
    rule = YOPO(BALL, lambda m: m.layers[0], m=4, n=n, step_size=0.02, apply=linear)
    start_key = jax.random.split(KEY, 5)[0]
    x = np.asarray(starts(start_key))
    total, values = None, []
    for _ in range(4):
        value, (gradient, slope) = slopes(params, static, state, x)
        values.append(value)
        total = gradient if total is None else jax.tree.map(np.add, total, gradient)
        for _ in range(n):
            x = np.clip(np.clip(x + 0.02 * np.sign(slope), IMAGES - 0.1, IMAGES + 0.1), 0, 1)
    (value, _), gradient, _ = apply(rule, model)
    assert float(value) == pytest.approx(float(np.mean(values)), rel=1e-4)
    assert_close(gradient, jax.tree.map(lambda g: g / 4, total), rtol=1e-3, atol=1e-6)


def test_yopos_own_step_reaches_the_surface_and_half_as_far_again():
    """The first of the m times has no adjoint yet, so (m - 1) n steps move."""
    model = make(MLP, width=8)
    values = [
        apply(YOPO(BALL, lambda m: m.layers[0], m=3, n=2, step_size=s, apply=linear), model)[0][0]
        for s in (None, 2.5 * 0.1 / (2 * 2))
    ]
    np.testing.assert_allclose(*values, rtol=1e-6)


class Bent(eqx.Module):
    """tanh(W x), then V: a first layer that is not linear."""

    first: eqx.nn.Lambda
    weight: jax.Array

    def __call__(self, x, state, *, key=None):
        return self.weight @ self.first(x), state


class Tanh(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(self.weight @ jnp.ravel(x))


def test_yopo_keeps_the_adjoint_while_the_first_layer_bends():
    rng = np.random.default_rng(4)
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((8, 64), (10, 8)))
    net = Bent(Tanh(first), second)
    params, static = eqx.partition(net, eqx.is_inexact_array)
    rule = YOPO(BALL, lambda m: m.first, m=2, n=2, step_size=0.03)
    (value, _), _, _ = apply(rule, (params, static, eqx.nn.State(net)))
    start_key = jax.random.split(KEY, 3)[0]
    values, x = [], np.asarray(starts(start_key))
    for _ in range(2):
        z = np.tanh(x.reshape(12, -1) @ first.T) @ second.T
        values.append(-log_softmax(z, axis=1)[np.arange(12), LABELS].mean())
        adjoint = (softmax(z, axis=1) - np.eye(10)[LABELS]) @ second
        for _ in range(2):
            bend = 1 - np.tanh(x.reshape(12, -1) @ first.T) ** 2
            slope = ((adjoint * bend) @ first).reshape(x.shape)
            x = np.clip(np.clip(x + 0.03 * np.sign(slope), IMAGES - 0.1, IMAGES + 0.1), 0, 1)
    assert float(value) == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "settings", "first", "how"),
    [
        (PreActResNet, {"depth": 8}, lambda m: m.stem, {}),
        pytest.param(
            EnResNet,
            {"base": PreActResNet, "depth": 8, "noise": ConstantNoise(0.0)},
            lambda m: m.nets.stem,
            {"apply": eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))},
            marks=pytest.mark.slow,
        ),
    ],
    ids=("PreActResNet", "EnResNet"),
)
def test_yopo_takes_networks_and_ensembles(cls, settings, first, how):
    params, static, state = model = make(cls, **settings)
    rule = YOPO(BALL, first, m=2, n=1, step_size=0.05, **how)
    start_key = jax.random.split(KEY, 3)[0]
    x = np.asarray(starts(start_key))
    before, (gradient, slope) = slopes(params, static, state, x)
    x = np.clip(np.clip(x + 0.05 * np.sign(slope), IMAGES - 0.1, IMAGES + 0.1), 0, 1)
    after, (second, _) = slopes(params, static, state, x)
    assert float(after) > float(before) + 1e-3  # it climbs
    (value, _), actual, _ = apply(rule, model)
    assert float(value) == pytest.approx(float(before + after) / 2, rel=1e-3)
    expected = (flat(gradient) + flat(second)) / 2
    assert np.linalg.norm(flat(actual) - expected) / np.linalg.norm(expected) < 0.02


def test_yopo_needs_a_second_time():
    with pytest.raises(ValueError, match="m must be at least 2; got 1"):
        YOPO(BALL, lambda m: m.layers[0], m=1)


def attacked_images(objective, model, state):
    """What the objective trains on."""

    @eqx.filter_jit
    def images_seen(model, state):
        seen = []

        class Spy(CrossEntropy):
            def __call__(self, model, state, images, labels, *, key):
                seen.append(images)
                return super().__call__(model, state, images, labels, key=key)

        spied = dataclasses.replace(objective, objective=Spy())
        spied(model, clone(state), *BATCH, key=KEY)
        return seen[0]

    return np.asarray(images_seen(model, state))


def test_in_train_mode_the_attack_climbs_through_the_batch_statistics():
    params, static, state = make(ResNet, width=4, depth=1, norm=BatchNorm)
    model = eqx.combine(params, static)
    attack = PGD(1, 0.03, random_start=False, last=True)
    together = attacked_images(Adversarial(attack, BALL, train_mode=True), model, state)
    _, (_, slope) = slopes(params, static, state, IMAGES)
    expected = np.clip(IMAGES + 0.03 * np.sign(slope), 0, 1)
    assert np.mean(np.abs(together - expected) < 1e-6) > 0.99  # slopes of rounding size apart

    alone = attacked_images(Adversarial(attack, BALL), model, state)

    @eqx.filter_jit
    def frozen_slopes(model, state):
        frozen = Predictor(model, state)
        return jax.vmap(jax.grad(lambda x, y: cross_entropy(frozen(x), y)))(IMAGES, LABELS)

    slope = frozen_slopes(model, state)
    expected = np.clip(IMAGES + 0.03 * np.sign(slope), 0, 1)
    assert np.mean(np.abs(alone - expected) < 1e-6) > 0.99
    assert np.mean(np.abs(alone - together) > 1e-6) > 0.01


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32():
    model = make(ResNet, width=8, depth=1, norm=BatchNorm)
    (value, (state, _)), gradient, _ = apply(Derivative(MixedPrecision()), model)
    (exact, _), slope, _ = apply(Derivative(CrossEntropy()), model)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(exact), rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, state))} == {jnp.dtype("float32")}
    cosine = np.vdot(flat(gradient), flat(slope))
    cosine /= np.linalg.norm(flat(gradient)) * np.linalg.norm(flat(slope))
    assert 0.98 < float(cosine) < 0.999999
    params, static, state = model
    rule = Derivative(MixedPrecision())
    text = str(
        jax.make_jaxpr(lambda p: rule(p, static, clone(state), None, *BATCH, key=KEY))(params)
    )
    convolutions = [line for line in text.splitlines() if "odejax_conv2d" in line]
    assert convolutions
    assert all("bf16" in line for line in convolutions)


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        pytest.param(LipschitzNet, {"width": 2, "depth": 1, "features": 8}, marks=pytest.mark.slow),
        pytest.param(
            StructuredNet,
            {"channels": (2,), "depth": 2, "regime": Structured(steps=FlexibleSteps())},
            marks=pytest.mark.slow,
        ),
        (SpherePreservingNet, {"features": 8, "depth": 2, "width": 8}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mixed_precision_takes_networks_that_compute_norms_and_solves(network, sizes):
    """Which there are none of in 16 bits."""
    model = make(network, **sizes)
    (value, _), gradient, _ = apply(Derivative(MixedPrecision()), model)
    exact = eqx.filter_jit(loss)(*model, IMAGES)
    assert float(value) == pytest.approx(float(exact), rel=0.02)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert np.isfinite(flat(gradient)).all()


# Each rule is also compared with its formula, above.
@pytest.mark.parametrize(
    "name", ["YOPO", *(pytest.param(n, marks=pytest.mark.slow) for n in ("free", "fast"))]
)
def test_the_cheap_methods_make_a_network_robust(name):
    ball = LinfBall(0.15)
    rule, epochs = {
        "free": (FreeAdversarial(ball, replays=4), 6),
        "YOPO": (YOPO(ball, lambda m: m.layers[0], m=3, n=2, apply=linear), 20),
        "fast": (Adversarial(PGD(1, 0.18, last=True), ball), 20),
    }[name]
    assert left_by_pgd(rule, epochs) > left_of_the_undefended() + 0.1


def left_by_pgd(objective, epochs):
    maker = partial(eqx.nn.make_with_state(MLP), (8, 8, 1), 10, width=64)
    maker = eqx.filter_jit(maker)
    predictor = train(lambda key: maker(key=key), objective=objective, epochs=epochs)
    test = digits("test", 200)
    return robust_accuracy(
        predictor, test.pixels, test.labels, LinfBall(0.15), PGD(20, None), key=KEY
    ).accuracy  # fmt: skip


@cache
def left_of_the_undefended():
    return left_by_pgd(None, 20)


def test_fit_takes_each_batch_as_often_as_the_rule_asks_and_augments_it_once():
    seen = []

    class Spy(Derivative):
        replays = 3

        def __call__(self, params, static, state, carry, images, labels, *, key):
            jax.debug.callback(lambda *a: seen.append(a), images, labels, carry, ordered=True)
            return *super().__call__(params, static, state, carry, images, labels, key=key)[:2], (
                carry + 1
            )

        def init(self, shape):
            return jnp.zeros((), jnp.int32)

    def flip(image, key):
        return jnp.where(jax.random.bernoulli(key), image, 1 - image)

    model, state = build(MLP, width=4)
    fit(
        model, state, digits("train", 48), Spy(CrossEntropy()), optax.sgd(0.1), epochs=2,
        batch_size=16, key=KEY, augment=flip, progress=False,
    )  # fmt: skip
    jax.effects_barrier()
    assert [int(carry) for *_, carry in seen] == list(range(2 * 3 * 3))
    for i in range(0, len(seen), 3):
        for again in seen[i + 1 : i + 3]:
            np.testing.assert_array_equal(again[0], seen[i][0])
            np.testing.assert_array_equal(again[1], seen[i][1])
    labels = np.concatenate([np.asarray(seen[i][1]) for i in range(0, 9, 3)])
    np.testing.assert_array_equal(np.sort(labels), np.sort(digits("train", 48).labels))


def counting(average, epochs=1, **settings):
    """Every weight goes up by 1 in every step."""
    model, state = build(MLP, width=4)
    ones = optax.stateless(lambda updates, params: jax.tree.map(jnp.ones_like, params))
    data = digits("train", 64)
    return model, fit(
        model, state, data, CrossEntropy(), ones, epochs=epochs, batch_size=8, key=KEY,
        average=average, progress=False, **settings,
    )  # fmt: skip


def test_the_average_of_the_weights_is_what_is_returned():
    model, result = counting(0.2)
    mean = 0.0
    for step in range(8):
        share = min(0.2, (1 + step) / (10 + step))  # below 0.2 twice
        mean = share * mean + (1 - share) * (step + 1)
    first, averaged = (m.layers[0].weight for m in (model, result.model))
    np.testing.assert_allclose(averaged - first, mean, rtol=1e-5)
    np.testing.assert_allclose(counting(None)[1].model.layers[0].weight - first, 8, rtol=1e-5)
    with pytest.raises(ValueError, match="average must be at least 0 and below 1; got 1"):
        counting(1.0)


@pytest.mark.parametrize(
    "rule",
    [
        FreeAdversarial(BALL, 3),
        pytest.param(
            RisingEps(Adversarial(PGD(2, 0.05, last=True), BALL), steps=10), marks=pytest.mark.slow
        ),
        RisingEps(CertifiedTraining(BALL), steps=7, wait=2),
    ],
    ids=["free", "rising", "certified"],
)
def test_what_a_rule_carries_and_the_average_survive_an_interruption(rule, tmp_path):
    def run(epochs, folder=None):
        model, state = build(MLP, width=4)
        result = fit(
            model, state, digits("train", 64), rule, optax.adam(1e-2),
            epochs=epochs, batch_size=16, key=KEY, average=0.9, progress=False,
            checkpoint_dir=folder,
        )  # fmt: skip
        return jax.tree.leaves(eqx.filter(result.model, eqx.is_array))

    run(1, tmp_path)
    for a, b in zip(run(3, tmp_path), run(3), strict=True):
        np.testing.assert_array_equal(a, b)
