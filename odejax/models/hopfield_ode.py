"""A neural ODE that settles: the continuous Hopfield network as a classifier."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Image, Key, Logits
from .blocks import ImageShape, check_image, check_image_shape, check_sizes
from .ode_solve import ODESolve


class HopfieldODENet(eqx.Module):
    """y' = -y + tanh(W y + b), y(0) = A x + a, logits = C y(t1) + c.

    All of the image is in the initial state, and over a long time the state falls towards an
    attractor and forgets it at an exponential rate: so do the gradients. With a long `t1` this is
    the smallest neural ODE with the settings of *natural* (t1 = 100, Dopri5) whose gradients say
    less about its decisions than its decisions do.

    `t1`, `solver`, `stepsize_controller`, `dt0`, `adjoint`, `max_steps`: how it is solved, see
    `ODESolve`; NaN logits where it needs more than `max_steps`.
    """

    inputs: eqx.nn.Linear
    recurrent: eqx.nn.Linear
    outputs: eqx.nn.Linear
    ode: ODESolve
    image_shape: ImageShape = eqx.field(static=True)

    def __init__(
        self,
        image_shape: ImageShape,
        n_classes: int = 10,
        *,
        width: int = 128,
        t1: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        dt0: float | None = None,
        adjoint: diffrax.AbstractAdjoint | None = None,
        max_steps: int = 256,
        key: Key,
    ):
        self.image_shape = check_image_shape(image_shape, n_classes)
        check_sizes(width=width)
        height, width_in, channels = image_shape
        keys = jax.random.split(key, 3)
        self.inputs = eqx.nn.Linear(height * width_in * channels, width, key=keys[0])
        self.recurrent = eqx.nn.Linear(width, width, key=keys[1])
        self.outputs = eqx.nn.Linear(width, n_classes, key=keys[2])
        self.ode = ODESolve(t1, solver, stepsize_controller, dt0, adjoint, max_steps)

    def __call__(
        self, x: Image, state: eqx.nn.State, *, key: Key | None = None
    ) -> tuple[Logits, eqx.nn.State]:
        solution, state = self.solve(x, state)
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return self.outputs(jnp.where(solved, solution.ys[0], jnp.nan)), state

    def solve(self, x: Image, state: eqx.nn.State) -> tuple[diffrax.Solution, eqx.nn.State]:
        """The solve behind the logits: y(t1), whether it succeeded, and its statistics."""
        check_image(x, self.image_shape)

        def field(t, y, recurrent):
            return -y + jnp.tanh(recurrent(y))

        return self.ode(field, self.inputs(jnp.ravel(x)), self.recurrent), state
