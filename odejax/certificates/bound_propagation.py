"""Bound propagation as certificates: of any deterministic network, from its program alone."""

import abc
from functools import partial
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._checks import check_count
from .._inputs import method_name
from .._logits import Checked
from .._rounding import sum_rounding
from .._threat_model import AbstractBall, LinfBall
from .._types import Image, Label, Logits, LogitsFn, Scalar
from ..models.ode_solve import ODESolve
from ..relaxation import (
    Bounds,
    Graph,
    Interval,
    Kinks,
    Propagation,
    depends_on,
    kinks_of,
    pull,
    trace,
    with_kinks,
)
from ..relaxation.propagate import nothing_off
from ..relaxation.rules import Offset, unit
from ..solvers import GridSteps
from .base import AbstractDeterministicCertificate

RATE, RATE_DECAY = 0.25, 0.98  # of gradient ascent on tilts, and its factor from step to step


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


class Margins:
    """The bounds of a graph's values around an image, and what they prove of its margins.

    - `bounds`: of all values, or how they are found.
    - `cell`: of ball and box the images that lie in it; None for all.
    """

    def __init__(
        self,
        graph: Graph,
        x: Image,
        ball: AbstractBall,
        bounds: Propagation | Bounds,
        cell: Interval | None = None,
    ):
        self.graph, self.x, self.ball, self.cell = graph, x, ball, cell
        if not isinstance(bounds, Propagation):
            self.bounds = bounds
            return
        box = around(x, ball) if cell is None else cell
        exact = isinstance(ball, LinfBall)  # the box is the ball
        self.bounds = bounds.forward(graph, [box], self._over_region, exact=exact)

    def _over_region(self, rows, offset: Offset, parallel: bool | Array = True) -> Interval:
        """What <rows, x'> + offset lies between for the x' of ball, box and cell."""
        rows = rows[0].reshape(len(offset.middle), -1) if rows else jnp.zeros((1, self.x.size))
        over_ball = self._over_ball(rows, offset)
        if self.cell is None:
            return over_ball
        over_cell = self._over_cell(rows, offset, *map(jnp.ravel, self.cell))
        return Interval(
            jnp.maximum(over_ball.low, over_cell.low), jnp.minimum(over_ball.high, over_cell.high)
        )

    def _over_cell(self, rows, offset: Offset, low, high) -> Interval:
        sizes = jnp.maximum(jnp.abs(low), jnp.abs(high))
        lost = 2 * sum_rounding(low.size) * unit(low) * (jnp.abs(rows) @ sizes)
        middle = offset.middle + rows @ ((low + high) / 2)
        reach = offset.reach + jnp.abs(rows) @ ((high - low) / 2) + lost
        return Interval(middle - reach, middle + reach)

    def _over_ball(self, rows, offset: Offset) -> Interval:
        x = jnp.ravel(self.x)
        down, up = self.ball.largest_gain(x, -rows), self.ball.largest_gain(x, rows)
        lost = 2 * sum_rounding(x.size) * unit(x)
        size, middle = jnp.abs(rows) @ jnp.abs(x), offset.middle + rows @ x
        low = middle - offset.reach - down - lost * (size + down)
        return Interval(low, middle + offset.reach + up + lost * (size + up))

    def linear(
        self, rows: Float[Array, "r k"], kinks: Kinks | None = None, *, stop: bool = False
    ) -> tuple[Float[Array, "r ..."], Float[Array, " r"]]:
        """Linear functions of the image below <rows, z>: (r, h, w, c) and constants.

        - `stop`: from the intervals ahead of the last affine part.
        """
        (out,), offset = self.graph.outputs, nothing_off(len(rows), self.x.dtype)
        bounds = self.bounds if kinks is None else with_kinks(self.graph, self.bounds, kinks)
        moved, offset = pull(self.graph.nodes, bounds, {out: rows}, offset, stop=stop)
        moved = moved.get(0, jnp.zeros((len(rows), *self.x.shape), self.x.dtype))
        return moved, offset.middle - offset.reach

    def least(self, rows: Float[Array, "r ..."], offset: Float[Array, " r"]) -> Float[Array, " r"]:
        """The least values of linear functions over ball and box."""
        least = self._over_region({0: rows}, Offset(offset, jnp.zeros_like(offset))).low
        return jnp.where(jnp.isfinite(least), least, -jnp.inf)  # no overflow is a bound

    def least_of(self, rows: Float[Array, "r k"], *, stop: bool) -> Float[Array, " r"]:
        """Lower bounds on <rows, z>."""
        return self.least(*self.linear(rows, stop=stop))

    def of_label(self, label: Label, *, stop: bool, slope_steps: int = 0) -> Float[Array, " k"]:
        """Lower bounds on z_label - z_j.

        - `slope_steps`: of gradient ascent on the slopes below the kinks, each margin's its own.
        """
        (k,) = self.graph.shapes[self.graph.outputs[0]]
        rows = jax.nn.one_hot(label, k, dtype=self.x.dtype) - jnp.eye(k, dtype=self.x.dtype)
        if not slope_steps:
            return self.least_of(rows, stop=stop)
        start = kinks_of(self.graph, self.bounds)
        return jax.vmap(lambda row: self.ascend(row, start, slope_steps)[0])(rows)

    def ascend(self, row: Float[Array, " k"], kinks: Kinks, steps: int) -> tuple[Scalar, Kinks]:
        """The best lower bound on <row, z> along steps of gradient ascent, and its kinks.

        Adam on the tilts, Polyak's steps on the multipliers. The bound of any of them holds.
        """

        def bound(tilt, multiplier):
            chosen = kinks._replace(tilt=tilt, multiplier=multiplier)
            return self.least(*self.linear(row[None], chosen))[0]

        # Where a kink is split, a multiplier has the sign of its operand; elsewhere it stays 0.
        ends = jnp.where(kinks.high == 0, -jnp.inf, 0.0), jnp.where(kinks.low == 0, jnp.inf, 0.0)

        def step(carry, _):
            now, state, best, best_at = carry
            value, gradient = jax.value_and_grad(bound, (0, 1))(*now)
            better = value > best
            best_at = jax.tree.map(partial(jnp.where, better), now, best_at)
            (tilt, multiplier), uphill = now, jax.tree.map(_finite, gradient)
            move, state = optimizer.update(-uphill[0], state)
            free = jnp.clip(multiplier + uphill[1], *ends) != multiplier
            along = jnp.where(free, uphill[1], 0.0)
            # Polyak's step: to where the bound were positive by half of what it lacks.
            lacks, square = 1.5 * jnp.maximum(-value, 0.0), jnp.sum(along**2)
            length = _finite(lacks / jnp.where(square > 0, square, jnp.inf))
            now = jnp.clip(tilt + move, 0.0, 1.0), jnp.clip(multiplier + length * along, *ends)
            return (now, state, jnp.maximum(best, value), best_at), None

        optimizer = optax.adam(optax.exponential_decay(RATE, 1, RATE_DECAY))
        start = kinks.tilt, kinks.multiplier
        lowest = jnp.full((), -jnp.inf, kinks.low.dtype)
        carry = start, optimizer.init(kinks.tilt), lowest, start
        (now, _, best, best_at), _ = jax.lax.scan(step, carry, None, steps)
        value = bound(*now)
        tilt, multiplier = jax.tree.map(partial(jnp.where, value > best), now, best_at)
        return jnp.maximum(best, value), kinks._replace(tilt=tilt, multiplier=multiplier)


