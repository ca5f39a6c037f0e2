"""The stable mapping of nmODE as a certificate (*nmode* Theorem 1 and Eq. 4).

gamma = W x + b reaches the logits only through y(t; gamma), which every neuron computes alone and
whose slope is bounded. So a perturbation of size eps (L-infinity) moves neuron k by at most
slope * ||w_k||_1 * eps, and z_y - z_j, with the output weights V, by at most
sum_k |v_yk - v_jk| times that.
"""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._predictor import Predictor
from .._threat_model import LinfBall
from .._types import Label
from ..models import NmODENet
from .base import AbstractCertificate


class StableMapping(AbstractCertificate):
    """Eq. (4) as published: ||y - y'||_inf <= tau / (lam - 1) ||x - x'||_inf at every time,
    tau = max_k ||w_k||_1. Needs lam > 1 (`ValueError`).
    """

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_growth(self, predictor: Predictor, label: Label) -> Float[Array, " k"]:
        model = _nmode_net(self, predictor)
        if not model.nmode.lam > 1:
            raise ValueError(f"the stable mapping needs lam > 1; got {model.nmode.lam}")
        tau = jnp.max(_row_sums(model))
        return _class_distances(model, label).sum(axis=1) * tau / (model.nmode.lam - 1)


class FiniteTimeStableMapping(AbstractCertificate):
    """The same proof stopped at t1, and each neuron with its own row of W.

    The slope is at most (1 - e^{-(lam - 1) t1}) / (lam - 1), a tenth of Eq. (4)'s at lam = 3 and
    t1 = 0.05, and no larger for any t1; sum_k |v_yk - v_jk| ||w_k||_1 replaces tau times the sum.
    """

    norm: ClassVar[type[LinfBall]] = LinfBall

    def margin_growth(self, predictor: Predictor, label: Label) -> Float[Array, " k"]:
        model = _nmode_net(self, predictor)
        return _class_distances(model, label) @ _row_sums(model) * model.nmode.slope_bound()


def _nmode_net(certificate, predictor) -> NmODENet:
    if not isinstance(predictor.model, NmODENet):
        raise ValueError(
            f"{type(certificate).__name__} certifies an NmODENet; "
            f"got {type(predictor.model).__name__}"
        )
    if predictor.model.nmode.flow_map is None:
        raise ValueError(
            f"{type(certificate).__name__} is a statement about the exact flow, but this NmODENet "
            f"is solved by {type(predictor.model.nmode.solver).__name__}, whose error is not "
            f"bounded: build it with NmODE(lam, t1), without a solver"
        )
    return predictor.model


def _row_sums(model: NmODENet) -> Float[Array, " width"]:
    return jnp.sum(jnp.abs(model.inputs.weight), axis=1)


def _class_distances(model: NmODENet, label: Label) -> Float[Array, "k width"]:
    return jnp.abs(model.outputs.weight[label] - model.outputs.weight)
