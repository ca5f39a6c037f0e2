"""One step of a state along a layer's vector field: what makes of it a ResNet, SSP net or PolyNet.

A step also says how much it can enlarge a perturbation: if f is Lipschitz with constant K, then
|z+ - y+| <= lipschitz_factor(h K) |z - y|, whose product over N steps is the bound of *natural*'s
Theorems 3.1 and 3.2 (Euler: (1 + h K)^N <= exp(N h K)).
"""

import abc
from collections.abc import Callable
from typing import cast

import diffrax
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import check_count

State = Float[Array, "..."]
Field = Callable[[State], State]


class AbstractLayerStep(eqx.Module):
    """One step of a state along a layer's field: y+ = step(f, y, h), from f alone.

    A subclass defines `__call__`, and `lipschitz_factor(hk)`, the most that a step enlarges a
    distance where h times f's Lipschitz constant is `hk`.

        >>> import jax.numpy as jnp, odejax
        >>> step = odejax.solvers.NeumannSeries(1)  # Euler's
        >>> float(step(lambda y: -y, jnp.asarray(1.0), 0.5))
        0.5
        >>> isinstance(step, odejax.solvers.AbstractLayerStep)
        True

    Hairer, Nørsett and Wanner (1993), *Solving Ordinary Differential Equations I*.
    """

    @abc.abstractmethod
    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        """The state after a step of size h."""

    @abc.abstractmethod
    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> float | Float[Array, ""]:
        """The most that a step enlarges a distance; `hk` is h times f's Lipschitz constant."""


class RungeKutta(AbstractLayerStep):
    """An explicit Runge-Kutta step; every stage has the layer's weights.

        k_i = f(y + h sum_j a_ij k_j),  y+ = y + h sum_i b_i k_i

    - `solver`: an explicit Diffrax solver, whose tableau is taken.

    Raises `ValueError` for any other solver.

        >>> import diffrax, jax.numpy as jnp, odejax
        >>> step = odejax.solvers.RungeKutta(diffrax.Midpoint())
        >>> float(step(lambda y: -y, jnp.asarray(1.0), 1.0))
        0.5

    Hairer, Nørsett and Wanner (1993), *Solving Ordinary Differential Equations I*.
    """

    times: tuple[float, ...] = eqx.field(static=True)  # c_i
    rows: tuple[tuple[float, ...], ...] = eqx.field(static=True)
    weights: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, solver: diffrax.AbstractSolver):
        if isinstance(solver, diffrax.Euler):
            self.times, self.rows, self.weights = (0.0,), ((),), (1.0,)
        elif isinstance(solver, diffrax.AbstractERK):
            tableau = cast(diffrax.ButcherTableau, solver.tableau)
            # A last stage of weight zero only serves to estimate the error of a step.
            used = int(np.flatnonzero(tableau.b_sol)[-1]) + 1
            self.times = (0.0, *map(float, tableau.c[: used - 1]))
            self.rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower[: used - 1]))
            self.weights = tuple(map(float, tableau.b_sol[:used]))
        else:
            raise ValueError(
                f"layers are integrated by diffrax.Euler, by an explicit Runge-Kutta method (a "
                f"subclass of diffrax.AbstractERK) or by an AbstractLayerStep; "
                f"got {type(solver).__name__}"
            )

    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        return self.at_times(lambda t, y: f(y), 0.0, y, h)

    def at_times(
        self, f: Callable, t: float | Float[Array, ""], y: PyTree, h: float | Float[Array, ""]
    ) -> PyTree:
        """The same step of y' = f(t, y) from time t, y any tree of arrays."""
        slopes = []
        for c, a in zip(self.times, self.rows, strict=True):
            slopes.append(f(t + c * h, _combine(y, h, a, slopes)))
        return _combine(y, h, self.weights, slopes)

    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> float | Float[Array, ""]:
        slopes = []  # how far the slopes may be apart, over K times the distance
        for a in self.rows:
            slopes.append(_combine(1.0, hk, [abs(w) for w in a], slopes))
        return _combine(1.0, hk, [abs(w) for w in self.weights], slopes)


class NeumannSeries(AbstractLayerStep):
    """PolyNet's step: its module (I + F + F^2) y for `order` 2, with F = h f.

        y+ = y + h f(y) + h f(h f(y)) + ...

    For a linear f the truncated series of a backward Euler step (I - h f)^{-1} y (*natural*
    Eqs. 15 to 18).

    - `order`: the highest power of F (2).

    Raises `ValueError` for an order below 1.

        >>> import jax.numpy as jnp, odejax
        >>> float(odejax.solvers.NeumannSeries(2)(lambda y: -y, jnp.asarray(1.0), 0.5))
        0.75

    Zhang et al. (2017), arXiv:1611.05725.
    """

    order: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        check_count(order=self.order)

    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        total = term = y
        for _ in range(self.order):
            term = h * f(term)
            total = total + term
        return total

    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> float | Float[Array, ""]:
        return sum((hk**k for k in range(1, self.order + 1)), start=1.0 + 0 * hk)


class PublishedMidpoint(AbstractLayerStep):
    """The mid-point block of the code of *ssp*.

        x1 = y + h f(y) / 2,  y+ = x1 + h f(x1)

    Not the midpoint rule y + h f(x1), which is `diffrax.Midpoint()`: it moves on from x1, and so
    goes one and a half steps.

        >>> import jax.numpy as jnp, odejax
        >>> step = odejax.solvers.PublishedMidpoint()
        >>> float(step(lambda y: jnp.ones(()), jnp.asarray(0.0), 1.0))
        1.5

    Kim et al. (2020), arXiv:2010.10047.
    """

    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        x1 = y + h / 2 * f(y)
        return x1 + h * f(x1)

    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> float | Float[Array, ""]:
        return (1 + hk / 2) * (1 + hk)


class Composition(AbstractLayerStep):
    """A step without identity mapping, such as FractalNet's; h plays no part.

        y+ = f(y)

        >>> import jax.numpy as jnp, odejax
        >>> float(odejax.solvers.Composition()(lambda y: 2 * y, jnp.asarray(3.0), 1.0))
        6.0

    Larsson et al. (2016), arXiv:1605.07648.
    """

    def __call__(self, f: Field, y: State, h: float | Float[Array, ""]) -> State:
        return f(y)

    def lipschitz_factor(self, hk: float | Float[Array, ""]) -> float | Float[Array, ""]:
        return hk


def _combine(y, h, weights, slopes):
    used = [(w, k) for w, k in zip(weights, slopes, strict=True) if w != 0]
    if not used:
        return y
    weights, slopes = zip(*used, strict=True)

    def leaf(y, *slopes):
        terms = [w * k for w, k in zip(weights, slopes, strict=True)]
        return y + h * sum(terms[1:], start=terms[0])

    return jax.tree.map(leaf, y, *slopes)
