"""Pre-activation ResNets: published sizes, and the network written out in plain convolutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax import Predictor
from odejax.models import GroupNorm, PreActResNet

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("depth", "millions"),
    # He et al. 2016 (a), Table 6, whose shortcuts have no weights (ours have 0.003 million); of the
    # wide one, kuangliu/pytorch-cifar's PreActResNet18.
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73), (18, 11.17)],
)
def test_it_has_the_published_number_of_weights(depth, millions):
    model = eqx.filter_eval_shape(
        lambda key: eqx.nn.make_with_state(PreActResNet)((32, 32, 3), depth=depth, key=key)[0], KEY
    )
    weights = [leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size")]
    assert sum(weights) / 1e6 == pytest.approx(millions, rel=0.02)


def test_it_is_the_network_of_the_paper_written_out():
    model, state = eqx.nn.make_with_state(PreActResNet)(
        (16, 16, 3), depth=14, norm=GroupNorm, key=KEY
    )
    # Scales and shifts start as one and zero, where a swap of two norms would not be seen.
    leaves, tree = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    keys = jax.random.split(KEY, len(leaves))
    moved = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    model = eqx.combine(jax.tree.unflatten(tree, moved), model)

    def conv(layer, x, stride=1, i=None):
        kernel, bias = (p if i is None else p[i] for p in (layer.kernel, layer.bias))
        pad = kernel.shape[0] // 2
        out = jax.lax.conv_general_dilated(
            x[None], kernel, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return out[0] + bias

    def norm_relu(norm, x, i=None):
        scale, shift = (p if i is None else p[i] for p in (norm.scale, norm.shift))
        groups = x.reshape(*x.shape[:2], norm.groups, -1)
        mean = groups.mean((0, 1, 3), keepdims=True)
        variance = groups.var((0, 1, 3), keepdims=True)
        x = ((groups - mean) / jnp.sqrt(variance + norm.eps)).reshape(x.shape)
        return jnp.maximum(x * scale + shift, 0)

    x = jax.random.uniform(KEY, (16, 16, 3))
    y = conv(model.stem, x)
    for transition, layers in zip(model.transitions, model.layers, strict=True):
        if transition is not None:
            r = norm_relu(transition.norms[0], y)
            z = conv(transition.convs[0], r, stride=2)
            z = conv(transition.convs[1], norm_relu(transition.norms[1], z))
            y = z + conv(transition.shortcut, r, stride=2)
        for i in range(len(layers.convs[0].bias)):
            z = conv(layers.convs[0], norm_relu(layers.norms[0], y, i), i=i)
            y = y + conv(layers.convs[1], norm_relu(layers.norms[1], z, i), i=i)
    assert y.shape == (4, 4, 64)
    logits = model.head.linear(norm_relu(model.head.norm, y).mean((0, 1)))
    np.testing.assert_allclose(Predictor(model, state)(x), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [2, 19, 21])
def test_a_depth_that_no_such_network_has_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be 6 n [+] 2, 18 or 34; got {depth}"):
        PreActResNet((32, 32, 3), depth=depth, key=KEY)
