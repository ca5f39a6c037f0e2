"""The noisy layers, Diffrax's Euler-Maruyama and the closed form are one law."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits

from odejax import Predictor, predict
from odejax._types import BATCH_AXIS
from odejax.models import EnResNet
from odejax.solvers import ConstantNoise, RelativeNoise, feynman_kac, integrate_layers
from odejax.training import CrossEntropy, fit

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


def moments(y):
    return jnp.stack([y, y**2])


def layered(a, noise, key):
    """First and second moments of the last layer, and their standard errors."""
    values = np.asarray(_layered(jnp.asarray(a, jnp.float32), noise, key))
    return values.mean(0), values.std(0, ddof=1) / PATHS**0.5


@eqx.filter_jit
def _layered(a, noise, key):  # one program for every a
    layers = Field(jnp.full(STEPS, a))

    def path(key):
        y, _ = integrate_layers(layers, X, eqx.nn.State(layers), step_size=H, noise=noise, key=key)
        return moments(y)

    return jax.vmap(path)(jax.random.split(key, PATHS))


def solved(a, noise, key):
    return _solved(jnp.asarray(a, jnp.float32), noise, key)


@eqx.filter_jit
def _solved(a, noise, key):
    return feynman_kac(
        moments, lambda t, y: Field(a)(y)[0], noise, X, steps=STEPS, paths=PATHS, key=key, t1=T1
    )


@pytest.mark.parametrize(
    ("a", "noise"),
    [(0.0, ConstantNoise(SIGMA)), (1.5, RelativeNoise(0.3))],
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
    actual, error = path(0.0, ConstantNoise(SIGMA), jax.random.key(2))
    exact = np.stack([mean, variance + mean**2])
    assert (np.abs(actual - exact) < STANDARD_ERRORS * np.asarray(error)).all()
    # Precise enough to tell the recursion from the continuous process.
    limit = np.exp(-THETA * T1) * np.asarray(X)
    assert (np.abs(limit - actual[0]) > STANDARD_ERRORS * np.asarray(error[0])).any()


@pytest.mark.parametrize("steps", [1, 10_000])
def test_all_of_the_time_is_covered_whatever_the_number_of_steps(steps):
    with jax.enable_x64(True):  # ten thousand small steps lose three digits in float32
        x = np.asarray(X, np.float64)
        out = feynman_kac(
            lambda y: y, lambda t, y: jnp.ones_like(y), ConstantNoise(0.0), jnp.asarray(x),
            steps=steps, paths=2, key=jax.random.key(3), t1=0.3,
        )  # fmt: skip
        np.testing.assert_allclose(out.mean, x + 0.3, rtol=0, atol=1e-11)
        np.testing.assert_allclose(out.standard_error, 0, atol=1e-11)


def test_the_drift_is_given_the_time():
    out = feynman_kac(
        lambda y: y, lambda t, y: jnp.broadcast_to(t, y.shape), ConstantNoise(0.0), X,
        steps=4, paths=2, key=jax.random.key(4), t1=2.0,
    )  # fmt: skip
    np.testing.assert_allclose(out.mean, X + 0.5 * (0 + 0.5 + 1 + 1.5), rtol=0, atol=1e-6)


def test_the_standard_error_is_that_of_repeated_estimates():
    def estimate(key):
        return feynman_kac(
            lambda y: y, lambda t, y: -y, ConstantNoise(1.0), X, steps=2, paths=64, key=key
        )

    out = jax.jit(lambda key: jax.vmap(estimate)(jax.random.split(key, 2000)))(jax.random.key(5))
    ratio = np.std(out.mean, axis=0) / np.mean(out.standard_error, axis=0)
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
    train, validation = digits("train", 120).holdout(20)
    noise = RelativeNoise(0.1, BATCH_AXIS)
    make = partial(
        eqx.nn.make_with_state(EnResNet), train.image_shape, width=4, depth=2, noise=noise
    )
    model, state = eqx.filter_jit(lambda key: make(key=key))(jax.random.key(5))
    result = fit(
        model, state, train, CrossEntropy(), optax.adam(1e-2),
        epochs=1, batch_size=50, key=jax.random.key(5), validation=validation, progress=False,
    )  # fmt: skip
    predictor = Predictor(result.model, result.state)
    together = predict(predictor, validation.images, key=jax.random.key(5))
    alone = predict(predictor, validation.images[:1], key=jax.random.key(5))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
