"""How perturbations grow from layer to layer (*natural* Section 3), and what bounds it.

Theorem 3.1 bounds the growth of a perturbation under y_{n+1} = y_n + h f(y_n), n h = b - t0, by
(1 + h K)^n <= exp((b - t0) K), where K is f's Lipschitz constant. The growth itself is
`perturbation_growth` of two runs of `layer_states`; the first bound is `growth_bound`, for every
step that layers can take. K lies between the largest `jacobian_norm` that was seen and what a field
proves of itself (`ResidualField.lipschitz_bound`).

`logarithmic_norm` is what K should have been, and may be negative where K never is: an exact flow
enlarges no distance by more than exp of the integral of its largest value between the two
trajectories. (Along one of them it bounds the growth of small distances.)
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._inputs import as_key
from .._types import Key, Scalar
from .layer_steps import AbstractLayerStep

States = Float[Array, "n ..."]
Field = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def perturbation_growth(ys: States, zs: States) -> Scalar:
    """The largest growth of a perturbation over a sequence of states, in l2.

        max_n |z_n - y_n| / |z_0 - y_0|

    - `ys`, `zs`: two sequences of states, (n + 1, ...) each.

        >>> import jax.numpy as jnp, odejax
        >>> zs = jnp.array([[1.0], [3.0], [2.0]])
        >>> float(odejax.solvers.perturbation_growth(jnp.zeros((3, 1)), zs))
        3.0

    Chu, Wei and Zhao (2020), arXiv:2012.02452 (*natural*), Theorem 3.1.
    """
    distances = jnp.linalg.norm((zs - ys).reshape(len(ys), -1), axis=1)
    return jnp.max(distances) / distances[0]


def growth_ratios(
    ys: Sequence[Array] | Array, zs: Sequence[Array] | Array, ord: int = 2
) -> Float[Array, " n"]:
    """|z_n - y_n| / |z_1 - y_1| behind each block n, (n,): the perturbation growth ratio of *ssp*.

    - `ys`, `zs`: a network's states behind its blocks, of a clean and an attacked image: one
      array (n, ...), or several whose shapes may differ.
    - `ord`: the norm, 1 or 2 (2).

        >>> import jax.numpy as jnp, odejax
        >>> ys, zs = [jnp.zeros(1), jnp.zeros(2)], [jnp.ones(1), jnp.ones(2)]
        >>> odejax.solvers.growth_ratios(ys, zs, ord=1).tolist()
        [1.0, 2.0]

    Kim et al. (2020), arXiv:2010.10047.
    """
    distances = jnp.stack(
        [jnp.linalg.norm(jnp.ravel(z - y), ord) for y, z in zip(ys, zs, strict=True)]
    )
    return distances / distances[0]


def growth_bound(step: AbstractLayerStep, hk: float | Scalar, n: int) -> Scalar:
    """The most that n steps can enlarge a distance; infinite where it overflows.

        max(1, factor(h K))^n, factor(h K) = 1 + h K for Euler's method

    - `step`: an `AbstractLayerStep`.
    - `hk`: h K, the step size times the field's Lipschitz constant.
    - `n`: the number of steps.

        >>> import odejax
        >>> float(odejax.solvers.growth_bound(odejax.solvers.layer_step(None), 0.5, 2))
        2.25

    Chu, Wei and Zhao (2020), arXiv:2012.02452 (*natural*), Theorem 3.1.
    """
    factor = jnp.asarray(step.lipschitz_factor(hk))
    return jnp.maximum(1.0, factor) ** n


def jacobian_norm(
    f: Field, y: Float[Array, "..."], *, key: Key | int, iterations: int = 30
) -> Scalar:
    """|J_f(y)|_2 from below, by power iteration on J^T J: a lower bound on f's Lipschitz constant.

    The bound holds after any number of `iterations` (to rounding), and rises with it.

    - `f`: a map of arrays of one shape.
    - `y`: the point, of any shape.
    - `key`: of the start, or an integer seed.
    - `iterations`: how many (30).

        >>> import jax, jax.numpy as jnp, odejax
        >>> stretch = jnp.array([1.0, 3.0])
        >>> f, key = (lambda y: stretch * y), jax.random.key(0)
        >>> norm = odejax.solvers.jacobian_norm(f, jnp.zeros(2), key=key)
        >>> round(float(norm), 3)
        3.0

    Golub and Van Loan (2013), *Matrix Computations*, Section 7.3.
    """

    def forward(v):
        return jax.jvp(f, (y,), (v,))[1]

    _, backward = jax.vjp(f, y)

    def iterate(v, _):
        (w,) = backward(forward(v))
        return _unit(w), None

    start = _unit(jax.random.normal(as_key(key), y.shape, y.dtype))
    v, _ = jax.lax.scan(iterate, start, None, length=iterations)
    return jnp.linalg.norm(jnp.ravel(forward(v)))


def logarithmic_norm(
    f: Field, y: Float[Array, "..."], *, key: Key | int, iterations: int = 100
) -> Scalar:
    """The largest eigenvalue of (J + J^T) / 2, J = J_f(y), from below, by power iteration.

        mu_2(J) = lim_{h -> 0+} (|I + h J|_2 - 1) / h

    The matrix is shifted by |J|_2 first, so that its largest eigenvalue is that of largest modulus.

    - `f`: a map of arrays of one shape.
    - `y`: the point, of any shape.
    - `key`: of the start, or an integer seed.
    - `iterations`: how many (100).

        >>> import jax, jax.numpy as jnp, odejax
        >>> rates, key = jnp.array([1.0, 3.0]), jax.random.key(0)
        >>> norm = odejax.solvers.logarithmic_norm(lambda y: -rates * y, jnp.zeros(2), key=key)
        >>> round(float(norm), 3)
        -1.0

    Söderlind (2006), *BIT Numerical Mathematics* 46.
    """
    norm_key, start_key = jax.random.split(as_key(key))
    shift = jacobian_norm(f, y, key=norm_key)
    _, backward = jax.vjp(f, y)

    def symmetric(v):
        return (jax.jvp(f, (y,), (v,))[1] + backward(v)[0]) / 2

    def iterate(v, _):
        moved = symmetric(v) + shift * v
        # 0 where J is a multiple of -I: every direction is an eigenvector, this one too.
        return jnp.where(jnp.any(moved != 0), _unit(moved), v), None

    start = _unit(jax.random.normal(start_key, y.shape, y.dtype))
    v, _ = jax.lax.scan(iterate, start, None, length=iterations)
    return jnp.vdot(v, symmetric(v))


def _unit(v):
    norm = jnp.linalg.norm(jnp.ravel(v))
    return v / jnp.where(norm > 0, norm, 1.0)
