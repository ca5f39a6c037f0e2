"""The vote under noise against counting; its certificate against closed forms, trials, attacks."""

import json
from fractions import Fraction
from math import comb

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits, linear_logits, predictor_of, trained_mlp
from scipy.stats import binom, binomtest, norm

from odejax import L2Ball, LinfBall, MeanLogits, Smoothed, predict
from odejax.attacks import EOT, PGD, cross_entropy, margin_loss
from odejax.certificates import CertificateResult, LinearRelaxation, RandomizedSmoothing
from odejax.certificates.randomized_smoothing import radii_of_counts
from odejax.evaluation import bracket, certified_radii

KEY = jax.random.key(5)
SIGMAS = np.array([0.05, 0.1, 0.25, 1.0], np.float32)
CHANCE = 1e-6  # of a test that fails although nothing is wrong, in each comparison


class Threshold(eqx.Module):
    """Two classes on either side of the hyperplane <w, x> = level; z_1 - z_0 = 2 scale (...).

    `inner`: the size of normal noise that it draws itself, in the units of <w, x>.
    """

    w: jax.Array
    level: float
    scale: float = 1.0
    inner: float = 0.0

    def __call__(self, x, *, key):
        side = jnp.vdot(self.w, x) - self.level + self.inner * jax.random.normal(key)
        return self.scale * jnp.stack([-side, side])


W = jnp.asarray([1.0, -2.0, 0.5, 0.0]).reshape(2, 2, 1)
X = jnp.asarray([0.6, 0.1, 0.4, 1.0]).reshape(2, 2, 1)  # <w, x> = 0.6


def at_distance(distance, **settings):
    """The linear classifier whose boundary has this l2 distance from X, on the side of class 1."""
    return Threshold(W, jnp.vdot(W, X) - distance * jnp.linalg.norm(W), **settings)


# -- the vote ------------------------------------------------------------------------------------


@eqx.filter_jit
def draw_by_draw(network, x, sigma, n, key):
    """The logits of every draw, and its noise."""

    def one(d):
        noise_key, own_key = jax.random.split(jax.random.fold_in(key, d))
        noisy = x + sigma * jax.random.normal(noise_key, x.shape)
        return network(noisy, key=own_key), noisy

    return jax.lax.map(one, jnp.arange(n))


@pytest.mark.parametrize("name", ["MLP", "EnResNet"])
def test_the_vote_is_that_of_draws_counted_one_by_one(name):
    network, x = predictor_of(name), jnp.asarray(digits("test").pixels[0])
    logits, _ = draw_by_draw(network, x, np.float32(0.5), 50, KEY)
    counts = np.bincount(np.asarray(logits).argmax(axis=1), minlength=10)
    assert (counts > 0).sum() > 1  # else there is little to count
    for chunk in (1, 16, 50, 64):
        smoothed = Smoothed(network, 0.5, draws=50, chunk=chunk)
        votes = eqx.filter_jit(lambda s: s(x, key=KEY))(smoothed)
        np.testing.assert_allclose(votes, counts / 50 - 0.1, atol=1e-6)


def test_a_batch_of_votes_is_that_of_single_images():
    smoothed = Smoothed(trained_mlp(), 0.5, draws=40)
    images = jnp.asarray(digits("test", 6).pixels)
    keys = jax.random.split(KEY, 6)
    batched = jax.jit(jax.vmap(lambda x, key: smoothed(x, key=key)))(images, keys)
    single = [smoothed(x, key=key) for x, key in zip(images, keys, strict=True)]
    np.testing.assert_allclose(batched, np.stack(single), atol=0.03)  # a draw that rounding turns
    np.testing.assert_array_equal(batched.argmax(axis=1), np.stack(single).argmax(axis=1))


@eqx.filter_jit
def shares(network, sigmas, draws):
    return jax.vmap(lambda s: Smoothed(network, s, draws, chunk=500)(X, key=KEY) + 1 / 2)(sigmas)


@pytest.mark.parametrize(
    "distance",
    [0.1, -0.1, pytest.param(0.7, id="a class beyond the box, which noise alone reaches")],
)
def test_the_shares_are_the_probabilities_of_the_normal_distribution(distance):
    n = 10_000
    share = np.asarray(shares(at_distance(distance), SIGMAS, n))[:, 1]
    p = norm.cdf(distance / SIGMAS.astype(float))
    count = np.round(n * share)
    assert (count >= binom.ppf(CHANCE, n, p)).all()
    assert (count <= binom.ppf(1 - CHANCE, n, p)).all()


