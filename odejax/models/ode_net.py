"""What all neural ODEs share: an image becomes a state, the state is solved, and read out."""

import abc
from typing import Any, final

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Image, Key, Logits, Scalar
from .blocks import ImageShape, check_image
from .ode_solve import ODESolve


class AbstractODENet(eqx.Module):
    """y' = field(y), y(0) = encode(x), logits = decode(y(t1)); the field does not know the time.

    A solve that needs more than `ode.max_steps` gives logits that are NaN, which training and
    evaluation refuse.
    """

    ode: eqx.AbstractVar[ODESolve]
    image_shape: eqx.AbstractVar[ImageShape]

    @abc.abstractmethod
    def encode(self, x: Image, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        """y(0)."""

    @abc.abstractmethod
    def parameters(self, state: eqx.nn.State) -> Any:
        """All that the field depends on, for solvers to differentiate by."""

    @staticmethod
    @abc.abstractmethod
    def field(y: Array, parameters: Any) -> Array:
        """y'."""

    @abc.abstractmethod
    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        """The logits of y(t1)."""

    @final
    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return self.decode(jnp.where(solved, solution.ys[0], jnp.nan), state)

    @final
    def solve(self, x: Image, state: eqx.nn.State) -> tuple[diffrax.Solution, eqx.nn.State]:
        """The solve behind the logits: y(t1), whether it succeeded, and its statistics."""
        check_image(x, self.image_shape)
        y, state = self.encode(x, state)
        return self.ode(lambda t, y, args: self.field(y, args), y, self.parameters(state)), state

    @final
    def drift(self, x: Image, state: eqx.nn.State) -> Scalar:
        """The mean over the entries of y of int_{t1}^{2 t1} |f(y(t))| dt (NaN if not solved)."""
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        y = solution.ys[0]

        def field(t, carry, args):
            dy = self.field(carry[0], args)
            return dy, jnp.abs(dy)

        after = self.ode(field, (y, jnp.zeros_like(y)), self.parameters(state))
        assert after.ys is not None
        successful = diffrax.RESULTS.successful
        solved = (solution.result == successful) & (after.result == successful)
        return jnp.where(solved, jnp.mean(after.ys[1]), jnp.nan)
