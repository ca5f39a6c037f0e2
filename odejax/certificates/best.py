"""Which certificates apply to a network, in the order of their cost."""

import math
from functools import partial
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_callable, check_count
from .._inputs import method_name
from .._promotion import own_promotion
from .._threat_model import LinfBall
from .._types import Image, LogitsFn
from ..models.blocks import check_image_shape
from ..relaxation import Graph, deterministic, trace
from ..relaxation.rules import Affine, Loop
from .base import AbstractCertificate
from .bound_propagation import LinearRelaxation
from .lipschitz_margin import LipschitzMargin
from .stable_mapping import FlowMapSlope

# What one of these proves at about the same cost is no entry of its own: Eq. (4) of nmODE and its
# finite-time form are never tighter than the slope, nor intervals and CROWN-IBP than CROWN.
_OF_A_MODEL = {"LipschitzMargin": LipschitzMargin(), "FlowMapSlope": FlowMapSlope()}
BY_NAME = {
    "CROWN": partial(LinearRelaxation),
    "CROWN-IBP": partial(LinearRelaxation, intermediate="interval"),  # for a large network
}
_OF_ANY_FUNCTION = {name: make() for name, make in BY_NAME.items()}
MAX_NEURONS = 15_000


@final
class Best(dict[str, AbstractCertificate]):
    """Certificates of one network by name, the cheapest first.

    - `left_out`: by name, why others are not among them.

    >>> odejax.certificates.Best(left_out={"CROWN": "the network draws noise"}).left_out
    {'CROWN': 'the network draws noise'}
    """

    def __init__(self, *certificates: Any, left_out: dict[str, str]):
        super().__init__(*certificates)
        self.left_out = left_out

    @property
    def limits(self) -> tuple[str, ...]:
        """Why bound propagation, which any deterministic network could have, is not among them."""
        reasons = [self.left_out[name] for name in _OF_ANY_FUNCTION if name in self.left_out]
        return tuple(dict.fromkeys(reasons))


@own_promotion
def best(
    logits_fn: LogitsFn,
    image_shape: tuple[int, ...] | None = None,
    *,
    max_neurons: int = MAX_NEURONS,
) -> Best:
    """The certificates that apply to this network, by name and in the order of their cost.

    | name | certificate | applies to |
    | --- | --- | --- |
    | LipschitzMargin | `LipschitzMargin()` | a model with a `lipschitz_bound` |
    | FlowMapSlope | `FlowMapSlope()` | an `NmODENet` with its flow map |
    | CROWN | `LinearRelaxation()` | any deterministic function of up to `max_neurons` |
    | CROWN-IBP | `LinearRelaxation(intermediate="interval")` | the same, of more |

    `evaluation.bracket` runs them in turn, each on images that those before it did not prove.

    None applies to a network that draws noise, or to a neural ODE whose steps depend on the image.
    A certificate that another one of these contains (`IntervalBounds`, `StableMapping`,
    `FiniteTimeStableMapping`, and `LocalLipschitz` as far as measured) is not listed.

    - `logits_fn`: a `Predictor`, or any function of one image.
    - `image_shape`: (h, w, c); by default that of `logits_fn.model`.
    - `max_neurons`: the largest network that CROWN is for (15,000), in numbers that come out of
      operations that are not affine. The cost of an image grows with their square.

    Nothing is computed: the certificates are traced. Raises `ValueError` where the shape is not
    known, or no shape of an image.

    >>> make = eqx.nn.make_with_state(odejax.models.MLP)
    >>> network = odejax.Predictor(*make((8, 8, 1), key=jax.random.key(0)))
    >>> list(odejax.certificates.best(network))
    ['CROWN']

    Zhang et al. (2020), arXiv:1906.06316, for CROWN-IBP and CROWN.
    """
    check_callable(logits_fn=logits_fn)
    check_count(0, max_neurons=max_neurons)
    if image_shape is None:
        image_shape = getattr(getattr(logits_fn, "model", None), "image_shape", None)
    if image_shape is None:
        name = method_name(getattr(logits_fn, "model", logits_fn))
        raise ValueError(f"image_shape must be given: {name} does not state it")
    x = jnp.zeros(check_image_shape(image_shape))
    applying, left_out = {}, {}
    for name, certificate in _OF_A_MODEL.items():
        if reason := _refusal(certificate, logits_fn, x):
            left_out[name] = reason
        else:
            applying[name] = certificate
    if reason := _refusal(_OF_ANY_FUNCTION["CROWN-IBP"], logits_fn, x):
        left_out |= dict.fromkeys(_OF_ANY_FUNCTION, reason)
    else:
        neurons = count_neurons(logits_fn, x)
        name = "CROWN" if neurons <= max_neurons else "CROWN-IBP"
        applying[name] = _OF_ANY_FUNCTION[name]
        if name != "CROWN":
            left_out["CROWN"] = (
                f"CROWN is left out for its cost: {neurons:,} neurons are more than "
                f"max_neurons = {max_neurons:,}"
            )
    return Best(applying, left_out=left_out)


def _refusal(certificate: AbstractCertificate, logits_fn: LogitsFn, x: Image) -> str | None:
    """Why the certificate says nothing about the network; None where it does."""
    try:
        eqx.filter_eval_shape(certificate, logits_fn, x, 0, LinfBall(0.1), key=jax.random.key(0))
    except ValueError as error:
        return str(error)


def count_neurons(logits_fn: LogitsFn, x: Image) -> int:
    """How many numbers come out of operations that are not affine."""
    counts = []

    def count(logits_fn, x):
        counts.append(_neurons(trace(deterministic(logits_fn, x), x)))

    eqx.filter_eval_shape(count, logits_fn, x)  # so that no weight is computed with
    return counts[0]


def _neurons(graph: Graph) -> int:
    count = 0
    for node in graph.nodes:
        if isinstance(node.rule, Loop):
            count += node.rule.length * _neurons(node.rule.at(0))
        elif not isinstance(node.rule, Affine):
            count += math.prod(graph.shapes[node.outputs[0]])
    return count
