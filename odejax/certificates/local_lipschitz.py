"""Local Lipschitz constants of all margins, from intervals of the gradient (Fast-Lip)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import as_array, check_example, check_labels
from .._promotion import own_promotion
from .._rounding import RADIUS_ROUNDING, sum_rounding
from .._threat_model import AbstractBall, check_ball
from .._types import Image, Label, Logits, LogitsFn, Scalar
from ..relaxation import Margins, Propagation, deterministic, trace
from ..relaxation.gradients import gradients
from ..relaxation.rules import ROUNDING, unit
from .base import AbstractDeterministicCertificate


class LocalLipschitz(AbstractDeterministicCertificate):
    """A Lipschitz constant of every margin around the image, from its gradient's intervals.

        radius = min(eps, min_j (z_y - z_j) / L_j),
        L_j = || max |d(z_y - z_j) / dx| ||_*  over ball and box

    The norm is the dual one: the sum of sizes for `LinfBall`, l2 for `L2Ball`. CROWN's intervals
    say in what interval each slope of the network lies; the chain rule takes them back to the
    image. For any deterministic network whose operations are affine, products, maxima, and
    functions of one number.

    This certificate is for its constants (`constants`), and for radii below eps without a search.
    On the digits it proved no image that CROWN (`LinearRelaxation`) did not, and far fewer at large
    eps: an MLP and an nmODE network (100 images), a `LipschitzNet` (60) and an untrained ResNet
    (16), in both norms. So `certificates.best` does not list it. On a linear network the constants
    are exact.

    Raises `ValueError` for a network that draws noise, one that is solved in steps of its own
    choice, and for a primitive without a rule.

        >>> import jax.numpy as jnp, odejax
        >>> linear = lambda x: jnp.stack([3 * x[0, 0, 0], x[0, 1, 0]])
        >>> x, ball = jnp.full((1, 2, 1), 0.5), odejax.LinfBall(0.1)
        >>> certificate = odejax.certificates.LocalLipschitz()
        >>> certificate.constants(linear, x, 0, ball).round(3).tolist()
        [0.0, 4.0]
        >>> bool(certificate(linear, x, 0, ball, key=0).certified)
        True

    Weng et al. (2018), arXiv:1804.09699 (Fast-Lip); Zhang et al. (2019), arXiv:1810.11783
    (RecurJac).
    """

    of_any_function: ClassVar[bool] = True

    @property
    def images_at_once(self) -> int:
        return 16  # as for `LinearRelaxation`, whose intervals it needs

    @own_promotion
    def constants(
        self, logits_fn: LogitsFn, x: Image, label: Label | int, ball: AbstractBall
    ) -> Float[Array, " k"]:
        """How fast z_label - z_j can change at most per unit of the ball's norm, for every j.

            |m_j(x') - m_j(x'')| <= L_j ||x' - x''||  for x', x'' of ball and box

        - `logits_fn`: a `Predictor`, or any function of one image.
        - `x`: (h, w, c) in [0, 1]; `label`: of the margins; `ball`: around `x`.

        Infinite where nothing is known. Raises `ValueError` as the certificate does.
        """
        x, label = as_array("x", x), as_array("label", label)
        check_ball(ball)
        check_example(x, label, ball)
        with jax.default_matmul_precision("highest"):
            constants, _ = _constants(logits_fn, x, label, ball)
        check_labels(label, len(constants))
        return constants

    def radius(self, predictor: LogitsFn, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        label, others = jnp.argmax(logits), jnp.arange(len(logits))
        lipschitz, lost = _constants(predictor, x, label, ball)
        largest = jnp.max(jnp.abs(logits))
        margins = logits[label] - logits - lost - 2 * ROUNDING * unit(logits) * largest
        radii = margins / jnp.maximum(lipschitz, jnp.finfo(logits.dtype).tiny)
        least = jnp.min(jnp.where(others == label, jnp.inf, radii)) * (1 - RADIUS_ROUNDING)
        # It is about this ball alone.
        return jnp.where(least > 0, jnp.minimum(least, ball.eps), 0.0)


def _constants(logits_fn: LogitsFn, x: Image, label: Label, ball: AbstractBall):
    """The constants of all margins, and what float32 may take a margin off, at x and at x'."""
    graph = trace(deterministic(logits_fn, x), x)
    margins = Margins(graph, x, ball, Propagation())
    (k,) = graph.shapes[graph.outputs[0]]
    rows = jax.nn.one_hot(label, k, dtype=x.dtype) - jnp.eye(k, dtype=x.dtype)
    gradient = gradients(graph, margins.bounds, rows)
    steepest = gradient.rows[0].largest().reshape(k, -1)
    rounding = 1 + sum_rounding(x.size) * unit(x)
    lipschitz = jax.vmap(ball.dual_norm)(steepest) * rounding
    lost = 2 * gradient.lost * rounding
    known = jnp.isfinite(lipschitz) & jnp.isfinite(lost)
    lipschitz, lost = (jnp.where(known, v, jnp.inf) for v in (lipschitz, lost))
    return jnp.where(jnp.arange(k) == label, 0.0, lipschitz), lost
