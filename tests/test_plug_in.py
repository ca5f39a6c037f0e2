"""A layer in front of the classifier of every architecture."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import _maker, all_models, digits, predictor_of

from odejax import Predictor
from odejax.models import MLP, BeforeClassifier, Conv, NmODE, NmODENet, insert_before_classifier

KEY = jax.random.key(5)
NMODE = NmODE(3.0, 5.0)
X = np.asarray(digits().pixels[0])


@eqx.filter_jit
def logits_of(model, state, x):
    return Predictor(model, state)(x, key=KEY)


def build(make):
    return eqx.filter_jit(make)(KEY)


# One of each architecture: its norm or solver has no part in this.
ARCHITECTURES = [
    "MLP",
    "ResNet",
    "EnResNet",
    "ConvODENet",
]
# Which have their classifier of another one above.
SLOW = [
    pytest.param(n, marks=pytest.mark.slow)
    for n in ("SSPNet SSPRK33", "AugmentedODENet", "DenseODENet")
]


@pytest.mark.parametrize(
    "name",
    [*ARCHITECTURES, *SLOW, "NmODENet flow map"],
)
def test_every_architecture_takes_it_and_keeps_its_weights(name):
    # Whose program other tests have compiled.
    model, state = predictor_of(name).model, predictor_of(name).state
    plugged = insert_before_classifier(model, NMODE)
    before, after = (jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (model, plugged))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)

    # The identity changes nothing, nmODE does, and it is differentiable. Of the same arrays, for
    # which the compiler orders its sums the same way.
    @eqx.filter_jit
    def compute(model, x):
        models = [model] + [insert_before_classifier(model, f) for f in (lambda y: y, NMODE)]

        def total(x):
            logits = Predictor(models[2], state)(x, key=KEY)
            return jnp.sum(logits**2), logits

        gradient, logits = jax.grad(total, has_aux=True)(x)
        return [Predictor(m, state)(x, key=KEY) for m in models[:2]] + [logits], gradient

    logits, gradient = jax.tree.map(np.asarray, compute(model, X))
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_in_front_of_a_linear_classifier_of_features_it_is_the_papers_net():
    # 784 - 2048 - nmODE - 10: two linear layers with nmODE between them.
    nmode_net, state = build(_maker(NmODENet, width=16, nmode=NMODE))
    two_linear, _ = build(_maker(MLP, width=16, depth=1, activation=lambda y: y))
    plugged = insert_before_classifier(two_linear, NMODE)
    np.testing.assert_allclose(
        logits_of(plugged, state, X), logits_of(nmode_net, state, X), atol=1e-6
    )


def test_stacked_nmode_is_an_mlp_with_nmode_as_its_activation():
    stacked, state = build(_maker(NmODENet, width=16, depth=3, nmode=NMODE))
    mlp, _ = build(_maker(MLP, width=16, depth=3, activation=NMODE))
    np.testing.assert_allclose(logits_of(stacked, state, X), logits_of(mlp, state, X), atol=1e-6)


def test_a_place_of_the_users_own():
    model, state = build(all_models["MLP"])
    first = insert_before_classifier(model, lambda y: 0 * y, lambda m: m.layers[0])
    assert isinstance(first.layers[0], BeforeClassifier)
    logits = logits_of(first, state, X)
    np.testing.assert_array_equal(logits, logits_of(first, state, np.float32(0.5) * X))


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(ValueError, match=r"Conv has no eqx\.nn\.Linear"):
        insert_before_classifier(Conv(1, 1, 3, key=KEY), NMODE)
    model, _ = eqx.filter_eval_shape(all_models["ResNet"], KEY)
    with pytest.raises(ValueError, match="Stem"):
        insert_before_classifier(model, NMODE, lambda m: m.stem)
