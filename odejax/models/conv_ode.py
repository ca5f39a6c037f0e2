"""Neural ODEs: a residual field that does not change with depth, solved by Diffrax (*natural*)."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Image, Key, Logits, Scalar
from .blocks import (
    Head,
    ImageShape,
    Norm,
    ResidualField,
    Stem,
    check_image,
    check_image_shape,
    check_sizes,
)
from .norms import BatchNorm, GroupNorm
from .ode_solve import ODESolve


class ConvODENet(eqx.Module):
    """y' = f(y), y(0) = stem(x), logits = head(y(t1)).

    `t1`, `solver`, `stepsize_controller`, `dt0`, `adjoint`, `max_steps`: how it is solved, see
    `ODESolve`. A solve that needs more than `max_steps` gives logits that are NaN, which training
    and evaluation refuse.
    """

    stem: Stem
    field: ResidualField
    head: Head
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 32,
        t1: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        dt0: float | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
        max_steps: int = 256,
        norm: Norm = GroupNorm,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_sizes(width=width)
        if norm is BatchNorm:
            raise ValueError("batch statistics change within an adaptive solve: use GroupNorm")
        stem_key, field_key, head_key = jax.random.split(key, 3)
        self.stem = Stem(image_shape, width, norm, key=stem_key)
        self.field = ResidualField(width, norm, key=field_key)
        self.head = Head(width, n_classes, norm, key=head_key)
        self.ode = ODESolve(t1, solver, stepsize_controller, dt0, adjoint, max_steps)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return self.head(jnp.where(solved, solution.ys[0], jnp.nan), state)

    def drift(self, x: Image, state: eqx.nn.State) -> Scalar:
        """The mean over the entries of y of int_{t1}^{2 t1} |f(y(t))| dt (NaN if not solved)."""
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        y = solution.ys[0]

        def field(t, carry, args):
            dy, _ = args[0](carry[0], args[1])
            return dy, jnp.abs(dy)

        after = self.ode(field, (y, jnp.zeros_like(y)), (self.field, state))
        assert after.ys is not None
        successful = diffrax.RESULTS.successful
        solved = (solution.result == successful) & (after.result == successful)
        return jnp.where(solved, jnp.mean(after.ys[1]), jnp.nan)

    def solve(self, x: Image, state: eqx.nn.State) -> tuple[diffrax.Solution, eqx.nn.State]:
        """The solve behind the logits: y(t1), whether it succeeded, and its statistics."""
        check_image(x, self.image_shape)
        y, state = self.stem(x, state)
        args = self.field, state
        return self.ode(lambda t, y, args: args[0](y, args[1])[0], y, args), state
