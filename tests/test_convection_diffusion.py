"""The pseudo-spectral solver: manufactured solutions, exact ones, and the maximum principle."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odejax.solvers import convection_diffusion, spectral_gradient

PI = np.pi


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grid(n):
    x = np.arange(n) / n
    return np.meshgrid(x, x, indexing="ij")


# One program for each grid and number of steps, whatever the other settings.
solve = jax.jit(convection_diffusion, static_argnames=("steps", "dealias"))


def test_the_gradient_of_trigonometric_polynomials_is_exact():
    x, y = grid(16)
    u = np.sin(2 * PI * x) * np.cos(6 * PI * y)
    exact = (
        2 * PI * np.cos(2 * PI * x) * np.cos(6 * PI * y),
        -6 * PI * np.sin(2 * PI * x) * np.sin(6 * PI * y),
    )
    np.testing.assert_allclose(jax.jit(spectral_gradient)(u), np.stack(exact), atol=1e-11)


def test_pure_diffusion_is_exact_in_one_step():
    x, y = grid(16)
    u = np.sin(2 * PI * x) * np.cos(4 * PI * y)
    rate = 0.5 * 0.3**2 * 4 * PI**2 * (1 + 4)
    out = solve(np.zeros((2, 16, 16)), u, sigma=0.3, steps=1, t1=0.7)
    np.testing.assert_allclose(out, np.exp(-rate * 0.7) * u, atol=1e-13)


def test_the_finest_checkerboard_is_diffused_too():
    n = 16
    u = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    rate = 0.5 * 0.02**2 * 2 * (PI * n) ** 2
    out = solve(np.zeros((2, n, n)), u, sigma=0.02, steps=3)
    np.testing.assert_allclose(out, np.exp(-rate) * u, atol=1e-12)


def test_a_rough_velocity_excites_no_more_than_two_thirds_of_the_wave_numbers():
    n = 24
    rng = np.random.default_rng(0)
    velocity = rng.uniform(-1, 1, (2, n, n))
    x, y = grid(n)
    u = np.sin(2 * PI * x) * np.cos(2 * PI * y)
    kept, all_ = (
        np.abs(np.fft.rfft2(solve(velocity, u, steps=5, t1=0.01, dealias=d))) for d in (True, False)
    )
    k = np.abs(np.fft.fftfreq(n, 1 / n))
    high = (3 * k[:, None] >= n) | (3 * k[None, : n // 2 + 1] >= n)
    assert kept[high].max() < 1e-10
    assert all_[high].max() > 0.1


def test_a_constant_velocity_carries_the_terminal_condition():
    """u(x, 0) = f(x + F): the characteristics of *enresnet* Fig. 3 b."""
    x, y = grid(32)

    def f(x, y):
        return np.exp(np.sin(2 * PI * x) + 0.5 * np.cos(2 * PI * y))

    velocity = np.stack([np.full((32, 32), 0.3), np.full((32, 32), -0.7)])
    out = solve(velocity, f(x, y), steps=200, dealias=False)
    np.testing.assert_allclose(out, f(x + 0.3, y - 0.7), atol=1e-6)


@partial(jax.jit, static_argnums=(0, 1))
def manufactured(n, steps, sigma=0.2):
    """u = (1 + t^2) sin(2 pi (x + t)) cos(2 pi y), with the source that makes it a solution."""
    x, y = grid(n)
    a, b = 2 * PI * x, 2 * PI * y
    f1, f2 = jnp.sin(a) * jnp.cos(b), 0.5 * jnp.cos(a)

    def u(t):
        return (1 + t**2) * jnp.sin(a + 2 * PI * t) * jnp.cos(b)

    def source(t):
        s, c = jnp.sin(a + 2 * PI * t), jnp.cos(a + 2 * PI * t)
        grow = 1 + t**2
        u_t = 2 * t * s * jnp.cos(b) + grow * 2 * PI * c * jnp.cos(b)
        # The velocity grows with time, too.
        convection = (1 + t) * grow * 2 * PI * (f1 * c * jnp.cos(b) - f2 * s * jnp.sin(b))
        diffusion = -0.5 * sigma**2 * 8 * PI**2 * u(t)
        return u_t + convection + diffusion

    out = convection_diffusion(
        lambda t: (1 + t) * jnp.stack([f1, f2]), u(1.0), sigma=sigma, steps=steps, source=source
    )
    return jnp.abs(out - u(0.0)).max()


def test_it_solves_a_manufactured_problem_with_fourth_order():
    errors = [float(manufactured(32, steps)) for steps in (100, 200)]
    assert errors[-1] < 1e-6
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 4, atol=0.25)


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2])
def test_the_solution_stays_within_the_bounds_of_the_terminal_condition(sigma):
    n = 64
    x, y = grid(n)
    f = 0.5 + 0.25 * (np.sin(2 * PI * x) + np.cos(2 * PI * (x - 2 * y)))
    velocity = 0.2 * np.stack([np.sin(2 * PI * y), np.cos(2 * PI * (x + y))])
    out = np.asarray(solve(velocity, f, sigma=sigma, steps=200))
    assert float(out.min()) > float(f.min()) - 1e-6
    assert float(out.max()) < float(f.max()) + 1e-6
    if sigma:
        assert float(out.max() - out.min()) < 0.999 * float(f.max() - f.min())


def test_it_is_the_mean_over_noisy_characteristics():
    """The Feynman-Kac formula: u(x, 0) = E f(x(1)), dx = F dt + sigma dB."""
    x, y = grid(48)

    def f(x, y):
        return jnp.sin(2 * PI * x) * jnp.cos(2 * PI * y) + 0.5 * jnp.cos(4 * PI * x)

    def flow(x, y):
        return jnp.stack([0.4 * jnp.sin(2 * PI * y), 0.3 * jnp.cos(2 * PI * (x + y))])

    sigma, steps, paths = 0.1, 200, 40_000

    def step(p, dw):
        return p + flow(*p) / steps + sigma * dw, None

    @jax.jit
    def solution_and_values(x, y, dw):
        u = convection_diffusion(flow(x, y), f(x, y), sigma=sigma, steps=400)
        start = jnp.stack([x[12, 5], y[12, 5]])[:, None]
        (a, b), _ = jax.lax.scan(step, jnp.broadcast_to(start, (2, paths)), dw)
        return u[12, 5], f(a, b)

    dw = np.random.default_rng(0).standard_normal((steps, 2, paths), np.float32) / steps**0.5
    u, values = map(np.asarray, solution_and_values(x, y, dw))
    error = float(values.std() / paths**0.5)
    assert float(values.mean()) == pytest.approx(float(u), abs=4.5 * error + 2e-3)


@pytest.mark.usefixtures("unchecked")
def test_arrays_on_other_grids_are_refused():
    with pytest.raises(ValueError, match=r"velocity \(2, n, n\); got \(4, 4\) and \(2, 8, 8\)"):
        convection_diffusion(jnp.zeros((2, 8, 8)), jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        convection_diffusion(jnp.zeros((2, 8, 8)), jnp.zeros((8, 8)), steps=0)
