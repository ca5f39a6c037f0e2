"""Branch and bound on the pixels: the box around an image, cut along one of them at a time.

    [a, b] = [a, c] u [c, b],  c = (a + b) / 2, of the pixel with the largest |w_i| (b_i - a_i)

A subdomain is a cell, with the margins of all classes. Everything is bounded anew in it (CROWN), so
that the network may be any deterministic one. w is the linear bound of the least margin, of which
the cut gains |w_i| (b_i - a_i) / 4 to first order on either side. As bounds get close in small
cells, what has no tie is decided in the end; but n pixels that matter need 2^n cells before each is
cut once: with more than a few, what linear relaxation misses by little is proven, and no more.

Wang et al. (2018), arXiv:1804.10829 (ReluVal), for splitting inputs.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._threat_model import AbstractBall
from .._types import Image, Label, LogitsFn
from ..relaxation import Interval, Margins, Propagation, around, deterministic, trace
from .branch_and_bound import AbstractSplitting, Bounded, downhill, padded

# Of the steepest pixel's slope: every other one counts as at least so steep. A line may be flat
# where the network is not, and every pixel is to be cut in the end.
FLOOR = 0.1


class Cell(NamedTuple):
    """The images between two, and the pixel to cut (its index in the flat image)."""

    low: np.ndarray
    high: np.ndarray
    pixel: int = 0


@dataclasses.dataclass
class InputSplitting(AbstractSplitting):
    """Subdomains by cells."""

    logits_fn: LogitsFn
    x: Image
    label: Label
    ball: AbstractBall
    batch_size: int

    def start(self):
        low, high = map(np.asarray, around(self.x, self.ball))
        (whole,) = self.bounded([Cell(low, high)])
        yield whole.bound, whole.subdomain

    def split(self, subdomain: Cell) -> list[Cell]:
        (low, high, pixel), at = subdomain, np.unravel_index(subdomain.pixel, self.x.shape)
        cut = (low[at] + high[at]) / 2
        if not low[at] < cut < high[at]:  # two neighbours among the numbers
            return []
        below, above = high.copy(), low.copy()
        below[at] = above[at] = cut
        return [Cell(low, below, pixel), Cell(above, high, pixel)]

    def bounded(self, subdomains: Sequence[Cell]) -> list[Bounded]:
        cells = padded(subdomains, self.batch_size)
        low, high = (np.stack([getattr(cell, end) for cell in cells]) for end in ("low", "high"))
        result = _bound(self.logits_fn, self.x, self.label, self.ball, low, high)
        value, pixel, least_at, margin = map(np.asarray, result)
        return [
            Bounded(
                float(value[i]), cell._replace(pixel=int(pixel[i])), least_at[i], float(margin[i])
            )
            for i, cell in enumerate(subdomains)
        ]

    def compile(self):
        list(self.start())


@eqx.filter_jit
def _bound(logits_fn, x, label, ball, low, high):
    """For each cell: the bound of the least margin, the pixel to cut, an image near which the
    linear bound is least, and the margin of the network there.
    """
    with jax.default_matmul_precision("highest"):
        f = deterministic(logits_fn, x)
        graph = trace(f, x)
        (k,) = graph.shapes[graph.outputs[0]]
        rows = jax.nn.one_hot(label, k, dtype=x.dtype) - jnp.eye(k, dtype=x.dtype)

        def one(low, high):
            margins = Margins(graph, x, ball, Propagation(), cell=Interval(low, high))
            linear, offset = margins.linear(rows)
            bounds = jnp.where(jnp.arange(k) == label, jnp.inf, margins.least(linear, offset))
            row = linear[jnp.argmin(bounds)]
            # No image of a cell whose nearest one to x is outside the ball has to be looked at.
            inside = ball.contains(jnp.clip(x, low, high), x)
            steep = jnp.where(jnp.isfinite(row), jnp.abs(row), 0.0)
            floor = FLOOR * jnp.max(steep) + jnp.finfo(x.dtype).tiny
            pixel = jnp.argmax(jnp.maximum(steep, floor) * (high - low))
            least_at = downhill(f, jnp.where(row > 0, low, high), x, label, ball)
            return jnp.where(inside, jnp.min(bounds), jnp.inf), pixel, *least_at

        return jax.vmap(one)(low, high)