def test_fixed_draws_are_one_vote_of_all():
    network, keys = trained_mlp(), jax.random.split(KEY, 4)
    x = jnp.asarray(digits("test").pixels[3])
    smoothed = Smoothed(network, 0.6, draws=25)
    counts = sum(
        np.bincount(
            np.asarray(draw_by_draw(network, x, np.float32(0.6), 25, k)[0]).argmax(1), minlength=10
        )
        for k in keys
    )
    mean = MeanLogits(smoothed, keys)
    np.testing.assert_allclose(mean(x), counts / 100 - 0.1, atol=1e-6)
    fixed = [predict(mean, np.asarray(x)[None], key=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(*fixed)


def test_the_gradient_is_that_of_the_mean_softmax():
    network, x = trained_mlp(), jnp.asarray(digits("test").pixels[0])
    weights = jnp.asarray(np.random.default_rng(0).normal(size=10), jnp.float32)

    def soft(x):
        logits, _ = draw_by_draw(network, x, np.float32(0.5), 30, KEY)
        return weights @ jnp.mean(jax.nn.softmax(logits), axis=0)

    smoothed = Smoothed(network, 0.5, draws=30, chunk=8)
    gradient = jax.jit(jax.grad(lambda x: weights @ smoothed(x, key=KEY)))(x)
    expected = jax.jit(jax.grad(soft))(x)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_a_confident_network_keeps_its_gradient():
    """Where the softmax is 1 to all digits of float32, against the closed form in float64."""
    network = at_distance(0.4, scale=20.0)
    sigma, key = np.float32(0.01), KEY
    logits, noisy = draw_by_draw(network, X, sigma, 10, key)
    gap = np.asarray(noisy, np.float64).reshape(10, -1) @ np.asarray(W, np.float64).ravel()
    gap = 2 * network.scale * (gap - float(network.level))
    assert (jax.nn.softmax(logits)[:, 1] == 1).all()
    gradient = jax.grad(lambda x: Smoothed(network, sigma, 10)(x, key=key)[1])(X)
    slope = 2 * network.scale * np.mean(np.exp(-gap) / (1 + np.exp(-gap)) ** 2)
    np.testing.assert_allclose(gradient, slope * np.asarray(W), rtol=1e-2)


@pytest.mark.parametrize("loss", [pytest.param(cross_entropy, marks=pytest.mark.slow), margin_loss])
def test_an_attack_crosses_the_boundary_of_the_vote_beyond_its_radius_alone(loss):
    """The vote of a linear network has the boundary of the network."""
    smoothed = Smoothed(at_distance(0.2), 0.1, draws=50)
    attack = EOT(PGD(10, loss=loss), 4)
    judge = MeanLogits(smoothed, jax.random.split(jax.random.key(99), 40))

    @jax.jit
    @jax.vmap
    def margin(eps):
        x_adv = attack(smoothed, X, 1, L2Ball(eps), key=KEY).x_adv
        return -margin_loss(judge(x_adv), jnp.asarray(1))

    # Shares of 2,000 draws; at 0.05 from the boundary they are 69 % and 31 %.
    below, above = margin(jnp.asarray([0.15, 0.25]))
    assert 0.3 < below < 0.5
    assert -0.5 < above < -0.3


def test_draws_that_are_no_numbers_are_no_votes():
    def diverges(x):
        return jnp.where(x[0, 0, 0] > 0.6, jnp.nan, 0.0) + jnp.arange(2.0)

    smoothed = Smoothed(diverges, 0.3)
    assert np.isnan(smoothed(X, key=KEY)).all()
    with pytest.raises(FloatingPointError, match="logits that are not finite"):
        predict(smoothed, np.asarray(X)[None], key=KEY)
    result = RandomizedSmoothing(n=100)(smoothed, X, 1, L2Ball(0.0), key=KEY)
    assert (int(result.label), float(result.radius), bool(result.certified)) == (-1, 0.0, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma must be finite and positive; got 0.0"),
        ({"sigma": float("nan")}, "sigma must be finite and positive; got nan"),
        ({"draws": 0}, "draws must be at least 1; got 0"),
        ({"chunk": 2.5}, "chunk must be an integer; got 2.5"),
        ({"logits_fn": 3}, "logits_fn must be a function; got 3"),
    ],
)
def test_a_vote_of_other_settings_is_refused(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Smoothed(**{"logits_fn": linear_logits(), "sigma": 0.1} | settings)


def test_a_vote_needs_a_key():
    with pytest.raises(ValueError, match="draws noise in every call"):
        Smoothed(linear_logits(), 0.1)(X)


# -- the confidence bound ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(20, 0.05), (1000, 0.001), (10_000, 1e-6)])
def test_the_bound_is_that_of_scipy_rounded_down(n, alpha):
    units = radii_of_counts(n, alpha)
    assert units.dtype == np.float32
    assert (np.diff(units) >= 0).all()
    for count in np.unique(np.linspace(0, n, 200).astype(int)):
        test = binomtest(int(count), n, alternative="greater")
        low = test.proportion_ci(1 - alpha, method="exact").low
        if low <= 0.5:
            assert units[count] == 0
        else:
            assert 0 <= norm.ppf(low) - units[count] <= 2e-7 * units[count] + 1e-8


def test_the_binomial_tail_in_exact_arithmetic_is_at_most_alpha():
    n, alpha = 60, 0.001
    units = radii_of_counts(n, alpha)
    for count in np.flatnonzero(units):
        # More than norm.cdf and the largest float32 unit lose; far less than its rounding.
        p = Fraction(norm.cdf(float(units[count]))) * (1 + Fraction(1, 10**14))
        tail = sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count, n + 1))
        assert tail <= Fraction(alpha)
        assert tail > Fraction(alpha) * Fraction(99, 100)


