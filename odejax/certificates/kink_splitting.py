"""Branch and bound on the signs at the kinks of a network.

A kink is split by the sign of its operand: on either side it is linear. A subdomain is a set of
signs, and a margin. Its lower bound is that of `Margins`, with the interval of each split operand
cut at 0, and with a multiplier for its sign, since

    min {m(x) : s z(x) >= 0} >= min {m(x) - b s z(x)}  for every b >= 0

Bunel et al. (2020), arXiv:1909.06588; Wang et al. (2021), arXiv:2103.06624 (beta-CROWN).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._threat_model import AbstractBall
from .._types import Image, Label, LogitsFn
from ..relaxation import Graph, Kinks, Margins, Propagation, deterministic, kinks_of, trace
from ..relaxation.kinks import is_kink
from ..relaxation.rules import Affine, Loop
from .branch_and_bound import AbstractSplitting, Bounded, downhill, padded

STALE = 30  # passes over a subdomain without a kink left to split


class Signs(NamedTuple):
    """A margin z_label - z_other where the operands of some kinks have known signs.

    - `signs`: of each kink's operand, 1 or -1, and 0 where it is not split.
    - `tilt`, `multiplier`: where gradient ascent goes on.
    - `kink`: the next one to be split, or -1.
    - `left`: passes that are left where no kink is to be split.
    """

    other: int
    signs: np.ndarray
    tilt: np.ndarray
    multiplier: np.ndarray
    kink: int = -1
    left: int = STALE

    def with_sign(self, sign: int) -> "Signs":
        signs = self.signs.copy()
        signs[self.kink] = sign
        return self._replace(signs=signs)


@dataclasses.dataclass
class KinkSplitting(AbstractSplitting):
    """Subdomains by signs; each in `steps` of gradient ascent on its slopes and multipliers.

    Raises `ValueError` unless all that is not affine in a network are kinks.
    """

    logits_fn: LogitsFn
    x: Image
    label: Label
    ball: AbstractBall
    batch_size: int
    steps: int

    def start(self):
        self.bounds, margins, kinks = _whole(self.logits_fn, self.x, self.label, self.ball)
        margins, tilt = np.asarray(margins), np.asarray(kinks.tilt)
        whole = Signs(0, np.zeros(tilt.shape, np.int8), tilt, np.zeros_like(tilt))
        for other in set(range(len(margins))) - {int(self.label)}:
            yield float(margins[other]), whole._replace(other=other)

    def split(self, subdomain: Signs) -> list[Signs]:
        if subdomain.kink < 0:
            return [subdomain._replace(left=subdomain.left - 1)] if subdomain.left else []
        return [subdomain.with_sign(sign) for sign in (1, -1)]

    def bounded(self, subdomains: Sequence[Signs]) -> list[Bounded]:
        others, signs, tilts, multipliers, *_ = map(
            np.stack, zip(*padded(subdomains, self.batch_size), strict=True)
        )
        around = self.logits_fn, self.x, self.label, self.ball
        result = _bound(*around, self.bounds, others, signs, tilts, multipliers, self.steps)
        value, tilts, multipliers, kink, least_at, margin = map(np.asarray, result)
        return [
            Bounded(
                float(value[i]),
                one._replace(tilt=tilts[i], multiplier=multipliers[i], kink=int(kink[i])),
                least_at[i],
                float(margin[i]),
            )
            for i, one in enumerate(subdomains)
        ]

    def compile(self):
        _, whole = next(iter(self.start()))
        self.bounded([whole])


def operations_without_kinks(logits_fn: LogitsFn, x: Any) -> list[str]:
    """The names of a network's operations that are neither affine nor kinks."""

    def rules(graph: Graph):
        for node in graph.nodes:
            if isinstance(node.rule, Loop):
                yield from rules(node.rule.at(0))
            elif not (isinstance(node.rule, Affine) or is_kink(node)):
                yield type(getattr(node.rule, "function", node.rule)).__name__

    others: list[str] = []
    jax.eval_shape(lambda x: others.extend(rules(trace(deterministic(logits_fn, x), x))), x)
    return sorted(set(others))


@eqx.filter_jit
def _whole(logits_fn, x, label, ball):
    """The bounds of all values, the margins, and the kinks to begin with."""
    with jax.default_matmul_precision("highest"):
        margins = _margins(logits_fn, x, ball)
        least = margins.of_label(label, stop=False)
        return _without_numbers(margins.bounds), least, kinks_of(margins.graph, margins.bounds)


@eqx.filter_jit
def _bound(logits_fn, x, label, ball, bounds, others, signs, tilts, multipliers, steps):
    """For each subdomain: its bound, the tilts and multipliers of it, the next kink to split, an
    image near which the linear bound is least, and the margin of the network there.
    """
    with jax.default_matmul_precision("highest"):
        margins = _margins(logits_fn, x, ball, bounds)
        f = deterministic(logits_fn, x)
        (k,) = margins.graph.shapes[margins.graph.outputs[0]]
        start_kinks = kinks_of(margins.graph, margins.bounds)

        def one(other, signs, tilt, multiplier):
            row = jax.nn.one_hot(label, k, dtype=x.dtype) - jax.nn.one_hot(other, k, dtype=x.dtype)
            low = jnp.where(signs > 0, jnp.maximum(start_kinks.low, 0.0), start_kinks.low)
            high = jnp.where(signs < 0, jnp.minimum(start_kinks.high, 0.0), start_kinks.high)
            bound, kinks = margins.ascend(row, Kinks(low, high, tilt, multiplier), steps)

            def of_ends(low, high):
                rows, offset = margins.linear(row[None], kinks._replace(low=low, high=high))
                return margins.least(rows, offset)[0], rows[0]

            (at_low, at_high), rows = jax.grad(of_ends, (0, 1), has_aux=True)(low, high)
            # What the bound gains, to first order, where an end is cut at 0.
            gain = jnp.where(kinks.crossing(), -low * at_low - high * at_high, -jnp.inf)
            kink = jnp.where(jnp.any(kinks.crossing()), jnp.argmax(gain), -1)
            least_at = downhill(f, x - ball.eps * ball.steepest(rows), x, label, ball)
            return bound, kinks.tilt, kinks.multiplier, kink, *least_at

        return jax.vmap(one)(others, signs, tilts, multipliers)


def _margins(logits_fn, x, ball, bounds=None) -> Margins:
    graph = trace(deterministic(logits_fn, x), x)
    if bounds is None:
        return Margins(graph, x, ball, Propagation())
    numbers, loops = bounds
    known = {**numbers, **{("loop", n): kept for n, kept in loops.items()}}
    return Margins(graph, x, ball, known)


def _without_numbers(bounds):
    """Bounds with keys of one kind, as `jit` returns them: of values, and of loops."""
    numbers = {n: bound for n, bound in bounds.items() if isinstance(n, int)}
    return numbers, {n[1]: kept for n, kept in bounds.items() if not isinstance(n, int)}
