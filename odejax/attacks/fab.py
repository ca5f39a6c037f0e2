"""FAB, the fast adaptive boundary attack (Croce and Hein 2020), for any ball."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_count, check_finite, check_fraction
from .._logits import finite_logits
from .._types import Image, Key
from .iterative import AbstractIterativeAttack, AttackProblem, BestAdversarial
from .losses import margin_loss


class FABState(eqx.Module):
    x_adv: Image  # to be evaluated next
    adversarial: BestAdversarial


class FAB(AbstractIterativeAttack):
    """The fast adaptive boundary attack: the nearest adversarial image, by projections.

    With d1 and d2 the smallest moves from the iterate x_k and from the image x to the hyperplane
    where the logits of y and of the class nearest in the linearisation are equal,

        x_{k+1} = clip((1 - a) (x_k + eta d1) + a (x + eta d2)),  a = min(|d1| / (|d1| + |d2|), 0.1)

    and an adversarial iterate first steps back to (1 - beta) x + beta x_k, as does one outside the
    ball whose logits are not finite. The nearest adversarial image inside the ball is kept. The
    published algorithm evaluates the point stepped back to as well; here the linearisation at the
    adversarial iterate serves, so each step is one evaluation.

    Untargeted, a step takes the gradients of all k logits; `Targeted(FAB())`, FAB-T, takes one.
    Later runs of `Restarts` begin at a random point, eps / 2 away. Costs `steps` + 1 gradients.

    - `steps`: 100 by default.
    - `largest_pull`: the largest a, the weight of the image, 0.1 by default.
    - `eta`: the factor of a move, at least 1, by default 1.05.
    - `beta`: the fraction of the way that is kept, 0.9 by default.

    Raises `ValueError` for fewer than one step, fractions outside [0, 1], or an `eta` below 1.

    >>> logits_fn = lambda x, *, key: (x.mean() - 0.45) * jnp.array([2.0, 1.0, 0.0, -1.0])
    >>> x, ball, key = jnp.full((4, 4, 1), 0.5), odejax.L2Ball(0.5), jax.random.key(0)
    >>> result = odejax.attacks.FAB(steps=10)(logits_fn, x, 0, ball, key=key)
    >>> bool(result.success), bool(ball.norm(result.x_adv - x) < 0.25)  # the boundary is 0.2 away
    (True, True)

    Croce and Hein 2020, arXiv:1907.02044.
    """

    steps: int = eqx.field(static=True, default=100)
    largest_pull: float = 0.1  # of a, the weight of the image
    eta: float = 1.05
    beta: float = 0.9
    n_runs: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    random: ClassVar[bool] = True

    def __check_init__(self):
        check_count(steps=self.steps)
        check_fraction(largest_pull=self.largest_pull, beta=self.beta)
        check_finite(eta=self.eta)
        if self.eta < 1:
            raise ValueError(f"eta must be at least 1, to step over the boundary; got {self.eta}")

    @property
    def n_steps(self) -> int:
        return self.steps + 1

    def start(
        self, problem: AttackProblem, adversarial: BestAdversarial, run: Int[Array, ""], *, key: Key
    ) -> FABState:
        x, ball = problem.x, problem.ball
        away = 0.5 * ball.eps * ball.random_direction(x.shape, key=key)
        return FABState(ball.clip(x + jnp.where(run > 0, away, 0.0)), adversarial)

    def step(
        self, problem: AttackProblem, state: FABState, i: Int[Array, ""], *, key: Key
    ) -> FABState:
        ball, x, x_adv = problem.ball, problem.x, state.x_adv
        if problem.target is None:
            difference, w, logits = _nearest_boundary(problem, x_adv, key)
        else:
            difference, w, logits = problem.value_and_gradient(margin_loss, x_adv, key)
        adversarial = state.adversarial.nearest(problem, x_adv, logits)

        finite = finite_logits(logits)
        misclassified = jnp.argmax(logits) != problem.y
        back = x + self.beta * (x_adv - x)
        origin = jnp.where(misclassified, back, x_adv)

        def to_boundary(start):
            return ball.reach(start, w, -difference - jnp.sum(w * (start - x_adv)))

        d = jax.vmap(to_boundary)(jnp.stack([origin, x]))
        near, far = jnp.maximum(jax.vmap(ball.norm)(d), 1e-8)
        pull = jnp.minimum(near / (near + far), self.largest_pull)
        x_next = (1 - pull) * (origin + self.eta * d[0]) + pull * (x + self.eta * d[1])
        return FABState(ball.clip(jnp.where(finite, x_next, back)), adversarial)


def _nearest_boundary(problem: AttackProblem, x_adv: Image, key: Key):
    """z_j - z_y and its gradient for the class j whose linearised boundary is nearest."""
    logits, gradients_of = problem.pull_back(x_adv, key)
    n_classes = len(logits)
    differences = logits - logits[problem.y]
    own = jax.nn.one_hot(problem.y, n_classes, dtype=logits.dtype)
    w = gradients_of(jnp.eye(n_classes, dtype=logits.dtype) - own)
    steepness = jax.vmap(problem.ball.dual_norm)(w)
    distance = jnp.abs(differences) / (steepness + 1e-12)
    distance = jnp.where(jnp.arange(n_classes) == problem.y, jnp.inf, distance)
    j = jnp.argmin(distance)
    return differences[j], w[j], logits
