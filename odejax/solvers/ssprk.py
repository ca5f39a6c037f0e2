"""Strong-stability-preserving Runge-Kutta methods (*ssp*; Shu & Osher 1988).

A convex combination of Euler steps, so whatever convex functional (total variation, a norm, a
maximum principle) an Euler step of size h does not increase, a step of size h of these does not
either. With one block `r(x) = x + f(x)` and h = 1 they are the blocks of the SSP networks:

SSP-2: x1 = r(x),  x+ = x/2 + r(x1)/2
SSP-3: x1 = r(x),  x2 = 3x/4 + r(x1)/4,  x+ = x/3 + 2 r(x2)/3
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import numpy as np


class SSPRK22(diffrax.AbstractERK):
    """Two stages, order 2, SSP coefficient 1; embedded Euler for adaptive steps."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([1.0]),
        a_lower=(np.array([1.0]),),
        b_sol=np.array([1 / 2, 1 / 2]),
        b_error=np.array([-1 / 2, 1 / 2]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def order(self, terms):
        return 2


def _hermite_by_second_stage(*, t0, t1, y0, y1, k):
    """Cubic Hermite interpolation of SSPRK33, of order 3.

    The slope at the end of the step is the second stage's, which is the one taken there; Diffrax's
    own `from_k` would take the last stage's, which belongs to the middle.
    """
    first = jax.tree.map(lambda stages: stages[0], k)
    second = jax.tree.map(lambda stages: stages[1], k)
    return diffrax.ThirdOrderHermitePolynomialInterpolation(
        t0=t0, t1=t1, y0=y0, y1=y1, k0=first, k1=second
    )


class SSPRK33(diffrax.AbstractERK):
    """Three stages, order 3, SSP coefficient 1; embedded SSPRK22 for adaptive steps."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([1.0, 1 / 2]),
        a_lower=(np.array([1.0]), np.array([1 / 4, 1 / 4])),
        b_sol=np.array([1 / 6, 1 / 6, 2 / 3]),
        b_error=np.array([-1 / 3, -1 / 3, 2 / 3]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        staticmethod(_hermite_by_second_stage)
    )

    def order(self, terms):
        return 3
