"""Branch and bound: whether the margins of a network are positive around an image.

    min {m(x) : x in D} = min (min {m(x) : x in D_1}, min {m(x) : x in D_2}),  D = D_1 u D_2

A subdomain without a positive bound is split in two, those of the lowest bound first. What a
subdomain is, and how it is split and bounded, is that of an `AbstractSplitting`.

Bunel et al. (2020), arXiv:1909.06588.
"""

import abc
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._threat_model import AbstractBall
from .._types import Image, Label, Logits, Scalar

DESCENT = 5  # steps from where a bound is least


class Bounded(NamedTuple):
    """A subdomain with its bound.

    - `bound`: no margin is less in it.
    - `subdomain`: it, with what its bound says of how to split it.
    - `least_at`: an image near which the linear bound is least, in ball and box.
    - `margin`: that of the network there.
    """

    bound: float
    subdomain: Any
    least_at: np.ndarray
    margin: float


class AbstractSplitting(abc.ABC):
    """How what is around an image is split, and what is bounded there."""

    @abc.abstractmethod
    def start(self) -> Iterable[tuple[float, Any]]:
        """The first subdomains, which are everything together, and their bounds."""

    @abc.abstractmethod
    def split(self, subdomain: Any) -> list[Any]:
        """The subdomains that it is made of; none where it is not to be split."""

    @abc.abstractmethod
    def bounded(self, subdomains: Sequence[Any]) -> list[Bounded]:
        """Each of at most `batch_size` subdomains, with its bound."""

    @abc.abstractmethod
    def compile(self):
        """Compile what the others run, so that no image's time is spent on it."""


class Search(NamedTuple):
    """What branch and bound ended with.

    - `bound`: the least margin over ball and box is not below it; minus infinity with an `x_adv`.
    - `subdomains`: how many were bounded, besides the first ones.
    - `x_adv`: an image with another prediction, in ball and box; None where none was met.
    """

    bound: float
    subdomains: int
    x_adv: np.ndarray | None


def search(
    splitting: AbstractSplitting,
    *,
    deadline: float,
    batch_size: int,
    is_broken: Callable[[np.ndarray], bool],
) -> Search:
    """Bound subdomains until all bounds are positive, an image is broken, or it is `deadline`.

    - `deadline`: of `time.perf_counter`.
    - `batch_size`: subdomains at a time.
    - `is_broken(x)`: judges images that the linear bounds are least at.
    """
    least, count, order = np.inf, 0, itertools.count()  # least: of what is not in the heap
    heap: list[tuple[float, int, Any]] = []

    def add(bound: float, subdomain: Any):
        nonlocal least
        if bound > 0:
            least = min(least, bound)
        else:
            heapq.heappush(heap, (bound, next(order), subdomain))

    for bound, subdomain in splitting.start():
        add(bound, subdomain)
    while heap and time.perf_counter() < deadline:
        batch: list[tuple[float, Any]] = []
        while heap and len(batch) + 2 <= batch_size:
            bound, _, parent = heapq.heappop(heap)
            children = splitting.split(parent)
            if not children:
                least = min(least, bound)
            batch += [(bound, child) for child in children]
        if not batch:
            break
        count += len(batch)
        results = splitting.bounded([child for _, child in batch])
        for (bound, _), result in zip(batch, results, strict=True):
            if result.margin <= 0 and is_broken(result.least_at):
                return Search(-np.inf, count, result.least_at)
            add(max(bound, result.bound), result.subdomain)  # the parent's bound holds, too
    return Search(min([least, *(bound for bound, *_ in heap[:1])]), count, None)


def padded(subdomains: Sequence[Any], size: int) -> list[Any]:
    """`size` of them, the last one again and again."""
    return [*subdomains, *[subdomains[-1]] * (size - len(subdomains))]


def downhill(
    f: Callable[[Image], Logits], start: Image, x: Image, label: Label, ball: AbstractBall
) -> tuple[Image, Scalar]:
    """The least margin in ever shorter steps downhill from an image, and where it is."""

    def margin(at):
        logits = f(at)
        other = jnp.max(jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits))
        return logits[label] - other

    def step(i, carry):
        at, least, least_at = carry
        value, uphill = jax.value_and_grad(margin)(at)
        least_at = jnp.where(value < least, at, least_at)
        move = ball.eps / 2 ** (i + 1.0) * ball.steepest(uphill)
        return ball.project(at - move, x), jnp.minimum(value, least), least_at

    start = ball.project(start, x)
    carry = start, jnp.full((), jnp.inf, jax.eval_shape(margin, start).dtype), start
    at, least, least_at = jax.lax.fori_loop(0, DESCENT, step, carry)
    value = margin(at)
    return jnp.where(value < least, at, least_at), jnp.minimum(value, least)
