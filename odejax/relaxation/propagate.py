"""Bounds through a graph: intervals forwards, and linear functions backwards (CROWN).

`Propagation` finds the interval of every value in the order of evaluation. An interval that comes
from the operands' own is wide: each entry is taken as if the others were free. So where one is
about to go into something that is not affine, it is tightened by the backward pass: the entry,
as a linear function of what it is made of, goes back through all lines to the image, over whose
ball its least value is known. Through a loop both passes are loops, so that a program is as long
for 24 layers as for 3.

Zhang et al. (2018), arXiv:1811.00866; Xu et al. (2020), arXiv:2002.12920.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .graph import Graph
from .rules import (
    ROUNDING,
    Affine,
    Bound,
    Constants,
    Interval,
    Loop,
    Node,
    Offset,
    Unary,
    constants,
    times,
    unit,
)

Rows = dict[int, Float[Array, "r ..."]]  # of linear functions of values, by their numbers
# What is known of a graph's values by their numbers; of a loop, at ("loop", its first result), that
# of each turn, stacked.
Bounds = dict[Any, Any]
# From rows on a graph's inputs, and whether lines are to be parallel, to what the rows lie between;
# the upper end only holds where they are.
Finish = Callable[[Rows, Offset, bool | Array], Interval]


def pull(
    nodes: Sequence[Node],
    bounds: Bounds,
    rows: Rows,
    offset: Offset,
    *,
    stop: bool = False,
    parallel: bool | Array = False,
) -> tuple[Rows, Offset]:
    """Rows on the nodes' results as rows on what goes into them, and the constants.

    - `stop`: what is not affine is replaced by its interval.
    - `parallel`: see `Rule.backward`.
    """
    rows = dict(rows)
    for node in reversed(nodes):
        here = [rows.pop(number, None) for number in node.outputs]
        if all(row is None for row in here):
            continue
        here = [_or_zero(row, bounds[n], offset) for n, row in zip(node.outputs, here, strict=True)]
        if stop and not isinstance(node.rule, Affine):
            for number, row in zip(node.outputs, here, strict=True):
                offset = offset.plus(_of_interval(row, bounds[number]))
            continue
        if isinstance(node.rule, Loop):
            kept = bounds["loop", node.outputs[0]]
            moved, offset = _through_loop(node.rule, kept, here, offset, parallel)
        else:
            xs = [bounds[number].interval for number in node.inputs]
            relaxed = bounds[node.outputs[0]].relaxed
            moved, more = node.rule.backward(here[0], relaxed, *xs, parallel=parallel)
            offset = offset.plus(more)
        offset = _add(rows, node.inputs, moved, bounds, offset)
    return rows, offset


def nothing_off(n: int, dtype) -> Offset:
    """The constants 0 of `n` rows."""
    return Offset(jnp.zeros(n, dtype), jnp.zeros(n, dtype))


def _of_interval(rows: Float[Array, "r ..."], bound: Bound) -> Offset:
    """<rows, y> for y anywhere in its interval."""
    if bound.size is None:
        low, high = bound.interval
        return times(rows, Constants((low + high) / 2, (high - low) / 2))
    interval = bound.interval
    known = jnp.isfinite(interval.low) & jnp.isfinite(interval.high)
    low, high = (jnp.where(known, end, 0.0) for end in interval)
    lost = ROUNDING * unit(rows) * jnp.maximum(jnp.abs(low), jnp.abs(high))
    offset = times(rows, constants((low + high) / 2, (high - low) / 2 + lost))
    unknown = jnp.any((rows != 0) & ~known, axis=tuple(range(1, rows.ndim)))
    return offset._replace(reach=jnp.where(unknown, jnp.inf, offset.reach))


def _from_behind(nodes: Sequence[Node], bounds: Bounds, finish: Finish) -> Finish:
    """Bounds of rows behind `nodes`, by `finish` for rows ahead of them."""

    def bounds_of(rows, offset, parallel):
        rows, offset = pull(nodes, bounds, rows, offset, parallel=parallel)
        return finish(rows, offset, parallel)

    return bounds_of


def _add(
    rows: Rows, numbers: Iterable[int], more: Iterable[Array], bounds: Bounds, offset: Offset
) -> Offset:
    """Adds more rows to `rows`; the offset, less what the sums may lose."""
    for number, row in zip(numbers, more, strict=True):
        if number in rows:
            if bounds[number].size is not None:
                lost = ROUNDING * unit(row) * bounds[number].interval.largest()
                size = jnp.abs(rows[number]) + jnp.abs(row)
                offset = offset.plus(times(size, constants(None, lost)))
            row = rows[number] + row
        rows[number] = row
    return offset


def _or_zero(row: Array | None, bound: Bound, offset: Offset) -> Array:
    middle = offset.middle
    return jnp.zeros((*middle.shape, *bound.shape), middle.dtype) if row is None else row


def _through_loop(
    loop: Loop, kept: Bounds, rows: list[Array], offset: Offset, parallel: bool | Array
):
    """Rows behind a loop as rows ahead of it."""

    def turn(carry, known):
        item, bounds = known
        rows, offset = carry
        return _through_turn(loop.body(item), bounds, rows, offset, parallel), None

    (rows, offset), _ = lax.scan(turn, (rows, offset), (loop.items, kept), reverse=True)
    return rows, offset


def _through_turn(
    graph: Graph, bounds: Bounds, rows: list[Array], offset: Offset, parallel: bool | Array
):
    behind: Rows = {}
    offset = _add(behind, graph.outputs, rows, bounds, offset)
    ahead, offset = pull(graph.nodes, bounds, behind, offset, parallel=parallel)
    return [_or_zero(ahead.get(n), bounds[n], offset) for n in graph.inputs], offset


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Finds the bounds of a graph's values.

    - `tighten`: by backward passes, where a value goes into what is not affine.
    - `chunk`: how many rows go back at once.
    """

    tighten: bool = True
    chunk: int = 32

    def forward(
        self,
        graph: Graph,
        inputs: list[Interval],
        finish: Finish,
        *,
        exact: bool = False,
        inner: bool = False,
    ) -> Bounds:
        """The bounds of all values.

        - `finish`: from rows on the inputs to bounds.
        - `exact`: any point of the inputs' intervals can be meant, so that an affine operation on
          them alone has the tightest intervals already.
        - `inner`: the graph is a turn of a loop.
        """
        bounds: Bounds = {
            n: Bound(x, x.largest()) for n, x in zip(graph.inputs, inputs, strict=True)
        }
        sought = _sought(graph, exact, inner) if self.tighten else {}
        done: list[Node] = []
        for nodes in _segments(graph.nodes):
            to_inputs = _from_behind(tuple(done), dict(bounds), finish)
            if isinstance(nodes[0].rule, Loop):
                bounds |= self._loop(nodes[0], bounds, to_inputs)
            else:
                bounds |= self._straight(nodes, bounds, sought, to_inputs)
            done += nodes
        return bounds

    def _straight(
        self, nodes: Sequence[Node], bounds: Bounds, sought: Mapping, finish: Finish
    ) -> Bounds:
        """The bounds of what nodes without a loop make.

        Each value is tightened twice: along parallel lines, where one row gives both bounds, and,
        where a kink still lies in between, along the best line for each bound. One loop over all of
        it, so that the program holds the way from here to the image once.
        """
        made = [number for node in nodes for number in node.outputs]
        into = {number for node in nodes for number in node.inputs}.difference(made)
        tasks = [n for n in sought if n in made or n in into]
        shapes = {}

        def intervals(tightened) -> Bounds:
            """Those of the operands' own, and for tasks no wider than what is known of them."""
            known = dict(bounds)
            for n in into.intersection(tasks):
                known[n] = met(n, known[n], tightened)
            for node in nodes:
                (n,) = node.outputs
                xs = [known[i].interval for i in node.inputs]
                bound = _numbers(node.rule.forward(*xs))
                known[n] = bound._replace(relaxed=node.rule.relax(bound, *xs))
                if n in tasks:
                    known[n] = met(n, known[n], tightened)
            return {n: known[n] for n in (*made, *into)}

        def met(n, bound: Bound, tightened) -> Bound:
            (low, high), shape = bound.interval, bound.shape
            shapes[n] = shape
            if tightened is None:
                return bound
            below, above = tightened[:, tasks.index(n), : low.size]
            # Where a backward pass gives no number, the interval is kept.
            low, high = jnp.fmax(low, below.reshape(shape)), jnp.fmin(high, above.reshape(shape))
            return bound._replace(interval=Interval(low, jnp.maximum(low, high)))

        first = jax.eval_shape(intervals, None)
        if not tasks:
            return intervals(None)
        sizes = [math.prod(shapes[n]) for n in tasks]
        dtype = first[tasks[0]].interval.low.dtype
        half = min(self.chunk // 2, max(sizes))
        kinked = jnp.array([sought[n] is _crossing for n in tasks])

        def one_task(step, carry):
            tightened, _ = carry
            i, parallel = jnp.minimum(step // 2, len(tasks) - 1), step % 2 == 0
            now = intervals(tightened)
            known = bounds | now
            needed = lax.switch(
                i,
                [
                    lambda n=n, size=size: jnp.pad(
                        jnp.ravel(sought[n](known[n].interval)), (0, max(sizes) - size)
                    )
                    for n, size in zip(tasks, sizes, strict=True)
                ],
            )
            # The last step is for the intervals alone.
            needed = needed & (parallel | kinked[i]) & (step < 2 * len(tasks))
            order = jnp.argsort(~needed)  # what is needed comes first
            order = jnp.concatenate([order, jnp.full(2 * half, order[0])])
            # Either 2 half entries, or half of them and what is below and above each.
            place = jnp.arange(2 * half)
            place = jnp.where(parallel, place, place % half)
            sign = jnp.where(parallel | (jnp.arange(2 * half) < half), 1.0, -1.0).astype(dtype)

            def begin(n, size):
                def rows_of(index):
                    ones = sign[:, None] * jax.nn.one_hot(index, size, dtype=dtype)
                    rows = {n: ones.reshape(2 * half, *shapes[n])}
                    rows, offset = pull(
                        nodes, known, rows, nothing_off(2 * half, dtype), parallel=parallel
                    )
                    return {i: _or_zero(rows.get(i), known[i], offset) for i in into}, offset

                return rows_of

            begins = [begin(n, size) for n, size in zip(tasks, sizes, strict=True)]

            def some(carry):
                k, tightened = carry
                index = order[k + place]
                rows, offset = lax.switch(i, begins, index)
                low, high = finish(rows, offset, parallel)
                # No overflow is a bound.
                low = jnp.where(jnp.isfinite(low), low, -jnp.inf)
                high = jnp.where(jnp.isfinite(high), high, jnp.inf)
                below = jnp.where(sign > 0, low, -jnp.inf)
                above = jnp.where(parallel, high, jnp.where(sign < 0, -low, jnp.inf))
                tightened = tightened.at[0, i, index].max(below).at[1, i, index].min(above)
                return k + jnp.where(parallel, 2 * half, half), tightened

            count = jnp.sum(needed)
            start = jnp.zeros((), count.dtype), tightened
            return lax.while_loop(lambda carry: carry[0] < count, some, start)[1], now

        nothing = jnp.full((len(tasks), max(sizes)), jnp.inf, dtype)
        unknown = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), first)
        start = jnp.stack([-nothing, nothing]), unknown
        return lax.fori_loop(0, 2 * len(tasks) + 1, one_task, start)[1]

    def _loop(self, node: Node, around: Bounds, finish: Finish) -> Bounds:
        """The bounds behind a loop, and those of each turn, stacked."""
        loop: Loop = node.rule  # pyright: ignore[reportAssignmentType]
        inputs = [around[n].interval for n in node.inputs]
        plain = dataclasses.replace(self, tighten=False)
        one = jax.eval_shape(lambda: plain.forward(loop.at(0), inputs, finish, inner=True))
        nothing = jax.tree.map(lambda v: jnp.zeros((loop.length, *v.shape), v.dtype), one)

        def turn(t, carry):
            inputs, kept = carry

            def from_turn(rows, offset, parallel):
                rows = [
                    _or_zero(rows.get(n), bounds, offset)
                    for n, bounds in zip(body.inputs, first, strict=True)
                ]

                def earlier(k, carry):
                    known = jax.tree.map(lambda v: v[t - 1 - k], kept)
                    rows, offset = carry
                    return _through_turn(loop.at(t - 1 - k), known, rows, offset, parallel)

                rows, offset = lax.fori_loop(0, t, earlier, (rows, offset))
                ahead: Rows = {}
                offset = _add(ahead, node.inputs, rows, around, offset)
                return finish(ahead, offset, parallel)

            body = loop.at(t)
            first = [Bound(x, x.largest()) for x in inputs]
            bounds = self.forward(body, inputs, from_turn, inner=True)
            kept = jax.tree.map(lambda all, one: all.at[t].set(one), kept, bounds)
            return [bounds[n].interval for n in body.outputs], kept

        ends, kept = lax.fori_loop(0, loop.length, turn, (inputs, nothing))
        results = {n: Bound(end, end.largest()) for n, end in zip(node.outputs, ends, strict=True)}
        return {**results, ("loop", node.outputs[0]): kept}


