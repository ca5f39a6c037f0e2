"""TRADES, penalties and weight clipping: against hand computation, and composed with each other."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import _maker, all_models, digits, linear_logits, train, trained_mlp
from scipy.special import log_softmax, softmax

from odejax import LinfBall, Predictor
from odejax.attacks import IFGSM, PGD, AbstractClimb, cross_entropy
from odejax.evaluation import robust_accuracy
from odejax.models import MLP, DenseODENet, NmODENet
from odejax.training import (
    TRADES,
    Adversarial,
    CrossEntropy,
    Penalised,
    clip_weights,
    drift_penalty,
    energy_penalty,
    fit,
    mixture_weights,
    orthogonality_penalty,
    row_sum_penalty,
)

KEY = jax.random.key(7)
OBJECTIVES = (CrossEntropy, TRADES, Adversarial, Penalised)
IMAGES, LABELS = np.asarray(digits().pixels[:16]), np.asarray(digits().labels[:16])
BATCH = jnp.asarray(IMAGES), jnp.asarray(LABELS)
NMODE = eqx.filter_jit(_maker(NmODENet, width=16))


@eqx.filter_jit
def value(objective, model, state):
    """Of an objective: the loss, and how many are right; of a penalty, that alone."""
    if isinstance(objective, OBJECTIVES):
        loss, (_, correct) = objective(model, state, *BATCH, key=KEY)
        return loss, correct
    return objective(model, state, BATCH[0], key=KEY)


def first_weight(model):
    return model.layers[0].weight


class Linear(eqx.Module):
    """A linear network with a state: what TRADES does to it is known."""

    net: eqx.Module

    def __call__(self, x, state, *, key=None):
        return self.net(x), state


def linear(scale=0.1):
    return eqx.nn.make_with_state(lambda: Linear(linear_logits(n_classes=10, scale=scale)))()


@eqx.filter_jit
def logits_of(net, images):
    return jax.vmap(net)(images)


def kl(p_logits, q_logits):
    p = softmax(p_logits, axis=-1)
    return (p * (log_softmax(p_logits, axis=-1) - log_softmax(q_logits, axis=-1))).sum(-1)


def test_trades_is_cross_entropy_and_beta_times_the_divergence():
    model, state = linear()
    clean = np.asarray(logits_of(model.net, IMAGES), np.float64)
    nothing = TRADES(LinfBall(0.0), beta=6.0)
    loss, correct = value(nothing, model, state)
    natural = -log_softmax(clean, axis=1)[np.arange(16), LABELS].mean()
    np.testing.assert_allclose(loss, natural, rtol=1e-5)
    assert correct == (clean.argmax(1) == LABELS).sum()
    # Zero beta is cross-entropy alone, however large the ball.
    loss, _ = value(TRADES(LinfBall(0.3), beta=0.0), model, state)
    np.testing.assert_allclose(loss, natural, rtol=1e-5)


class Negative(AbstractClimb):
    """An attack whose image is known."""

    steps: ClassVar[int] = 1
    step_size: ClassVar[None] = None
    loss: Callable = eqx.field(static=True, default=cross_entropy)
    random_start: ClassVar[bool] = True
    random: ClassVar[bool] = True
    last: ClassVar[bool] = True

    def step(self, problem, state, i, *, key):
        adversarial = dataclasses.replace(state.adversarial, x_adv=1 - problem.x)
        return dataclasses.replace(state, adversarial=adversarial)


def test_trades_measures_the_divergence_from_the_clean_prediction():
    model, state = linear()
    clean, moved = (
        np.asarray(logits_of(model.net, images), np.float64) for images in (IMAGES, 1 - IMAGES)
    )
    losses = [
        float(value(TRADES(LinfBall(1.0), beta, Negative()), model, state)[0])
        for beta in (0.0, 1.0)
    ]
    forward, backward = kl(clean, moved).mean(), kl(moved, clean).mean()
    assert abs(forward - backward) > 0.05 * forward
    assert losses[1] - losses[0] == pytest.approx(forward, rel=1e-2)


def test_trades_climbs_the_divergence():
    # More of it than random images of the same ball have, and it grows with the ball.
    model, state = linear()
    clean = np.asarray(logits_of(model.net, IMAGES), np.float64)

    @jax.jit
    def losses(eps):  # an array: one program for all balls
        ball = LinfBall(eps)
        keys = jax.random.split(KEY, 16)
        random = jax.vmap(lambda x, key: ball.sample(x, key=key))(IMAGES, keys)
        with_and_without = [
            TRADES(ball, beta=beta)(model, state, *BATCH, key=KEY)[0] for beta in (0.0, 1.0)
        ]
        return with_and_without, jax.vmap(model.net)(random)

    penalties = []
    for eps in (0.02, 0.05, 0.1):
        (without, with_it), random = losses(jnp.asarray(eps))
        penalties.append(float(with_it) - float(without))
        assert penalties[-1] > 2 * kl(clean, np.asarray(random)).mean()
    assert penalties[0] < penalties[1] < penalties[2]


def test_the_gradient_of_trades_is_that_of_both_predictions():
    model, state = linear()

    def by_hand(model):
        clean, moved = (
            jax.nn.log_softmax(jax.vmap(model.net)(images)) for images in (IMAGES, 1 - IMAGES)
        )
        natural = -clean[np.arange(16), LABELS].mean()
        return natural + 2.0 * jnp.sum(jnp.exp(clean) * (clean - moved), axis=1).mean()

    def trades(model):
        objective = TRADES(LinfBall(1.0), 2.0, Negative())
        return objective(model, state, *BATCH, key=KEY)[0]

    @eqx.filter_jit
    def gradients(model):
        return [eqx.filter_grad(loss)(model).net for loss in (trades, by_hand)]

    actual, expected = gradients(model)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-5)
        assert np.abs(e).max() > 1e-2


@pytest.mark.slow  # the attack and the gradient that it is trained with are tested above
def test_training_with_trades_makes_a_network_more_robust():
    data, ball = digits("test", 200), LinfBall(0.1)
    make = eqx.filter_jit(_maker(MLP, width=32))
    trades = train(make, objective=TRADES(ball, attack=PGD(4, None)), epochs=10)
    adversarial = train(make, objective=Adversarial(PGD(4, None), ball), epochs=10)

    def robust(predictor):
        attack = PGD(20, None)
        return robust_accuracy(predictor, data.pixels, data.labels, ball, attack, key=KEY).accuracy

    natural, hardened, madry = robust(trained_mlp()), robust(trades), robust(adversarial)
    assert hardened > natural + 0.2
    assert abs(hardened - madry) < 0.2


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_a_beta_that_is_no_weight_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be finite and not negative"):
        TRADES(LinfBall(0.1), beta=beta)


def test_an_attack_that_starts_where_the_divergence_is_flat_is_refused():
    with pytest.raises(ValueError, match="needs a random start"):
        TRADES(LinfBall(0.1), attack=PGD(5, None, random_start=False))


# nmODE+


def test_the_row_sum_penalty_is_equation_7_and_its_gradient_that_of_the_largest_row():
    model, state = NMODE(KEY)
    weight = np.asarray(first_weight(model))
    penalty = row_sum_penalty(first_weight)
    np.testing.assert_allclose(
        value(penalty, model, state), np.abs(weight).sum(axis=1).max(), rtol=1e-6
    )
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: penalty(m, state, IMAGES, key=KEY)))
    gradient = np.asarray(first_weight(gradient(model)))
    largest = np.abs(weight).sum(axis=1).argmax()
    np.testing.assert_array_equal(gradient[largest], np.sign(weight[largest]))
    np.testing.assert_array_equal(np.delete(gradient, largest, axis=0), 0)


@pytest.mark.parametrize("objective", [CrossEntropy(),
    Adversarial(IFGSM(2, 0.05), LinfBall(0.1)),
    pytest.param(TRADES(LinfBall(0.1)), marks=pytest.mark.slow)],
    ids=lambda o: type(o).__name__)  # fmt: skip
def test_a_penalty_adds_to_any_objective(objective):
    penalty = row_sum_penalty(first_weight)

    @jax.jit
    def losses(key, images, labels):
        model, state = NMODE(key)
        both = objective, Penalised(objective, penalty=penalty, eta=0.5)
        plain, loss = (o(model, state, images, labels, key=KEY)[0] for o in both)
        return plain, loss, penalty(model, state, images, key=KEY)

    plain, loss, alone = map(float, losses(KEY, IMAGES, LABELS))
    np.testing.assert_allclose(loss - plain, 0.5 * alone, rtol=1e-4)


def test_clipped_weights_stay_in_their_interval_and_the_others_do_not():
    optimizer = optax.chain(optax.adam(1e-2), clip_weights(0.05, first_weight))
    model, state = NMODE(KEY)
    assert np.abs(first_weight(model)).max() > 0.05
    result = fit(
        model,
        state,
        digits(),
        CrossEntropy(),
        optimizer,
        epochs=3,
        batch_size=64,
        key=KEY,
        progress=False,
    )
    assert np.abs(first_weight(result.model)).max() <= 0.05 * (1 + 1e-6)
    assert np.abs(result.model.outputs.weight).max() > 0.05
    assert result.history[-1]["train_accuracy"] > 0.7


def test_the_penalty_makes_the_largest_row_smaller_in_training():
    penalised = Penalised(penalty=row_sum_penalty(first_weight), eta=0.05)
    tau = [
        np.abs(first_weight(train(NMODE, objective=o, epochs=4).model)).sum(axis=1).max()
        for o in (CrossEntropy(), penalised)
    ]
    assert tau[1] < 0.7 * tau[0]


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_without_an_interval_is_refused(c):
    with pytest.raises(ValueError, match="c must be finite and positive"):
        clip_weights(c, first_weight)


def test_clipping_without_the_weights_is_refused():
    with pytest.raises(ValueError, match="needs the weights"):
        clip_weights(0.1, first_weight).update({}, optax.EmptyState())


@pytest.mark.parametrize("eta", [-0.1, float("nan")])
def test_an_eta_that_is_no_weight_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be finite and not negative"):
        Penalised(penalty=drift_penalty, eta=eta)


# TisODE


@eqx.filter_jit
def snapshots(model, state, x, t1, n):
    """The state at n + 1 times from 0 to t1, by Runge-Kutta steps written out, and the slopes."""
    parameters, h = model.parameters(state), t1 / n

    def slope(y):
        return model.field(0.0, y, parameters)

    def step(y, _):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3))
        return y, y

    start, _ = model.encode(x, state)
    ys = jnp.concatenate([start[None], jax.lax.scan(step, start, length=n)[1]])
    return ys, jax.vmap(slope)(ys), jax.vmap(jax.jacfwd(slope))(ys)


def test_the_drift_is_the_integral_of_the_speed_after_the_end():
    model, state = eqx.filter_jit(_maker(DenseODENet, width=8, t1=0.5))(KEY)
    _, slopes, _ = snapshots(model, state, IMAGES[0], 1.0, 16)
    expected = np.trapezoid(np.abs(slopes[8:]), dx=1 / 16, axis=0).mean()
    drift = eqx.filter_jit(lambda m, x: m.drift(x, state))(model, IMAGES[0])
    np.testing.assert_allclose(drift, expected, rtol=2e-2)


def test_a_flow_that_is_not_solved_has_no_drift():
    model, state = eqx.filter_jit(_maker(DenseODENet, width=8, max_steps=3, t1=100.0))(KEY)
    assert np.isnan(eqx.filter_jit(lambda m, x: m.drift(x, state))(model, IMAGES[0]))


def test_a_penalised_flow_comes_to_rest():
    objective, optimizer = Penalised(penalty=drift_penalty, eta=1.0), optax.adam(1e-2)

    @jax.jit
    def training(key):
        """The loss, and the drift that is in it, step by step."""
        model, state = _maker(DenseODENet, width=8)(key)
        weights, static = eqx.partition(model, eqx.is_inexact_array)

        def loss(weights):
            model = eqx.combine(weights, static)
            loss, _ = objective(model, state, *BATCH, key=key)
            natural, _ = CrossEntropy()(model, state, *BATCH, key=key)
            return loss, loss - natural

        def step(carry, _):
            weights, moments = carry
            energies, gradient = jax.value_and_grad(loss, has_aux=True)(weights)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(weights, updates), moments), energies

        return jax.lax.scan(step, (weights, optimizer.init(weights)), length=20)[1]

    losses, drift = map(np.asarray, training(KEY))
    assert losses[-1] < losses[0]
    assert 0 < drift[-1] < 0.7 * drift[0]


def test_the_energies_are_integrals_along_the_way():
    # By sums over snapshots, the Jacobian by forward mode.
    model, state = eqx.filter_jit(_maker(DenseODENet, width=8, t1=0.5))(KEY)
    ys, slopes, jacobians = map(np.asarray, snapshots(model, state, IMAGES[0], 0.5, 16))
    rows = np.asarray(jax.random.normal(KEY, ys[0].shape)) @ jacobians
    energies = eqx.filter_jit(lambda m, x: m.energies(x, state, key=KEY))(model, IMAGES[0])
    for actual, vectors in zip(energies, (slopes, rows), strict=True):
        squares = np.mean(vectors**2, axis=1)
        np.testing.assert_allclose(actual, np.trapezoid(squares, dx=0.5 / 16), rtol=2e-2)


def test_the_energy_penalty_is_the_weighted_sum_of_mean_energies():
    model, state = eqx.filter_jit(_maker(DenseODENet, width=8, t1=0.5))(KEY)

    @eqx.filter_jit
    def both(model):
        penalty = energy_penalty(2.0, 3.0)(model, state, IMAGES[:2], key=KEY)
        keys = jax.random.split(KEY, 2)
        return penalty, jax.vmap(lambda x, k: model.energies(x, state, key=k))(IMAGES[:2], keys)

    actual, (kinetic, jacobian) = jax.tree.map(np.asarray, both(model))
    assert kinetic.min() > 0 < jacobian.min()
    np.testing.assert_allclose(actual, 2 * kinetic.mean() + 3 * jacobian.mean(), rtol=1e-5)


@pytest.mark.slow  # what is trained for is tested above
def test_a_flow_trained_for_little_energy_takes_fewer_steps():
    make = eqx.filter_jit(_maker(DenseODENet, width=8, t1=10.0))

    @eqx.filter_jit
    def steps_of(model, state):
        return jax.vmap(lambda x: model.solve(x, state)[0].stats["num_steps"])(IMAGES)

    def steps(predictor):
        return np.mean(steps_of(predictor.model, predictor.state))

    objective = Penalised(penalty=energy_penalty(1.0, 1.0), eta=1.0)
    cheap = train(make, objective=objective, epochs=2)
    assert steps(cheap) < 0.8 * steps(train(make, epochs=2))


def test_factors_of_energies_are_checked():
    with pytest.raises(ValueError, match=r"jacobian .* got -1"):
        energy_penalty(1.0, -1.0)
    with pytest.raises(ValueError, match=r"kinetic .* got inf"):
        energy_penalty(float("inf"), 0.0)


@pytest.mark.parametrize(
    "penalty", [drift_penalty, energy_penalty(1.0, 1.0), orthogonality_penalty]
)
def test_a_model_without_a_flow_has_no_drift_and_no_energies(penalty):
    model, state = eqx.filter_jit(all_models["MLP"])(KEY)
    with pytest.raises(ValueError, match="MLP has none"):
        penalty(model, state, BATCH[0], key=KEY)
    assert eqx.filter_eval_shape(Predictor(model, state), IMAGES[0]).shape == (10,)


def test_mixture_weights_move_once_an_epoch_and_keep_their_sum():
    params = {"weights": jnp.array([0.5, 0.5]), "other": jnp.array([1.0])}
    optimizer = mixture_weights(optax.sgd(0.1), lambda p: p["weights"], learning_rate=0.2, every=3)
    state = optimizer.init(params)
    gradients = [jnp.array([1.0, 0.0]), jnp.array([2.0, -1.0]), jnp.array([0.0, -2.0])]
    for epoch in range(2):
        before = params["weights"]
        for i, g in enumerate(gradients):
            updates, state = optimizer.update({"weights": g, "other": jnp.ones(1)}, state, params)
            params = optax.apply_updates(params, updates)
            if i < 2:
                np.testing.assert_array_equal(params["weights"], before)
        moved = np.asarray(before) - 0.2 * np.array([1.0, -1.0])
        np.testing.assert_allclose(params["weights"], moved / moved.sum(), rtol=1e-6)
        np.testing.assert_allclose(params["other"], 1 - 0.1 * 3 * (epoch + 1), rtol=1e-6)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        mixture_weights(optax.sgd(0.1), lambda p: p, learning_rate=0.1, every=0)
