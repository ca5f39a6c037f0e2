"""Multilevel Monte Carlo for the Feynman-Kac formula (Giles 2008; the remark of *enresnet* 5).

    E[P_L] = E[P_0] + sum_l E[P_l - P_{l-1}],

where P_l takes `steps[l]` steps along the same Brownian path as P_{l-1}. The differences vary
little, so most paths are those of the cheapest level: an ensemble of many shallow networks and few
deep ones.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count, check_positive
from .._inputs import as_key
from .._types import Key
from .feynman_kac import AbstractNoise


class Level(NamedTuple):
    """What was drawn of one level: P_0, or the difference to the level below.

    - `steps`, `paths`: of the finer of the two, and how many were drawn.
    - `mean`, `variance`: of the shape of the terminal condition's values.
    - `cost`: evaluations of the drift along one path.

        >>> import numpy as np, odejax
        >>> one = np.ones(1)
        >>> level = odejax.solvers.Level(steps=2, paths=100, mean=one, variance=one, cost=3)
        >>> level.paths * level.cost
        300

    Giles (2008), *Operations Research* 56.
    """

    steps: int
    paths: int
    mean: np.ndarray
    variance: np.ndarray
    cost: int  # evaluations of the drift along one path


class MultilevelExpectation(NamedTuple):
    """A multilevel estimate: its `mean`, `standard_error`, `levels`, `cost` and `plain_cost`.

    Both costs are evaluations of the drift; the plain one is what plain Monte Carlo would have cost
    for the same standard error with the finest level's steps.

        >>> import numpy as np, odejax
        >>> mean, error = np.ones(1), np.full(1, 0.1)
        >>> estimate = odejax.solvers.MultilevelExpectation(mean, error, [], 300, 900.0)
        >>> estimate.plain_cost / estimate.cost
        3.0

    Giles (2008), *Operations Research* 56.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    levels: list[Level]
    cost: int
    plain_cost: float


def multilevel_feynman_kac(
    terminal: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    drift: Callable[[Any, Float[Array, "..."]], Float[Array, "..."]],
    noise: AbstractNoise,
    x: Float[Array, "..."],
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 16),
    standard_error: float,
    key: Key | int,
    t1: float = 1.0,
    batch: int = 1024,
) -> MultilevelExpectation:
    """`feynman_kac` to a standard error, at the least cost: a `MultilevelExpectation`.

        E[P_L] = E[P_0] + sum_l E[P_l - P_{l-1}]

    Each level starts with `batch` paths; their variances V_l and costs C_l then say how many it
    gets, N_l proportional to sqrt(V_l / C_l), in multiples of `batch`. Where the values are arrays,
    the entry that varies most counts. The variances are estimates. For a terminal condition that
    is constant almost everywhere a first batch may give 0; give a larger `batch`.

    - `terminal`, `drift`, `noise`, `x`, `t1`: as in `feynman_kac`.
    - `steps`: of each level, each a multiple of the one before ((1, 2, 4, 8, 16)); the estimate is
      that of `feynman_kac` with those of the finest.
    - `standard_error`: the one asked for.
    - `key`: of the paths, or an integer seed.
    - `batch`: paths drawn at once (1024).

    Raises `ValueError` unless every level's steps are a multiple of the one before, and for a
    standard error that is not positive; `FloatingPointError` where paths diverge.

        >>> import jax, jax.numpy as jnp, odejax
        >>> sampled = {"steps": (1, 2), "standard_error": 0.1, "batch": 2, "key": jax.random.key(0)}
        >>> noise, still = odejax.solvers.ConstantNoise(0.0), lambda t, x: 0 * x
        >>> u = odejax.solvers.multilevel_feynman_kac(jnp.sum, still, noise, jnp.ones(1), **sampled)
        >>> float(u.mean)
        1.0

    Giles (2008), *Operations Research* 56; Wang et al. (2019), arXiv:1811.10745.
    """
    key, steps = as_key(key), tuple(steps)
    check_positive(t1=t1)
    for step in steps:
        check_count(steps=step)
    if not steps or any(b <= a or b % a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"steps must be positive, each a larger multiple of the last; got {steps}")
    check_positive(standard_error=standard_error)
    check_count(2, batch=batch)

    pairs = [(fine, steps[i - 1] if i else None) for i, fine in enumerate(steps)]
    cost = np.array([fine + (coarse or 0) for fine, coarse in pairs])

    def draws(level, first, last):
        keys = (jax.random.fold_in(jax.random.fold_in(key, level), i) for i in range(first, last))
        problem = terminal, drift, noise, x, t1, *pairs[level], batch
        drawn = (_draw(*problem, k) for k in keys)  # pyright: ignore[reportCallIssue]
        return [[np.asarray(array, np.float64) for array in one] for one in drawn]

    chunks = [draws(level, 0, 1) for level in range(len(steps))]
    variance = np.array([np.max(chunk[0][1]) for chunk in chunks])
    if not np.isfinite(variance).all():
        level = int(np.flatnonzero(~np.isfinite(variance))[0])
        raise FloatingPointError(f"paths of {steps[level]} steps are not finite: take more steps")
    paths = np.sqrt(variance / cost) * np.sqrt(variance * cost).sum() / standard_error**2
    for level, n in enumerate(paths):
        chunks[level] += draws(level, 1, int(np.ceil(n / batch)))
    levels = [
        Level(fine, len(chunk) * batch, *_pooled(chunk, batch), int(c))
        for (fine, _), chunk, c in zip(pairs, chunks, cost, strict=True)
    ]
    error = np.sqrt(sum(level.variance / level.paths for level in levels))
    finest = np.max(np.mean([c[2] for c in chunks[-1]], axis=0))
    return MultilevelExpectation(
        sum(level.mean for level in levels),  # pyright: ignore[reportArgumentType]
        error,
        levels,
        sum(level.paths * level.cost for level in levels),
        steps[-1] * float(finest / np.max(error) ** 2) if np.max(error) > 0 else 0.0,
    )


@eqx.filter_jit
def _draw(terminal, drift, noise, x, t1, fine, coarse, batch, key):
    """Mean and variance of `batch` differences, and the variance of the finer values."""

    def path(key):
        increments = jax.random.normal(key, (fine, *x.shape), x.dtype) * (t1 / fine) ** 0.5
        value = terminal(_euler_maruyama(drift, noise, x, increments, t1))
        if coarse is None:
            return value, value
        increments = increments.reshape(coarse, fine // coarse, *x.shape).sum(1)
        return value - terminal(_euler_maruyama(drift, noise, x, increments, t1)), value

    values, finest = jax.vmap(path)(jax.random.split(key, batch))
    return jnp.mean(values, 0), jnp.var(values, 0, ddof=1), jnp.var(finest, 0, ddof=1)


def _euler_maruyama(drift, noise, x, increments, t1):
    """x(t1), one step for each of the Brownian increments."""
    dt = t1 / len(increments)

    def step(y, step):
        i, increment = step
        moved = y + dt * drift(i * dt, y)
        return moved + noise.std(moved) * increment, None

    y, _ = jax.lax.scan(step, x, (jnp.arange(len(increments)), increments))
    return y


def _pooled(chunks, batch):
    """The mean and variance of all chunks together."""
    means, variances = (np.stack([chunk[i] for chunk in chunks]) for i in (0, 1))
    within = variances.sum(0) * (batch - 1)
    between = batch * ((means - means.mean(0)) ** 2).sum(0)
    return means.mean(0), (within + between) / (len(chunks) * batch - 1)
