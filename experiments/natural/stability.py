"""*natural* Section 3: how perturbations grow from layer to layer, and what the theorems say.

    python -m experiments.natural.stability                       # embedded digits

Theorems 3.1 and 3.2: one field, that of a trained neural ODE, solved to t = 1 by Euler's and by
Runge-Kutta methods of n equal steps, the same weights for every n. Section 3.3: ResNet, PolyNet,
FractalNet and RevNet with h = 1, by which the paper explains that they are not robust, and a ResNet
with h = 1/6.

A perturbation is of the features behind the stem, by PGD-40 to its end or at random with the same
eps, of every image. PGD is against the network itself; of the Runge-Kutta methods, against the
network as it was trained, solved adaptively. The growth is max_n |z_n - y_n| / |z_0 - y_0| in l2.
The bounds are those of the theorems with K the largest Jacobian norm observed on the way. The true
K is no smaller: a bound with the observed one proves nothing, and with the true one it is no lower.

10 minutes on two CPU cores.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import odejax
from odejax.attacks import PGD
from odejax.evaluation import robust_accuracy
from odejax.models import ConvODENet, FractalNet, PolyNet, ResNet, RevNet
from odejax.plots import colors, plain_ticks, set_title
from odejax.solvers import (
    SSPRK33,
    growth_bound,
    growth_ratios,
    jacobian_norm,
    layer_states,
    layer_step,
    logarithmic_norm,
    perturbation_growth,
    stack_layers,
)
from odejax.training import clean_accuracy

from ..lib import report
from ..lib.recipe import Recipe, adam, constant, train
from ..lib.run import (
    Experiment,
    Job,
    Plan,
    RunConfig,
    UsageError,
    check_choice,
    check_counts,
    check_positive,
    load_data,
    run,
)
from .tables import with_solve

KIND = "natural_stability"
BATCH_SIZE = 64
SOLVERS: dict[str, Any] = {
    "Euler": diffrax.Euler(),
    "Heun": diffrax.Heun(),
    "SSPRK33": SSPRK33(),
    "Dopri5": diffrax.Dopri5(),
}
STEPS = (1, 2, 4, 8, 16, 32)
CURVES = (("PGD-40", "median", "-o"), ("PGD-40", "largest", "-^"), ("random", "median", ":x"))
DEPTH = 6
NETWORKS = {
    "ResNet, h = 1": partial(ResNet, depth=DEPTH),
    f"ResNet, h = 1/{DEPTH}": partial(ResNet, depth=DEPTH, step_size=1 / DEPTH),
    "PolyNet, h = 1": partial(PolyNet, depth=DEPTH),
    "FractalNet": partial(FractalNet, depth=DEPTH, columns=2),
    "RevNet, h = 1": partial(RevNet, depth=DEPTH),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Measure how adversarial perturbations grow, and the bounds of *natural* Section 3."""

    dataset: str = "digits"
    """digits (embedded) or mnist."""
    epochs: int = 20  # pyright: ignore[reportIncompatibleVariableOverride]
    """Epochs of each network."""
    width: int = 16
    """Channels of each network."""
    test_images: int = 200  # pyright: ignore[reportIncompatibleVariableOverride]
    """How many test images to attack (the first ones)."""
    eps: float = 0.1
    """Radius of the perturbation in L-infinity."""


def plan(
    config: Config,
    networks: Mapping[str, Any] = NETWORKS,
    solvers: Mapping[str, Any] = SOLVERS,
    steps: Sequence[int] = STEPS,
    train: Callable[..., Any] = train,
) -> Plan:
    check_choice("dataset", config.dataset, ("digits", "mnist"))
    check_counts(config, "epochs", "width", "test_images")
    if config.width % 2:
        raise UsageError(f"width must be even, for RevNet's halves; got {config.width}")
    check_positive(config, "eps")
    images, test = load_data(config, config.test_images)
    test = test.take(slice(config.test_images))
    names = ("dataset", "epochs", "width", "eps", "test_images")
    settings = {name: getattr(config, name) for name in names}
    key = jax.random.key(0)

    def jobs(folder, _):
        def trained(name: str, make):
            make = partial(make, width=config.width)
            recipe = Recipe(make, config.epochs, BATCH_SIZE, adam(constant(3e-3)))
            slug = name.replace(" ", "").replace("/", "-")
            return train(recipe, images, key, folder / slug)[0]

        def theorems():
            ode = trained("neural ODE", ConvODENet)
            return _theorems(ode, test, config, key, solvers, steps)

        yield Job("theorems", 0, theorems, "")
        for name, make in networks.items():

            def layered(name=name, make=make):
                return _layered(trained(name, make), test, config, key)

            yield Job(name, 0, layered, "networks")

    return Plan(config.dataset, settings, (images, test), jobs)


