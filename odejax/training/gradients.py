"""How a batch becomes a gradient, where that is not the derivative of one objective.

`fit` accepts any of these in the place of an objective.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import PyTree

from .._checks import check_count
from .._mesh import spread
from .._types import Images, Key, Labels
from .objectives import Loss, Objective

Gradient = tuple[Loss, PyTree, PyTree]  # (loss, aux), gradient of params, carry


class AbstractGradientRule(eqx.Module):
    """`rule(params, static, state, carry, images, labels, key=key)` -> a `Gradient`.

    The model is `eqx.combine(params, static)`. `carry` is what the rule hands from one step to the
    next, `init(shape)` the first one, for batches of images of that shape. Each batch is taken
    `replays` times in a row, with a step of the optimizer after each.
    """

    replays: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        """The first carry."""

    @abc.abstractmethod
    def __call__(
        self,
        params: PyTree,
        static: PyTree,
        state: State,
        carry: PyTree,
        images: Images,
        labels: Labels,
        *,
        key: Key,
    ) -> Gradient:
        """The loss and gradient at `params`."""


class Derivative(AbstractGradientRule):
    """The derivative of an objective: what `fit` does with one.

    - `objective`: such as `CrossEntropy()`.
    - `parts`: 1 by default. More add up the gradients of as many parts of the batch, one after the
      other, for batches that do not fit into memory. Without batch statistics and noise that
      changes nothing but the rounding.

    Raises `ValueError` where the parts do not divide the batch.

    >>> data = odejax.data.ArrayDataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    >>> net = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 1), 2, key=jax.random.key(0))
    >>> settings = {"epochs": 1, "batch_size": 4, "key": jax.random.key(1), "progress": False}
    >>> rule = odejax.training.Derivative(odejax.training.CrossEntropy(), parts=2)
    >>> len(odejax.training.fit(*net, data, rule, optax.sgd(0.1), **settings).history)
    1
    """

    objective: Objective
    parts: int = eqx.field(static=True, default=1)
    replays: ClassVar[int] = 1

    def __check_init__(self):
        check_count(parts=self.parts)

    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        if shape[0] % self.parts:
            raise ValueError(f"parts must divide the batch of {shape[0]}; got {self.parts}")
        return None

    def __call__(
        self, params, static, state: State, carry, images: Images, labels: Labels, *, key: Key
    ) -> Gradient:
        def derivative(state, images, labels, key):
            def loss(params):
                model = eqx.combine(params, static)
                return self.objective(model, state, images, labels, key=key)

            return jax.value_and_grad(loss, has_aux=True)(params)

        if self.parts == 1:
            return *derivative(state, images, labels, key), carry

        def add(total, part):
            (loss, (state, correct)), gradient = total
            images, labels, key = part
            (value, (state, right)), slope = derivative(state, spread(images), spread(labels), key)
            gradient = jax.tree.map(jnp.add, gradient, slope)
            return ((loss + value, (state, correct + right)), gradient), None

        split = jax.tree.map(lambda a: a.reshape(self.parts, -1, *a.shape[1:]), (images, labels))
        like = jax.eval_shape(derivative, state, images, labels, key)[0][0]
        nothing = (jnp.zeros((), like.dtype), (state, jnp.zeros((), jnp.int32)))
        zero = jax.tree.map(jnp.zeros_like, params)
        keys = jax.random.split(key, self.parts)
        ((loss, aux), gradient), _ = jax.lax.scan(add, (nothing, zero), (*split, keys))
        mean = jax.tree.map(lambda g: g / self.parts, gradient)
        return (loss / self.parts, aux), mean, carry
