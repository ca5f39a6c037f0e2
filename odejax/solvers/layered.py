"""Layered integration: a residual network is an explicit Runge-Kutta method whose vector field
has new weights in every step.

y_{l+1} = y_l + h sum_i b_i k_i,   k_i = f_l(y_l + h sum_j a_ij k_j)

Euler gives a ResNet, SSPRK22 and SSPRK33 the SSP networks, and with noise Euler gives the
Euler-Maruyama layers of EnResNet. Other steps than Runge-Kutta's are in `layer_steps`.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_count, check_positive
from .._types import Key
from .feynman_kac import AbstractNoise
from .layer_steps import AbstractLayerStep, RungeKutta


def stack_layers(make: Callable[[Key], eqx.Module], depth: int, *, key: Key) -> eqx.Module:
    """`depth` layers of one shape as a single module whose arrays have a leading axis of depth.

    - `make`: `make(key)` is one layer.
    - `depth`: how many.

    Raises `ValueError` for no layers.

        >>> import equinox as eqx, jax, odejax
        >>> make = lambda key: eqx.nn.Linear(2, 2, key=key)
        >>> layers = odejax.solvers.stack_layers(make, 3, key=jax.random.key(0))
        >>> layers.weight.shape
        (3, 2, 2)

    Haber and Ruthotto (2017), arXiv:1705.03341, for layers as the steps of a method.
    """
    check_count(depth=depth)
    return eqx.filter_vmap(make)(jax.random.split(key, depth))


def apply_layers(layers: Callable, y: PyTree) -> PyTree:
    """One stacked layer after the other, in a `lax.scan`: the last y.

        y_{l+1} = layer_l(y_l)

    - `layers`: stacked by `stack_layers`, each called as `layer(y)`.
    - `y`: any tree of arrays.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> make = lambda key: eqx.nn.Linear(2, 2, key=key)
        >>> layers = odejax.solvers.stack_layers(make, 3, key=jax.random.key(0))
        >>> odejax.solvers.apply_layers(layers, jnp.ones(2)).shape
        (2,)

    Haber and Ruthotto (2017), arXiv:1705.03341, for layers as the steps of a method.
    """
    arrays, static = eqx.partition(layers, eqx.is_array)
    y, _ = jax.lax.scan(lambda y, layer: (eqx.combine(layer, static)(y), None), y, arrays)
    return y


def layer_step(solver: diffrax.AbstractSolver | AbstractLayerStep | None) -> AbstractLayerStep:
    """The step of a solver, as `integrate_layers` takes it: an `AbstractLayerStep`.

    - `solver`: any explicit Diffrax solver or an `AbstractLayerStep`; None is Euler's method.

    Raises `ValueError` for any other solver.

        >>> import odejax
        >>> odejax.solvers.layer_step(odejax.solvers.SSPRK22()).weights
        (0.5, 0.5)

    Hairer, Nørsett and Wanner (1993), *Solving Ordinary Differential Equations I*.
    """
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
    """The state after one step per layer, in a `lax.scan`, and the layers' new state.

        y_{l+1} = y_l + h sum_i b_i k_i,  k_i = f_l(y_l + h sum_j a_ij k_j)

    Compile time does not grow with depth.

    - `layers`: stacked by `stack_layers`; each is called at every stage of its step, with one set
      of weights, as `layer(y, state, key=key) -> (dy, state)`. State (BatchNorm's) is threaded
      through stages and layers.
    - `y`, `state`: the first state, of any shape, and the layers' state.
    - `solver`: any explicit Diffrax solver, by default Euler, or another `AbstractLayerStep`.
      Weights shared by all layers make the former `diffrax.diffeqsolve` with constant steps. A
      step's arrays, such as learned coefficients, have a leading axis of depth.
    - `step_size`: h (1.0).
    - `noise`: added after each step (None); needs `key`.

    Raises `ValueError` for noise without a key, and coefficients for another depth.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> class Growth(eqx.Module):
        ...     rate: jax.Array
        ...     def __call__(self, y, state, key=None): return self.rate * y, state
        >>> layers = Growth(jnp.ones(3))  # three of them, stacked
        >>> odejax.solvers.integrate_layers(layers, jnp.ones(1), eqx.nn.State(layers))[0].tolist()
        [8.0]

    He et al. (2016), arXiv:1603.05027; Haber and Ruthotto (2017), arXiv:1705.03341.
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
    """All states that `integrate_layers` goes through, the first and the last included, (depth + 1,
    ...).

    - `layers`, `y`, `state`, `solver`, `step_size`: as in `integrate_layers`.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> class Growth(eqx.Module):
        ...     rate: jax.Array
        ...     def __call__(self, y, state, key=None): return self.rate * y, state
        >>> layers = Growth(jnp.ones(3))  # three of them, stacked
        >>> odejax.solvers.layer_states(layers, jnp.ones(1), eqx.nn.State(layers)).ravel().tolist()
        [1.0, 2.0, 4.0, 8.0]

    Haber and Ruthotto (2017), arXiv:1705.03341, for layers as the steps of a method.
    """
    _, _, states = _scan(layers, y, state, layer_step(solver), step_size, every=True)
    return jnp.concatenate([y[None], states])  # pyright: ignore[reportArgumentType]


def layered_drift(
    layers: Callable, state: eqx.nn.State, step_size: float = 1.0
) -> Callable[[Any, Float[Array, "..."]], Float[Array, "..."]]:
    """The vector field drift(t, y) that is layer l at all times from l h to (l + 1) h.

        drift(t, y) = f_l(y),  l = floor(t / h)

    By it a network's residual layers are solved by `diffusion_path`, `feynman_kac` and
    `multilevel_feynman_kac`: with as many steps as layers Euler's method is `integrate_layers`.

    - `layers`, `state`: as in `integrate_layers`; the layers' new state is lost, so networks with
      BatchNorm must be in inference mode.
    - `step_size`: h (1.0).

    Raises `ValueError` for a step that is not positive.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> class Growth(eqx.Module):
        ...     rate: jax.Array
        ...     def __call__(self, y, state, key=None): return self.rate * y, state
        >>> layers = Growth(jnp.array([1.0, 5.0]))  # two of them, stacked
        >>> drift = odejax.solvers.layered_drift(layers, eqx.nn.State(layers), 0.5)
        >>> [float(drift(t, jnp.ones(()))) for t in (0.0, 0.4, 0.5)]
        [1.0, 1.0, 5.0]

    Wang et al. (2019), arXiv:1811.10745, Section 3.
    """
    check_positive(step_size=step_size)
    arrays, static = eqx.partition(layers, eqx.is_array)
    substate = state.substate(layers)
    depth = jax.tree.leaves(arrays)[0].shape[0]

    def drift(t, y):
        # A sum of steps may be rounded to less than the time at which a layer begins.
        i = jnp.clip(jnp.floor(t / step_size + 1e-3).astype(int), 0, depth - 1)
        layer, own = jax.tree.map(lambda a: a[i], (arrays, substate))
        return eqx.combine(layer, static)(y, own)[0]

    return drift


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
