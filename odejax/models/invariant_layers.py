"""Layers that keep an invariant of the flow that they discretise (*structured*).

Each is one step of size h of a method that keeps it exactly, along a field whose flow does, of
states y in R^n:

- `SymplecticLayer`: q' = dK/dp, p' = -dV/dq, by symplectic Euler: the Jacobian keeps the area form;
- `VolumeLayer`: u' = f(v), v' = g(u), divergence-free, one half after the other: the Jacobian's
  determinant is 1;
- `MassLayer`: 1 . y' = 0 by Euler, which keeps every linear invariant: sum_i y_i stays;
- `SphereLayer`: y' = S(y) y with S skew, by its Cayley transform, an orthogonal matrix: |y| stays.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count, check_finite
from .._types import Key

Vector = Float[Array, " n"]


class AbstractInvariantLayer(eqx.Module):
    """y -> y+ in R^n."""

    @abc.abstractmethod
    def __call__(self, y: Vector) -> Vector:
        """The next state."""


class AbstractInvertibleLayer(AbstractInvariantLayer):
    """One whose step can be taken back, exactly but for rounding."""

    @abc.abstractmethod
    def inverse(self, y: Vector) -> Vector:
        """The state that `y` comes from."""


class SymplecticLayer(AbstractInvertibleLayer):
    """A step of symplectic Euler along a Hamiltonian field: a map of R^n that keeps the area form.

        p+ = p - h grad V(q),  q+ = q + h grad K(p+),  y = (q, p)

    grad V(q) = A^T (w * tanh(A q + b)), a gradient whatever the signs of w, and K alike: the
    gradient modules of SympNets.

    - `n`: the entries of y, an even number.
    - `width`: rows in each A (32).
    - `step_size`: h (0.1).

    Raises `ValueError` for an odd n, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> layer = odejax.models.SymplecticLayer(4, width=8, key=jax.random.key(0))
        >>> y = jnp.arange(4.0)
        >>> bool(jnp.allclose(layer.inverse(layer(y)), y, atol=1e-5))
        True

    Jin et al. (2020), arXiv:2001.03750.
    """

    potential: "Gradient"
    kinetic: "Gradient"
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        _check_even(n, width)
        check_finite(step_size=step_size)
        keys = jax.random.split(key)
        self.potential, self.kinetic = (Gradient(n // 2, width, k) for k in keys)
        self.step_size = step_size

    def __call__(self, y: Vector) -> Vector:
        q, p = jnp.split(y, 2)
        p = p - self.step_size * self.potential(q)
        return jnp.concatenate([q + self.step_size * self.kinetic(p), p])

    def inverse(self, y: Vector) -> Vector:
        q, p = jnp.split(y, 2)
        q = q - self.step_size * self.kinetic(p)
        return jnp.concatenate([q, p + self.step_size * self.potential(q)])


class VolumeLayer(AbstractInvertibleLayer):
    """A step along a divergence-free field, one half of y after the other: a map of R^n.

        u+ = u + h B tanh(A v + a),  v+ = v + h D tanh(C u+ + c),  y = (u, v)

    The determinant of its Jacobian is 1.

    - `n`: the entries of y, an even number.
    - `width`: hidden units of each half (32).
    - `step_size`: h (0.1).

    Raises `ValueError` for an odd n, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> layer = odejax.models.VolumeLayer(4, width=8, key=jax.random.key(0))
        >>> jacobian = jax.jacfwd(layer)(jnp.arange(4.0))
        >>> round(float(jnp.linalg.det(jacobian)), 4)
        1.0

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    first: "_Map"
    second: "_Map"
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        _check_even(n, width)
        check_finite(step_size=step_size)
        self.first, self.second = (_Map(n // 2, n // 2, width, k) for k in jax.random.split(key))
        self.step_size = step_size

    def __call__(self, y: Vector) -> Vector:
        u, v = jnp.split(y, 2)
        u = u + self.step_size * self.first(v)
        return jnp.concatenate([u, v + self.step_size * self.second(u)])

    def inverse(self, y: Vector) -> Vector:
        u, v = jnp.split(y, 2)
        v = v - self.step_size * self.second(u)
        return jnp.concatenate([u - self.step_size * self.first(v), v])


class MassLayer(AbstractInvariantLayer):
    """A step of Euler's method that keeps sum_i y_i: a map of R^n.

        y+ = y + h S(y) 1,  S skew: a mass that S_ij moves from j to i

    S_ij 1_j summed over j is any field of sum zero, here g(y) - mean(g(y)), g of one hidden layer.

    - `n`: the entries of y.
    - `width`: hidden units of g (32).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> layer = odejax.models.MassLayer(4, width=8, key=jax.random.key(0))
        >>> round(float(jnp.sum(layer(jnp.arange(4.0)))), 4)
        6.0

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    field: "_Map"
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        check_count(n=n, width=width)
        check_finite(step_size=step_size)
        self.field = _Map(n, n, width, key)
        self.step_size = step_size

    def __call__(self, y: Vector) -> Vector:
        slope = self.field(y)
        return y + self.step_size * (slope - jnp.mean(slope))


class SphereLayer(AbstractInvariantLayer):
    """A step by the Cayley transform, an orthogonal matrix, that keeps |y|: a map of R^n.

        y+ = (I - h S / 2)^{-1} (I + h S / 2) y,  S = u v^T - v u^T with u and v functions of y

    S turns the plane of u and v, so the Cayley transform is solved there: 2 x 2 for any n.

    - `n`: the entries of y.
    - `width`: hidden units of u and of v (32).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> layer = odejax.models.SphereLayer(2, width=8, key=jax.random.key(0))
        >>> round(float(jnp.linalg.norm(layer(jnp.array([3.0, 4.0])))), 4)
        5.0

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    first: "_Map"
    second: "_Map"
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        check_count(n=n, width=width)
        check_finite(step_size=step_size)
        self.first, self.second = (_Map(n, n, width, k) for k in jax.random.split(key))
        self.step_size = step_size

    def __call__(self, y: Vector) -> Vector:
        # S = P Q^T with P = (u, -v) and Q = (v, u). (I - h P Q^T / 2)^{-1} by Woodbury.
        u, v = self.first(y), self.second(y)
        p, q = jnp.stack([u, -v], axis=1), jnp.stack([v, u], axis=1)
        half = self.step_size / 2
        with jax.default_matmul_precision("highest"):
            inner = jnp.eye(2) - half * q.T @ p  # float32 at least, for `solve` takes no less
            turned = jnp.linalg.solve(inner, (q.T @ y).astype(inner.dtype))
            return y + 2 * half * p @ turned.astype(y.dtype)


class Gradient(eqx.Module):
    """x -> A^T (w * tanh(A x + b))."""

    matrix: Float[Array, "width n"]
    weights: Float[Array, " width"]
    bias: Float[Array, " width"]

    def __init__(self, n, width, key):
        matrix_key, weights_key = jax.random.split(key)
        self.matrix = jax.random.normal(matrix_key, (width, n)) / n**0.5
        self.weights = jax.random.normal(weights_key, (width,)) / width**0.5
        self.bias = jnp.zeros(width)

    def __call__(self, x):
        return self.matrix.T @ (self.weights * jnp.tanh(self.matrix @ x + self.bias))


class _Map(eqx.Module):
    """x -> B tanh(A x + b)."""

    inner: Float[Array, "width n"]
    outer: Float[Array, "m width"]
    bias: Float[Array, " width"]

    def __init__(self, inputs, outputs, width, key):
        inner_key, outer_key = jax.random.split(key)
        self.inner = jax.random.normal(inner_key, (width, inputs)) / inputs**0.5
        self.outer = jax.random.normal(outer_key, (outputs, width)) / width**0.5
        self.bias = jnp.zeros(width)

    def __call__(self, x):
        return self.outer @ jnp.tanh(self.inner @ x + self.bias)


def _check_even(n, width):
    check_count(n=n, width=width)
    if n % 2:
        raise ValueError(f"the state has two halves: n must be even; got {n}")
