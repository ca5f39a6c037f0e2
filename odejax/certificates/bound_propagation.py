"""Bound propagation as certificates: of any deterministic network, from its program alone."""

import abc
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count
from .._threat_model import AbstractBall
from .._types import Image, Label, Logits, LogitsFn, Scalar
from ..relaxation import Graph, Margins, Propagation, deterministic, trace
from .base import AbstractDeterministicCertificate


class AbstractBoundPropagation(AbstractDeterministicCertificate):
    """Lower bounds on all margins z_label - z_j over ball and box, from the network's program.

    A subclass defines `margins`. The radius asked for, `ball.eps`, is tried first; with
    `bisections` the largest one that is proven is sought.
    """

    of_any_function: ClassVar[bool] = True
    bisections: eqx.AbstractVar[int]

    @abc.abstractmethod
    def margins(
        self, graph: Graph, x: Image, label: Label, ball: AbstractBall
    ) -> Float[Array, " k"]:
        """A lower bound on z_label - z_j over ball and box, for every j."""

    def radius(self, predictor: LogitsFn, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        graph = trace(deterministic(predictor, x), x)
        label = jnp.argmax(logits)

        def proven(eps):
            around = type(ball)(eps)  # pyright: ignore[reportCallIssue]
            margins = self.margins(graph, x, label, around)
            return jnp.all((margins > 0) | (jnp.arange(len(logits)) == label))

        asked = jnp.asarray(ball.eps)
        if not self.bisections:
            return jnp.where(proven(asked), asked, 0.0)
        # No image is further away than sqrt(n), in either norm.
        furthest = 2 * x.size**0.5

        def search(carry):
            low, high, eps, left = carry
            certified = proven(eps)
            low, high = jnp.where(certified, eps, low), jnp.where(certified, high, eps)
            halve = jnp.isfinite(high)
            left = jnp.where(halve, left - 1, left)
            return low, high, jnp.where(halve, (low + high) / 2, 2 * eps), left

        start = jnp.where(asked > 0, asked, 1e-3)
        carry = jnp.zeros_like(start), jnp.full_like(start, jnp.inf), start, self.bisections + 1
        low, _, _, _ = jax.lax.while_loop(
            lambda carry: (carry[3] > 0) & (carry[0] < furthest), search, carry
        )
        return low


class IntervalBounds(AbstractBoundPropagation):
    """Interval arithmetic through the whole network: cheap, and wide.

        c - |A| r <= A x + b <= c + |A| r,  c and r the interval's centre and radius

    The last affine operations are taken together with the margin, as one.

    - `bisections`: halvings of the radius (0: the radius asked for, or nothing).

    Raises `ValueError` for a network that draws noise, one that is solved in steps of its own
    choice, and for a primitive without a rule.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> make, key = eqx.nn.make_with_state(odejax.models.MLP), jax.random.key(0)
        >>> net = odejax.Predictor(*make((2, 2, 1), width=4, depth=1, key=key))
        >>> certify = eqx.filter_jit(odejax.certificates.IntervalBounds())
        >>> float(certify(net, jnp.ones((2, 2, 1)), 0, odejax.LinfBall(1e-4), key=key).radius)
        9.999999747378752e-05

    Gowal et al. (2018), arXiv:1810.12715.
    """

    bisections: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_count(0, bisections=self.bisections)

    def margins(self, graph, x, label, ball):
        return Margins(graph, x, ball, Propagation(tighten=False)).of_label(label, stop=True)


class LinearRelaxation(AbstractBoundPropagation):
    """Linear functions below and above every neuron, carried back to the image (CROWN).

        a z + b <= f(z) <= c z + d  on the interval that z runs through

    The lines take the place of every operation that is not affine; the margin is then
    linear in x, and its least value over ball and box is known. The intervals are found in the same
    way, from the first operation to the last. Below a kink (of ReLU, leaky ReLU, max) every line
    through it with a slope between its two is such a line; with `slope_steps` these slopes are
    optimised for each margin (alpha-CROWN). The intervals stay CROWN's.

    - `intermediate`: how the intervals are found: "linear" (CROWN), or "interval" (CROWN-IBP).
    - `bisections`: halvings of the radius (0: the radius asked for, or nothing).
    - `slope_steps`: steps of gradient ascent on the slopes below the kinks (0); each costs about
      three backward passes of all margins. The best bound of all steps counts.
    - `chunk`: how many linear functions are carried back at once (32); memory grows with it.

    It is about any deterministic network: this library's, or a `logits_fn` of Flax or Haiku. A
    neural ODE is certified on a grid (`ODESolve.on_grid`). Raises `ValueError` for a network that
    draws noise, one that is solved in steps of its own choice, and for a primitive without a rule.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> make, key = eqx.nn.make_with_state(odejax.models.MLP), jax.random.key(0)
        >>> net = odejax.Predictor(*make((2, 2, 1), width=4, depth=1, key=key))
        >>> certify = eqx.filter_jit(odejax.certificates.LinearRelaxation(bisections=4))
        >>> float(certify(net, jnp.ones((2, 2, 1)), 0, odejax.LinfBall(0.1), key=key).radius) > 0.05
        True

    Zhang et al. (2018), arXiv:1811.00866; Zhang et al. (2020), arXiv:1906.06316, for CROWN-IBP;
    Xu et al. (2021), arXiv:2011.13824, for the slopes.
    """

    intermediate: Literal["linear", "interval"] = eqx.field(static=True, default="linear")
    bisections: int = eqx.field(static=True, default=0)
    slope_steps: int = eqx.field(static=True, default=0)
    chunk: int = eqx.field(static=True, default=32)

    def __check_init__(self):
        check_count(0, bisections=self.bisections, slope_steps=self.slope_steps)
        check_count(2, chunk=self.chunk)
        if self.intermediate not in ("linear", "interval"):
            raise ValueError(f"intermediate must be linear or interval; got {self.intermediate!r}")

    @property
    def images_at_once(self) -> int:
        # More do not run faster, and memory grows with them.
        return 16 if self.intermediate == "linear" else super().images_at_once

    def margins(self, graph, x, label, ball):
        margins = Margins(graph, x, ball, Propagation(self.intermediate == "linear", self.chunk))
        crown = margins.of_label(label, stop=False, slope_steps=self.slope_steps)
        return jnp.maximum(crown, margins.of_label(label, stop=True))
