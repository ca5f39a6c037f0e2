"""The Boundary Attack (Brendel et al. 2018): a walk along the boundary, by labels alone."""

from functools import partial
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import check_count, check_finite, check_positive
from .._logits import finite_logits
from .._types import Image, Key, Scalar
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial

_BISECTIONS = 10
_CANDIDATES = 10  # between two queries of the walk's bookkeeping


class BoundaryState(eqx.Module):
    point: (
        Image  # the adversarial image nearest in l2 so far; while there is none, the image itself
    )
    blend: Float[Array, "2"]  # of the first adversarial image: the weights known to be (not) enough
    walked: Int[Array, ""]  # queries of the walk
    spherical_step: Scalar
    source_step: Scalar
    spherical: Int[Array, "2"]  # successes and trials since the step was last changed
    source: Int[Array, "2"]
    adversarial: BestAdversarial


class Boundary(AbstractIterativeAttack):
    """The Boundary Attack: from an adversarial image towards x along the boundary, by labels alone.

    1. Images are drawn until one is misclassified, which is then brought near x by 10 bisections:
       `starts`, where they are given, then in turn uniform noise, one colour, black and white
       pixels, coarse blocks, and blends of x with its negative. An image without a start is never
       attacked, and `evaluation.robust_accuracy` says so.
    2. A candidate goes `spherical_step` |point - x| sideways on the sphere around x and then
       `source_step` |point - x| towards x; it is the new point if it is misclassified and nearer.
    3. After every 10 candidates one query asks whether a sideways step alone stays misclassified,
       and one asks for the point projected to the ball: so a walk in l2 can succeed in an
       L-infinity ball. Both steps are multiplied by `adaptation` when more than half of the last
       `spherical_window` sideways steps succeeded and divided by it below a fifth; the step to the
       source alone likewise, for 25 and 10 % of the last `source_window` candidates (the published
       adaptation, on windows that do not overlap).

    Exactly `n_queries` evaluations without gradients, fewer only after a success.

    - `n_queries`: 1,000 by default, as in *natural*.
    - `spherical_step`, `source_step`: relative to |point - x|; both 0.1 by default, as in
      *natural*.
    - `adaptation`: a factor of at least 1, by default 1.5; 1 keeps both steps.
    - `spherical_window`, `source_window`: numbers of candidates, 30 by default.
    - `starts`: images (m, h, w, c) of other classes, such as test images; None by default.

    Raises `ValueError` for counts below 1, steps that are not positive, an `adaptation` below 1,
    `starts` of another shape, and a target class, for which there is no version.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.L2Ball(0.5), jax.random.key(0)
    >>> result = odejax.attacks.Boundary(n_queries=200)(logits_fn, x, 0, ball, key=key)
    >>> bool(result.success), bool(result.queries < 200)
    (True, True)

    Brendel et al. 2018, arXiv:1712.04248.
    """

    n_queries: int = eqx.field(static=True, default=1000)
    spherical_step: float = 0.1
    source_step: float = 0.1
    adaptation: float = 1.5
    spherical_window: int = eqx.field(static=True, default=30)
    source_window: int = eqx.field(static=True, default=30)
    starts: Float[Array, "m h w c"] | None = None  # images of other classes, such as test images
    black_box: ClassVar[bool] = True
    n_runs: ClassVar[int] = 1
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_count(
            n_queries=self.n_queries,
            spherical_window=self.spherical_window,
            source_window=self.source_window,
        )
        check_positive(spherical_step=self.spherical_step, source_step=self.source_step)
        if self.starts is not None and self.starts.ndim != 4:
            raise ValueError(f"starts must be images (m, h, w, c); got shape {self.starts.shape}")
        check_finite(adaptation=self.adaptation)
        if self.adaptation < 1:
            raise ValueError(f"adaptation must be at least 1; got {self.adaptation}")

    @property
    def n_steps(self) -> int:
        return self.n_queries

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> BoundaryState:
        if problem.target is not None:
            raise ValueError("the Boundary Attack has no targeted version")
        x = problem.x
        return BoundaryState(
            point=x,
            blend=jnp.asarray([1.0, 0.0], x.dtype),
            walked=jnp.asarray(-1 - _BISECTIONS),
            spherical_step=jnp.asarray(self.spherical_step, x.dtype),
            source_step=jnp.asarray(self.source_step, x.dtype),
            spherical=jnp.zeros(2, jnp.int32),
            source=jnp.zeros(2, jnp.int32),
            adversarial=adversarial,
        )

    def step(
        self, problem: AttackProblem, state: BoundaryState, i: Int[Array, ""], *, key: Key
    ) -> BoundaryState:
        x, ball, point, walked = problem.x, problem.ball, state.point, state.walked
        evaluation_key, key = jax.random.split(key)

        # Which query this is: noise, bisections (the noise is `point`), then rounds of the walk.
        searching, bisecting = walked < -_BISECTIONS, (walked >= -_BISECTIONS) & (walked < 0)
        place = walked % (_CANDIDATES + 2)
        sideways_only = place == _CANDIDATES
        projecting = place == _CANDIDATES + 1
        noise = self._start(x, i, key)
        middle = jnp.mean(state.blend)
        sideways, candidate = _proposals(x, point, state.spherical_step, state.source_step, key)
        walk = jnp.where(sideways_only, sideways, candidate)
        walk = jnp.where(projecting, ball.project(point, x), walk)
        query = jnp.where(bisecting, x + middle * (point - x), walk)
        query = ball.clip(jnp.where(searching, noise, query))

        logits = problem.logits(query, evaluation_key)
        fooled = (jnp.argmax(logits) != problem.y) & finite_logits(logits)
        adversarial = state.adversarial.nearest(problem, query, logits, ~searching | fooled)

        # The blend: (enough, not enough). Its last bisection leaves the point at `enough`.
        enough = jnp.where(bisecting & fooled, middle, state.blend[0])
        not_enough = jnp.where(bisecting & ~fooled, middle, state.blend[1])
        nearer = fooled & (_norm(query - x) < _norm(point - x)) & (walked >= 0)
        new_point = jnp.where((searching & fooled) | nearer, query, point)
        new_point = jnp.where(walked == -1, x + enough * (point - x), new_point)

        counts = ~(searching | bisecting | projecting)
        spherical = state.spherical + jnp.stack([fooled, True]) * (counts & sideways_only)
        source = state.source + jnp.stack([fooled, True]) * (counts & ~sideways_only)
        both_factor, spherical = self._adapt(spherical, self.spherical_window, 0.5, 0.2)
        source_factor, source = self._adapt(source, self.source_window, 0.25, 0.1)
        return BoundaryState(
            point=new_point,
            blend=jnp.stack([enough, not_enough]),
            walked=jnp.where(searching & ~fooled, walked, walked + 1),
            spherical_step=state.spherical_step * both_factor,
            source_step=state.source_step * both_factor * source_factor,
            spherical=spherical,
            source=source,
            adversarial=adversarial,
        )

    def _start(self, x: Image, i: Int[Array, ""], key: Key) -> Image:
        """The image that query `i` of the search looks at."""
        uniform = partial(jax.random.uniform, dtype=x.dtype)
        noise, colour = uniform(key, x.shape), uniform(key, (1, 1, x.shape[-1]))
        blocks = jax.image.resize(uniform(key, (4, 4, x.shape[-1])), x.shape, "nearest")
        drawn = jnp.stack(
            [
                noise,
                jnp.broadcast_to(colour, x.shape),
                jnp.round(noise),
                jnp.round(blocks),
                x + uniform(key) * (1 - 2 * x),
            ]
        )
        given = jnp.zeros((0, *x.shape), x.dtype) if self.starts is None else self.starts
        order = jnp.where(i < len(given), i, len(given) + (i - len(given)) % len(drawn))
        return jnp.concatenate([given.astype(x.dtype), drawn])[order]

    def _adapt(self, counted, window: int, high: float, low: float):
        """The factor for a step, once the window is full, and the counts to go on with."""
        successes, trials = counted
        full = trials >= window
        grow, shrink = full & (successes > high * trials), full & (successes < low * trials)
        factor = jnp.where(grow, self.adaptation, jnp.where(shrink, 1 / self.adaptation, 1.0))
        return factor, jnp.where(full, 0, counted)


def _norm(v: Image) -> Scalar:
    return jnp.sqrt(jnp.sum(v**2))


def _proposals(x: Image, point: Image, spherical_step, source_step, key: Key):
    """A sideways step on the sphere around x, and the same followed by a step towards x."""
    outward = point - x
    radius = jnp.maximum(_norm(outward), 1e-12)
    unit = outward / radius
    eta = jax.random.normal(key, x.shape, x.dtype)
    eta = eta - jnp.sum(eta * unit) * unit
    eta = eta * spherical_step * radius / jnp.maximum(_norm(eta), 1e-12)
    # Pythagoras: outward and eta are orthogonal.
    sideways = jnp.clip(x + (outward + eta) / jnp.sqrt(1 + spherical_step**2), 0.0, 1.0)
    distance = jnp.maximum(_norm(sideways - x), 1e-12)
    # The clip to the box has changed the radius: the step makes up for it.
    length = jnp.maximum(source_step * radius + distance - radius, 0.0)
    return sideways, sideways + jnp.minimum(length / distance, 1.0) * (x - sideways)
