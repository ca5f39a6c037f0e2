"""RobustBench's two residual networks in NumPy, by the names of their weights in PyTorch.

Written from their published architecture, in the layout of PyTorch: images (n, c, h, w), kernels
(o, i, h, w). `weights(...)` draws a dictionary, `forward(...)` evaluates it.
"""

import numpy as np


def names_and_shapes(stages, stem, *, wide, bottleneck=False, last_norm=True, classes=10, image=3):
    """Of a network whose stages are (blocks, channels): every name, and the shape of its array."""
    shapes = {"conv1.weight": (stem, image, 3, 3)}

    def norm(name, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    inputs = stem
    for s, (blocks, channels) in enumerate(stages, start=1):
        for i in range(blocks):
            block = f"block{s}.layer.{i}." if wide else f"layer{s}.{i}."
            convs = [(inputs, channels, 3), (channels, channels, 3)]
            if bottleneck:
                inner = channels // 4
                convs = [(inputs, inner, 1), (inner, inner, 3), (inner, channels, 1)]
            for j, (ins, outs, size) in enumerate(convs, start=1):
                norm(f"{block}bn{j}", ins)
                shapes[f"{block}conv{j}.weight"] = (outs, ins, size, size)
            if inputs != channels:
                name = "convShortcut.weight" if wide else "shortcut.0.weight"
                shapes[block + name] = (channels, inputs, 1, 1)
            inputs = channels
    if last_norm:
        norm("bn1" if wide else "bn", inputs)
    linear = "fc" if wide else "linear"
    return shapes | {f"{linear}.weight": (classes, inputs), f"{linear}.bias": (classes,)}


def weights(*args, seed=0, **settings):
    """Drawn, of a size that keeps activations near one; no two arrays are alike."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("num_batches_tracked"):
            return np.asarray(7)
        if len(shape) > 1:
            return rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        if "bn" in name and name.endswith(("weight", "running_var")):
            return rng.uniform(0.5, 1.5, shape)
        return 0.2 * rng.normal(size=shape)

    return {name: draw(name, shape) for name, shape in names_and_shapes(*args, **settings).items()}


def forward(weights, images, stages, *, wide, bottleneck=False, activated_shortcut=True, stem=None):
    """Logits (n, k) of images (n, c, h, w)."""

    def norm_relu(name, x):
        w, b, mean, variance = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return np.maximum(w * (x - mean) / np.sqrt(variance + 1e-5) + b, 0)

    def block(name, x, stride):
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        y = activated = None
        for j, of_conv in enumerate(strides, start=1):
            y = norm_relu(f"{name}bn{j}", x if y is None else y)
            activated = y if activated is None else activated
            y = convolve(y, weights[f"{name}conv{j}.weight"], of_conv)
        shortcut = name + ("convShortcut.weight" if wide else "shortcut.0.weight")
        if shortcut in weights:
            x = convolve(activated if activated_shortcut else x, weights[shortcut], stride)
        return x + y

    x = convolve(images, weights["conv1.weight"])
    for s, (blocks, _) in enumerate(stages, start=1):
        for i in range(blocks):
            name = f"block{s}.layer.{i}." if wide else f"layer{s}.{i}."
            x = block(name, x, 2 if s > 1 and i == 0 else 1)
    last, linear = ("bn1", "fc") if wide else ("bn", "linear")
    if f"{last}.weight" in weights:
        x = norm_relu(last, x)
    return x.mean((2, 3)) @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"]


def convolve(x, kernel, stride=1):
    """Cross-correlation, padded by half of the kernel with zeros."""
    size = kernel.shape[-1]
    around = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (around, around), (around, around)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return np.einsum("nihwab,oiab->nohw", windows[:, :, ::stride, ::stride], kernel, optimize=True)
