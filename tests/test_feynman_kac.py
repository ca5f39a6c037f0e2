"""The noisy layers, Diffrax's Euler-Maruyama and the closed form are one law."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE, digits

from odejax import Predictor, predict
from odejax._types import BATCH_AXIS
from odejax.models import EnResNet
from odejax.solvers import (
    AbstractNoise,
    ConstantNoise,
    RelativeNoise,
    feynman_kac,
    integrate_layers,
)
from odejax.training import CrossEntropy

X = np.array([-1.0, -0.2, 0.5, 2.0], np.float32)
STEPS, PATHS, T1 = 7, 20_000, 1.5  # 7: the steps are no dyadic points of the Brownian tree
H = T1 / STEPS
SIGMA, THETA = 0.6, 0.8
STANDARD_ERRORS = 4.5


class Field(eqx.Module):
    """The drift as a layer: OU for a = 0."""

    a: jax.Array

    def __call__(self, y, state=None, *, key=None):
        return -THETA * y + self.a * jnp.sin(3 * y), state


class Either(AbstractNoise):
    """One program for both kinds of noise."""

    relative: jax.Array

    def std(self, y):
        return jnp.where(self.relative, RelativeNoise(0.3).std(y), ConstantNoise(SIGMA).std(y))


CONSTANT, RELATIVE = (Either(jnp.asarray(relative)) for relative in (False, True))


def moments(y):
    return jnp.stack([y, y**2])


def layered(a, noise, key):
    """First and second moments of the last layer, and their standard errors."""
    values = np.asarray(_layered(jnp.asarray(a, jnp.float32), noise, key))
    return values.mean(0), values.std(0, ddof=1) / PATHS**0.5


@eqx.filter_jit
def _layered(a, noise, key):  # one program for every a
    layers, x = Field(jnp.full(STEPS, a)), jnp.asarray(X)

    def path(key):
        y, _ = integrate_layers(layers, x, eqx.nn.State(layers), step_size=H, noise=noise, key=key)
        return moments(y)

    return jax.vmap(path)(jax.random.split(key, PATHS))


def solved(a, noise, key):
    return _solved(jnp.asarray(a, jnp.float32), noise, key)


@eqx.filter_jit
def _solved(a, noise, key):
    return feynman_kac(
        moments,
        lambda t, y: Field(a)(y)[0],
        noise,
        jnp.asarray(X),
        steps=STEPS,
        paths=PATHS,
        key=key,
        t1=T1,
    )


@pytest.mark.parametrize(
    ("a", "noise"),
    [
        # Of which both have the exact moments below.
        pytest.param(0.0, CONSTANT, marks=pytest.mark.slow),
        (1.5, RELATIVE),
    ],
    ids=["OU-const", "nonlinear-rel"],
)
def test_layers_and_diffrax_agree_in_two_moments(a, noise):
    mean, error = layered(a, noise, jax.random.key(0))
    expectation = solved(a, noise, jax.random.key(1))
    both = np.hypot(error, expectation.standard_error)
    assert (np.abs(mean - expectation.mean) < STANDARD_ERRORS * both).all()


@pytest.mark.parametrize("path", [layered, solved])
def test_ornstein_uhlenbeck_has_the_moments_of_its_recursion(path):
    # y+ = r y + sigma sqrt(h) N, r = 1 - theta h: a geometric series of variances.
    r = 1 - THETA * H
    mean = r**STEPS * np.asarray(X)
    variance = SIGMA**2 * H * (1 - r ** (2 * STEPS)) / (1 - r**2)
    actual, error = path(0.0, CONSTANT, jax.random.key(2))
    exact = np.stack([mean, variance + mean**2])
    assert (np.abs(actual - exact) < STANDARD_ERRORS * np.asarray(error)).all()
    # Precise enough to distinguish the recursion from the continuous process.
    limit = np.exp(-THETA * T1) * np.asarray(X)
    assert (np.abs(limit - actual[0]) > STANDARD_ERRORS * np.asarray(error[0])).any()


@pytest.mark.parametrize("steps", [1, 10_000])
def test_the_drift_is_given_all_of_the_time_whatever_the_number_of_steps(steps):
    h = 0.3 / steps

    @jax.jit
    def estimate(x, key):
        return feynman_kac(
            lambda y: y, lambda t, y: jnp.broadcast_to(1 + t, y.shape), ConstantNoise(0.0), x,
            steps=steps, paths=2, key=key, t1=0.3,
        )  # fmt: skip

    with jax.enable_x64(True):  # ten thousand small steps lose three digits in float32
        x = np.asarray(X, np.float64)
        out = estimate(x, jax.random.key(3))
        moved = h * np.sum(1 + h * np.arange(steps))
        np.testing.assert_allclose(out.mean, x + moved, rtol=0, atol=1e-11)
        np.testing.assert_allclose(out.standard_error, 0, atol=1e-11)


def test_the_standard_error_is_that_of_repeated_estimates():
    def estimate(key):
        return feynman_kac(
            lambda y: y, lambda t, y: -y, ConstantNoise(1.0), X, steps=2, paths=4, key=key
        )

    out = jax.jit(lambda key: jax.vmap(estimate)(jax.random.split(key, 2000)))(jax.random.key(5))
    # Of so few paths the squares alone have the right mean.
    ratio = np.std(out.mean, axis=0) / np.sqrt(np.mean(np.square(out.standard_error), axis=0))
    np.testing.assert_allclose(ratio, 1, atol=0.08)  # 5 standard errors of a standard deviation


def batch():
    rng = np.random.default_rng(6)
    return (1 + np.arange(1, 4)[:, None, None] * rng.normal(size=(3, 5, 7))).astype(np.float32)


def test_relative_noise_scales_with_one_example():
    ys = batch()
    stds = jax.jit(jax.vmap(RelativeNoise(0.1).std))(ys)
    np.testing.assert_allclose(stds, [0.1 * np.std(y) for y in np.asarray(ys)], rtol=1e-5)


def test_relative_noise_with_an_axis_scales_with_the_whole_batch():
    ys = batch()
    noise = RelativeNoise(0.1, axis_name=BATCH_AXIS)
    stds = jax.jit(jax.vmap(noise.std, axis_name=BATCH_AXIS))(ys)
    np.testing.assert_allclose(stds, np.full(3, 0.1 * np.std(np.asarray(ys))), rtol=1e-5)


def test_constant_noise_is_sigma():
    assert float(ConstantNoise(0.25).std(X)) == 0.25


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
@pytest.mark.parametrize(("noise", "name"), [(ConstantNoise, "sigma"), (RelativeNoise, "a")])
def test_scales_that_are_no_standard_deviation_are_refused(noise, name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        noise(value)


def test_batch_noise_trains_over_the_batch_and_predicts_each_image_alone():
    images, labels = digits("train", 20).pixels, digits("train", 20).labels
    noise = RelativeNoise(0.1, BATCH_AXIS)
    make = partial(eqx.nn.make_with_state(EnResNet), IMAGE_SHAPE, width=4, depth=1, noise=noise)

    @eqx.filter_jit
    def trained(key):
        def loss(model, state):
            loss, (state, _) = CrossEntropy()(model, state, images, labels, key=key)
            return loss, state

        model, state = make(key=key)
        (loss, state), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model, state)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, gradient)), state, loss

    model, state, loss = trained(jax.random.key(5))
    assert np.isfinite(loss)
    predictor = Predictor(model, state)
    together = predict(predictor, images, key=jax.random.key(5))
    assert np.isfinite(together).all()
    alone = predict(predictor, images[:1], key=jax.random.key(5))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
