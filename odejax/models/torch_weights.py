"""Weights of PyTorch's residual networks, as RobustBench lays them out, for those of odejax."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._batch import copied
from .._checks import check_instance
from .blocks import Conv
from .norms import BatchNorm
from .preact_resnet import PreActResNet, WideResNet

Network = TypeVar("Network", PreActResNet, WideResNet)
_SHOWN = 3  # names in an error


class _Layout(NamedTuple):
    """What PyTorch's code calls block i of stage s, its shortcut, the last norm and layer."""

    block: str
    shortcut: str
    norm: str
    linear: str
    unread: tuple[str, ...]  # how names begin that its forward pass never reads


_LAYOUTS = {
    PreActResNet: _Layout("layer{}.{}.", "shortcut.0", "bn", "linear", ()),
    WideResNet: _Layout("block{}.layer.{}.", "convShortcut", "bn1", "fc", ("sub_block1.",)),
}


def from_torch(
    weights: Mapping[str, Any], model: Network, state: eqx.nn.State
) -> tuple[Network, eqx.nn.State]:
    """`model` and `state` with the weights and batch statistics of a network in PyTorch.

    The names are those of RobustBench's `PreActResNet` and `WideResNet`. Stages s and convolutions
    j count from 1, blocks i from 0; `bn.*` are `weight`, `bias`, `running_mean` and `running_var`.

    | in odejax | `PreActResNet` | `WideResNet` |
    | --- | --- | --- |
    | `stem` | conv1.weight | conv1.weight |
    | block i of stage s | layer{s}.{i}. | block{s}.layer.{i}. |
    | its `convs.norms[j - 1]` | bn{j}.* | bn{j}.* |
    | its `convs.convs[j - 1]` | conv{j}.weight | conv{j}.weight |
    | its `shortcut` | shortcut.0.weight | convShortcut.weight |
    | `head.norm` | bn.* | bn1.* |
    | `head.linear` | linear.weight, linear.bias | fc.weight, fc.bias |

    A block with a shortcut, always block 0, is `downsamples[s - 1]`; the others are stacked in
    `layers[s - 1]`. Kernels (o, i, h, w) become (h, w, i, o). `num_batches_tracked` is not read,
    nor is `sub_block1`, which RobustBench's `WideResNet` may have but never evaluates.

    RobustBench's `PreActBlockV2` with `bn_before_fc=True` is a `PreActResNet` as it is by default.
    Its `PreActBlock` without `out_shortcut` needs `activated_shortcut=False`, which the names do
    not show. Without `bn_before_fc`, `last_norm=False`. Mean and std (`mu`, `sigma`) are no
    weights: take them out, and wrap the network in `Normalised`.

    - `weights`: arrays by name, NumPy's or a `state_dict()` on the CPU.
    - `model`, `state`: of the same depth, width and classes, with `BatchNorm`, from
      `eqx.nn.make_with_state`; the arrays may be shapes without values, from
      `eqx.filter_eval_shape`. RobustBench's networks are for images of 32 x 32 pixels.

    Raises `ValueError` for other networks, names that are missing or have no place, and arrays of
    other shapes.

        >>> import equinox as eqx, jax, odejax
        >>> make = eqx.nn.make_with_state(odejax.models.WideResNet)
        >>> model, state = make((32, 32, 3), depth=8, width=1, key=jax.random.key(0))
        >>> odejax.models.from_torch({"fc.bias": model.head.linear.bias}, model, state)
        Traceback (most recent call last):
        ...
        ValueError: weights lack conv1.weight, block1.layer.0.bn1.weight, ... (38 in all)

    Croce et al. (2021), *RobustBench*, arXiv:2010.09670.
    """
    check_instance(tuple(_LAYOUTS), "a PreActResNet or a WideResNet", model=model)
    check_instance(Mapping, "arrays by name, such as a state_dict()", weights=weights)
    layout, counts = _LAYOUTS[type(model)], _blocks(model)
    reader, arrays, state = _Reader(weights), [], copied(state)
    for node, names in _places(model, layout, counts):
        arrays += [reader.read(names, *part) for part in _parts(node)]
        if isinstance(node, BatchNorm):
            mean, variance = state.get(node.statistics)
            mean = reader.read(names, "running_mean", mean)
            state = state.set(node.statistics, (mean, reader.read(names, "running_var", variance)))
    reader.check(layout.unread, type(model).__name__)

    def leaves(model):
        nodes = (node for node, _ in _places(model, layout, counts))
        return [leaf for node in nodes for _, leaf, *_ in _parts(node)]

    return eqx.tree_at(leaves, model, arrays), state


