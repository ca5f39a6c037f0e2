"""The pre-activation ResNet and its ensemble against PyTorch's layers with the same weights."""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax._types import BATCH_AXIS
from odejax.attacks import cross_entropy
from odejax.models import EnResNet, PreActResNet
from odejax.solvers import ConstantNoise
from odejax.training import batch_logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="needs the extra `peers`: no torch"
    ),
    pytest.mark.filterwarnings("ignore"),  # torch's own
]
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((8, 32, 32, 3))
LABELS = np.arange(8) % 10


@pytest.fixture(autouse=True)
def double():
    """In float32 a few ReLUs switch on rounding, and the gradients of two right answers differ."""
    with jax.enable_x64(True):
        yield


def torch_logits_and_gradient(nets, train):
    """Of the mean logits, and of the mean cross-entropy by the images."""
    import torch

    x = torch.tensor(IMAGES).permute(0, 3, 1, 2).requires_grad_()
    for net in nets:
        net.train(train)
    logits = torch.stack([net(x) for net in nets]).mean(0)
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    assert x.grad is not None
    return logits.detach().numpy(), x.grad.permute(0, 2, 3, 1).numpy()


def our_logits_and_gradient(model, state, train):
    model = model if train else eqx.nn.inference_mode(model)

    def loss(images):
        logits, new_state = batch_logits(model, state, images, key=KEY)
        return jnp.mean(jax.vmap(cross_entropy)(logits, jnp.asarray(LABELS))), (logits, new_state)

    gradient, (logits, new_state) = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(IMAGES))
    return np.asarray(logits), np.asarray(gradient), new_state


def warm(model, state):
    """Running statistics that are not those of the images at hand."""
    other = jnp.asarray(np.random.default_rng(1).random((16, 32, 32, 3)))
    for _ in range(3):
        _, state = jax.jit(
            lambda state: jax.vmap(
                lambda x: model(x, state, key=KEY), out_axes=(0, None), axis_name=BATCH_AXIS
            )(other)
        )(state)
    return state


@pytest.mark.parametrize("train", [False, True], ids=("inference", "train"))
@pytest.mark.parametrize("members", [None, 2])
def test_logits_gradients_and_statistics_are_those_of_pytorch(members, train):
    from benchmarks._torch_resnet import torch_net

    if members is None:
        model, state = eqx.nn.make_with_state(PreActResNet)((32, 32, 3), depth=20, key=KEY)
        state = warm(model, state)
        nets = [torch_net(model, state)]
    else:
        model, state = eqx.nn.make_with_state(EnResNet)(
            (32, 32, 3), base=PreActResNet, depth=20, members=2, noise=ConstantNoise(0.0), key=KEY
        )
        state = warm(model, state)
        nets = [torch_net(model.nets, state, i) for i in range(2)]
    logits, gradient, new_state = our_logits_and_gradient(model, state, train)
    expected, slope = torch_logits_and_gradient(nets, train)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-9 * np.abs(slope).max())
    if train:
        for i, net in enumerate(nets):
            trained = model if members is None else model.nets
            updated = new_state.get(trained.head.norm.statistics)
            updated = updated if members is None else [a[i] for a in updated]
            theirs = net[-1].norm.running_mean, net[-1].norm.running_var
            for a, b in zip(updated, theirs, strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-12)
