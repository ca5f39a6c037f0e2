"""Steps along a gradient and along a divergence-free field, in turn (*structured*).

A vector field of R^n is the sum of both (Helmholtz), and the flow of a sum is approximated by those
of its parts one after the other. A composition of gradient steps alone need not be a gradient, nor
is every map one; divergence-free steps alone keep volumes.
"""

import equinox as eqx
import jax

from .._checks import check_count, check_finite
from .._types import Key
from .invariant_layers import Gradient, Vector, VolumeLayer


class GradientLayer(eqx.Module):
    """A step along a gradient: a map of R^n whose Jacobian is symmetric.

        y+ = y + h A^T (w * tanh(A y + b)), along a gradient whatever the signs of w

    - `n`: the entries of y.
    - `width`: rows in A (32).
    - `step_size`: h (0.1).

    Raises `ValueError` for sizes that are no counts, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> layer = odejax.models.GradientLayer(4, width=8, key=jax.random.key(0))
        >>> jacobian = jax.jacfwd(layer)(jnp.ones(4))
        >>> bool(jnp.allclose(jacobian, jacobian.T, atol=1e-6))
        True

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    slope: Gradient
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        check_count(n=n, width=width)
        check_finite(step_size=step_size)
        self.slope = Gradient(n, width, key)
        self.step_size = step_size

    def __call__(self, y: Vector) -> Vector:
        return y + self.step_size * self.slope(y)


class SplitLayer(eqx.Module):
    """A `GradientLayer`, then a `VolumeLayer`: a map of R^n.

        y+ = volume(gradient(y))

    - `n`: the entries of y, an even number.
    - `width`: hidden units of each (32).
    - `step_size`: h of each (0.1).

    Raises `ValueError` for an odd n, sizes that are no counts, or a step that is not finite.

        >>> import jax, jax.numpy as jnp, odejax
        >>> odejax.models.SplitLayer(4, width=8, key=jax.random.key(0))(jnp.ones(4)).shape
        (4,)

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    gradient: GradientLayer
    volume: VolumeLayer

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        gradient_key, volume_key = jax.random.split(key)
        sizes = {"width": width, "step_size": step_size}
        self.gradient = GradientLayer(n, **sizes, key=gradient_key)
        self.volume = VolumeLayer(n, **sizes, key=volume_key)

    def __call__(self, y: Vector) -> Vector:
        return self.volume(self.gradient(y))
