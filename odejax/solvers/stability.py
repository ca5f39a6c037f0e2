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

from .._types import Key, Scalar
from .layer_steps import AbstractLayerStep

States = Float[Array, "n ..."]
Field = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def perturbation_growth(ys: States, zs: States) -> Scalar:
    """max_n |z_n - y_n| / |z_0 - y_0| in l2, of two sequences of states (n + 1, ...)."""
    distances = jnp.linalg.norm((zs - ys).reshape(len(ys), -1), axis=1)
    return jnp.max(distances) / distances[0]


def growth_ratios(
    ys: Sequence[Float[Array, "..."]], zs: Sequence[Float[Array, "..."]], ord: int = 2
) -> Float[Array, " n"]:
    """|z_n - y_n| / |z_1 - y_1| behind each block n: the perturbation growth ratio of *ssp*.

    `ys` and `zs` are a network's states behind its blocks, of a clean and an attacked image; they
    may differ in shape from block to block. `ord` 1 or 2: the norm.
    """
    distances = jnp.stack(
        [jnp.linalg.norm(jnp.ravel(z - y), ord) for y, z in zip(ys, zs, strict=True)]
    )
    return distances / distances[0]


def growth_bound(step: AbstractLayerStep, hk: float | Scalar, n: int) -> Scalar:
    """The most that n steps can enlarge a distance, h K = `hk`; infinite where it overflows."""
    factor = jnp.asarray(step.lipschitz_factor(hk))
    return jnp.maximum(1.0, factor) ** n


def jacobian_norm(f: Field, y: Float[Array, "..."], *, key: Key, iterations: int = 30) -> Scalar:
    """|J_f(y)|_2 from below, by power iteration on J^T J: a lower bound on f's Lipschitz constant.

    The bound holds after any number of `iterations` (to rounding), and rises with it.
    """

    def forward(v):
        return jax.jvp(f, (y,), (v,))[1]

    _, backward = jax.vjp(f, y)

    def iterate(v, _):
        (w,) = backward(forward(v))
        return _unit(w), None

    start = _unit(jax.random.normal(key, y.shape, y.dtype))
    v, _ = jax.lax.scan(iterate, start, None, length=iterations)
    return jnp.linalg.norm(jnp.ravel(forward(v)))


def logarithmic_norm(
    f: Field, y: Float[Array, "..."], *, key: Key, iterations: int = 100
) -> Scalar:
    """mu_2(J_f(y)), the largest eigenvalue of (J + J^T) / 2, from below, by power iteration.

    The matrix is shifted by |J|_2 first, so that its largest eigenvalue is that of largest modulus.
    """
    norm_key, start_key = jax.random.split(key)
    shift = jacobian_norm(f, y, key=norm_key)
    _, backward = jax.vjp(f, y)

    def symmetric(v):
        return (jax.jvp(f, (y,), (v,))[1] + backward(v)[0]) / 2

    def iterate(v, _):
        return _unit(symmetric(v) + shift * v), None

    start = _unit(jax.random.normal(start_key, y.shape, y.dtype))
    v, _ = jax.lax.scan(iterate, start, None, length=iterations)
    return jnp.vdot(v, symmetric(v))


def _unit(v):
    norm = jnp.linalg.norm(jnp.ravel(v))
    return v / jnp.where(norm > 0, norm, 1.0)
