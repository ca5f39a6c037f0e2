"""Orthogonal matrices, min and max, and the network of them: what is proven holds, and is tight."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import digits
from hypothesis import given, settings, strategies as st

from odejax import L2Ball, Predictor
from odejax.attacks import PGD
from odejax.certificates import LipschitzMargin
from odejax.models import MLP, LipschitzNet, MinMax, OrthogonalNet, OrthogonalOperator, UnitRows
from odejax.training import CrossEntropy, RadiusCrossEntropy, fit

KEY = jax.random.key(2)
SHAPES = [(12, 12), (6, 12), (12, 6)]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 999), log_scale=st.floats(-6, 6), log_spread=st.floats(0, 2))
def test_the_matrix_is_orthogonal_and_its_norm_is_bounded(shape, seed, log_scale, log_spread):
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    x = u * np.geomspace(10**log_scale, 10 ** (log_scale + log_spread), min(shape)) @ v
    frozen = OrthogonalOperator(jnp.asarray(x, jnp.float32)).freeze()
    w = np.asarray(frozen.matrix, np.float64)
    norms = np.linalg.svd(w, compute_uv=False)
    assert norms.max() <= frozen.norm_bound() <= norms.max() + 2e-3 + 1e-2 * (1 - norms.min())
    assert frozen.smallest_square() <= (norms.min() ** 2 if shape[0] >= shape[1] else 0.0) + 1e-12
    np.testing.assert_allclose(norms, 1, atol=2e-2 if log_spread > 1 else 2e-3)
    # The same space: no row (or column) of X has a part outside of that of W.
    rest = x - (x @ w.T @ w if shape[0] <= shape[1] else w @ w.T @ x)
    assert np.linalg.norm(rest) < 1e-2 * np.linalg.norm(x)


def test_what_is_proven_of_frozen_weights_is_about_them_alone():
    """A planted fault: weights that are not orthogonal at all."""
    planted = OrthogonalOperator(jnp.asarray([[2.0, 0.0], [0.0, 0.5]]), frozen=True)
    assert planted.norm_bound() >= 2
    assert planted.smallest_square() <= 0.25
    assert OrthogonalOperator(2 * jnp.eye(3)).norm_bound() == 1


def test_its_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, along, x0 = (jnp.asarray(rng.normal(size=s)) for s in ((4, 6), (4, 6), (6,)))

        @jax.jit
        def value(t):
            return jnp.sum(jnp.sin(OrthogonalOperator(x + t * along)(x0)))

        difference = (value(1e-6) - value(-1e-6)) / 2e-6
        assert float(jax.grad(value)(0.0)) == pytest.approx(float(difference), rel=1e-6)


def test_min_max_only_sorts_pairs():
    x = jax.random.normal(KEY, (3, 5, 8))
    y = MinMax()(x)
    p, q = np.split(np.asarray(x), 2, axis=-1)
    np.testing.assert_array_equal(y, np.concatenate([np.maximum(p, q), np.minimum(p, q)], axis=-1))
    with pytest.raises(ValueError, match="pairs of channels; got 7"):
        MinMax()(x[..., :7])


def test_unit_rows_have_length_one_and_a_row_of_zeros_stays():
    rows = UnitRows(jnp.asarray([[3.0, 4.0], [0.0, 0.0]])).freeze().matrix
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda m: UnitRows(m)(jnp.ones(2)).sum())(jnp.zeros((2, 2)))).all()


def network(widths=(32, 32)):
    return eqx.nn.make_with_state(OrthogonalNet)((8, 8, 1), widths=widths, key=KEY)


def test_the_network_keeps_the_length_of_a_gradient():
    """Of no other map than orthogonal ones and permutations is that true."""
    model, _ = network((64, 64))
    x, direction = jax.random.uniform(KEY, (8, 8, 1)), jnp.arange(10.0)
    *body, head = model.layers.layers
    _, pull = jax.vjp(lambda x: jnp.ravel(_through(body, x)), x)
    rows = head.operator.freeze().matrix
    (back,) = pull(direction @ rows)
    assert float(jnp.linalg.norm(back)) == pytest.approx(
        float(jnp.linalg.norm(direction @ rows)), rel=1e-4
    )


def _through(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def test_no_pair_of_images_is_further_apart_than_the_bounds():
    model, state = network()
    predictor = Predictor(model, state)
    bound, of_pairs = predictor.model.lipschitz_bound(), predictor.model.margin_bounds(3)
    assert bound <= math.sqrt(10) * 1.01
    x, y = jax.random.uniform(KEY, (2, 200, 8, 8, 1))
    for other in (y, x + 1e-3 * (y - 0.5)):
        difference = jax.vmap(predictor)(x) - jax.vmap(predictor)(other)
        apart = jnp.sqrt(jnp.sum((x - other) ** 2, axis=(1, 2, 3)))
        assert (jnp.linalg.norm(difference, axis=1) <= bound * apart * (1 + 1e-4)).all()
        margins = jnp.abs(difference[:, 3:4] - difference)
        assert (margins <= of_pairs * apart[:, None] * (1 + 1e-4) + 1e-6).all()
    assert of_pairs[3] == 0
    assert (jnp.delete(of_pairs, 3) < 2 * 1.001).all()


def test_the_loss_moves_every_other_class_by_its_own_margin():
    model, state = network()
    images, labels = jnp.asarray(digits("train", 9).pixels), jnp.asarray(digits("train", 9).labels)
    objective = RadiusCrossEntropy(eps=0.7, temperature=0.5)
    loss, (_, correct) = objective(model, clone(state), images, labels, key=KEY)
    z = np.float64(jax.vmap(lambda x: model(x, state)[0])(images))
    rows = np.float64(model.layers.layers[-1].operator.freeze().matrix)
    apart = np.linalg.norm(rows[np.asarray(labels)][:, None] - rows, axis=2)
    moved = (z + 0.7 * apart) / 0.5
    own = moved[np.arange(9), labels]
    expected = np.mean(np.log(np.exp(moved).sum(1)) - own)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert int(correct) == (z.argmax(1) == labels).sum()


def test_with_one_constant_for_all_pairs_it_is_cross_entropy_with_a_margin():
    class Flat(eqx.Module):
        weight: jax.Array

        def __call__(self, x, state, *, key=None):
            return self.weight @ x.ravel(), state

        def margin_bounds(self, label):
            return jnp.where(jnp.arange(4) == label, 0.0, math.sqrt(2))

    model, state = Flat(jax.random.normal(KEY, (4, 64))), eqx.nn.State(None)
    batch = jnp.asarray(digits("train", 6).pixels), jnp.arange(6) % 4
    ours, _ = RadiusCrossEntropy(0.3, 0.25)(model, state, *batch, key=KEY)
    plain, _ = CrossEntropy(0.25, margin=0.3 * math.sqrt(2))(
        model, eqx.nn.State(None), *batch, key=KEY
    )
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)


def test_other_models_and_arguments_are_refused():
    with pytest.raises(ValueError, match="eps must be finite and positive"):
        RadiusCrossEntropy(eps=0.0)
    with pytest.raises(ValueError, match="widths must be even, for pairs of units; got 7"):
        network((8, 7))
    model, state = eqx.nn.make_with_state(MLP)((8, 8, 1), width=4, key=KEY)
    images = jnp.zeros((2, 8, 8, 1))
    with pytest.raises(ValueError, match="MLP has none"):
        RadiusCrossEntropy(1.0)(model, state, images, jnp.zeros(2, jnp.int32), key=KEY)


@pytest.mark.slow
def test_trained_for_a_radius_it_is_certified_on_more_images_and_no_attack_breaks_it():
    """Beside gradient flows of the same loss; digits, l2 0.5."""
    train, test, ball = digits("train"), digits("test", 200), L2Ball(0.5)
    xs, ys = jnp.asarray(test.pixels), jnp.asarray(test.labels)

    @eqx.filter_jit
    def certified_and_correct(predictor):
        def of_image(x, y):
            proof = LipschitzMargin()(predictor, x, y, ball, key=KEY)
            x_adv = PGD(20)(predictor, x, y, ball, key=KEY).x_adv
            return proof.certified, predictor(x_adv).argmax() == y

        return jax.vmap(of_image)(xs, ys)

    shares = {}
    for name, (model, state) in {
        "orthogonal": network((64, 64)),
        "gradient flows": eqx.nn.make_with_state(LipschitzNet)(
            (8, 8, 1), width=8, depth=1, features=64, key=KEY
        ),
    }.items():
        trained = fit(
            model, state, train, RadiusCrossEntropy(0.6), optax.adam(3e-3),
            epochs=12, batch_size=64, key=KEY, progress=False,
        )  # fmt: skip
        certified, correct = certified_and_correct(Predictor(trained.model, trained.state))
        assert not (certified & ~correct).any()
        shares[name] = float(certified.mean())
    assert shares["orthogonal"] > max(0.55, shares["gradient flows"])


def clone(state):
    return jax.tree.map(lambda leaf: leaf, state)