def test_the_largest_radius_is_that_of_a_unanimous_vote():
    for n, largest in ((10_000, 3.2), (100_000, 3.8)):
        unit = radii_of_counts(n, 0.001)[-1]
        assert round(float(unit), 1) == largest
        assert 0 < norm.ppf(0.001 ** (1 / n)) - unit < 1e-5  # 1e-9 of the probability


# -- the certificate -----------------------------------------------------------------------------


@eqx.filter_jit
def certify(certificate, networks_of, x, y, ball, values, key):
    return jax.vmap(lambda v: certificate(networks_of(v), x, y, ball, key=key))(values)


def radius_interval(n, alpha, p, sigma):
    """The radii of the counts that a vote of probability p has, but for CHANCE on each side."""
    low, high = binom.ppf(CHANCE, n, p), binom.ppf(1 - CHANCE, n, p)
    bounds = [
        [binomtest(int(k), n, alternative="greater").proportion_ci(1 - alpha).low for k in ks]
        for ks in (low, high)
    ]
    return [sigma * np.maximum(norm.ppf(b), 0) for b in bounds]


@pytest.mark.parametrize("inner", [0.0, 0.3])
def test_the_radius_of_a_linear_network_is_the_analytic_one_within_its_confidence(inner):
    """Noise of the network's own widens the vote, and shortens the radius that can be proven."""
    certificate, distance = RandomizedSmoothing(n=5000), 0.08
    network = at_distance(distance, inner=inner)
    proven = certify(
        certificate, lambda s: Smoothed(network, s, chunk=500), X, 1, L2Ball(0.01), SIGMAS, KEY
    )
    sigmas, length = SIGMAS.astype(float), float(jnp.linalg.norm(W))
    p = norm.cdf(distance * length / np.hypot(sigmas * length, inner))
    low, high = radius_interval(5000, 0.001, p, sigmas)
    assert (proven.radius >= 0.9999 * low).all()
    assert (proven.radius <= high).all()
    assert (proven.radius < distance).all()
    assert (low > 0).sum() >= 3
    np.testing.assert_array_equal(proven.label, np.where(proven.radius > 0, 1, -1))
    np.testing.assert_array_equal(proven.certified, proven.radius >= np.float32(0.01))


def test_the_radius_of_many_classes_is_that_of_the_winner_alone():
    """z_0 = 0 and z_j = x_j - t_j: independent rivals, whose probabilities multiply."""
    levels, x = np.array([0.62, 0.65, 0.7]), jnp.full((1, 3, 1), 0.5)

    def network(x):
        return jnp.concatenate([jnp.zeros(1), jnp.ravel(x) - jnp.asarray(levels, jnp.float32)])

    sigmas = SIGMAS[:3]
    proven = certify(
        RandomizedSmoothing(n=5000),
        lambda s: Smoothed(network, s, chunk=500), x, 0, L2Ball(0.01), sigmas, KEY,
    )  # fmt: skip
    p = np.prod(norm.cdf((levels - 0.5) / sigmas[:, None].astype(float)), axis=1)
    low, high = radius_interval(5000, 0.001, p, sigmas.astype(float))
    assert (proven.radius >= 0.9999 * low).all()
    assert (proven.radius <= high).all()
    assert (proven.radius < 0.12).all()  # the distance to the nearest boundary
    assert proven.radius[1] > 0.08


