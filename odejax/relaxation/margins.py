"""What the bounds of a network prove of its margins, around one image (or any array)."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._rounding import sum_rounding
from .._threat_model import AbstractBall, LinfBall
from .._types import Label, Scalar
from .graph import Graph
from .kinks import Kinks, kinks_of, with_kinks
from .propagate import Bounds, Propagation, nothing_off, pull
from .rules import Interval, Offset, unit

RATE, RATE_DECAY = 0.25, 0.98  # of gradient ascent on tilts, and its factor from step to step


class Margins:
    """The bounds of a graph's values around an image, and what they prove of its margins.

    - `bounds`: of all values, or how they are found.
    - `cell`: of ball and box the images that lie in it; None for all.
    """

    def __init__(
        self,
        graph: Graph,
        x: Float[Array, "..."],
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
        self, rows: Float[Array, "r k"], kinks: Kinks | None = None
    ) -> tuple[Float[Array, "r ..."], Float[Array, " r"]]:
        """Linear functions of the image below <rows, z>: (r, h, w, c) and constants."""
        moved, offset = self._pulled(rows, kinks, stop=False)
        moved = moved.get(0, jnp.zeros((len(rows), *self.x.shape), self.x.dtype))
        return moved, offset.middle - offset.reach

    def _pulled(self, rows: Float[Array, "r k"], kinks: Kinks | None = None, *, stop: bool):
        (out,), offset = self.graph.outputs, nothing_off(len(rows), self.x.dtype)
        bounds = self.bounds if kinks is None else with_kinks(self.graph, self.bounds, kinks)
        return pull(self.graph.nodes, bounds, {out: rows}, offset, stop=stop)

    def least(self, rows: Float[Array, "r ..."], offset: Float[Array, " r"]) -> Float[Array, " r"]:
        """The least values of linear functions over ball and box."""
        least = self._over_region({0: rows}, Offset(offset, jnp.zeros_like(offset))).low
        return _at_least(least)

    def least_of(self, rows: Float[Array, "r k"], *, stop: bool) -> Float[Array, " r"]:
        """Lower bounds on <rows, z>.

        - `stop`: from the intervals ahead of the last affine part.
        """
        moved, offset = self._pulled(rows, stop=stop)
        constant = offset.middle - offset.reach
        return self.least(moved[0], constant) if moved else _at_least(constant)

    def of_label(self, label: Label, *, stop: bool, slope_steps: int = 0) -> Float[Array, " k"]:
        """Lower bounds on z_label - z_j.

        - `slope_steps`: of gradient ascent on the slopes below the kinks, each margin's its own.
        """
        (k,) = self.graph.shapes[self.graph.outputs[0]]
        rows = margin_rows(label, k, self.x.dtype)
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


def around(x: Float[Array, "..."], ball: AbstractBall) -> Interval:
    """The smallest cell that holds ball and box."""
    return Interval(jnp.maximum(x - ball.eps, ball.lower), jnp.minimum(x + ball.eps, ball.upper))


def _at_least(bound: Array) -> Array:
    return jnp.where(jnp.isfinite(bound), bound, -jnp.inf)  # no overflow is a bound


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def margin_rows(label: Label, k: int, dtype) -> Float[Array, "k k"]:
    """The linear functions z_label - z_j of k logits, one for every j."""
    return jax.nn.one_hot(label, k, dtype=dtype) - jnp.eye(k, dtype=dtype)
