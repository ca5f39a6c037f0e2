"""Which networks bounds can be about: one function of the image, evaluated in fixed steps."""

import jax

from .._inputs import method_name
from .._logits import Checked
from .._types import Image, LogitsFn
from ..solvers import GridSteps
from .walk import depends_on


def deterministic(logits_fn: LogitsFn, x: Image):
    """`logits_fn` as a function of the image alone, for images of the shape of `x`.

    Raises `ValueError` where it draws noise, and where its ODE is solved in steps that depend on
    the image.
    """
    model = getattr(logits_fn, "model", logits_fn)
    name, ode = method_name(model), getattr(model, "ode", None)
    adjoint = getattr(ode, "adjoint", None)  # of an `ODESolve`
    if ode is not None and adjoint is not None and not isinstance(adjoint, GridSteps):
        raise ValueError(
            f"bound propagation certifies a neural ODE on a fixed grid, and {name} is solved by "
            f"Diffrax's {type(ode.stepsize_controller).__name__}: make the network on a grid, "
            f"eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(n)), and evaluate, attack and "
            f"certify that one"
        )
    if draws_noise(logits_fn, x):
        raise ValueError(
            f"bound propagation is about one function, and {name} draws noise: what is proven of "
            f"one draw says nothing of the next"
        )
    checked, key = Checked(logits_fn), jax.random.key(0)
    return lambda x: checked(x, key=key)


def draws_noise(logits_fn: LogitsFn, x: Image) -> bool:
    """Whether the logits of an image of the shape of `x` depend on the key."""
    checked = Checked(logits_fn)
    closed = jax.make_jaxpr(lambda x, key: checked(x, key=key))(x, jax.random.key(0))
    return depends_on(closed.jaxpr, [False, True])[0]
