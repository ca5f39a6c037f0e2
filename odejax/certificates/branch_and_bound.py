"""Branch and bound: whether the margins of a network with kinks are positive around an image.

A kink is split by the sign of its operand: on either side it is linear. A subdomain is a set of
signs, and a margin. Its lower bound is that of `Margins`, with the interval of each split operand
cut at 0, and with a multiplier for its sign, since

    min {m(x) : s z(x) >= 0} >= min {m(x) - b s z(x)}  for every b >= 0

Subdomains without a positive bound are split further, those of the lowest bound first.

Bunel et al. (2020), arXiv:1909.06588; Wang et al. (2021), arXiv:2103.06624 (beta-CROWN).
"""

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._threat_model import AbstractBall
from .._types import Image, Label, LogitsFn
from ..relaxation import Graph, Kinks, Propagation, kinks_of, trace
from ..relaxation.kinks import is_kink
from ..relaxation.rules import Affine, Loop
from .bound_propagation import Margins, deterministic

STALE = 30  # passes over a subdomain without a kink left to split
DESCENT = 5  # steps from where a bound is least


class Subdomain(NamedTuple):
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

    def children(self) -> list["Subdomain"]:
        if self.kink < 0:
            return [self._replace(left=self.left - 1)] if self.left else []
        return [self._signed(sign) for sign in (1, -1)]

    def _signed(self, sign: int) -> "Subdomain":
        signs = self.signs.copy()
        signs[self.kink] = sign
        return self._replace(signs=signs)


class Search(NamedTuple):
    """What branch and bound ended with.

    - `bound`: the least margin over ball and box is not below it; minus infinity with an `x_adv`.
    - `subdomains`: how many were bounded, besides the whole one of each margin.
    - `x_adv`: an image with another prediction, in ball and box; None where none was met.
    """

    bound: float
    subdomains: int
    x_adv: np.ndarray | None


def search(
    logits_fn: LogitsFn,
    x: Image,
    label: Label,
    ball: AbstractBall,
    *,
    deadline: float,
    batch_size: int,
    steps: int,
    is_broken: Callable[[np.ndarray], bool],
) -> Search:
    """Bound subdomains until all bounds are positive, an image is broken, or it is `deadline`.

    - `deadline`: of `time.perf_counter`.
    - `batch_size`: subdomains at a time; `steps`: of gradient ascent for each.
    - `is_broken(x)`: judges images that the linear bounds are least at.
    """
    bounds, margins, start = _root(logits_fn, x, label, ball)
    margins, tilt = np.asarray(margins), np.asarray(start.tilt)
    whole = Subdomain(0, np.zeros(tilt.shape, np.int8), tilt, np.zeros_like(tilt))
    least, count, order = np.inf, 0, itertools.count()  # least: of what is not in the heap
    heap: list[tuple[float, int, Subdomain]] = []

    def add(bound: float, subdomain: Subdomain):
        nonlocal least
        if bound > 0:
            least = min(least, bound)
        else:
            heapq.heappush(heap, (bound, next(order), subdomain))

    for other in set(range(len(margins))) - {int(label)}:
        add(float(margins[other]), whole._replace(other=other))
    while heap and time.perf_counter() < deadline:
        batch: list[tuple[float, Subdomain]] = []
        while heap and len(batch) + 2 <= batch_size:
            bound, _, parent = heapq.heappop(heap)
            children = parent.children()
            if not children:
                least = min(least, bound)
            batch += [(bound, child) for child in children]
        if not batch:
            break
        count += len(batch)
        rows = [*batch, *batch[-1:] * (batch_size - len(batch))]
        others, signs, tilts, multipliers = (
            np.stack([getattr(subdomain, name) for _, subdomain in rows])
            for name in ("other", "signs", "tilt", "multiplier")
        )
        result = _bound(logits_fn, x, label, ball, bounds, others, signs, tilts, multipliers, steps)
        value, tilts, multipliers, kink, least_at, worst = map(np.asarray, result)
        for i, (bound, child) in enumerate(batch):
            if worst[i] <= 0 and is_broken(least_at[i]):
                return Search(-np.inf, count, least_at[i])
            child = child._replace(tilt=tilts[i], multiplier=multipliers[i], kink=int(kink[i]))
            add(max(bound, float(value[i])), child)  # the parent's bound holds, too
    return Search(min([least, *(bound for bound, *_ in heap[:1])]), count, None)


def compiled(
    logits_fn: LogitsFn, x: Image, label: Label, ball: AbstractBall, *, batch_size: int, steps: int
):
    """Compile what `search` runs, so that no image's time is spent on it."""
    bounds, _, start = _root(logits_fn, x, label, ball)
    tilts = np.zeros((batch_size, *start.tilt.shape), start.tilt.dtype)
    others, signs = np.zeros(batch_size, int), tilts.astype(np.int8)
    result = _bound(logits_fn, x, label, ball, bounds, others, signs, tilts, tilts, steps)
    jax.block_until_ready(result)


def check_kinks_alone(logits_fn: LogitsFn, x: Any):
    """Raise `ValueError` unless all that is not affine in a network are kinks."""

    def rules(graph: Graph):
        for node in graph.nodes:
            if isinstance(node.rule, Loop):
                yield from rules(node.rule.at(0))
            elif not (isinstance(node.rule, Affine) or is_kink(node)):
                yield type(getattr(node.rule, "function", node.rule)).__name__

    others: list[str] = []
    jax.eval_shape(lambda x: others.extend(rules(trace(deterministic(logits_fn, x), x))), x)
    if others:
        raise ValueError(
            f"branch and bound splits kinks (of ReLU, leaky ReLU, abs, and max of two), and this "
            f"network has other operations that are not affine: {', '.join(sorted(set(others)))}"
        )


@eqx.filter_jit
def _root(logits_fn, x, label, ball):
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
            return bound, kinks.tilt, kinks.multiplier, kink, *worst_near(rows)

        def margin(at):
            logits = f(at)
            return logits[label] - jnp.max(jnp.where(jnp.arange(k) == label, -jnp.inf, logits))

        def worst_near(rows):
            """Where a linear function is least, and then downhill in ever shorter steps."""

            def step(i, carry):
                at, least, least_at = carry
                value, uphill = jax.value_and_grad(margin)(at)
                least_at = jnp.where(value < least, at, least_at)
                move = ball.eps / 2 ** (i + 1.0) * ball.steepest(uphill)
                return ball.project(at - move, x), jnp.minimum(value, least), least_at

            start = ball.project(x - ball.eps * ball.steepest(rows), x)
            carry = start, jnp.full((), jnp.inf, start_kinks.low.dtype), start
            at, least, least_at = jax.lax.fori_loop(0, DESCENT, step, carry)
            value = margin(at)
            return jnp.where(value < least, at, least_at), jnp.minimum(value, least)

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
