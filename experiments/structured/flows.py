"""*structured*, its small experiments: what a structure buys, against a ResNet of equal size.

    python -m experiments.structured.flows          # two minutes

The ResNet is x -> x + h B tanh(A x + b), layer after layer. Within an experiment all networks have
the same number of weights (so not the same depth) and the same training: Adam on data made here,
three seeds. The test points are held out.

- *Regression.* A vector field is a gradient plus a divergence-free field, so steps along either, in
  turn, approximate maps: x + h A^T (w * tanh(A x + b)) with w of any sign, and `VolumeLayer`. The
  map to learn, on [-1, 1]^2, is G(R(z)): R turns z by the angle 2 exp(-|z|^2), which keeps areas,
  and G(u, v) = (3u/2 + (u^2 - v^2)/4, v - u v/2) is the gradient of a function convex where R ends.
  Also each kind of step alone.
- *SIR.* s' = -beta s i, i' = beta s i - gamma i, r' = gamma i with beta = 1 and gamma = 1/4: its
  flow over 1/4 from anywhere on the simplex, by `MassLayer`s; then 200 steps in a row.
- *Pendulum.* q' = p, p' = -sin q: its flow over 1/5 from anywhere with energy p^2/2 - cos q below
  1/2 (swings of up to 120 degrees), by `SymplecticLayer`s; then 1,000 steps, some thirty swings.

Expected: the pendulum alone is a clear case for structure. The symplectic network's single step is
the less accurate one, and yet its energy drifts by at most 5 %, the ResNet's by 100 % and more. In
the SIR model the sum is conserved to rounding, but the other errors are about those of the ResNet:
neither is built to know that s falls, or that nothing is negative. In the regression the ResNet is
no worse than both kinds of steps in turn. Steps that preserve areas fail alone; gradient steps come
close, since a composition of gradients need not be one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from odejax.evaluation import encode_array
from odejax.models import GradientLayer, MassLayer, SplitLayer, SymplecticLayer, VolumeLayer
from odejax.solvers import apply_layers, stack_layers

from ..lib.run import Config as Base, Experiment, Once, check_counts, run
from .flows_figure import figure, tables

KIND = "structured_flows"
SIZES = {"width": 16, "step_size": 0.25}  # of every layer
POINTS, BATCH, RATE = 2048, 128, 1e-2
TEST_POINTS, TEST_STATES = 4096, 64
CURVE = 100  # points that a curve is drawn with


class ResidualLayer(eqx.Module):
    """x -> x + h B tanh(A x + b)."""

    inner: Float[Array, "width n"]
    outer: Float[Array, "n width"]
    bias: Float[Array, " width"]
    step_size: float = eqx.field(static=True)

    def __init__(self, n: int, *, width: int, step_size: float, key: PRNGKeyArray):
        inner_key, outer_key = jax.random.split(key)
        self.inner = jax.random.normal(inner_key, (width, n)) / n**0.5
        self.outer = jax.random.normal(outer_key, (n, width)) / width**0.5
        self.bias = jnp.zeros(width)
        self.step_size = step_size

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return x + self.step_size * self.outer @ jnp.tanh(self.inner @ x + self.bias)


# A layer, and how many: within each experiment all networks have as many weights.
Net = tuple[Callable[..., eqx.Module], int]
REGRESSION: dict[str, Net] = {
    "both": (SplitLayer, 6),
    "gradient": (GradientLayer, 15),
    "divergence-free": (VolumeLayer, 10),
    "ResNet": (ResidualLayer, 12),
}


@dataclasses.dataclass(frozen=True)
class Flow:
    """y' = slope(y), to be learned over `dt` and then rolled out `steps` times."""

    nets: dict[str, Net]
    slope: Callable[[Array], Array]
    draw: Callable[[np.random.Generator, int], np.ndarray]  # so many states
    drift: Callable[[np.ndarray], np.ndarray]  # of states (..., time, n) from what is invariant
    shown: tuple[float, ...]  # the state that the figure follows
    dt: float
    steps: int


def _sir_slope(y: Array) -> Array:
    s, i, _ = y
    return jnp.stack([-s * i, s * i - i / 4, i / 4])


def _pendulum_slope(y: Array) -> Array:
    q, p = y
    return jnp.stack([p, -jnp.sin(q)])


def _on_the_simplex(random: np.random.Generator, n: int) -> np.ndarray:
    return random.dirichlet(np.ones(3), n)


