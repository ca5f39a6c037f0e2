"""Layers whose effective weights are derived from their parameters, and how to derive them once."""

import abc
from typing import TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

T = TypeVar("T", bound=PyTree)


class AbstractReparametrised(eqx.Module):
    """A layer that normalises its weights in every call, as training needs.

    `freeze` returns the layer that computes the same with the normalised weights stored. A
    `Predictor` freezes its model, so an attack of a thousand steps normalises once.
    """

    @abc.abstractmethod
    def freeze(self) -> eqx.Module:
        """The same function, its derived weights computed now."""


def freeze(model: T) -> T:
    """`model` with every `AbstractReparametrised` layer frozen."""

    def is_layer(node):
        return isinstance(node, AbstractReparametrised)

    return jax.tree.map(
        lambda node: node.freeze() if is_layer(node) else node, model, is_leaf=is_layer
    )
