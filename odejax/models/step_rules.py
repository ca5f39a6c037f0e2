"""How large two gradient-flow steps in a row may be, so that together they expand nothing.

*structured*: a step x+ = x - h A^T sigma(A x + b), sigma with slopes in [a, 1] and
m |x|^2 <= |A x|^2 <= M |x|^2, stretches distances by at most
max(|1 - h a m|, |1 - h M|) = step_norm(h, a m, M). The product of two is kept at 1 or below, though
the second may expand.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Scalar


def step_norm(h: float | Scalar, low: float | Scalar, high: float | Scalar) -> Scalar:
    """max |1 - h lambda| over lambda in [low, high]: the most that a step of size h stretches."""
    return jnp.maximum(jnp.abs(1 - h * low), jnp.abs(1 - h * high))


class AbstractSteps(eqx.Module):
    """The sizes (h1, h2) of two steps in a row, from two learned numbers of the real line.

    `low` and `high` bound the squared singular values of both maps, `slope` is a. Steps that live
    on contraction are `switching`: their maps start orthogonal, where all singular values are 1.
    """

    switching: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(
        self,
        learned: Float[Array, " 2"],
        low: Float[Array, " 2"],
        high: Float[Array, " 2"],
        slope: float,
    ) -> Float[Array, " 2"]:
        """(h1, h2)."""


class NonExpansiveSteps(AbstractSteps):
    """Both steps learned in (0, 2 / M): `steps(learned, low, high, slope)` is (h1, h2).

        h_i = 2 sigmoid(learned_i) / M_i

    - `learned`: two real numbers, (2,).
    - `low`, `high`: m and M of both maps, (2,) each; `low` is not used.
    - `slope`: a; not used.

        >>> import jax.numpy as jnp, odejax
        >>> steps = odejax.models.NonExpansiveSteps()
        >>> steps(jnp.zeros(2), jnp.zeros(2), jnp.array([1.0, 2.0]), 0.5).tolist()
        [1.0, 0.5]

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    switching: ClassVar[bool] = False

    def __call__(self, learned, low, high, slope):
        return 2 * jax.nn.sigmoid(learned) / high


class PrescribedSteps(AbstractSteps):
    """*Switching prescribed*: a step that contracts most, then the largest expansion it allows.

        h1 = 2 / (a m_1 + M_1),  h2 <= 0 with (1 - h2 M_2) step_norm(h1) = 1

    Where nothing is proven to contract (`low` is 0, or `slope`) the second step has size 0, and its
    map learns nothing: a penalty on |A^T A - I|, as in the paper, keeps it from there
    (`StructuredNet.orthogonality`).

    - `learned`: (2,), not used.
    - `low`, `high`: m and M of both maps, (2,) each.
    - `slope`: a.

        >>> import jax.numpy as jnp, odejax
        >>> sizes = odejax.models.PrescribedSteps()(jnp.zeros(2), jnp.ones(2), jnp.ones(2), 0.5)
        >>> [round(h, 2) for h in sizes.tolist()]
        [1.33, -2.0]

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    switching: ClassVar[bool] = True

    def __call__(self, learned, low, high, slope):
        h = 2 / (slope * low[0] + high[0])  # both ends of the spectrum shrink alike
        return jnp.stack([h, -_allowed(h, low, high, slope)])


class FlexibleSteps(AbstractSteps):
    """*Switching flexible*: h1 learned in (0, 2 / M), h2 from the expansion it allows to 2 / M.

        h1 = 2 s_1 / M_1,  h2 = s_2 (2 / M_2 + e) - e,  s = sigmoid(learned),  e that expansion

    - `learned`: two real numbers, (2,).
    - `low`, `high`: m and M of both maps, (2,) each.
    - `slope`: a.

        >>> import jax.numpy as jnp, odejax
        >>> odejax.models.FlexibleSteps()(jnp.zeros(2), jnp.ones(2), jnp.ones(2), 0.5).tolist()
        [1.0, 0.5]

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    switching: ClassVar[bool] = True

    def __call__(self, learned, low, high, slope):
        share = jax.nn.sigmoid(learned)
        h = 2 * share[0] / high[0]
        allowed = _allowed(h, low, high, slope)
        return jnp.stack([h, share[1] * (2 / high[1] + allowed) - allowed])


def _allowed(h, low, high, slope):
    """How far the second step may go uphill: (1 + h2 M2) step_norm(h) = 1."""
    # Never less than 0.05, or a step that contracts everything would allow any expansion.
    contraction = jnp.maximum(step_norm(h, slope * low[0], high[0]), 0.05)
    return jnp.maximum(0.0, 1 / contraction - 1) / high[1]