def _below_half(random: np.random.Generator, n: int) -> np.ndarray:
    """Uniform where the energy is below 1/2: three quarters of a box, so 4 n draws are enough."""
    drawn = random.uniform([-2.1, -1.75], [2.1, 1.75], (4 * n, 2))
    return drawn[_energy(drawn) < 0.5][:n]


def _mass_drift(y: np.ndarray) -> np.ndarray:
    """|s + i + r - 1|."""
    return np.abs(np.sum(y, axis=-1) - 1)


def _energy_drift(y: np.ndarray) -> np.ndarray:
    """Change of the energy since the start, relative to its height above rest, -1."""
    energy = _energy(y)
    return np.abs(energy - energy[..., :1]) / (energy[..., :1] + 1)


def _energy(y: np.ndarray) -> np.ndarray:
    return y[..., 1] ** 2 / 2 - np.cos(y[..., 0])


FLOWS = {
    "sir": Flow(
        {"mass-preserving": (MassLayer, 4), "ResNet": (ResidualLayer, 4)},
        _sir_slope,
        _on_the_simplex,
        _mass_drift,
        shown=(0.98, 0.02, 0.0),
        dt=0.25,
        steps=200,
    ),
    "pendulum": Flow(
        {"symplectic": (SymplecticLayer, 5), "ResNet": (ResidualLayer, 6)},
        _pendulum_slope,
        _below_half,
        _energy_drift,
        shown=(1.5, 0.0),
        dt=0.2,
        steps=1000,
    ),
}


@dataclasses.dataclass
class Config(Base):
    """Train structured networks and ResNets on a map and two flows, and roll the flows out."""

    seeds: int = 3
    """How many networks of each kind, every one with training data of its own."""
    steps: int = 2000
    """Steps of training."""


def plan(config: Config, flows: Mapping[str, Flow] = FLOWS) -> Once:
    check_counts(config, "seeds", "steps")
    settings = {"seeds": config.seeds, "steps": config.steps, "points": POINTS} | SIZES
    return Once(
        lambda: (
            {"settings": settings, "regression": regression(config)}
            | {name: roll_out(flow, config) for name, flow in flows.items()}
        )
    )


def target(z: np.ndarray) -> np.ndarray:
    """G(R(z)), over the last axis."""
    x, y = np.moveaxis(z, -1, 0)
    angle = 2 * np.exp(-(x**2) - y**2)
    u, v = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    return np.stack([1.5 * u + (u**2 - v**2) / 4, v - u * v / 2], axis=-1)


def regression(config: Config) -> dict[str, Any]:
    """Test errors of each network, and the image of a grid's lines."""
    training, test = _generators()
    x = training.uniform(-1, 1, (config.seeds, POINTS, 2))
    held_out = test.uniform(-1, 1, (TEST_POINTS, 2))
    grid = _grid()
    out: dict[str, Any] = {"nets": {}, "grid": encode_array(target(grid))}
    for name, net in REGRESSION.items():
        layers = train(net, x, target(x), config.steps)
        error = iterate(layers, held_out, 1)[:, :, 1] - target(held_out)
        images = iterate(layers, grid.reshape(-1, 2), 1)[0, :, 1].reshape(grid.shape)
        out["nets"][name] = _size(net, layers) | {
            "test_error": _rms(error, (1, 2)).tolist(),
            "grid": encode_array(images),
        }
    return out


def _grid() -> np.ndarray:
    """Points (line, along, 2) of nine horizontal lines and nine vertical ones."""
    across, along = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 41), indexing="ij")
    return np.concatenate([np.stack([along, across], -1), np.stack([across, along], -1)])


