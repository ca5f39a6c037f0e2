"""PyTorch's networks in RobustBench's layout have the logits of odejax's with their weights."""

import importlib.util
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from torch_layout import forward

from odejax import Predictor, predict
from odejax.models import Normalised, PreActResNet, WideResNet, from_torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="needs the extra `peers`: no torch"
    ),
    pytest.mark.filterwarnings("ignore"),  # torch's own
]
KEY = jax.random.key(0)
BLOCKS = np.random.default_rng(0).random((4, 4, 4, 3))
IMAGES = BLOCKS.repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def torch_net(stages, stem, *, wide, activated_shortcut=True, last_norm=True, bottleneck=False):
    """A module whose names are RobustBench's: `layer1.0.bn1` or `block1.layer.0.bn1`, and so on."""
    import torch
    from torch import nn
    from torch.nn.functional import relu

    def conv(inputs, outputs, size, stride=1):
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            inner = outputs // 4 if bottleneck else outputs
            self.depth = 3 if bottleneck else 2
            if bottleneck:
                sizes = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
            else:
                sizes = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
            for j, size in enumerate(sizes, start=1):
                setattr(self, f"bn{j}", nn.BatchNorm2d(size[0]))
                setattr(self, f"conv{j}", conv(*size))
            self.to_shortcut = inputs != outputs
            if self.to_shortcut and wide:
                self.convShortcut = conv(inputs, outputs, 1, stride)
            elif self.to_shortcut:
                self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

        def forward(self, x):
            first = y = relu(self.bn1(x))
            for j in range(1, self.depth + 1):
                y = y if j == 1 else relu(getattr(self, f"bn{j}")(y))
                y = getattr(self, f"conv{j}")(y)
            if self.to_shortcut:
                shortcut = self.convShortcut if wide else self.shortcut
                x = shortcut(first if activated_shortcut else x)
            return x + y

    class Stage(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.layer = blocks

        def forward(self, x):
            return self.layer(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, inputs = conv(3, stem, 3), stem
            for s, (count, outputs) in enumerate(stages, start=1):
                strides = [1 if s == 1 else 2] + [1] * (count - 1)
                blocks = nn.Sequential(
                    *(
                        Block(inputs if i == 0 else outputs, outputs, stride)
                        for i, stride in enumerate(strides)
                    )
                )
                if wide:
                    setattr(self, f"block{s}", Stage(blocks))
                else:
                    setattr(self, f"layer{s}", blocks)
                inputs = outputs
            if last_norm:
                setattr(self, "bn1" if wide else "bn", nn.BatchNorm2d(inputs))
            setattr(self, "fc" if wide else "linear", nn.Linear(inputs, 10))

        def forward(self, x):
            x = self.conv1(x)
            for s in range(1, len(stages) + 1):
                x = getattr(self, f"block{s}" if wide else f"layer{s}")(x)
            if last_norm:
                x = relu((self.bn1 if wide else self.bn)(x))
            return (self.fc if wide else self.linear)(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    # Statistics, scales and shifts that are not those of the beginning.
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def four(*counts, factor=1):
    return [(count, factor * 64 * 2**s) for s, count in enumerate(counts)]


def wide(depth, width):
    return [((depth - 4) // 6, 16 * width * 2**s) for s in range(3)], 16, {"wide": True}


RAW = {"activated_shortcut": False, "last_norm": False}
NETWORKS = {
    "WideResNet-28-10": (partial(WideResNet, depth=28, width=10), *wide(28, 10)),
    "WideResNet-34-2": (partial(WideResNet, depth=34, width=2), *wide(34, 2)),
    "PreActResNet-18, PreActBlock": (
        partial(PreActResNet, depth=18, **RAW), four(2, 2, 2, 2), 64, {"wide": False, **RAW}
    ),
    "PreActResNet-18, PreActBlockV2": (
        partial(PreActResNet, depth=18), four(2, 2, 2, 2), 64, {"wide": False}
    ),
    "PreActResNet-50": (
        partial(PreActResNet, depth=50), four(3, 4, 6, 3, factor=4), 64,
        {"wide": False, "bottleneck": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_pytorch(name):
    import torch

    make, stages, stem, settings = NETWORKS[name]
    net = torch_net(stages, stem, **settings)
    x = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        last = list(net.children())[-1]  # of logits up to 10, as trained networks have
        last.weight.mul_(10 / net((x - mean) / std).abs().max())
        expected = net((x - mean) / std).numpy()

    shapes = eqx.filter_eval_shape(lambda: eqx.nn.make_with_state(make)((32, 32, 3), key=KEY))
    model, state = from_torch(net.state_dict(), *shapes)
    logits = predict(Predictor(Normalised(model, MEAN, STD), state), IMAGES, key=KEY)
    assert np.ptp(expected, axis=0).min() > 0.1  # the images matter
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

    # And the forward pass in NumPy, which the tests without torch rely on, is that of PyTorch.
    if name == "WideResNet-34-2":
        given = {name: array.numpy() for name, array in net.state_dict().items()}
        inputs = ((x - mean) / std).numpy()
        np.testing.assert_allclose(
            forward(given, inputs, stages, wide=True), expected, rtol=0, atol=1e-4
        )
