"""Layered integration: a residual network is an explicit Runge-Kutta method whose vector field
has new weights in every step.

y_{l+1} = y_l + h sum_i b_i k_i,   k_i = f_l(y_l + h sum_j a_ij k_j)

Euler gives a ResNet, SSPRK22 and SSPRK33 the SSP networks, and with noise Euler gives the
Euler-Maruyama layers of EnResNet.
"""

from collections.abc import Callable
from typing import cast

import diffrax
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._types import Key
from .feynman_kac import AbstractNoise


def _tableau(solver: diffrax.AbstractSolver) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows a_i and the weights b of an explicit method."""
    if isinstance(solver, diffrax.Euler):
        return [np.zeros(0)], np.ones(1)
    if isinstance(solver, diffrax.AbstractERK):
        tableau = cast(diffrax.ButcherTableau, solver.tableau)
        # A last stage of weight zero only serves to estimate the error of a step.
        used = int(np.flatnonzero(tableau.b_sol)[-1]) + 1
        return [np.zeros(0), *tableau.a_lower][:used], tableau.b_sol[:used]
    raise ValueError(
        f"layers are integrated by diffrax.Euler or an explicit Runge-Kutta method "
        f"(a subclass of diffrax.AbstractERK); got {type(solver).__name__}"
    )


def stack_layers(make: Callable[[Key], eqx.Module], depth: int, *, key: Key) -> eqx.Module:
    """`depth` layers of one shape as a single module whose arrays have a leading axis of depth."""
    if depth < 1:
        raise ValueError(f"depth must be at least 1; got {depth}")
    return eqx.filter_vmap(make)(jax.random.split(key, depth))


def integrate_layers(
    layers: Callable,
    y: Float[Array, "..."],
    state: eqx.nn.State,
    *,
    solver: diffrax.AbstractSolver | None = None,
    step_size: float | Float[Array, ""] = 1.0,
    noise: AbstractNoise | None = None,
    key: Key | None = None,
) -> tuple[Float[Array, "..."], eqx.nn.State]:
    """Take one step per layer, in a `lax.scan`, so compile time does not grow with depth.

    - `layers`: stacked by `stack_layers`; each is called at every stage of its step, with one set
      of weights, as `layer(y, state, key=key) -> (dy, state)`. State (BatchNorm's) is threaded
      through stages and layers.
    - `solver`: any explicit Diffrax solver, by default Euler. Weights shared by all layers make
      this `diffrax.diffeqsolve` with constant steps.
    - `noise`: added after each step; needs `key`.
    """
    rows, weights = _tableau(diffrax.Euler() if solver is None else solver)
    if noise is not None and key is None:
        raise ValueError("a network with noise needs a key: call it with key=jax.random.key(...)")
    arrays, static = eqx.partition(layers, eqx.is_array)
    depth = jax.tree.leaves(arrays)[0].shape[0]
    keys = None if key is None else jax.random.split(key, (depth, 2))  # of field and noise

    def step(y, layer):
        arrays, substate, key = layer
        field = eqx.combine(arrays, static)
        field_key, noise_key = (None, None) if key is None else key
        slopes = []
        for a in rows:
            stage = _combine(y, step_size, a, slopes)
            slope, substate = field(stage, substate, key=field_key)
            slopes.append(slope)
        y = _combine(y, step_size, weights, slopes)
        if noise is not None and noise_key is not None:
            y = noise.add(y, noise_key, step_size)
        return y, substate

    y, substate = jax.lax.scan(step, y, (arrays, state.substate(layers), keys))
    # Equinox invalidates a state that is updated: leave alone one that holds nothing of ours.
    return y, state.update(substate) if jax.tree.leaves(substate) else state


def _combine(y, step_size, weights, slopes):
    terms = [float(w) * k for w, k in zip(weights, slopes, strict=True) if w != 0]
    return y + step_size * sum(terms[1:], start=terms[0]) if terms else y
