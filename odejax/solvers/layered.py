"""Layered integration: a residual network is an explicit Runge-Kutta method whose vector field
has new weights in every step.

y_{l+1} = y_l + h sum_i b_i k_i,   k_i = f_l(y_l + h sum_j a_ij k_j)

Euler gives a ResNet, SSPRK22 and SSPRK33 the SSP networks, and with noise Euler gives the
Euler-Maruyama layers of EnResNet. Other steps than Runge-Kutta's are in `layer_steps`.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_count
from .._types import Key
from .feynman_kac import AbstractNoise
from .layer_steps import AbstractLayerStep, RungeKutta


def stack_layers(make: Callable[[Key], eqx.Module], depth: int, *, key: Key) -> eqx.Module:
    """`depth` layers of one shape as a single module whose arrays have a leading axis of depth."""
    check_count(depth=depth)
    return eqx.filter_vmap(make)(jax.random.split(key, depth))


def apply_layers(layers: Callable, y: PyTree) -> PyTree:
    """One stacked layer after the other, y -> layer(y), in a `lax.scan`."""
    arrays, static = eqx.partition(layers, eqx.is_array)
    y, _ = jax.lax.scan(lambda y, layer: (eqx.combine(layer, static)(y), None), y, arrays)
    return y


def layer_step(solver: diffrax.AbstractSolver | AbstractLayerStep | None) -> AbstractLayerStep:
    """The step of a solver, as `integrate_layers` takes it; by default Euler's."""
    if isinstance(solver, AbstractLayerStep):
        return solver
    return RungeKutta(diffrax.Euler() if solver is None else solver)


def integrate_layers(
    layers: Callable,
    y: Float[Array, "..."],
    state: eqx.nn.State,
    *,
    solver: diffrax.AbstractSolver | AbstractLayerStep | None = None,
    step_size: float | Float[Array, ""] = 1.0,
    noise: AbstractNoise | None = None,
    key: Key | None = None,
) -> tuple[Float[Array, "..."], eqx.nn.State]:
    """Take one step per layer, in a `lax.scan`, so compile time does not grow with depth.

    - `layers`: stacked by `stack_layers`; each is called at every stage of its step, with one set
      of weights, as `layer(y, state, key=key) -> (dy, state)`. State (BatchNorm's) is threaded
      through stages and layers.
    - `solver`: any explicit Diffrax solver, by default Euler, or another `AbstractLayerStep`.
      Weights shared by all layers make the former `diffrax.diffeqsolve` with constant steps. A
      step's arrays, such as learned coefficients, have a leading axis of depth.
    - `noise`: added after each step; needs `key`.
    """
    if noise is not None and key is None:
        raise ValueError("a network with noise needs a key: call it with key=jax.random.key(...)")
    y, substate, _ = _scan(layers, y, state, layer_step(solver), step_size, noise, key)
    # Equinox invalidates a state that is updated: not one that the layers do not use.
    return y, state.update(substate) if jax.tree.leaves(substate) else state


def layer_states(
    layers: Callable,
    y: Float[Array, "..."],
    state: eqx.nn.State,
    *,
    solver: diffrax.AbstractSolver | AbstractLayerStep | None = None,
    step_size: float | Float[Array, ""] = 1.0,
) -> Float[Array, "n ..."]:
    """All states that `integrate_layers` goes through, the first and the last included."""
    _, _, states = _scan(layers, y, state, layer_step(solver), step_size, every=True)
    return jnp.concatenate([y[None], states])  # pyright: ignore[reportArgumentType]


def _scan(layers, y, state, take, step_size, noise=None, key=None, *, every=False):
    """The last state, the layers' new substate and, with `every`, the state after each layer."""
    arrays, static = eqx.partition((layers, take), eqx.is_array)
    depth = jax.tree.leaves(arrays[0])[0].shape[0]
    for array in jax.tree.leaves(arrays[1]):
        if array.shape[:1] != (depth,):
            raise ValueError(f"the step has coefficients {array.shape} for {depth} layers")
    keys = None if key is None else jax.random.split(key, (depth, 2))  # of field and noise

    def step(y, layer):
        arrays, substate, key = layer
        field, take = eqx.combine(arrays, static)
        field_key, noise_key = (None, None) if key is None else key

        def slope(stage):
            nonlocal substate
            dy, substate = field(stage, substate, key=field_key)
            return dy

        y = take(slope, y, step_size)
        if noise is not None and noise_key is not None:
            y = noise.add(y, noise_key, step_size)
        return y, (substate, y if every else None)

    y, (substate, states) = jax.lax.scan(step, y, (arrays, state.substate(layers), keys))
    return y, substate, states