@pytest.mark.parametrize("distance", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_at_most_a_share_alpha_of_10_000_radii_is_too_large(distance):
    """As many votes choose as bound: votes that are used for both fail nearly twice as often."""
    trials, alpha = 10_000, 0.05
    certificate = RandomizedSmoothing(n0=100, n=100, alpha=alpha)
    smoothed = Smoothed(at_distance(distance), 0.1, chunk=100)

    @eqx.filter_jit
    def proven(smoothed, keys):
        return jax.vmap(lambda k: certificate(smoothed, X, 1, L2Ball(0.1), key=k))(keys)

    result = proven(smoothed, jax.random.split(KEY, trials))
    wrong = (result.radius > distance) | ((result.label == 0) & (distance > 0))
    assert wrong.sum() <= binom.ppf(1 - CHANCE, trials, alpha)
    # Nearly alpha: the bound is exact, but for the steps of a count.
    assert wrong.sum() >= 0.6 * alpha * trials
    abstained = result.label == -1
    np.testing.assert_array_equal(abstained, result.radius == 0)
    assert abstained.mean() > 0.9 if distance == 0 else not abstained.any()


def test_an_abstention_is_no_certificate_of_any_ball():
    smoothed = Smoothed(at_distance(0.0), 0.1)
    result = RandomizedSmoothing()(smoothed, X, 1, L2Ball(0.0), key=KEY)
    assert (int(result.label), float(result.radius), bool(result.certified)) == (-1, 0.0, False)
    assert not certified_radii(smoothed, X[None], [1], L2Ball(0.0), RandomizedSmoothing(), key=0)


def test_the_radius_in_l_infinity_is_that_in_l2_over_the_root_of_the_pixels():
    smoothed = Smoothed(at_distance(0.1), 0.1)
    l2, linf = (
        RandomizedSmoothing(n=1000)(smoothed, X, 1, ball, key=KEY).radius
        for ball in (L2Ball(0.1), LinfBall(0.1))
    )
    assert l2 > 0.05
    np.testing.assert_allclose(linf, l2 / 2, rtol=1e-6)


def test_a_confidence_for_many_images_is_a_smaller_alpha_for_each():
    together, each = RandomizedSmoothing(alpha=0.01, images=50), RandomizedSmoothing(alpha=2e-4)
    assert together.alpha_per_image == each.alpha_per_image
    smoothed = Smoothed(at_distance(0.1), 0.1)
    radii = [
        float(c(smoothed, X, 1, L2Ball(0.1), key=KEY).radius)
        for c in (together, each, RandomizedSmoothing(alpha=0.01))
    ]
    assert radii[0] == radii[1] < radii[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n0": 0}, "n0 must be at least 1; got 0"),
        ({"n": 1.5}, "n must be an integer; got 1.5"),
        ({"images": 0}, "images must be at least 1; got 0"),
        ({"alpha": 0.0}, "alpha must be finite and positive; got 0.0"),
        ({"alpha": 1.0}, "alpha must be at least 0 and below 1; got 1.0"),
        ({"alpha": "x"}, "alpha must be finite and positive; got 'x'"),
        ({"n": 9}, "n must be at least 10 for alpha / images = 0.001: .*; got 9"),
        ({"n": 13, "images": 10}, "n must be at least 14"),
    ],
)
def test_a_certificate_of_other_settings_is_refused(settings, message, unchecked):
    with pytest.raises(ValueError, match=message):
        RandomizedSmoothing(**settings)
    if "n must be at least" in message:  # one more vote, all of one class, proves something
        RandomizedSmoothing(**settings | {"n": settings["n"] + 1})
        assert radii_of_counts(10, 0.001)[-1] > 0 == radii_of_counts(9, 0.001)[-1]


@pytest.mark.parametrize("name", ["MLP", "EnResNet"])
def test_a_network_without_noise_on_its_image_is_refused(name):
    x = digits("test").pixels[0]
    with pytest.raises(ValueError, match=rf"certifies a vote under noise, such as .*; got {name}"):
        eqx.filter_eval_shape(RandomizedSmoothing(), predictor_of(name), x, 0, L2Ball(0.1), key=KEY)


