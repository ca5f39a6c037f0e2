"""A Runge-Kutta step whose coefficients are learned with the weights (*ssp*: adaptive blocks)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count
from .layer_steps import AbstractLayerStep, Field, State


class ShuOsher(NamedTuple):
    """The coefficients of a two-stage method as a combination of Euler steps, (depth,) each.

        x1 = y + b10 h f(y),  y+ = a20 y + b20 h f(y) + a21 x1 + b21 h f(x1)

        >>> import jax.numpy as jnp, odejax
        >>> half, one = jnp.full(1, 0.5), jnp.ones(1)
        >>> ssprk22 = odejax.solvers.ShuOsher(a20=half, a21=half, b10=one, b20=0 * one, b21=half)
        >>> ssprk22.b21.tolist()
        [0.5]

    Shu and Osher (1988), *Journal of Computational Physics* 77.
    """

    a20: Float[Array, "*depth"]
    a21: Float[Array, "*depth"]
    b10: Float[Array, "*depth"]
    b20: Float[Array, "*depth"]
    b21: Float[Array, "*depth"]


class LearnedRK2(AbstractLayerStep):
    """A step of two stages and order 2, with two free coefficients for each of `depth` layers.

        x1 = y + b10 h f(y),  y+ = a20 y + b20 h f(y) + a21 x1 + b21 h f(x1)

    Order 2 for any b10 and a21: a20 = 1 - a21, b21 = 1 / (2 b10), b20 = 1 - b21 - a21 b10. The step
    preserves strong stability where all of them are positive, up to h = `ssp_coefficient()` (at
    most 1, that of SSPRK22). There they stay, unless `published`.

    - `depth`: the number of layers.
    - `published`: the authors' code (False): b10 is the sigmoid of a learned number that starts at
      1 and a21 that of 0.25, which is not learned, and then b20 is negative.

    Raises `ValueError` for a depth below 1.

        >>> import odejax
        >>> step = odejax.solvers.LearnedRK2(2)
        >>> [round(c, 4) for c in step.ssp_coefficient().tolist()]
        [0.4748, 0.4748]

    Kim et al. (2020), arXiv:2010.10047; Shu and Osher (1988), *Journal of Computational Physics*
    77.
    """

    first: Float[Array, "*depth"]  # b10, mapped to the real line
    second: Float[Array, "*depth"]  # a21
    published: bool = eqx.field(static=True)

    def __init__(self, depth: int, *, published: bool = False):
        check_count(depth=depth)
        self.first = jnp.full(depth, 1.0)
        self.second = jnp.full(depth, 0.25)
        self.published = published

    def coefficients(self) -> ShuOsher:
        """Those of every layer, (depth,) each."""
        if self.published:
            b10 = jax.nn.sigmoid(self.first)
            a21 = jax.nn.sigmoid(jax.lax.stop_gradient(self.second))
        else:
            b10 = (1 + jax.nn.sigmoid(self.first)) / 2
            a21 = jax.nn.sigmoid(self.second) * (1 - 1 / (2 * b10)) / b10
        b21 = 1 / (2 * b10)
        return ShuOsher(a20=1 - a21, a21=a21, b10=b10, b20=1 - b21 - a21 * b10, b21=b21)

    def ssp_coefficient(self) -> Float[Array, "*depth"]:
        """The largest h, in steps that f allows Euler's method; 0 with a negative coefficient."""
        c = self.coefficients()
        first = jnp.where(c.b20 == 0, jnp.inf, c.a20 / c.b20)
        return jnp.maximum(0.0, jnp.minimum(jnp.minimum(first, c.a21 / c.b21), 1 / c.b10))

    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        c = self.coefficients()
        slope = f(y)
        x1 = y + c.b10 * h * slope
        return c.a20 * y + c.b20 * h * slope + c.a21 * x1 + c.b21 * h * f(x1)

    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> Float[Array, "*depth"]:
        c = self.coefficients()
        first = 1 + c.b10 * hk
        return c.a20 + jnp.abs(c.b20) * hk + (c.a21 + c.b21 * hk) * first
