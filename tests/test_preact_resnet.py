"""Pre-activation ResNets: published sizes, and the network written out in plain convolutions."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax import Predictor
from odejax.models import GroupNorm, PreActResNet, WideResNet
from odejax.solvers import ConstantNoise

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("make", "millions"),
    # Three stages: He et al. 2016 (a), Table 6, whose shortcuts have no weights (here 0.003
    # million). Four: PyTorch's ResNets without their larger stem and classifier. Wide: their paper,
    # Tables 4 and 5, *enresnet* 4.3, and of WRN-34-10 TRADES.
    [
        (partial(PreActResNet, depth=20), 0.27),
        (partial(PreActResNet, depth=32), 0.46),
        (partial(PreActResNet, depth=44), 0.66),
        (partial(PreActResNet, depth=56), 0.85),
        (partial(PreActResNet, depth=110), 1.73),
        (partial(PreActResNet, depth=18), 11.17),
        (partial(PreActResNet, depth=34), 21.28),
        (partial(PreActResNet, depth=50), 23.50),
        (partial(PreActResNet, depth=101), 42.49),
        (partial(WideResNet, depth=14, width=2), 0.69),
        (partial(WideResNet, depth=28, width=10), 36.5),
        (partial(WideResNet, depth=34, width=10), 46.2),
    ],
)
def test_it_has_the_published_number_of_weights(make, millions):
    model = eqx.filter_eval_shape(
        lambda key: eqx.nn.make_with_state(make)((32, 32, 3), key=key)[0], KEY
    )
    weights = [leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size")]
    assert sum(weights) / 1e6 == pytest.approx(millions, rel=0.02)


def build(make, *args, **settings):
    """By one program."""
    make = eqx.nn.make_with_state(make)
    return eqx.filter_jit(lambda key: make(*args, key=key, **settings))(KEY)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        # Basic blocks in small steps; the paper's are those of size 1.
        (partial(PreActResNet, depth=14, step_size=0.3), (4, 4, 64)),
        (partial(WideResNet, depth=8, width=2), (4, 4, 128)),
        pytest.param(partial(PreActResNet, depth=14), (4, 4, 64), marks=pytest.mark.slow),
        pytest.param(partial(PreActResNet, depth=50), (2, 2, 2048), marks=pytest.mark.slow),
    ],
    ids=("small steps", "wide", "basic", "bottleneck"),
)
def test_it_is_the_network_of_the_paper_written_out(make, shape):
    model, state = build(make, (16, 16, 3), norm=GroupNorm)
    # Scales and shifts start as one and zero, where a swap of two norms would not be seen.
    rng = np.random.default_rng(0)
    model = jax.tree.map(
        lambda p: (
            (p + 0.1 * rng.standard_normal(p.shape, np.float32)) if eqx.is_inexact_array(p) else p
        ),
        jax.tree.map(lambda p: np.asarray(p) if eqx.is_inexact_array(p) else p, model),
    )

    def conv(layer, x, stride=1, i=None):
        assert layer.bias is None
        kernel = layer.kernel if i is None else layer.kernel[i]
        pad = kernel.shape[0] // 2
        out = jax.lax.conv_general_dilated(
            x[None], kernel, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return out[0]

    def norm_relu(norm, x, i=None):
        scale, shift = (p if i is None else p[i] for p in (norm.scale, norm.shift))
        groups = x.reshape(*x.shape[:2], norm.groups, -1)
        mean = groups.mean((0, 1, 3), keepdims=True)
        variance = groups.var((0, 1, 3), keepdims=True)
        x = ((groups - mean) / jnp.sqrt(variance + norm.eps)).reshape(x.shape)
        return jnp.maximum(x * scale + shift, 0)

    h = make.keywords.get("step_size", 1.0)

    def features(net, x):
        y = conv(net.stem, x)
        for stage, (downsample, layers) in enumerate(zip(net.downsamples, net.layers, strict=True)):
            if downsample is not None:
                z, stride = y, 2 if stage else 1
                r = norm_relu(downsample.convs.norms[0], y)
                n_convs = len(downsample.convs.convs)
                for j, c in enumerate(downsample.convs.convs):
                    # The resolution is halved by the first 3x3 convolution.
                    halves = j == (1 if n_convs == 3 else 0)
                    z = conv(
                        c, norm_relu(downsample.convs.norms[j], z), stride=stride if halves else 1
                    )
                y = h * z + conv(downsample.shortcut, r, stride=stride)
            # Wide stages of one layer have but the downsampling block.
            for i in range(0 if layers is None else len(layers.convs.convs[0].kernel)):
                z = y
                for n, c in zip(layers.convs.norms, layers.convs.convs, strict=True):
                    z = conv(c, norm_relu(n, z, i), i=i)
                y = y + h * z
        return y

    @eqx.filter_jit
    def both(model, x):
        y = features(model, x)
        logits = model.head.linear(norm_relu(model.head.norm, y).mean((0, 1)))
        return y, logits, Predictor(model, state)(x)

    y, logits, actual = both(model, rng.uniform(size=(16, 16, 3)).astype(np.float32))
    assert y.shape == shape
    np.testing.assert_allclose(actual, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [2, 19, 21])
def test_a_depth_that_no_such_network_has_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be 6 n [+] 2 or one of 18, .* got {depth}"):
        PreActResNet((32, 32, 3), depth=depth, key=KEY)


def test_a_step_that_no_layer_can_take_is_refused():
    with pytest.raises(ValueError, match=r"step_size must be finite and not negative; got -0.1"):
        PreActResNet((32, 32, 3), step_size=-0.1, key=KEY)


@pytest.mark.parametrize("depth", [4, 18, 27])
def test_a_depth_that_no_wide_network_has_is_refused(depth):
    with pytest.raises(ValueError, match=f"depth must be 6 n [+] 4, .* got {depth}"):
        WideResNet((32, 32, 3), depth=depth, key=KEY)


def test_noise_is_added_after_every_residual_layer():
    draws = []

    class Counted(ConstantNoise):
        def std(self, y):
            jax.debug.callback(lambda: draws.append(y.shape))
            return super().std(y)

    make = partial(eqx.nn.make_with_state(PreActResNet), depth=14, noise=Counted(0.1))
    # Its draws do not depend on its weights.
    model, state = jax.tree.map(
        lambda p: np.zeros(p.shape, p.dtype) if hasattr(p, "shape") else p,
        eqx.filter_eval_shape(lambda key: make((8, 8, 1), norm=GroupNorm, key=key), KEY),
    )
    x = np.zeros((8, 8, 1), np.float32)
    jax.block_until_ready(eqx.filter_jit(lambda model: model(x, state, key=KEY)[0])(model))
    jax.effects_barrier()
    assert sorted(draws, reverse=True) == 2 * [(8, 8, 16)] + 2 * [(4, 4, 32)] + 2 * [(2, 2, 64)]
    with pytest.raises(ValueError, match="needs a key"):
        eqx.filter_eval_shape(lambda model: model(x, state)[0], model)