_LARGEST = 1e18  # float32 holds its square


def _numbers(bound: Bound) -> Bound:
    """Infinite ends in the place of NaN, and of numbers whose products would overflow."""
    (low, high), size = bound.interval, bound.size
    low = jnp.where(low > -_LARGEST, low, -jnp.inf)
    return Bound(Interval(low, jnp.where(high < _LARGEST, high, jnp.inf)), size)


def _segments(nodes: Sequence[Node]) -> Iterator[tuple[Node, ...]]:
    """Each loop by itself, and the nodes between two loops together."""
    for is_loop, group in itertools.groupby(nodes, lambda node: isinstance(node.rule, Loop)):
        some = tuple(group)
        yield from ((node,) for node in some) if is_loop else (some,)


def _sought(graph: Graph, exact: bool, inner: bool) -> dict[int, Callable]:
    """The values that are tightened, and which entries of them, in the order of evaluation.

    What is not affine looks at them, and an interval of their own operands would be wide. Of
    what goes into kinks alone, the entries whose interval a kink lies in.
    """
    made_by = {number: node for node in graph.nodes for number in node.outputs}
    looked_at: dict[int, bool] = {}  # whether at kinks alone
    for node in graph.nodes:
        if isinstance(node.rule, Affine | Loop):
            continue
        kink = isinstance(node.rule, Unary) and node.rule.function.kinked
        for number in node.inputs:
            while number in made_by and _entry_by_entry(made_by[number].rule, kink):
                (number,) = made_by[number].inputs
            if number in made_by:
                maker = made_by[number]
                tight = exact and len(maker.inputs) == 1 and maker.inputs[0] in graph.inputs
                wide = not (isinstance(maker.rule, Unary) or tight)
            else:
                wide = inner
            if wide:
                looked_at[number] = looked_at.get(number, True) and kink
    return {n: _crossing if looked_at[n] else _all for n in sorted(looked_at)}


def _entry_by_entry(rule, copies: bool) -> bool:
    """Whether the interval of the result is as tight as that of its operand; `copies`: equal."""
    return isinstance(rule, Affine) and rule.elementwise and (rule.exact or not copies)


def _crossing(x: Interval) -> Bool[Array, "..."]:
    return (x.low < 0) & (x.high > 0)


def _all(x: Interval) -> Bool[Array, "..."]:
    return jnp.ones(x.low.shape, bool)