def _blocks(model: Any) -> list[int]:
    """How many blocks each stage has, the downsampling one among them."""
    stages = zip(model.downsamples, model.layers, strict=True)
    return [
        (first is not None) + (0 if rest is None else len(rest.convs.convs[0].kernel))
        for first, rest in stages
    ]


def _places(model: Any, layout: _Layout, counts: Sequence[int]) -> Iterator[tuple[Any, list[str]]]:
    """Every layer with weights, and its name in PyTorch; of stacked layers, those of all."""
    yield model.stem, ["conv1"]
    for s, (first, rest) in enumerate(zip(model.downsamples, model.layers, strict=True)):
        blocks = [layout.block.format(s + 1, i) for i in range(counts[s])]
        if first is not None:
            yield from _of_convs(first.convs, blocks[:1])
            yield first.shortcut, [blocks[0] + layout.shortcut]
            blocks = blocks[1:]
        if rest is not None:
            yield from _of_convs(rest.convs, blocks)
    if model.head.norm is not None:
        yield model.head.norm, [layout.norm]
    yield model.head.linear, [layout.linear]


def _of_convs(convs: Any, blocks: list[str]) -> Iterator[tuple[Any, list[str]]]:
    for j, (norm, conv) in enumerate(zip(convs.norms, convs.convs, strict=True), start=1):
        yield norm, [f"{block}bn{j}" for block in blocks]
        yield conv, [f"{block}conv{j}" for block in blocks]


def _parts(node: Any) -> list[tuple[Any, ...]]:
    """(name in PyTorch, array) of the weights of a layer, and the axes of a kernel of PyTorch's."""
    if isinstance(node, Conv):
        return [("weight", node.kernel, (2, 3, 1, 0))]
    if isinstance(node, eqx.nn.Linear):
        return [("weight", node.weight, (0, 1)), ("bias", node.bias)]
    if not isinstance(node, BatchNorm):
        raise ValueError(f"model must have BatchNorm; got {type(node).__name__}")
    return [("weight", node.scale), ("bias", node.shift)]


class _Reader:
    """Arrays by name, and what was wrong with them."""

    def __init__(self, weights: Mapping[str, Any]):
        self.weights, self.names = weights, []
        self.wrong: list[str] = []

    def read(self, layers: list[str], part: str, like: Any, axes: tuple[int, ...] = (0,)) -> Any:
        """`part` of the layers, with transposed axes; stacked if `like` has an axis more."""
        shape = like.shape[-len(axes) :]
        arrays = [self._one(f"{layer}.{part}", shape, axes) for layer in layers]
        stacked = like.ndim > len(axes)
        return jnp.asarray(np.stack(arrays) if stacked else arrays[0], like.dtype)

    def _one(self, name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
        self.names.append(name)
        if name in self.weights:
            array = np.asarray(self.weights[name])
            expected = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
            if array.shape == expected:
                return array.transpose(axes)
            self.wrong.append(f"{name} must have shape {expected}; got {array.shape}")
        return np.zeros(shape)

    def check(self, unread: tuple[str, ...], network: str):
        missing = [name for name in self.names if name not in self.weights]
        if missing:
            raise ValueError(f"weights lack {_listed(missing)}")
        known = {*self.names}
        more = [
            name
            for name in self.weights
            if not (name in known or name.endswith("num_batches_tracked"))
            and not name.startswith(unread)
        ]
        if more:
            raise ValueError(f"this {network} has no place for {_listed(more)}")
        if self.wrong:
            raise ValueError(self.wrong[0])


def _listed(names: list[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 1])}, ... ({len(names)} in all)"
