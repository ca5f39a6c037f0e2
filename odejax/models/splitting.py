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
    """y+ = y + h A^T (w * tanh(A y + b)), along a gradient whatever the signs of w.

    `width` rows in A, step size h. Its Jacobian is symmetric.
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
    """A `GradientLayer`, then a `VolumeLayer`; n must be even."""

    gradient: GradientLayer
    volume: VolumeLayer

    def __init__(self, n: int, *, width: int = 32, step_size: float = 0.1, key: Key):
        gradient_key, volume_key = jax.random.split(key)
        sizes = {"width": width, "step_size": step_size}
        self.gradient = GradientLayer(n, **sizes, key=gradient_key)
        self.volume = VolumeLayer(n, **sizes, key=volume_key)

    def __call__(self, y: Vector) -> Vector:
        return self.volume(self.gradient(y))