def test_bounds_of_one_function_say_nothing_of_a_vote():
    x = digits("test").pixels[0]
    with pytest.raises(ValueError, match="Smoothed draws noise"):
        eqx.filter_eval_shape(
            LinearRelaxation(), Smoothed(trained_mlp(), 0.1), x, 0, LinfBall(0.1), key=KEY
        )


def test_each_image_has_draws_of_its_own():
    images = jnp.stack([X] * 20)
    smoothed = Smoothed(at_distance(0.1), 0.1)
    certificate = RandomizedSmoothing(n=100)
    radii = certified_radii(smoothed, images, [1] * 20, L2Ball(0.1), certificate, key=0)
    assert len(np.unique(radii)) > 3
    in_parts = certified_radii(
        smoothed, images, [1] * 20, L2Ball(0.1), certificate, key=0, batch_size=7
    )
    np.testing.assert_array_equal(radii, in_parts)


def test_an_ensemble_that_draws_noise_is_certified_once_its_image_is_noisy():
    smoothed = Smoothed(predictor_of("EnResNet"), 0.1)
    x = jnp.asarray(digits("test").pixels[0])
    label = int(jnp.argmax(smoothed(x, key=KEY)))
    certify = eqx.filter_jit(RandomizedSmoothing(n=100))
    result = certify(smoothed, x, label, L2Ball(0.01), key=KEY)
    assert bool(result.certified) == (float(result.radius) >= 0.01)
    assert result.label == label
    assert result.radius > 0


# -- the interval --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    smoothed = Smoothed(trained_mlp(), 0.25, draws=20, chunk=20)
    return bracket(
        smoothed,
        *digits("test", 40),
        [L2Ball(0.2), L2Ball(0.5)],
        attacks=EOT(PGD(8), 2),
        certificates=RandomizedSmoothing(n=400),
        key=KEY,
        draws=5,
    )


def test_both_ends_of_a_vote_are_measured(measured):
    for one in measured:
        assert 0 < one.certified <= one.attacked <= one.clean
    assert measured[0].certified > measured[1].certified
    assert measured[1].attacked < measured[1].clean
    names = {flag.name for flag in measured[0].flags}
    assert {"randomised output", "gradient unlike finite differences"} <= names
    assert not names & {"softmax output", "vanishing gradients"}
    # The judge is the vote of 5 x 20 draws.
    logits = measured[0].judge(jnp.asarray(measured[0].x_adv[0]))
    np.testing.assert_allclose(np.round(100 * (logits + 0.1)), 100 * (logits + 0.1), atol=1e-3)


def test_an_interval_says_how_sure_its_certificate_is(measured):
    said = (
        "RandomizedSmoothing certifies the exact vote, of infinitely many draws: with confidence "
        "99.9 % for each image, 96 % for all 40 at once"
    )
    assert all(said in " ".join(repr(shown).split()) for shown in (measured, measured[0]))
    assert json.loads(json.dumps(measured[0].summary()))["alpha"] == {"RandomizedSmoothing": 1e-3}


class Claims(eqx.Module):
    """A certificate of every image in every ball, with a confidence."""

    alpha_per_image: float = eqx.field(static=True, default=0.001)

    def __call__(self, predictor, x, y, ball, *, key):
        return CertificateResult(y, jnp.asarray(1.0), jnp.asarray(True))


@pytest.mark.parametrize(("eps", "refuted"), [(0.11, False), (0.2, True)])
def test_a_close_vote_is_not_counted_and_a_clear_one_refutes_the_certificate(eps, refuted):
    """Past the boundary of this linear vote, at 0.1, by a tenth of sigma, and by sigma."""
    images, labels = np.stack([np.asarray(X)] * 10), np.ones(10, int)
    settings = dict(attacks=EOT(PGD(8), 4), certificates=Claims(), key=KEY, flag_images=0, draws=5)
    smoothed = Smoothed(at_distance(0.1), 0.1, draws=40, chunk=40)

    def run():
        return bracket(smoothed, images, labels, L2Ball(eps), **settings)

    if refuted:
        with pytest.raises(RuntimeError, match="10 certified images were broken within L2Ball"):
            run()
    else:
        one = run()
        assert one.attacked < one.clean == 1
        np.testing.assert_array_equal(one.certified_correct, one.still_correct)
        np.testing.assert_array_equal(one.radius, one.still_correct)
        assert one.per_certificate == {"Claims": one.certified}
