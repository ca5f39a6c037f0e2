"""Reversible layers: the backward pass recomputes what it needs from the output.

X+ = X + h f1(Y),   Y+ = Y + h f2(X+)

is *natural* Eq. (21) (RevNet, Gomez et al. 2017): the symplectic Euler method for X' = f1(Y),
Y' = f2(X), and inverted by Y = Y+ - h f2(X+), X = X+ - h f1(Y). So nothing but the output has to be
kept for the gradient, and memory does not grow with depth.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._batch import gather_batch

Halves = tuple[Float[Array, "..."], Float[Array, "..."]]
Layers = tuple[Callable, Callable]  # f1 and f2


def integrate_reversible(
    layers: Layers, halves: Halves, state: eqx.nn.State, *, step_size: float = 1.0
) -> Halves:
    """(X, Y) after one step per layer, with a gradient whose memory does not grow with depth.

        X+ = X + h f1(Y),  Y+ = Y + h f2(X+)

    - `layers`: f1 and f2, each stacked by `stack_layers` and called as `layer(y, state) -> (dy,
      state)`. They must not change their state or look at the batch, as `BatchNorm` does in
      training.
    - `halves`: (X, Y), of any shape.
    - `state`: the layers' state.
    - `step_size`: h (1.0).

    The backward pass recomputes the states before the last one from it, to rounding; it is for
    reverse mode, and does not differentiate by `state`. In training (within `vmap_batch`) the
    gradient by the weights is that of the whole batch at once: one for each example would be as
    large as what is not kept.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> class Growth(eqx.Module):
        ...     rate: jax.Array
        ...     def __call__(self, y, state, key=None): return self.rate * y, state
        >>> layers = Growth(jnp.ones(1))  # one, stacked
        >>> fields, halves = (layers, layers), (jnp.ones(1), jnp.ones(1))
        >>> x, y = odejax.solvers.integrate_reversible(fields, halves, eqx.nn.State(fields))
        >>> x.tolist(), y.tolist()
        ([2.0], [3.0])

    Gomez et al. (2017), arXiv:1707.04585.
    """
    arrays, static = eqx.partition(layers, eqx.is_inexact_array)

    def couple(halves, arrays, states):
        fields = eqx.combine(arrays, static)
        return jax.vmap(lambda halves: _couple(fields, halves, states, step_size))(halves)

    def uncouple(halves, arrays, states):
        fields = eqx.combine(arrays, static)
        return jax.vmap(lambda halves: _uncouple(fields, halves, states, step_size))(halves)

    @jax.custom_vjp
    def run(halves, arrays, states):
        def step(halves, layer):
            return couple(halves, *layer), None

        return jax.lax.scan(step, halves, (arrays, states))[0]

    def forward(halves, arrays, states):
        out = run(halves, arrays, states)
        return out, (out, arrays, states)

    def backward(residuals, cotangent):
        out, arrays, states = residuals

        def step(carry, layer):
            halves, cotangent = carry
            arrays, states = layer
            before = uncouple(halves, arrays, states)
            _, pull_back = jax.vjp(lambda halves, a: couple(halves, a, states), before, arrays)
            cotangent, cotangent_arrays = pull_back(cotangent)
            return (before, cotangent), cotangent_arrays

        (_, cotangent), cotangent_arrays = jax.lax.scan(
            step, (out, cotangent), (arrays, states), reverse=True
        )
        return cotangent, cotangent_arrays, jax.tree.map(jnp.zeros_like, states)

    run.defvjp(forward, backward)
    gathered, own_of = gather_batch(halves)
    return own_of(run(gathered, arrays, _substates(layers, state)))


def invert_reversible(
    layers: Layers, halves: Halves, state: eqx.nn.State, *, step_size: float = 1.0
) -> Halves:
    """The (X, Y) that `integrate_reversible` takes to `halves`, to rounding.

        Y = Y+ - h f2(X+),  X = X+ - h f1(Y)

    - `layers`, `halves`, `state`, `step_size`: as in `integrate_reversible`.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> class Growth(eqx.Module):
        ...     rate: jax.Array
        ...     def __call__(self, y, state, key=None): return self.rate * y, state
        >>> layers = Growth(jnp.ones(1))  # one, stacked
        >>> fields, halves = (layers, layers), (2 * jnp.ones(1), 3 * jnp.ones(1))
        >>> x, y = odejax.solvers.invert_reversible(fields, halves, eqx.nn.State(fields))
        >>> x.tolist(), y.tolist()
        ([1.0], [1.0])

    Gomez et al. (2017), arXiv:1707.04585.
    """
    arrays, static = eqx.partition(layers, eqx.is_inexact_array)

    def step(halves, layer):
        return _uncouple(eqx.combine(layer[0], static), halves, layer[1], step_size), None

    states = _substates(layers, state)
    return jax.lax.scan(step, halves, (arrays, states), reverse=True)[0]


def _couple(fields: Layers, halves: Halves, states, h: float) -> Halves:
    x, y = halves
    x = x + h * fields[0](y, states[0])[0]
    return x, y + h * fields[1](x, states[1])[0]


def _uncouple(fields: Layers, halves: Halves, states, h: float) -> Halves:
    x, y = halves
    y = y - h * fields[1](x, states[1])[0]
    return x - h * fields[0](y, states[0])[0], y


def _substates(layers: Layers, state: eqx.nn.State):
    return tuple(state.substate(stack) for stack in layers)
