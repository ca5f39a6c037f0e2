"""Weights in PyTorch's layout: logits are those of RobustBench's networks, here in NumPy."""

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import alternate
from torch_layout import forward, weights

from odejax import Predictor, predict
from odejax.models import MLP, GroupNorm, PreActResNet, WideResNet, from_torch

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(1).random((3, 8, 8, 3)).astype(np.float32)


def stages(depth_of_each, *channels):
    return [(depth_of_each, c) for c in channels]


# name -> (make, layout, settings of the forward pass)
NETWORKS = {
    "WideResNet": (
        (WideResNet, {"depth": 16, "width": 2}),
        (stages(2, 32, 64, 128), 16, {"wide": True}),
        {},
    ),
    "WideResNet, width 1": (
        (WideResNet, {"depth": 16, "width": 1}),
        (stages(2, 16, 32, 64), 16, {"wide": True}),
        {},
    ),
    "PreActBlock": (
        (PreActResNet, {"depth": 14, "activated_shortcut": False, "last_norm": False}),
        (stages(2, 16, 32, 64), 16, {"wide": False, "last_norm": False}),
        {"activated_shortcut": False},
    ),
    "PreActBlockV2": (
        (PreActResNet, {"depth": 14}),
        (stages(2, 16, 32, 64), 16, {"wide": False}),
        {},
    ),
}


def build(network):
    cls, settings = network
    return eqx.nn.make_with_state(cls)((8, 8, 3), 10, key=KEY, **settings)


@pytest.mark.parametrize("name", alternate(NETWORKS))
def test_the_logits_are_those_of_the_layout_it_came_from(name):
    network, (of_stages, stem, layout), run = NETWORKS[name]
    given = weights(of_stages, stem, **layout)
    expected = forward(given, IMAGES.transpose(0, 3, 1, 2), of_stages, wide=layout["wide"], **run)
    if layout["wide"]:  # which RobustBench's network may have, and never reads
        given["sub_block1.layer.0.bn1.weight"] = np.ones(16)
    shapes = eqx.filter_eval_shape(build, network)  # whose values nobody needs
    logits = predict(Predictor(*from_torch(given, *shapes)), IMAGES, key=KEY)
    assert np.ptp(expected, axis=0).min() > 0.01  # the images matter
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.fixture
def small():
    """A network, its state and fitting weights; the tests of errors compute nothing."""
    network, (of_stages, stem, layout), _ = NETWORKS["PreActBlockV2"]
    return *eqx.filter_jit(build)(network), weights(of_stages, stem, **layout)


def test_the_network_that_was_given_stays_as_it_was(small):
    model, state, given = small
    before = [np.asarray(leaf) for leaf in jax.tree.leaves((model, state)) if eqx.is_array(leaf)]
    one, statistics = from_torch(given, model, state)
    again, _ = from_torch(given, model, state)  # its state can be used again
    after = [leaf for leaf in jax.tree.leaves((model, state)) if eqx.is_array(leaf)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert eqx.tree_equal(one, again)
    mean, variance = statistics.get(one.head.norm.statistics)
    np.testing.assert_array_equal(mean, given["bn.running_mean"].astype(np.float32))
    np.testing.assert_array_equal(variance, given["bn.running_var"].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.1.conv2.weight": None}, r"lack layer1\.1\.conv2\.weight$"),
        ({"mu": np.zeros((1, 3, 1, 1))}, "this PreActResNet has no place for mu"),
        ({"sub_block1.x": np.zeros(1)}, r"no place for sub_block1\.x"),
        (
            {"layer2.0.shortcut.0.weight": np.zeros((32, 16, 3, 3))},
            r"layer2\.0\.shortcut\.0.* must have shape \(32, 16, 1, 1\); got \(32, 16, 3, 3\)",
        ),
        ({"bn.running_var": np.zeros(3)}, r"bn\.running_var must have shape \(64,\); got \(3,\)"),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_named(small, change, message):
    model, state, given = small
    given = {name: array for name, array in (given | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        from_torch(given, model, state)


@pytest.mark.usefixtures("unchecked")
def test_networks_that_are_in_neither_layout_are_refused(small):
    model, state, given = small
    other = {"module." + name: array for name, array in given.items()}
    with pytest.raises(ValueError, match=r"lack conv1\.weight, .* \(\d+ in all\)"):
        from_torch(other, model, state)
    with pytest.raises(ValueError, match="arrays by name"):
        from_torch("resnet.pt", model, state)
    grouped = NETWORKS["PreActBlockV2"][0][0], {"depth": 14, "norm": GroupNorm}
    with pytest.raises(ValueError, match="must have BatchNorm; got GroupNorm"):
        from_torch(given, *eqx.filter_eval_shape(build, grouped))
    with pytest.raises(ValueError, match="a PreActResNet or a WideResNet; got a MLP"):
        from_torch(given, *eqx.filter_eval_shape(build, (MLP, {"width": 4})))
