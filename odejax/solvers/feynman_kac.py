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
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count, check_not_negative, check_positive
from .._inputs import as_key
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


def diffusion_path(
    drift: Callable[[Any, Float[Array, "..."]], Float[Array, "..."]],
    noise: AbstractNoise,
    x: Float[Array, "..."],
    *,
    steps: int,
    key: Key | int,
    t1: float = 1.0,
    solver: diffrax.AbstractSolver | None = None,
) -> Float[Array, "..."]:
    """The end x(t1) of one path of a stochastic differential equation, through Diffrax.

        dx = drift(t, x) dt + sigma dB,  x(0) = x

    `steps` equal steps along the Brownian path that `key` draws (`VirtualBrownianTree`). The noise
    is that of the layered network: sigma is `noise.std(x + dt drift(t, x))`.

    - `drift`: a function of (t, x); `layered_drift` makes it of a network's residual layers.
    - `noise`: an `AbstractNoise`.
    - `x`: the start, of any shape.
    - `steps`, `t1`: how many steps, and the time (1.0).
    - `solver`: Diffrax's own, by default `diffrax.Euler()`, the Euler-Maruyama method. Its
      solution must be Ito's, or the noise a `ConstantNoise`, for which all solutions are one.

    A solve that fails ends in NaN. Raises `ValueError` for no steps, a time that is not positive,
    and a solver of another equation.

        >>> import jax, jax.numpy as jnp, odejax
        >>> quiet, start = odejax.solvers.ConstantNoise(0.0), jnp.ones(1)
        >>> decay, key = lambda t, x: -x, jax.random.key(0)
        >>> odejax.solvers.diffusion_path(decay, quiet, start, steps=2, key=key).tolist()
        [0.25]

    Kidger (2021), *On Neural Differential Equations*, arXiv:2202.02435, Section 4.
    """
    key = as_key(key)
    check_count(steps=steps)
    check_positive(t1=t1)
    solver = _sde_solver(solver, noise)
    # Times of the state's dtype: under x64 a Python number would make float64 of it.
    # As NumPy's, which Diffrax checks while it traces: a check in the program is a host callback.
    start, end, dt = np.asarray([0.0, t1, t1 / steps], jnp.result_type(jnp.float32, x))
    needed = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    area = next(area for area in _LEVY_AREAS if issubclass(area, needed))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    brownian = diffrax.VirtualBrownianTree(start, end, dt / 2, shape, key, levy_area=area)

    def diffusion(t, y, args):
        sigma = noise.std(y + dt.astype(y.dtype) * drift(t, y))
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(sigma, y.shape).astype(y.dtype))

    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: drift(t, y)),
        diffrax.ControlTerm(diffusion, brownian),
    )
    # As in `AbstractNoise.add`: the tree's draws are most of the time of a small network.
    with jax.threefry_partitionable(False):
        solution = diffrax.diffeqsolve(
            terms, solver, start, end, dt, x, max_steps=steps + 1, throw=False
        )
    assert solution.ys is not None
    return jnp.where(solution.result == diffrax.RESULTS.successful, solution.ys[0], jnp.nan)


_LEVY_AREAS = diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea


def _sde_solver(solver: Any, noise: AbstractNoise) -> diffrax.AbstractSolver:
    """The solver, or Euler's method for None; `ValueError` unless it solves Ito's equation."""
    solver = diffrax.Euler() if solver is None else solver
    ito, either = diffrax.AbstractItoSolver, diffrax.AbstractStratonovichSolver
    if isinstance(solver, ito) or (isinstance(solver, either) and isinstance(noise, ConstantNoise)):
        return solver
    raise ValueError(
        f"solver must be Diffrax's of Ito's equation (or, with ConstantNoise, of Stratonovich's); "
        f"got {type(solver).__name__} with {type(noise).__name__}"
    )


def feynman_kac(
    terminal: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    drift: Callable[[Any, Float[Array, "..."]], Float[Array, "..."]],
    noise: AbstractNoise,
    x: Float[Array, "..."],
    *,
    steps: int,
    paths: int,
    key: Key | int,
    t1: float = 1.0,
    solver: diffrax.AbstractSolver | None = None,
) -> Expectation:
    """The solution of the convection-diffusion equation at one point, an `Expectation`, through
    Diffrax.

        u(x, 0) = E[terminal(x(t1))],  dx = drift(t, x) dt + sigma dB,  x(0) = x

    The mean over `paths` independent paths (vmapped), each a `diffusion_path`.

    - `terminal`: a function of x.
    - `drift`, `noise`, `x`, `steps`, `t1`, `solver`: as in `diffusion_path`.
    - `paths`: how many; at least 2, for an error.
    - `key`: of the paths, or an integer seed.

    Raises `ValueError` for fewer paths, and as `diffusion_path` does.

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
    key = as_key(key)
    check_count(2, paths=paths)  # for an error

    def path(key):
        return terminal(diffusion_path(drift, noise, x, steps=steps, key=key, t1=t1, solver=solver))

    values = jax.vmap(path)(jax.random.split(key, paths))
    error = jnp.std(values, axis=0, ddof=1) / jnp.sqrt(paths)
    return Expectation(jnp.mean(values, axis=0), error)