def around(x: Image, ball: AbstractBall) -> Interval:
    """The smallest cell that holds ball and box."""
    return Interval(jnp.maximum(x - ball.eps, ball.lower), jnp.minimum(x + ball.eps, ball.upper))


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def deterministic(logits_fn: LogitsFn, x: Image):
    """`logits_fn` as a function of the image alone, for images of the shape of `x`.

    Raises `ValueError` where it draws noise, and where its ODE is solved in steps that depend on
    the image.
    """
    model = getattr(logits_fn, "model", logits_fn)
    name, ode = method_name(model), getattr(model, "ode", None)
    if isinstance(ode, ODESolve) and not isinstance(ode.adjoint, GridSteps):
        raise ValueError(
            f"bound propagation certifies a neural ODE on a fixed grid, and {name} is solved by "
            f"Diffrax's {type(ode.stepsize_controller).__name__}: make the network on a grid, "
            f"eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(n)), and evaluate, attack and "
            f"certify that one"
        )
    checked, key = Checked(logits_fn), jax.random.key(0)
    closed = jax.make_jaxpr(lambda x, key: checked(x, key=key))(x, key)
    if depends_on(closed.jaxpr, [False, True])[0]:
        raise ValueError(
            f"bound propagation is about one function, and {name} draws noise: what is proven of "
            f"one draw says nothing of the next"
        )
    return lambda x: checked(x, key=key)
