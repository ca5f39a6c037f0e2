# pyright: reportMissingImports=false
"""The pre-activation ResNet in PyTorch's own layers, with the weights of odejax's."""

import numpy as np
import torch
from torch import nn


def torch_net(net, state, i=None, *, noise=0.0):
    """A `torch.nn` module with the weights and statistics of a `PreActResNet` (of member `i`).

    `noise`: after every residual layer is added that many standard deviations of its output.
    """

    def tensor(array, *index):
        index = index if i is None else (i, *index)
        return torch.tensor(np.array(array)[index])

    def conv(layer, *index):
        kernel = tensor(layer.kernel, *index).permute(3, 2, 0, 1)
        out = nn.Conv2d(
            kernel.shape[1], kernel.shape[0], kernel.shape[2], layer.stride, layer.padding,
            bias=False,
        )  # fmt: skip
        out.weight.data = kernel.contiguous()
        return out

    def norm(layer, *index):
        out = nn.BatchNorm2d(tensor(layer.scale, *index).shape[0])
        mean, variance = state.get(layer.statistics)
        out.weight.data, out.bias.data = tensor(layer.scale, *index), tensor(layer.shift, *index)
        out.running_mean, out.running_var = tensor(mean, *index), tensor(variance, *index)
        return out

    class Block(nn.Module):
        def __init__(self, convs, shortcut=None, *index):
            super().__init__()
            self.norms = nn.ModuleList(norm(n, *index) for n in convs.norms)
            self.convs = nn.ModuleList(conv(c, *index) for c in convs.convs)
            self.shortcut = None if shortcut is None else conv(shortcut)

        def forward(self, x):
            y = torch.relu(self.norms[0](x))
            shortcut = x if self.shortcut is None else self.shortcut(y)
            y = self.convs[0](y)
            y = shortcut + self.convs[1](torch.relu(self.norms[1](y)))
            if noise:
                y = y + noise * y.std((1, 2, 3), correction=0, keepdim=True) * torch.randn_like(y)
            return y

    class Head(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.norm = norm(head.norm)
            weight = tensor(head.linear.weight)
            self.linear = nn.Linear(weight.shape[1], weight.shape[0])
            self.linear.weight.data, self.linear.bias.data = weight, tensor(head.linear.bias)

        def forward(self, x):
            return self.linear(torch.relu(self.norm(x)).mean((2, 3)))

    blocks = [conv(net.stem)]
    for downsample, layers in zip(net.downsamples, net.layers, strict=True):
        if downsample is not None:
            blocks.append(Block(downsample.convs, downsample.shortcut))
        depth = layers.convs.norms[0].scale.shape[0 if i is None else 1]
        blocks += [Block(layers.convs, None, j) for j in range(depth)]
    return nn.Sequential(*blocks, Head(net.head))