def _attack(predictor, test, config: Config, key):
    """Clean and robust accuracy; images perturbed by PGD-40, and at random corners of the balls."""
    ball = odejax.LinfBall(config.eps)
    attacked = robust_accuracy(
        predictor,
        test.pixels,
        test.labels,
        ball,
        PGD(40, None),
        key=key,
        stop_at_first_success=False,
        attack_misclassified=True,
    )
    signs = np.where(jax.random.bernoulli(key, shape=test.pixels.shape), 1, -1)
    corners = np.clip(test.pixels + config.eps * signs, 0, 1).astype(np.float32)
    clean = clean_accuracy(predictor, test, key=key)
    accuracies: dict[str, Any] = {"clean": clean, "attacked": attacked.accuracy}
    return accuracies, {"PGD-40": attacked.x_adv, "random": corners}


def _theorems(ode: odejax.Predictor, test, config: Config, key, solvers, steps) -> dict[str, Any]:
    """Growth and bound by method and number of steps; robust accuracy solved by Euler's method."""
    adaptive, perturbed = _attack(ode, test, config, key)
    model, state = ode.model, ode.state
    field = model.residual

    def states(x, solver, n: int):
        layers: Any = stack_layers(lambda key: field, n, key=key)
        y = model.stem(x, state)[0]
        return layer_states(layers, y, state, solver=solver, step_size=1 / n)

    @jax.jit
    @jax.vmap
    def norms(x):
        """The Jacobian's along the way, in 32 steps of Heun's method."""
        f, ys = partial(_apply, field, state), states(x, diffrax.Heun(), 32)[::4]
        along = [jax.vmap(partial(g, f, key=key))(ys) for g in (jacobian_norm, logarithmic_norm)]
        return jnp.max(along[0]), jnp.mean(along[1])

    k, mu = (np.asarray(values) for values in norms(jnp.asarray(test.pixels)))
    constant = float(k.max())
    euler, perturbed_by_steps = {}, {}
    for n in steps:
        fixed = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 1 / n}
        network = with_solve(ode, solver=diffrax.Euler(), adjoint=None, **fixed)
        euler[str(n)], perturbed_by_steps[n] = _attack(network, test, config, key)
    methods: dict[str, Any] = {name: [] for name in solvers}
    for name, solver in solvers.items():
        for n in steps:
            solved = jax.jit(jax.vmap(partial(states, solver=solver, n=n)))
            ys = solved(jnp.asarray(test.pixels))
            others = perturbed_by_steps[n] if name == "Euler" else perturbed
            methods[name].append(
                {"steps": n, "bound": float(growth_bound(layer_step(solver), constant / n, n))}
                | {
                    kind: _over_images(jax.vmap(perturbation_growth)(ys, solved(jnp.asarray(x))))
                    for kind, x in others.items()
                }
            )
    return {
        "constant": constant,
        "logarithmic_norm": float(mu.max()),  # the mean along the way, the largest of any image
        "methods": methods,
        "adaptive": adaptive,
        "euler": euler,
    }


def _over_images(growths) -> dict[str, Any]:
    """The median and the largest, over the first axis."""
    growths = np.asarray(growths)
    return {
        "median": np.median(growths, axis=0).tolist(),
        "largest": growths.max(axis=0).tolist(),
    }


def _layered(predictor: odejax.Predictor, test, config: Config, key) -> dict[str, Any]:
    """How perturbations grow from layer to layer, and (1 + h K)^n and its like."""
    record, perturbed = _attack(predictor, test, config, key)
    model: Any = predictor.model
    state = predictor.state
    walk: Any = _reversible_walk if isinstance(model, RevNet) else _walk

    @jax.jit
    @jax.vmap
    def states_and_norms(x):
        """All states, and the norms of the Jacobians of the fields at their arguments."""
        states, visits = walk(model, state, x)
        return states, jnp.stack([jacobian_norm(f, y, key=key) for f, y in visits])

    ys, norms = states_and_norms(jnp.asarray(test.pixels))
    constant = float(norms.max())
    if isinstance(model, RevNet):  # a layer is two half steps of Euler's method
        step, h, per_layer = layer_step(None), model.step_size, 2
    else:
        step, h, per_layer = layer_step(model.solver), model.step_size, 1
    layers = range(ys.shape[1])
    bounds = [float(growth_bound(step, h * constant, per_layer * n)) for n in layers]
    record |= {"constant": constant, "bound": bounds}
    for kind, x in perturbed.items():
        zs, _ = states_and_norms(jnp.asarray(x))
        record[kind] = _over_images(jax.vmap(growth_ratios)(ys, zs))
    return record


def _walk(model, state, x):
    """The states of a network built like `ResNet`, and its fields with their first arguments."""
    y = model.stem(x, state)[0]
    ys = layer_states(model.layers, y, state, solver=model.solver, step_size=model.step_size)
    return ys, [(_field(model.layers, i, state), y) for i, y in enumerate(ys[:-1])]


def _reversible_walk(model: RevNet, state, x):
    a, b = jnp.split(model.stem(x, state)[0], 2, axis=-1)
    states, visits = [jnp.concatenate([a, b], axis=-1)], []
    depth = model.layers[0].convs[0].kernel.shape[0]
    for i in range(depth):
        first, second = (_field(half, i, state) for half in model.layers)
        visits.append((first, b))
        a = a + model.step_size * first(b)
        visits.append((second, a))
        b = b + model.step_size * second(a)
        states.append(jnp.concatenate([a, b], axis=-1))
    return jnp.stack(states), visits


