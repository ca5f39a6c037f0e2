"""The Lipschitz margin certificate (*structured*; Tsuzuku et al. 2018)."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._predictor import Predictor
from .._threat_model import L2Ball
from .._types import Image, Label, Scalar
from .base import AbstractLipschitzCertificate


class LipschitzMargin(AbstractLipschitzCertificate):
    """A net that is L-Lipschitz in l2 keeps its class within a radius in proportion to its margin.

        radius = min_j (z_y - z_j) / L_yj,  L_yj = min(sqrt(2) L, L_h ||a_y - a_j||_2)

    z_y - z_j is <e_y - e_j, z>, and ||e_y - e_j||_2 = sqrt(2). For every model that proves its
    constant L as `model.lipschitz_bound()`, from pixels in [0, 1] to logits. If the model also has
    one constant for each pair of classes, as `model.margin_bounds(y)`, (k,), these are used: the
    rows a_j of its last matrix may lie closer than sqrt(2) times its norm (L_h is the constant of
    all ahead of it). The float32 error is subtracted. The model must state it as
    `model.float32_error(x, radius)`: how far float32 logits may be from the exact ones, in l2, an
    affine function of the radius.

    Raises `ValueError` for a model without `lipschitz_bound` or `float32_error`.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> certificate = odejax.certificates.LipschitzMargin()
        >>> def radius(key, x):
        ...     make = eqx.nn.make_with_state(odejax.models.LipschitzNet)
        ...     net = odejax.Predictor(*make((8, 8, 1), key=key))
        ...     return certificate(net, x, 0, odejax.L2Ball(0.1), key=key).radius
        >>> jax.eval_shape(radius, jax.random.key(0), jnp.zeros((8, 8, 1))).shape
        ()

    Tsuzuku et al. (2018), arXiv:1802.04034.
    """

    norm: ClassVar[type[L2Ball]] = L2Ball

    def margin_lipschitz(self, predictor: Predictor, label: Label) -> Float[Array, "..."]:
        model = _checked(predictor.model)
        if hasattr(model, "margin_bounds"):
            return model.margin_bounds(label)
        return 2**0.5 * model.lipschitz_bound()

    def rounding(self, predictor: Predictor, x: Image, label: Label) -> tuple[Scalar, Scalar]:
        error = _checked(predictor.model).float32_error
        here, there = error(x, jnp.arange(2.0))  # an affine function of the radius
        return 2**0.5 * 2 * here, 2**0.5 * (there - here)  # at x, and at x'


def _checked(model: Any) -> Any:
    """The model; `ValueError` unless it states its constant, and what float32 does to it."""
    name = type(model).__name__
    if not hasattr(model, "lipschitz_bound"):
        raise ValueError(
            f"LipschitzMargin certifies models with a lipschitz_bound() method, such as "
            f"LipschitzNet; {name} has none"
        )
    if not hasattr(model, "float32_error"):
        raise ValueError(
            f"{name} has a lipschitz_bound() but no float32_error(x, radius): add this method, "
            f"which returns how far float32 may take the logits off, in l2, within the l2 radius "
            f"of x (see LipschitzNet.float32_error)"
        )
    return model
