"""The stable mapping of nmODE as a certificate (*nmode* Theorem 1 and Eq. 4).

gamma = W x + b reaches the logits only through y(t; gamma), which every neuron computes alone and
whose slope is bounded. So a perturbation of size eps (L-infinity) moves neuron k by at most
slope * ||w_k||_1 * eps, and z_y - z_j, with the output weights V, by at most
sum_k |v_yk - v_jk| times that. Stacked layers pass their movements on: |W| times those of the
layer before.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._predictor import Predictor
from .._rounding import MARGIN_ROUNDING, sum_rounding
from .._threat_model import AbstractBall, L2Ball, LinfBall
from .._types import Image, Label, Logits, Scalar
from ..models import NmODENet, matrix_norm_bound
from .base import (
    AbstractDeterministicCertificate,
    AbstractLipschitzCertificate,
    smallest_radius,
)


class StableMapping(AbstractLipschitzCertificate):
    """Eq. (4) of *nmode* as published: a certificate of an `NmODENet`, in both norms.

        ||y - y'||_inf <= tau / (lam - 1) ||x - x'||_inf at every time,  tau = max_k ||w_k||_1

    A factor for each stacked layer.

    Raises `ValueError` for lam <= 1, activations other than sin^2, a solved nmODE, and another
    network.

        >>> import odejax
        >>> odejax.certificates.StableMapping.norm.__name__
        'LinfBall'

    Luo, He and Yi (2024), *A stable mapping of nmODE*, Theorem 1.
    """

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_lipschitz(self, predictor: Predictor, label: Label) -> Float[Array, " k"]:
        model = _nmode_net(self, predictor)
        model.nmode.check_theorem()
        lam = model.nmode.lam
        if not lam > 1:
            raise ValueError(f"the stable mapping needs lam > 1; got {lam}")
        lipschitz = jnp.asarray(1.0)
        for layer in model.layers:
            assert layer.weight is not None
            lipschitz = lipschitz * jnp.max(jnp.sum(jnp.abs(layer.weight), axis=1)) / (lam - 1)
        return jnp.sum(_class_distances(model, label), axis=1) * lipschitz

    def rounding(self, predictor: Predictor, x: Image, label: Label) -> tuple[Array, Array]:
        return _rounding(_nmode_net(self, predictor), label), jnp.zeros(())


class FiniteTimeStableMapping(AbstractLipschitzCertificate):
    """`StableMapping` with the flow stopped at t1, and each neuron with its own row of W.

        |dy/dgamma| <= (1 - e^{-(lam - 1) t1}) / (lam - 1)

    A tenth of Eq. (4)'s at lam = 3 and t1 = 0.05, and no larger for any t1;
    sum_k |v_yk - v_jk| ||w_k||_1 replaces tau times the sum.

    Raises `ValueError` for activations other than sin^2, a solved nmODE, and another network.

        >>> import odejax
        >>> round(odejax.models.NmODE(lam=3.0, t1=0.05).slope_bound(), 4)
        0.0476

    Luo, He and Yi (2024), *A stable mapping of nmODE*, from the inequality behind Theorem 1.
    """

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_lipschitz(self, predictor: Predictor, label: Label) -> Float[Array, " k"]:
        model = _nmode_net(self, predictor)
        slope = model.nmode.slope_bound()
        return _class_distances(model, label) @ _movements(model, slope, LinfBall(1.0))

    def rounding(self, predictor: Predictor, x: Image, label: Label) -> tuple[Array, Array]:
        return _rounding(_nmode_net(self, predictor), label), jnp.zeros(())


class FlowMapSlope(AbstractDeterministicCertificate):
    """`StableMapping` with the flow map's own largest slope, max |dy/dgamma|, in place of a bound.

        |y - y'|_k <= max_gamma |dy/dgamma| ||w_k||_* ||x - x'||

    In l2 each neuron moves by at most slope * ||w_k||_2, and all of them together, a vector, by
    slope * ||W||_2: the smaller of the two growths counts for each pair of classes.

    Raises `ValueError` for a solved nmODE, and another network.

        >>> import odejax
        >>> nmode = odejax.models.NmODE(lam=3.0, t1=1.0)
        >>> nmode.flow_map.max_slope() < nmode.slope_bound()
        True

    Luo, He and Yi (2024), *A stable mapping of nmODE*, with the slope of the flow itself.
    """

    def radius(self, predictor: Predictor, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        model = _nmode_net(self, predictor)
        assert model.nmode.flow_map is not None
        slope, label = model.nmode.flow_map.max_slope(), jnp.argmax(logits)
        distances = _class_distances(model, label)
        unit = type(ball)(1.0)  # pyright: ignore[reportCallIssue]
        lipschitz = distances @ _movements(model, slope, unit)
        if isinstance(ball, L2Ball):
            together = jnp.asarray(1.0)
            for layer in model.layers:
                together = together * slope * matrix_norm_bound(layer.weight)
            lipschitz = jnp.minimum(lipschitz, jnp.linalg.norm(distances, axis=1) * together)
        return smallest_radius(logits, lipschitz * (1 + MARGIN_ROUNDING), _rounding(model, label))


def _nmode_net(certificate, predictor) -> NmODENet:
    if not isinstance(predictor.model, NmODENet):
        raise ValueError(
            f"{type(certificate).__name__} certifies an NmODENet; "
            f"got {type(predictor.model).__name__}"
        )
    check_exact(certificate, predictor.model.nmode)
    check_linear(certificate, [*predictor.model.layers, predictor.model.outputs])
    return predictor.model


def check_linear(certificate, layers):
    """Raise `ValueError` unless every layer is an `eqx.nn.Linear`."""
    for layer in layers:
        if not isinstance(layer, eqx.nn.Linear):
            raise ValueError(
                f"{type(certificate).__name__} certifies linear layers; got {type(layer).__name__}"
            )


def check_exact(certificate, nmode):
    """Raise `ValueError` for an nmODE that is solved, whose error is not bounded."""
    if nmode.flow_map is None:
        raise ValueError(
            f"{type(certificate).__name__} is a statement about the exact flow, but this nmODE "
            f"is solved by {type(nmode.solver).__name__}, whose error is not bounded: build it "
            f"with NmODE(lam, t1), without a solver"
        )


def _movements(model: NmODENet, slope: float, unit: AbstractBall) -> Float[Array, " width"]:
    """How far each neuron of the last layer can move when x moves by 1 in the norm of `unit`."""
    first, *others = (layer.weight for layer in model.layers)
    movements = slope * jax.vmap(unit.dual_norm)(first)
    for weight in others:
        movements = slope * (jnp.abs(weight) @ movements)
    return movements


def _rounding(model: NmODENet, label: Label) -> Float[Array, " k"]:
    """What sums in float32 may take off each margin, at x and at x': of a large gamma most."""
    flow_map = model.nmode.flow_map
    assert flow_map is not None
    inputs, errors = 1.0, jnp.zeros(())  # pixels, and how far off they are
    for layer in model.layers:
        moved = jnp.abs(layer.weight) @ jnp.broadcast_to(errors, layer.weight.shape[1:])
        errors = flow_map.max_slope() * (moved + _lost(layer, inputs))
        inputs = max(map(abs, flow_map.value_range()))
    sums = _lost(model.outputs, inputs)
    return 2 * (_class_distances(model, label) @ errors + sums + sums[label])


def _lost(layer: eqx.nn.Linear, inputs: float) -> Array:
    """What each output's sum may lose, for inputs up to `inputs`."""
    assert layer.weight is not None
    bias = 0.0 if layer.bias is None else jnp.abs(layer.bias)
    sizes = jnp.sum(jnp.abs(layer.weight), axis=1) * inputs + bias
    return sum_rounding(layer.weight.shape[1]) * sizes


def _class_distances(model: NmODENet, label: Label) -> Float[Array, "k width"]:
    assert model.outputs.weight is not None
    return jnp.abs(model.outputs.weight[label] - model.outputs.weight)
