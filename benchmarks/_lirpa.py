# pyright: reportMissingImports=false
"""CROWN by auto_LiRPA, in PyTorch, of the MLP and the ResNet of odejax with the same weights."""

import importlib.util

import numpy as np

from odejax import LinfBall, Predictor
from odejax.models import MLP

INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "auto_LiRPA"))


def in_torch(predictor: Predictor):
    """A `torch.nn.Module` of NCHW images."""
    import torch
    from torch import nn

    model, state = predictor.model, predictor.state

    def tensor(array):
        return torch.tensor(np.asarray(array))

    def linear(layer):
        out = nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
        out.weight.data, out.bias.data = tensor(layer.weight), tensor(layer.bias)
        return out

    def conv(kernel, bias, **settings):
        kernel = tensor(kernel).permute(3, 2, 0, 1).contiguous()
        out = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2:], **settings)
        out.weight.data, out.bias.data = kernel, tensor(bias)
        return out

    def norm(layer, i=...):
        mean, variance = (tensor(np.asarray(a)[i]) for a in state.get(layer.statistics))
        out = nn.BatchNorm2d(len(mean), eps=layer.eps)
        out.weight.data, out.bias.data = (tensor(a[i]) for a in (layer.scale, layer.shift))
        out.running_mean, out.running_var = mean, variance
        return out

    class Block(nn.Module):
        def __init__(self, field, i):
            super().__init__()
            layers = []
            for before, layer in zip(field.norms, field.convs, strict=True):
                layers += [norm(before, i), nn.ReLU()]
                layers += [conv(layer.kernel[i], layer.bias[i], padding=layer.padding)]
            self.residual = nn.Sequential(*layers)

        def forward(self, x):
            return x + self.residual(x)

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    if isinstance(model, MLP):
        layers = [module for layer in model.layers for module in (linear(layer), nn.ReLU())]
        net = nn.Sequential(nn.Flatten(), *layers[:-1])
    else:
        (stem,) = model.stem.convs
        depth = len(model.layers.convs[0].kernel)
        net = nn.Sequential(
            conv(stem.kernel, stem.bias, padding=stem.padding),
            *(Block(model.layers, i) for i in range(depth)),
            *(norm(model.head.norm), nn.ReLU(), Mean(), linear(model.head.linear)),
        )
    return net.eval().requires_grad_(False)


class LiRPA:
    """Lower bounds on the margins z_label - z_j of images, (n, k), by auto_LiRPA's CROWN."""

    def __init__(self, predictor: Predictor, image_shape: tuple[int, int, int]):
        import torch
        from auto_LiRPA import BoundedModule

        height, width, channels = image_shape
        example = torch.zeros(1, channels, height, width)
        self.net = in_torch(predictor)
        self.bounded = BoundedModule(self.net, example, device="cpu")

    def logits(self, images) -> np.ndarray:
        return self.net(_nchw(images)).detach().numpy()

    def __call__(self, images, labels, ball: LinfBall) -> np.ndarray:
        import torch
        from auto_LiRPA import BoundedTensor, PerturbationLpNorm

        x, eps = _nchw(images), float(ball.eps)
        k = self.net[-1].out_features
        margins = torch.eye(k)[labels][:, None, :] - torch.eye(k)
        # The row of the label itself is zero, which auto_LiRPA need not bound.
        others = torch.arange(k) != torch.tensor(labels)[:, None]
        box = PerturbationLpNorm(x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1))
        low, _ = self.bounded.compute_bounds(
            x=(BoundedTensor(x, box),),
            C=margins[others].reshape(len(x), k - 1, k),
            method="CROWN",
            bound_upper=False,
        )
        out = torch.zeros(len(x), k)
        out[others] = low.detach().reshape(-1)
        return out.numpy()


def _nchw(images):
    import torch

    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))
