"""A network of normalised pixels is a network of pixels: balls, bounds and flags are theirs."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odejax import LinfBall, Predictor, load, save
from odejax.attacks import PGD
from odejax.certificates import IntervalBounds, best
from odejax.data import ArrayDataset
from odejax.evaluation import solver_variants
from odejax.models import MLP, DenseODENet, Normalised
from odejax.training import CrossEntropy, fit

KEY, SHAPE = jax.random.key(0), (4, 4, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.5)
IMAGES = np.random.default_rng(0).random((12, *SHAPE)).astype(np.float32)


@eqx.filter_jit
def mlp(key=KEY):
    return eqx.nn.make_with_state(MLP)(SHAPE, 3, width=16, depth=1, key=key)


def folded(net):
    """The same function of pixels: the first layer takes up the normalisation."""
    first = net.layers[0]
    scale, shift = (np.tile(v, 16) for v in (1 / np.asarray(STD), -np.divide(MEAN, STD)))
    return eqx.tree_at(
        lambda m: (m.layers[0].weight, m.layers[0].bias),
        net,
        (first.weight * scale, first.bias + first.weight @ shift),
    )


def test_bounds_go_through_it_and_balls_stay_in_pixels():
    ball, bounds, attack = LinfBall(0.02), IntervalBounds(bisections=3), PGD(10)

    @eqx.filter_jit
    def measure(images):
        net, state = mlp()
        normalised = Predictor(Normalised(net, MEAN, STD), state)
        plain = Predictor(folded(net), state)

        def one(x):
            logits = normalised(x)
            label = jnp.argmax(logits)
            proofs = [bounds(p, x, label, ball, key=KEY) for p in (normalised, plain)]
            return logits, plain(x), proofs, attack(normalised, x, label, ball, key=KEY)

        return jax.vmap(one)(images)

    logits, expected, proofs, attacked = measure(IMAGES)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(proofs[0].radius, proofs[1].radius, atol=1e-5)
    assert 0.2 < np.mean(proofs[0].certified) < 1
    assert not (attacked.success & proofs[0].certified).any()
    # In units of std the perturbation would be half as large, or less.
    np.testing.assert_allclose(np.abs(attacked.x_adv - IMAGES).max((1, 2, 3)), 0.02, atol=1e-6)
    assert list(best(Predictor(Normalised(mlp()[0], MEAN, STD), mlp()[1]))) == ["CROWN"]


def test_mean_and_std_are_settings_and_no_weights():
    net, state = mlp()
    model = Normalised(net, MEAN, np.reshape(STD, (1, 3, 1, 1)))  # as a buffer of PyTorch's
    data = ArrayDataset(IMAGES, np.arange(12) % 3)
    optimizer = optax.adamw(0.1, weight_decay=1.0)
    settings = {"epochs": 2, "batch_size": 6, "key": KEY, "progress": False}
    trained = fit(model, state, data, CrossEntropy(), optimizer, **settings)
    assert (trained.model.mean, trained.model.std) == (MEAN, STD)
    assert not np.allclose(trained.model.model.layers[0].weight, net.layers[0].weight)


def test_it_is_saved_and_loaded_as_any_module(tmp_path):
    net, state = mlp()
    save(tmp_path / "net", Predictor(Normalised(net, MEAN, STD), state))
    loaded = load(tmp_path / "net")
    assert eqx.tree_equal(loaded.model, Normalised(net, MEAN, STD))


def test_a_normalised_neural_ode_still_has_a_solver_to_flag_and_to_count():
    solver = {"solver": diffrax.Heun(), "stepsize_controller": diffrax.ConstantStepSize()}

    def make(key):
        return eqx.nn.make_with_state(DenseODENet)(SHAPE, 3, width=4, dt0=0.25, key=key, **solver)

    def outcome(x):
        net, state = make(KEY)
        model = Normalised(net, 0.5, 0.25)
        inside = (x - 0.5) / 0.25
        logits, _, solution = model.with_solution(x, state)
        own, _ = model.solve(x, state)
        fixed = solver_variants(Predictor(model, state), steps=8)["fixed steps"]
        return logits, net(inside, state)[0], own.ys, solution.ys, fixed.model.ode.dt0

    logits, expected, own, solved, dt0 = eqx.filter_jit(outcome)(IMAGES[0])
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    np.testing.assert_allclose(own[0], solved[0], atol=1e-6)
    assert dt0 == 1 / 8
    assert not any(hasattr(Normalised(mlp()[0], 0.5, 0.25), n) for n in ("ode", "with_solution"))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, (0.25, 0.0, 0.5), r"std must be positive; got \(0.25, 0.0, 0.5\)"),
        ((125.3, 123.0, 113.9), STD, r"mean must lie in \[0, 1\].*; got \(125.3"),
        (0.5, float("nan"), "std must be finite; got nan"),
        ((0.5, 0.5), 0.25, "mean must have one value, or 3"),
        (0.5, np.full(4, 0.25), "std must have one value, or 3"),
    ],
)
def test_other_numbers_are_refused(mean, std, message):
    net, _ = mlp()
    with pytest.raises(ValueError, match=message):
        Normalised(net, mean, std)
    if "one value" in message:  # and at the image, of a model that states no shape
        plain = Normalised(lambda x, state, key: (x, state), mean, std)
        with pytest.raises(ValueError, match=message):
            plain.normalise(jnp.zeros(SHAPE))
