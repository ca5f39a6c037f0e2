"""The equation behind the ensemble, solved on a grid (*enresnet* Eq. 10 and Fig. 4).

    u_t + F . grad u + (sigma^2 / 2) lap u = source,   u(x, t1) = terminal(x)

on the periodic unit square, from t1 back to 0: derivatives in Fourier space, products at the grid
points, diffusion exactly (integrating factor), the rest by the classical Runge-Kutta method.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count


def convection_diffusion(
    velocity: Float[Array, "2 n n"] | Callable[[Float[Array, ""]], Float[Array, "2 n n"]],
    terminal: Float[Array, "n n"],
    *,
    sigma: float | Float[Array, ""] = 0.0,
    steps: int = 1000,
    t1: float = 1.0,
    source: Callable[[Float[Array, ""]], Float[Array, "n n"]] | None = None,
    dealias: bool = True,
) -> Float[Array, "n n"]:
    """u(., 0) at the grid points (i / n, j / n) of the periodic unit square, (n, n).

        u_t + F . grad u + (sigma^2 / 2) lap u = source,  u(x, t1) = terminal(x)

    - `velocity`: F at the grid points, (2, n, n), or a function of t.
    - `terminal`: u(., t1), (n, n).
    - `sigma`, `steps`, `t1`: of the diffusion (0.0), of time (1000), and the time (1.0).
    - `source`: a function of t, (n, n); 0 by default.
    - `dealias`: computes F . grad u from, and for, the lower two thirds of the wave numbers of u
      (the others are only diffused) (True).

    The error of `steps` steps is of fourth order where F is smooth in t; they must resolve the
    convection: |F| t1 / steps < 0.95 / n, 0.64 / n without `dealias`. The grid must resolve u:
    without diffusion its gradient grows like exp(|grad F| t1). Where the grid cannot, the numerical
    solution exceeds the bounds of the terminal condition, within which the true one stays. Raises
    `ValueError` for arrays that are not on one square grid, or no steps.

        >>> import jax.numpy as jnp, odejax
        >>> still, x = jnp.zeros((2, 4, 4)), jnp.arange(4) / 4
        >>> wave = jnp.cos(2 * jnp.pi * x)[:, None] * jnp.ones(4)
        >>> u = odejax.solvers.convection_diffusion(still, wave, sigma=0.5, steps=1)
        >>> round(float(u[0, 0]), 4)  # exp(-(2 pi sigma)^2 / 2)
        0.0072

    Wang et al. (2019), arXiv:1811.10745.
    """
    n = terminal.shape[-1]

    def flow(t) -> Array:
        return velocity(t) if callable(velocity) else velocity

    shape = jax.eval_shape(flow, jnp.zeros(())).shape
    if terminal.shape != (n, n) or shape != (2, n, n):
        raise ValueError(
            f"terminal must be (n, n) and velocity (2, n, n); got {terminal.shape} and {shape}"
        )
    check_count(steps=steps)
    dt, frequencies = t1 / steps, _frequencies(n)
    waves = _wave_vectors(n)
    squares = (2 * jnp.pi) ** 2 * sum(k**2 for k in frequencies)
    half = jnp.exp(-0.25 * sigma**2 * squares * dt)  # of the diffusion over half a step
    keep = 1.0
    if dealias:
        keep = (3 * jnp.abs(frequencies[0]) < n) & (3 * jnp.abs(frequencies[1]) < n)

    def rate(v, tau):
        # Backwards: v(tau) = u(t1 - tau) has v_tau = F . grad v + diffusion - source.
        slopes = (jnp.fft.irfft2(1j * k * v * keep, s=(n, n)) for k in waves)
        convection = jnp.sum(flow(t1 - tau) * jnp.stack(list(slopes)), axis=0)
        if source is not None:
            convection = convection - source(t1 - tau)
        return jnp.fft.rfft2(convection) * keep

    def step(v, i):
        tau = i * dt
        k1 = rate(v, tau)
        k2 = rate(half * (v + dt / 2 * k1), tau + dt / 2)
        k3 = rate(half * v + dt / 2 * k2, tau + dt / 2)
        k4 = rate(half**2 * v + dt * half * k3, tau + dt)
        v = half**2 * v + dt / 6 * (half**2 * k1 + 2 * half * (k2 + k3) + k4)
        return v, None

    v, _ = jax.lax.scan(step, jnp.fft.rfft2(terminal), jnp.arange(steps))
    return jnp.fft.irfft2(v, s=(n, n))


def spectral_gradient(u: Float[Array, "n n"]) -> Float[Array, "2 n n"]:
    """grad u of a periodic function on the unit square, exact for trigonometric polynomials, (2, n,
    n).

    - `u`: at the grid points (i / n, j / n), (n, n).

        >>> import jax.numpy as jnp, odejax
        >>> x = jnp.arange(4) / 4
        >>> u = jnp.sin(2 * jnp.pi * x)[:, None] * jnp.ones(4)
        >>> round(float(odejax.solvers.spectral_gradient(u)[0, 0, 0]), 3)  # 2 pi
        6.283

    Trefethen (2000), *Spectral Methods in MATLAB*.
    """
    n = u.shape[-1]
    return jnp.stack(
        [jnp.fft.irfft2(1j * k * jnp.fft.rfft2(u), s=(n, n)) for k in _wave_vectors(n)]
    )


def _frequencies(n: int):
    """(k_1, k_2) of the coefficients of `rfft2`."""
    k = jnp.fft.fftfreq(n, 1 / n)
    return jnp.meshgrid(k, k[: n // 2 + 1], indexing="ij")


def _wave_vectors(n: int):
    """2 pi (k_1, k_2) for first derivatives: 0 at the Nyquist frequency, whose sign is unknown."""
    return [2 * jnp.pi * jnp.where(2 * jnp.abs(k) == n, 0.0, k) for k in _frequencies(n)]
