"""The Feynman-Kac formula, and the noise of its Euler-Maruyama discretisation (*enresnet* 2-3).

The convection-diffusion equation  u_t + F . grad u + (sigma^2 / 2) lap u = 0,  u(x, 1) = f(x),
is solved by  u(x, 0) = E[f(x(1)) | x(0) = x],  dx = F(x, t) dt + sigma dB.
A residual network is the case sigma = 0; averaging noisy copies of it solves the equation with
diffusion, whose solution is smoother.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float

from .._checks import check_count, check_key, check_not_negative, check_positive
from .._types import Key, Scalar


class AbstractNoise(eqx.Module):
    """How large the noise of one step is, given the state after the drift.

        y+ = y + sigma(y) sqrt(dt) N(0, I)

    A subclass defines `std(y)`, sigma, the same for all entries of y; `add(y, key, dt)` is y+.

        >>> import jax, jax.numpy as jnp, odejax
        >>> noise = odejax.solvers.ConstantNoise(0.0)
        >>> noise.add(jnp.ones(2), jax.random.key(0)).tolist()
        [1.0, 1.0]
        >>> isinstance(noise, odejax.solvers.AbstractNoise)
        True

    Wang et al. (2019), arXiv:1811.10745.
    """

    @abc.abstractmethod
    def std(self, y: Float[Array, "..."]) -> Scalar:
        """The standard deviation sigma of the noise, the same for all entries of `y`."""

    def add(
        self, y: Float[Array, "..."], key: Key, dt: float | Float[Array, ""] = 1.0
    ) -> Float[Array, "..."]:
        """y + sigma(y) sqrt(dt) N(0, I): the state at the end of an Euler-Maruyama step."""
        scale = self.std(y) * jnp.sqrt(dt)
        # An example's noise is drawn on one device, so the generator need not be one that can be
        # partitioned, which makes one word of two: a third of the noise's time.
        with jax.threefry_partitionable(False):
            # A normal draw in bfloat16 has 128 values, and no tails.
            normal = jax.random.normal(key, y.shape, jnp.promote_types(y.dtype, jnp.float32))
        return y + scale.astype(y.dtype) * normal.astype(y.dtype)


class ConstantNoise(AbstractNoise):
    """The same sigma, whatever the state.

    - `sigma`: not negative.

    Raises `ValueError` for a negative sigma.

        >>> import jax.numpy as jnp, odejax
        >>> float(odejax.solvers.ConstantNoise(0.5).std(jnp.zeros(3)))
        0.5

    Wang et al. (2019), arXiv:1811.10745.
    """

    sigma: float

    def __check_init__(self):
        check_not_negative(sigma=self.sigma)

    def std(self, y: Float[Array, "..."]) -> Scalar:
        return jnp.asarray(self.sigma, y.dtype)


class RelativeNoise(AbstractNoise):
    """Noise in proportion to the spread of the state, the paper's choice with a = 0.1.

        sigma = a sqrt(Var(x + F(x)))

    The variance is over all entries of one example, so examples do not influence each other and
    each can be attacked alone. The authors' code takes it over the whole batch tensor: give
    `axis_name` for that form in training; in inference mode (`Predictor`) it is per example again.

    - `a`: not negative (0.1).
    - `axis_name`: the name of the `vmap` axis of the batch (None: per example).
    - `inference`: set by `eqx.nn.inference_mode` (False).

    Raises `ValueError` for a negative a.

        >>> import jax.numpy as jnp, odejax
        >>> round(float(odejax.solvers.RelativeNoise(0.1).std(jnp.array([-2.0, 2.0]))), 2)
        0.2

    Wang et al. (2019), arXiv:1811.10745.
    """

    a: float = 0.1
    axis_name: str | None = eqx.field(default=None, static=True)
    inference: bool = False  # set by eqx.nn.inference_mode

    def __check_init__(self):
        check_not_negative(a=self.a)

    def std(self, y: Float[Array, "..."]) -> Scalar:
        def mean(v):
            m = jnp.mean(v)
            per_example = self.inference or self.axis_name is None
            return m if per_example else jax.lax.pmean(m, self.axis_name)

        variance = mean((y - mean(y)) ** 2)
        # The square root has no derivative at 0, where there is no noise to differentiate either.
        positive = variance > 0
        return self.a * jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


class Expectation(NamedTuple):
    """A Monte-Carlo `mean` and its `standard_error`, both of the shape of the values.

        >>> import jax.numpy as jnp, odejax
        >>> estimate = odejax.solvers.Expectation(jnp.asarray(1.0), jnp.asarray(0.25))
        >>> float(estimate.standard_error)
        0.25

    Kloeden and Platen (1992), *Numerical Solution of Stochastic Differential Equations*.
    """

    mean: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def feynman_kac(
    terminal: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    drift: Callable[[Any, Float[Array, "..."]], Float[Array, "..."]],
    noise: AbstractNoise,
    x: Float[Array, "..."],
    *,
    steps: int,
    paths: int,
    key: Key,
    t1: float = 1.0,
) -> Expectation:
    """The solution of the convection-diffusion equation at one point, an `Expectation`, through
    Diffrax.

        u(x, 0) = E[terminal(x(t1))],  dx = drift(t, x) dt + sigma dB,  x(0) = x

    Euler-Maruyama with `steps` equal steps over `paths` independent Brownian paths (vmapped). The
    noise is that of the layered network: sigma is `noise.std(x + dt drift(t, x))`.

    - `terminal`, `drift`: functions of x, and of (t, x).
    - `noise`: an `AbstractNoise`.
    - `x`: the point, of any shape.
    - `steps`, `paths`: how many; at least 2 paths, for an error.
    - `t1`: the time (1.0).

    Raises `ValueError` for fewer steps or paths, or a time that is not positive.

        >>> import jax, jax.numpy as jnp, odejax
        >>> start, still = jnp.ones(1), lambda t, x: 0 * x
        >>> sampled = {"steps": 1, "paths": 2, "key": jax.random.key(0)}
        >>> noise = odejax.solvers.ConstantNoise(0.0)
        >>> u = odejax.solvers.feynman_kac(jnp.sum, still, noise, start, **sampled)
        >>> float(u.mean), float(u.standard_error)
        (1.0, 0.0)

    Wang et al. (2019), arXiv:1811.10745; Kac (1949), *Transactions of the American Mathematical
    Society* 65.
    """
    check_key(key)
    check_count(steps=steps)
    check_count(2, paths=paths)  # for an error
    check_positive(t1=t1)
    dt = t1 / steps

    def path(key):
        brownian = diffrax.VirtualBrownianTree(0.0, t1, tol=dt / 4, shape=x.shape, key=key)

        def diffusion(t, y, args):
            sigma = noise.std(y + dt * drift(t, y))
            return lineax.DiagonalLinearOperator(jnp.broadcast_to(sigma, y.shape).astype(y.dtype))

        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: drift(t, y)),
            diffrax.ControlTerm(diffusion, brownian),
        )
        solution = diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, t1, dt, x, max_steps=steps + 1, throw=False
        )
        assert solution.ys is not None
        solved = solution.result == diffrax.RESULTS.successful
        return terminal(jnp.where(solved, solution.ys[0], jnp.nan))

    values = jax.vmap(path)(jax.random.split(key, paths))
    error = jnp.std(values, axis=0, ddof=1) / jnp.sqrt(paths)
    return Expectation(jnp.mean(values, axis=0), error)
