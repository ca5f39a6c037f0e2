"""The Lipschitz margin certificate (*structured*; Tsuzuku et al. 2018)."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._predictor import Predictor
from .._threat_model import L2Ball
from .._types import Image, Label, Scalar
from .base import AbstractLipschitzCertificate


class LipschitzMargin(AbstractLipschitzCertificate):
    """A net that is L-Lipschitz in l2 keeps its class within (z_y - max_j z_j) / (sqrt(2) L).

    z_y - z_j is <e_y - e_j, z>, and ||e_y - e_j||_2 = sqrt(2). For every model that proves its
    constant as `model.lipschitz_bound()`, from pixels in [0, 1] to logits. One that tells the
    constant of every difference, `model.margin_bounds(y)`, is certified by these: the rows of its
    last matrix may lie closer than sqrt(2) times its norm (Tsuzuku et al. 2018). What sums lose on
    the way is taken off where the model tells it, as `model.float32_error(x, radius)`.
    """

    norm: ClassVar[type[L2Ball]] = L2Ball

    def margin_lipschitz(self, predictor: Predictor, label: Label) -> Float[Array, "..."]:
        bound = getattr(predictor.model, "lipschitz_bound", None)
        if bound is None:
            raise ValueError(
                f"LipschitzMargin certifies models with a lipschitz_bound() method, such as "
                f"LipschitzNet; {type(predictor.model).__name__} has none"
            )
        of_each = getattr(predictor.model, "margin_bounds", None)
        return 2**0.5 * bound() if of_each is None else of_each(label)

    def rounding(self, predictor: Predictor, x: Image, label: Label) -> tuple[Scalar, Scalar]:
        error = getattr(predictor.model, "float32_error", None)
        if error is None:
            return jnp.zeros(()), jnp.zeros(())
        here, there = error(x, jnp.arange(2.0))  # an affine function of the radius
        return 2**0.5 * 2 * here, 2**0.5 * (there - here)  # at x, and at x'