def _field(layers, i: int, state) -> Callable[[Any], Any]:
    """That of one of the stacked layers."""
    return partial(_apply, jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, layers), state)


def _apply(field, state, y):
    return field(y, state)[0]


def tables(result: dict[str, Any]) -> list[Any]:
    """By method and steps; then by network."""
    theorems = result["theorems"]
    adaptive = theorems["adaptive"]
    title = (
        f"one field, to t = 1: K at least {theorems['constant']:.1f}, the logarithmic norm "
        f"{theorems['logarithmic_norm']:.1f}; adaptive: {100 * adaptive['clean']:.1f} % clean, "
        f"{100 * adaptive['attacked']:.1f} under PGD"
    )
    growths = ("growth, PGD", "largest", "random")
    first = report.table(title, "", "steps", *growths, "bound", "attacked")
    for name, rows in theorems["methods"].items():
        for row in rows:
            attacked = theorems["euler"][str(row["steps"])]["attacked"] if name == "Euler" else None
            first.add_row(
                name,
                str(row["steps"]),
                *(f"{row[kind][which]:.2f}" for kind, which, _ in CURVES),
                f"{row['bound']:.3g}",
                "" if attacked is None else f"{100 * attacked:.1f}",
            )
    columns = ("clean", "attacked", "K", *growths, "bound")
    second = report.table(f"networks, eps {result['settings']['eps']}", "", *columns)
    for name, record in result["networks"].items():
        second.add_row(
            name,
            f"{100 * record['clean']:.1f}",
            f"{100 * record['attacked']:.1f}",
            f"{record['constant']:.1f}",
            *(f"{max(record[kind][which]):.2f}" for kind, which, _ in CURVES),
            f"{max(record['bound']):.3g}",
        )
    return [first, second]


def figure(result: dict[str, Any]):
    """Theorem 3.1, Theorem 3.2, and the networks of Section 3.3 layer by layer."""
    theorems, networks, settings = (result[part] for part in ("theorems", "networks", "settings"))
    setting = report.setting_line(settings, rf"$\ell_\infty$ {settings['eps']:g}")
    (euler, rows), *others = theorems["methods"].items()
    steps = [row["steps"] for row in rows]
    names = {name: name.replace("RK33", "RK(3,3)") for name in theorems["methods"]}
    drawn, (first, second, third) = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")

    color = colors(names.values())
    first.plot(steps, [row["bound"] for row in rows], "--", color=color[euler], label="bound")
    for kind, which, style in CURVES:
        growths = [row[kind][which] for row in rows]
        first.plot(steps, growths, style, ms=4, color=color[euler], label=f"{kind}, {which}")
    for name, of_method in others:
        bounds = [row["bound"] for row in of_method]
        second.plot(steps, bounds, "--", color=color[names[name]], label=f"bound, {names[name]}")
    largest = np.max([[row["PGD-40"]["largest"] for row in of] for _, of in others], axis=0)
    second.plot(steps, largest, "k-^", ms=4, label="PGD-40, largest of all methods")
    for axis, title in ((first, f"Theorem 3.1: {euler}"), (second, "Theorem 3.2: Runge-Kutta")):
        axis.axhline(np.exp(theorems["constant"]), color="k", ls=":", lw=0.9, label="exp(K)")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("steps n = 1 / h")
        axis.set_title(f"{title}, n steps of one field", fontsize=10)

    color = colors(name.removesuffix(", h = 1") for name in networks)
    for (name, record), one in zip(networks.items(), color.values(), strict=True):
        third.plot(record["PGD-40"]["median"], "-o", ms=4, color=one, label=name)
    third.set_xlabel("layer")
    third.set_title("Section 3.3: networks, PGD-40, median", fontsize=10)
    first.set_ylabel(r"growth of a perturbation ($\ell_2$)")
    for axis in (first, second, third):
        axis.set_yscale("log")
        axis.grid(alpha=0.3, lw=0.5)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    plain_ticks(third)
    last = [of_method[-1] for of_method in theorems["methods"].values()]
    in_steps = _orders([(row["bound"], row["PGD-40"]["largest"]) for row in last])
    in_layers = _orders([(r["bound"][-1], r["PGD-40"]["largest"][-1]) for r in networks.values()])
    set_title(
        drawn,
        f"The bounds exceed the largest growth under PGD-40 by {in_steps} orders of magnitude in "
        f"{steps[-1]} steps of one field, and by {in_layers} in the networks ({setting})",
    )
    return drawn


def _orders(pairs: list[tuple[float, float]]) -> str:
    """Of how many powers of ten the first exceeds the second."""
    orders = [int(np.log10(bound / growth)) for bound, growth in pairs]
    return f"{min(orders)} to {max(orders)}"


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"stability": figure})

if __name__ == "__main__":
    run(EXPERIMENT)
