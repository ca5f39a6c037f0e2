"""Strong-stability-preserving Runge-Kutta methods (*ssp*; Shu & Osher 1988, Ketcheson 2008).

A convex combination of Euler steps, so whatever convex functional (total variation, a norm, a
maximum principle) an Euler step of size h does not increase, a step of size c h of these does not
either, with c the method's `ssp_coefficient`. With one block `r(x) = x + f(x)` and h = 1 the first
two are the blocks of the SSP networks:

SSP-2: x1 = r(x),  x+ = x/2 + r(x1)/2
SSP-3: x1 = r(x),  x2 = 3x/4 + r(x1)/4,  x+ = x/3 + 2 r(x2)/3
"""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import numpy as np


class SSPRK22(diffrax.AbstractERK):
    """A Diffrax solver: two stages, order 2, SSP coefficient 1; embedded Euler for adaptive steps.

        x1 = r(y),  y+ = y/2 + r(x1)/2,  r(y) = y + h f(y)

        >>> import odejax
        >>> odejax.solvers.RungeKutta(odejax.solvers.SSPRK22()).weights
        (0.5, 0.5)

    Shu and Osher (1988), *Journal of Computational Physics* 77.
    """

    ssp_coefficient: ClassVar[float] = 1.0

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


def _hermite(last: int):
    """Cubic Hermite interpolation, of order 3, with the slope of the `last` stage at the end.

    That stage is the one at the end of the step; Diffrax's own `from_k` uses the last stage.
    """

    def interpolation(*, t0, t1, y0, y1, k):
        first, end = (jax.tree.map(lambda stages, i=i: stages[i], k) for i in (0, last))
        return diffrax.ThirdOrderHermitePolynomialInterpolation(
            t0=t0, t1=t1, y0=y0, y1=y1, k0=first, k1=end
        )

    return staticmethod(interpolation)


class SSPRK33(diffrax.AbstractERK):
    """A Diffrax solver: three stages, order 3, SSP coefficient 1; embedded SSPRK22.

        x1 = r(y),  x2 = 3y/4 + r(x1)/4,  y+ = y/3 + 2 r(x2)/3,  r(y) = y + h f(y)

        >>> import odejax
        >>> odejax.solvers.RungeKutta(odejax.solvers.SSPRK33()).times
        (0.0, 1.0, 0.5)

    Shu and Osher (1988), *Journal of Computational Physics* 77.
    """

    ssp_coefficient: ClassVar[float] = 1.0

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([1.0, 1 / 2]),
        a_lower=(np.array([1.0]), np.array([1 / 4, 1 / 4])),
        b_sol=np.array([1 / 6, 1 / 6, 2 / 3]),
        b_error=np.array([-1 / 3, -1 / 3, 2 / 3]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        _hermite(last=1)
    )

    def order(self, terms):
        return 3


class SSPRK43(diffrax.AbstractERK):
    """A Diffrax solver: four stages, order 3, SSP coefficient 2.

    Half a step of Euler's for each stage. Embedded for adaptive steps: all stages with equal
    weights, of order 2.

        >>> import odejax
        >>> odejax.solvers.RungeKutta(odejax.solvers.SSPRK43()).times
        (0.0, 0.5, 1.0, 0.5)

    Gottlieb, Shu and Tadmor (2001), *SIAM Review* 43; Ketcheson (2008), *SIAM Journal on Scientific
    Computing* 30.
    """

    ssp_coefficient: ClassVar[float] = 2.0
    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([1 / 2, 1.0, 1 / 2]),
        a_lower=(np.array([1 / 2]), np.array([1 / 2, 1 / 2]), np.full(3, 1 / 6)),
        b_sol=np.array([1 / 6, 1 / 6, 1 / 6, 1 / 2]),
        b_error=np.array([-1 / 12, -1 / 12, -1 / 12, 1 / 4]),
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        _hermite(last=2)
    )

    def order(self, terms):
        return 3


_FIRST_FIVE = 5 * (1 / 15,)
_B_SOL = np.full(10, 1 / 10)
_B_EMBEDDED = np.array([1 / 5, 0, 0, 3 / 10, 0, 0, 1 / 5, 0, 3 / 10, 0])


class SSPRK104(diffrax.AbstractERK):
    """A Diffrax solver: ten stages, order 4, SSP coefficient 6.

    0.6 steps of Euler's for each stage. Embedded for adaptive steps: order 3. Its dense output is
    of order 3.

        >>> import odejax
        >>> len(odejax.solvers.RungeKutta(odejax.solvers.SSPRK104()).times)
        10

    Ketcheson (2008), *SIAM Journal on Scientific Computing* 30.
    """

    ssp_coefficient: ClassVar[float] = 6.0
    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([1, 2, 3, 4, 2, 3, 4, 5, 6]) / 6,
        a_lower=(
            *(np.full(i, 1 / 6) for i in range(1, 5)),
            *(np.array([*_FIRST_FIVE, *(i * (1 / 6,))]) for i in range(5)),
        ),
        b_sol=_B_SOL,
        b_error=_B_SOL - _B_EMBEDDED,
    )
    interpolation_cls: ClassVar[Callable[..., diffrax.ThirdOrderHermitePolynomialInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation.from_k
    )

    def order(self, terms):
        return 4
