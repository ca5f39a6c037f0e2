"""A shock, and what a time step makes of it (*ssp*, the illustration of strong stability).

    u_t + (u^2 / 2)_x = 0     on the periodic unit interval

by fifth-order WENO reconstruction (Jiang & Shu 1996) of a Lax-Friedrichs flux. No step of Euler's,
however short, keeps the total variation along this slope, so there is no strong stability for a
method to inherit: Euler oscillates because high-order slopes are unstable under it, and every
method that is stable there does well, of whatever SSP coefficient.
"""

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_positive
from .layer_steps import AbstractLayerStep
from .layered import layer_step

Cells = Float[Array, " n"]


def burgers(
    initial: Cells,
    *,
    solver: diffrax.AbstractSolver | AbstractLayerStep | None = None,
    courant: float = 0.5,
    t1: float = 1.0,
) -> Float[Array, "steps n"]:
    """u at the cells' centres after 0, 1, 2, ... steps up to t1, (steps + 1, n).

        u_t + (u^2 / 2)_x = 0 on the periodic unit interval

    - `initial`: u(., 0) at the n centres, (n,).
    - `solver`: an explicit Diffrax solver or an `AbstractLayerStep`; by default Euler's method.
    - `courant`: dt max|u_0| / dx, rounded down to a whole number of steps (0.5).
    - `t1`: the last time (1.0).

    Raises `ValueError` for fewer than 5 cells, or a `courant` or `t1` that is not positive, or an
    initial state of zeros.

        >>> import jax.numpy as jnp, odejax
        >>> odejax.solvers.burgers(jnp.ones(8), courant=0.5, t1=0.5).shape
        (9, 8)

    Jiang and Shu (1996), *Journal of Computational Physics* 126.
    """
    n = len(initial)
    if n < 5:
        raise ValueError(f"the reconstruction needs 5 cells; got {n}")
    check_positive(courant=courant, t1=t1)
    speed = float(jnp.max(jnp.abs(initial)))
    if speed == 0:
        raise ValueError("the initial state is 0 everywhere: nothing moves")
    steps = int(jnp.ceil(t1 * speed * n / courant))
    step, dt = layer_step(solver), t1 / steps

    def advance(u, _):
        u = step(burgers_slope, u, dt)
        return u, u

    _, states = jax.lax.scan(advance, initial, length=steps)
    return jnp.concatenate([initial[None], states])


def burgers_slope(u: Cells) -> Cells:
    """du/dt at the cells' centres, (n,): minus the difference of the fluxes at a cell's ends.

        u_t = -n (F_{i+1/2} - F_{i-1/2}), by fifth-order WENO of a Lax-Friedrichs flux

    - `u`: at the n centres, (n,).

        >>> import jax.numpy as jnp, odejax
        >>> odejax.solvers.burgers_slope(jnp.ones(8)).tolist() == [0.0] * 8
        True

    Jiang and Shu (1996), *Journal of Computational Physics* 126.
    """
    fastest = jnp.max(jnp.abs(u))
    right, left = (u**2 / 2 + fastest * u) / 2, (u**2 / 2 - fastest * u) / 2
    flux = _weno(right) + _weno(left[::-1])[::-1][_next(len(u))]  # at the right end of each cell
    return -(flux - jnp.roll(flux, 1)) * len(u)


def total_variation(u: Float[Array, "*steps n"]) -> Float[Array, "*steps"]:
    """sum_i |u_{i+1} - u_i|, around the circle.

    - `u`: (..., n), one or several states.

        >>> import jax.numpy as jnp, odejax
        >>> float(odejax.solvers.total_variation(jnp.array([0.0, 1.0, 0.0, 0.0])))
        2.0

    Harten (1983), *Journal of Computational Physics* 49.
    """
    return jnp.sum(jnp.abs(jnp.roll(u, -1, axis=-1) - u), axis=-1)


def _next(n):
    return (jnp.arange(n) + 1) % n


def _weno(f):
    """The value at each cell's right end, of what moves to the right."""
    a, b, c, d, e = (jnp.roll(f, shift) for shift in (2, 1, 0, -1, -2))
    candidates = jnp.stack(
        [2 * a - 7 * b + 11 * c, -b + 5 * c + 2 * d, 2 * c + 5 * d - e]
    )  # times 6
    roughness = jnp.stack(
        [
            13 / 12 * (a - 2 * b + c) ** 2 + (a - 4 * b + 3 * c) ** 2 / 4,
            13 / 12 * (b - 2 * c + d) ** 2 + (b - d) ** 2 / 4,
            13 / 12 * (c - 2 * d + e) ** 2 + (3 * c - 4 * d + e) ** 2 / 4,
        ]
    )
    weights = jnp.array([0.1, 0.6, 0.3])[:, None] / (1e-6 + roughness) ** 2
    return jnp.sum(weights * candidates, axis=0) / (6 * jnp.sum(weights, axis=0))
