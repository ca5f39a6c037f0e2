"""What all neural ODEs share: an image becomes a state, the state is solved, and read out."""

import abc
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Image, Key, Logits, Scalar
from .blocks import ImageShape, check_image
from .ode_solve import ODESolve


class AbstractODENet(eqx.Module):
    """What all neural ODEs share: image to logits by a solve.

        y' = field(t, y),  y(0) = encode(x),  logits = decode(y(t1))

    A solve that needs more than `ode.max_steps` gives logits that are NaN, which training and
    evaluation refuse. What the solves take is in every record of `fit`'s history.

    A subclass has `ode`, an `ODESolve`, and `image_shape`, and defines `encode`, `parameters`,
    `field` and `decode`. Raises `ValueError` for an image of another shape.

        >>> import odejax
        >>> issubclass(odejax.models.ConvODENet, odejax.models.AbstractODENet)
        True

    Chen et al. (2018), arXiv:1806.07366.
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
    def field(t: float | Scalar, y: Array, parameters: Any) -> Array:
        """y'."""

    @abc.abstractmethod
    def decode(self, y: Array, state: eqx.nn.State) -> tuple[Logits, eqx.nn.State]:
        """The logits of y(t1)."""

    @final
    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        logits, state, _ = self.with_solution(x, state)
        return logits, state

    @final
    def with_solution(
        self, x: Image, state: eqx.nn.State
    ) -> tuple[Logits, eqx.nn.State, diffrax.Solution]:
        """The logits and the solve behind them, which `ode.statistics` reads."""
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        logits, state = self.decode(jnp.where(solved, solution.ys[0], jnp.nan), state)
        return logits, state, solution

    @final
    def solve(self, x: Image, state: eqx.nn.State) -> tuple[diffrax.Solution, eqx.nn.State]:
        """The solve behind the logits: y(t1), whether it succeeded, and its statistics."""
        check_image(x, self.image_shape)
        y, state = self.encode(x, state)
        return self.ode(self.field, y, self.parameters(state)), state

    @final
    def energies(self, x: Image, state: eqx.nn.State, *, key: Key) -> tuple[Scalar, Scalar]:
        """int |f|^2 dt and int |e^T df/dy|^2 dt from 0 to t1, divided by the entries of y.

        e is one normal draw, so the mean of the latter is the Jacobian's squared Frobenius norm
        (RNODE, Finlay et al. 2020). NaN if not solved.
        """
        y, state = self.encode(x, state)

        # The draw is a part of the state with derivative 0, since it is not shared by a batch. The
        # controller's mean error is then of twice as many entries, half of them without error.
        def field(t, carry, args):
            y, draw, _, _ = carry
            dy, pull_back = jax.vjp(lambda y: self.field(t, y, args), y)
            (row,) = pull_back(draw)
            return dy, jnp.zeros_like(draw), jnp.mean(dy**2), jnp.mean(row**2)

        zero = jnp.zeros((), y.dtype)
        start = y, jax.random.normal(key, y.shape, y.dtype), zero, zero
        solution = self.ode(field, start, self.parameters(state))
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        _, _, kinetic, jacobian = (jnp.where(solved, end[0], jnp.nan) for end in solution.ys)
        return kinetic, jacobian

    @final
    def drift(self, x: Image, state: eqx.nn.State) -> Scalar:
        """The mean over the entries of y of int_{t1}^{2 t1} |f(t, y)| dt (NaN if not solved)."""
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        y = solution.ys[0]

        def field(t, carry, args):
            dy = self.field(t + self.ode.t1, carry[0], args)
            return dy, jnp.abs(dy)

        after = self.ode(field, (y, jnp.zeros_like(y)), self.parameters(state))
        assert after.ys is not None
        successful = diffrax.RESULTS.successful
        solved = (solution.result == successful) & (after.result == successful)
        return jnp.where(solved, jnp.mean(after.ys[1]), jnp.nan)