def roll_out(flow: Flow, config: Config) -> dict[str, Any]:
    """Errors of one step and of all, and the drift from what is invariant, on held-out states."""
    training, test = _generators()
    x = flow.draw(training, config.seeds * POINTS)
    y = solve(flow.slope, x, flow.dt, 1)[:, 1]
    x, y = (a.reshape(config.seeds, POINTS, -1) for a in (x, y))
    starts = np.concatenate([np.array([flow.shown]), flow.draw(test, TEST_STATES)])
    exact = solve(flow.slope, starts, flow.dt, flow.steps)
    drawn = np.unique(np.linspace(0, flow.steps, CURVE + 1).astype(int))
    out: dict[str, Any] = {"times": (flow.dt * drawn).tolist(), "nets": {}}
    out["shown"] = encode_array(exact[0])
    for name, net in flow.nets.items():
        layers = train(net, x, y, config.steps)
        states = iterate(layers, starts, flow.steps)
        # Not of the state that the figure follows, which is no draw.
        error, drift = (states - exact)[:, 1:], flow.drift(states)[:, 1:]
        out["nets"][name] = _size(net, layers) | {
            "one_step": _rms(error[:, :, 1], (1, 2)).tolist(),
            "error": _rms(error, (1, 2, 3)).tolist(),
            "largest_drift": np.max(drift, axis=(1, 2)).tolist(),
            "median_drift": np.max(np.median(drift, axis=1), axis=1).tolist(),
            "error_curve": _rounded(_rms(error, (1, 3))[:, drawn]),
            "drift_curve": _rounded(np.max(drift, axis=1)[:, drawn]),
            "shown": encode_array(states[0, 0]),
        }
    return out


def _generators() -> tuple[np.random.Generator, np.random.Generator]:
    """For training data and for test data, which do not depend on the number of seeds."""
    return np.random.default_rng(0), np.random.default_rng(1)


def _size(net: Net, layers: eqx.Module) -> dict[str, int]:
    """Of one seed."""
    arrays = jax.tree.leaves(eqx.filter(layers, eqx.is_array))
    return {"layers": net[1], "weights": sum(a[0].size for a in arrays)}


def _rms(a: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(np.mean(a**2, axis=axis))


def _rounded(curves: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.3g}") for value in curve] for curve in curves]


def solve(slope: Callable, initial: np.ndarray, dt: float, steps: int) -> np.ndarray:
    """States (n, steps + 1, d) of y' = slope(y) every `dt`, in double precision.

    Ten steps of Tsit5 to each `dt`: the energy of the pendulum then stays to 1e-11.
    """
    ts = dt * np.arange(steps + 1)

    @jax.jit
    @jax.vmap
    def states(y):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: slope(y)),
            diffrax.Tsit5(),
            t0=0.0,
            t1=ts[-1],
            dt0=dt / 10,
            y0=y,
            saveat=diffrax.SaveAt(ts=jnp.asarray(ts)),
            max_steps=None,
        ).ys

    with jax.enable_x64(True):
        return np.asarray(states(jnp.asarray(initial, jnp.float64)))


def train(net: Net, x: np.ndarray, y: np.ndarray, steps: int) -> eqx.Module:
    """A network for each seed, x (seed, point, n) to y, by Adam with a cosine schedule.

    All weights have a leading axis of seeds and one of layers. The loss is relative to |y - x|^2.
    """
    make, depth = net
    seeds, points, n = x.shape
    key, batch_key = jax.random.split(jax.random.key(0))

    @eqx.filter_jit
    @eqx.filter_vmap
    def networks(key):
        return stack_layers(lambda key: make(n, key=key, **SIZES), depth, key=key)

    layers = networks(jax.random.split(key, seeds))
    weights, static = eqx.partition(layers, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def trained(weights, x, y, batches):
        scale = jnp.mean((y - x) ** 2)

        def loss(weights, x, y):
            images = jax.vmap(lambda x: apply_layers(eqx.combine(weights, static), x))(x)
            return jnp.mean((images - y) ** 2) / scale

        def step(carry, batch):
            weights, state = carry
            gradient = jax.vmap(jax.grad(loss))(weights, x[:, batch], y[:, batch])
            change, state = optimizer.update(gradient, state)
            return (optax.apply_updates(weights, change), state), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), batches)[0][0]

    batches = jax.random.randint(batch_key, (steps, BATCH), 0, points)
    data = (jnp.asarray(a, jnp.float32) for a in (x, y))
    return eqx.combine(trained(weights, *data, batches), static)


def iterate(layers: eqx.Module, x: np.ndarray, steps: int) -> np.ndarray:
    """States (seed, point, steps + 1, n) of every seed's network, from `x` (point, n) on."""

    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(eqx.if_array(0), None))
    def states(layers, x):
        def step(x, _):
            return jax.vmap(lambda x: apply_layers(layers, x))(x), x

        return jax.lax.scan(step, x, None, length=steps + 1)[1]

    rolled_out = states(layers, jnp.asarray(x, jnp.float32))
    return np.moveaxis(np.asarray(rolled_out, np.float64), 1, 2)


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"flows": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
