"""Neural ODEs: a residual field that does not change with depth, solved by Diffrax (*natural*)."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Image, Key, Logits
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


class ConvODENet(eqx.Module):
    """y' = f(y), y(0) = stem(x), logits = head(y(t1)).

    - `solver`, `stepsize_controller`, `dt0`, `adjoint`: Diffrax's own. The default is Dopri5 with
      steps adapted to rtol = atol = 1e-3; for constant steps pass `diffrax.ConstantStepSize()` and
      `dt0`. Under `vmap` every example has its own steps (and all wait for the slowest).
    - `adjoint`: by default the gradient is that of the solver's own steps, with checkpoints.
    - A solve that needs more than `max_steps` gives logits that are NaN, which training and
      evaluation refuse.

    The solve runs at the highest matrix precision: rounding of TF32 size makes an adaptive
    controller take many times more steps.
    """

    stem: Stem
    field: ResidualField
    head: Head
    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController
    adjoint: diffrax.AbstractAdjoint
    t1: float = eqx.field(static=True)
    dt0: float | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
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
        if not 0 < t1 < float("inf"):
            raise ValueError(f"t1 must be finite and positive; got {t1}")
        if norm is BatchNorm:
            raise ValueError("batch statistics change within an adaptive solve: use GroupNorm")
        if isinstance(stepsize_controller, diffrax.ConstantStepSize) and dt0 is None:
            raise ValueError("constant steps need dt0")
        stem_key, field_key, head_key = jax.random.split(key, 3)
        self.stem = Stem(image_shape, width, norm, key=stem_key)
        self.field = ResidualField(width, norm, key=field_key)
        self.head = Head(width, n_classes, norm, key=head_key)
        self.solver = diffrax.Dopri5() if solver is None else solver
        if stepsize_controller is None:
            stepsize_controller = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        self.stepsize_controller = stepsize_controller
        self.adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
        self.t1, self.dt0, self.max_steps = t1, dt0, max_steps

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return self.head(jnp.where(solved, solution.ys[0], jnp.nan), state)

    def solve(self, x: Image, state: eqx.nn.State) -> tuple[diffrax.Solution, eqx.nn.State]:
        """The solve behind the logits: y(t1), whether it succeeded, and its statistics."""
        check_image(x, self.image_shape)
        y, state = self.stem(x, state)
        with jax.default_matmul_precision("highest"):
            solution = diffrax.diffeqsolve(
                # As arguments, since the continuous adjoint takes nothing that is closed over.
                diffrax.ODETerm(lambda t, y, args: args[0](y, args[1])[0]),
                self.solver,
                0.0,
                self.t1,
                self.dt0,
                y,
                (self.field, state),
                stepsize_controller=self.stepsize_controller,
                adjoint=self.adjoint,
                max_steps=self.max_steps,
                throw=False,  # raising needs a host callback, which defeats the compilation cache
            )
        return solution, state

    def with_solver(
        self,
        *,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        dt0: float | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
    ) -> "ConvODENet":
        """The same equation and weights, solved or differentiated in another way."""
        given = {
            "solver": solver,
            "stepsize_controller": stepsize_controller,
            "dt0": dt0,
            "adjoint": adjoint,
        }
        model = object.__new__(type(self))
        for field in dataclasses.fields(self):
            value = given.get(field.name)
            value = getattr(self, field.name) if value is None else value
            object.__setattr__(model, field.name, value)
        return model
