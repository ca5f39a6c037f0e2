"""The networks that are compared: one CNN, with another residual part in the middle of each.

    convolutions of stride 2 -> middle part at constant width -> linear, ReLU, linear

In the middle are two residual fields of two convolutions each, integrated by Euler's method
(ResNet), by SSPRK(2,2) and SSPRK(3,3); one field as a neural ODE in two midpoint steps; or nmODE,
y(1; gamma) with gamma a convolution. The three residual networks have equal weights. The fields
have no norm: their stages share weights, and each would need statistics of its own. The paper's
nmODE, fully connected, is measured as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax

from odejax import models
from odejax.models import CNN, BatchNorm, Conv, NmODE, NoNorm, ResidualField, interval_init
from odejax.solvers import SSPRK22, SSPRK33, AbstractNoise, integrate_layers, stack_layers

FIELDS = 2
STEP = 1 / FIELDS  # so that the residual part ends at time 1, as the ODE does


class Layers(eqx.Module):
    """Residual fields, one for each step of a solver."""

    fields: Callable
    solver: Any
    noise: AbstractNoise | None

    def __init__(self, width: int, solver: Any, noise: AbstractNoise | None = None, *, key):
        make = partial(ResidualField, width, NoNorm)
        self.fields = stack_layers(lambda key: make(key=key), FIELDS, key=key)  # pyright: ignore[reportAttributeAccessIssue]
        self.solver, self.noise = solver, noise

    def __call__(self, y, state: eqx.nn.State, *, key=None):
        how = {"solver": self.solver, "step_size": STEP, "noise": self.noise, "key": key}
        return integrate_layers(self.fields, y, state, **how)


class Flow(eqx.Module):
    """One residual field, solved to time 1 by the midpoint rule on a grid."""

    field: ResidualField
    ode: models.ODESolve

    def __init__(self, width: int, *, key):
        self.field = ResidualField(width, NoNorm, key=key)
        self.ode = models.ODESolve(solver=diffrax.Midpoint()).on_grid(FIELDS)

    def __call__(self, y, state: eqx.nn.State, *, key=None):
        solution = self.ode(lambda t, y, field: field(y, state)[0], y, self.field)
        return solution.ys[0], state  # pyright: ignore[reportOptionalSubscript]


class Memory(eqx.Module):
    """nmODE, elementwise: y(1; gamma) with gamma a convolution of what comes in."""

    gamma: Conv
    nmode: NmODE

    def __init__(self, width: int, *, key):
        self.gamma, self.nmode = Conv(width, width, 3, padding=1, key=key), NmODE()

    def __call__(self, y, state: eqx.nn.State, *, key=None):
        return self.nmode(self.gamma(y)), state


class WithMiddle(eqx.Module):
    """A `CNN` with a part between its convolutions and its linear layers."""

    cnn: CNN
    middle: Callable

    def __init__(self, image_shape, n_classes: int, middle: Callable, *, channels, key, **settings):
        cnn_key, middle_key = jax.random.split(key)
        self.cnn = CNN(image_shape, n_classes, channels=channels, key=cnn_key, **settings)
        self.middle = middle(channels[-1], key=middle_key)

    def __call__(self, x, state: eqx.nn.State, *, key=None):
        y, state = self.cnn.features(x, state)
        y, state = self.middle(y, state, key=key)
        return self.cnn.classify(y, state)


MIDDLES = {
    "ResNet": partial(Layers, solver=diffrax.Euler()),
    "SSP-2": partial(Layers, solver=SSPRK22()),
    "SSP-3": partial(Layers, solver=SSPRK33()),
    "neural ODE": Flow,
    "nmODE": Memory,
}
CONNECTED = "nmODE, fully connected"


def family(name: str, channels: tuple[int, ...], width: int, neurons: int) -> Callable[..., Any]:
    """What makes the network of this name.

    - `channels`: of the convolutions.
    - `width`: of the hidden linear layer.
    - `neurons`: of the fully connected nmODE.
    """
    sizes = {"channels": channels, "width": width, "norm": BatchNorm}
    if name in ("CNN", LONGER):
        return partial(CNN, **sizes)
    if name == CONNECTED:
        return partial(models.NmODENet, width=neurons)
    return partial(WithMiddle, middle=MIDDLES[name], **sizes)


LONGER = "CNN, longer"  # the same network; a step of training costs a third of the others'
FAMILIES = ("CNN", *MIDDLES, CONNECTED, LONGER)


def drawn_for_intervals(make: Callable[..., Any]) -> Callable[..., Any]:
    """The same network, with initial weights that keep intervals narrow."""

    def drawn(*shape: Any, key):
        make_key, weights_key = jax.random.split(key)
        return interval_init(make(*shape, key=make_key), key=weights_key)

    return drawn
