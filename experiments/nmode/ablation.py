"""*nmode* Figs. 9 and 10, and what they do not separate: where does the robustness come from?

    python -m experiments.nmode.ablation --data-dir DIR           # MNIST
    python -m experiments.nmode.ablation --dataset digits         # small, minutes

The 784-2048-nmODE-10 net, trained briefly on clean images as in the paper (Adam 1e-3, batch 256),
attacked and certified at L-infinity 0.05. Five sweeps:

- *time* (Fig. 9): the integration time t.
- *dimension* (Fig. 10): how many neurons.
- *lambda*: the decay.
- *scale*: t without its scale. The longer t, the larger y(t; gamma) and its slope, and a larger
  activation only needs smaller weights behind it. But Adam's steps are as large for any scale, so
  it changes what is learned. Here t = 0.05 gets the slope of t = 1, and t = 1 that of t = 0.05: the
  activation is multiplied by a factor, which is (up to Adam's epsilon) to multiply the last layer's
  initial weights and its learning rate.
- *decay*: decoupled weight decay, of all weights, at t = 0.05.

The sweeps share points. Each is measured once, and a finished one not again: --resume.

30 minutes on two CPU cores.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np
import optax

from odejax.attacks import APGD, PGD
from odejax.certificates import LinearRelaxation
from odejax.models import NmODE, NmODENet
from odejax.plots import colors, set_title
from odejax.plots.palette import ATTACKED, BAND, CERTIFIED

from ..lib import report
from ..lib.intervals import CLEAN, Listed
from ..lib.measure import measure
from ..lib.run import (
    Experiment,
    Job,
    Plan,
    RunConfig,
    check_choice,
    check_choices,
    load_data,
    run,
)
from .mnist import LEARNING_RATE, Network, row_sums, train_network

KIND = "nmode_ablation"
EPS = 0.05
ATTACKS = {"PGD-40": PGD(40, 0.01), "AutoPGD": APGD()}
LAM, SHORT, LONG = 3.0, 0.05, 1.0


@dataclasses.dataclass(frozen=True)
class Point:
    """One network: its activation is factor * y(t1; gamma)."""

    width: int
    epochs: int
    t1: float = LONG
    lam: float = LAM
    factor: float = 1.0
    decay: float = 0.0

    @property
    def name(self) -> str:
        return (
            f"t={self.t1:g} lambda={self.lam:g} factor={self.factor:.4g} decay={self.decay:g} "
            f"width={self.width} epochs={self.epochs}"
        )

    def network(self) -> Network:
        def make(*args, **settings):
            model = NmODENet(*args, nmode=NmODE(self.lam, self.t1), **settings)
            return rescale(model, None)

        def rescale(tree, _):
            weight = self.factor * tree.outputs.weight
            return eqx.tree_at(lambda m: m.outputs.weight, tree, weight)

        def optimizer(steps, epochs):
            return optax.chain(
                optax.scale_by_adam(),
                optax.stateless(rescale),
                optax.add_decayed_weights(self.decay),
                optax.scale(-LEARNING_RATE),
            )

        return Network(make, optimizer)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    epochs: int  # Fig. 9's; Fig. 10 has twice as many
    test_images: int
    width: int


SETTINGS = {
    "mnist": Setting(10, 1000, 2048),
    "fashion_mnist": Setting(10, 1000, 2048),
    "digits": Setting(60, 250, 256),
}


def sweeps(setting: Setting) -> dict[str, dict[str, Point]]:
    """The networks, by sweep and by value."""
    point = partial(Point, setting.width, setting.epochs)
    widths = [setting.width // 64, setting.width // 16, setting.width // 4]
    widths += [setting.width, 2 * setting.width]
    gain = slope(LONG) / slope(SHORT)
    return {
        "time": {f"{t:g}": point(t) for t in (SHORT, 0.1, 0.25, 0.5, LONG, 2.0, 5.0)},
        "dimension": {f"{width}": Point(width, 2 * setting.epochs) for width in widths},
        "lambda": {f"{lam:g}": point(lam=lam) for lam in (1.5, 2.0, LAM, 5.0, 10.0)},
        "scale": {
            f"t={SHORT:g}": point(SHORT),
            f"t={SHORT:g}, x{gain:.1f}": point(SHORT, factor=gain),
            f"t={LONG:g}, /{gain:.1f}": point(LONG, factor=1 / gain),
            f"t={LONG:g}": point(LONG),
        },
        "decay": {f"{decay:g}": point(SHORT, decay=decay) for decay in (0.0, 0.1, 0.3, 1.0)},
    }


def slope(t1: float) -> float:
    flow_map = NmODE(LAM, t1).flow_map
    assert flow_map is not None
    return flow_map.max_slope()


@dataclasses.dataclass
class Config(RunConfig):
    """Train nmODE in five sweeps, attack and certify every point, draw Figs. 9 and 10."""

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits (embedded)."""
    sweeps: tuple[str, ...] = ("time", "dimension", "lambda", "scale", "decay")
    """Which sweeps, by name."""
    seed: int = 0
    """Seed of initial weights, batches, and attacks."""


def plan(
    config: Config,
    sweeps_of: Callable[[Setting], dict[str, dict[str, Point]]] = sweeps,
    attacks: Mapping[str, Any] = ATTACKS,
) -> Plan:
    check_choice("dataset", config.dataset, SETTINGS)
    check_choices("sweep", config.sweeps, Config.sweeps)
    setting, seed = config.settle(SETTINGS[config.dataset]), config.seed
    images, test = load_data(config, setting.test_images)
    settings = {"dataset": config.dataset, "seed": seed, "eps": EPS}
    settings |= {"test_images": setting.test_images, "epochs": setting.epochs}

    def measured(point: Point, folder):
        checkpoints = folder / point.name.replace(" ", "_")
        trained, record = train_network(
            point.network(), images, point.epochs, point.width, seed, checkpoints
        )
        record |= {
            "W1": row_sums(trained.model.layers[0].weight),
            "W2": row_sums(trained.model.outputs.weight),
        }
        certificates = {"relaxed": LinearRelaxation(bisections=10)}
        record |= measure(
            trained,
            test,
            setting.test_images,
            {"linf": (EPS,)},
            seed,
            attacks=attacks,
            certificates=certificates,
        )
        (interval,) = record.pop("brackets")
        return record | {"interval": interval, "median_radius": interval["median_radius"]}

    def jobs(folder, result):
        points = sweeps_of(setting)
        for sweep in config.sweeps:
            names = {value: point.name for value, point in points[sweep].items()}
            result.setdefault("lines", {})[sweep] = names
            for point in points[sweep].values():
                yield Job(point.name, seed, partial(measured, point, folder))

    return Plan(config.dataset, settings, (images, test), jobs)


def _records(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By sweep and by value."""
    return {
        sweep: {value: result["runs"][name] for value, name in points.items()}
        for sweep, points in result["lines"].items()
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Of each sweep; W1 and W2 are the mean row sums |w_i1| + |w_i2| + ... of both layers."""
    out = []
    for sweep, records in _records(result).items():
        title = "nmode, {dataset}: {sweep}; accuracy in % at eps {eps:g}, {test_images} test images"
        title = title.format(sweep=sweep, **result["settings"])
        columns = ("clean (all)", *ATTACKS, "certified", "radius", "W1", "W2")
        table = report.table(title, sweep, *columns, collapse_padding=False)
        for value, record in records.items():
            interval = record["interval"]
            table.add_row(
                value,
                f"{100 * record['clean_accuracy']:.1f}",
                *(f"{100 * interval['per_attack'][attack]:.1f}" for attack in ATTACKS),
                f"{100 * interval['certified']:.1f}",
                f"{record['median_radius']:.4f}",
                *(f"{record[weight]['mean_row_sum']:.1f}" for weight in ("W1", "W2")),
            )
        out.append(table)
    return out


def notes(result: dict[str, Any]) -> list[str]:
    runs = result["runs"].items()
    return report.flag_notes({name: record["interval"]["flags"] for name, record in runs})


_LABELS = {
    "time": "integration time $t$ (Fig. 9)",
    "dimension": "neurons, $t$ = 1 (Fig. 10)",
    "lambda": r"$\lambda$, $t$ = 1",
    "scale": "$t$, activation times a factor",
    "decay": "weight decay, $t$ = 0.05",
}


def figure(result: dict[str, Any]):
    """A panel for each sweep: clean, attacked and certified accuracy of every network."""
    sweeps, settings = _records(result), result["settings"]
    drawn, axes = report.panels(sweeps.items(), columns=3, size=(3.3, 2.5))
    for (sweep, records), axis in axes:
        places = np.arange(len(records))
        intervals = [record["interval"] for record in records.values()]
        reads = (*map(report.end, ("attacked", "certified", "clean")), report.attack("PGD-40"))
        values = ([100 * read(interval) for interval in intervals] for read in reads)
        attacked, certified, clean, pgd = map(np.array, values)
        # Bars, since nothing is known of the networks in between.
        style = {"color": BAND, "label": "true robust accuracy"}
        axis.bar(places, attacked - certified, 0.5, certified, **style)
        axis.plot(places, clean, "_", ms=12, color="0.5", label="clean")
        style = {"color": colors(["PGD-40"])["PGD-40"], "mfc": "none"}
        axis.plot(places, pgd, "s", ms=7, label="under PGD-40 alone", **style)
        axis.plot(places, attacked, "o", ms=4, color=ATTACKED, label="under all attacks")
        axis.plot(places, certified, "o", ms=4, color=CERTIFIED, label="certified")
        ticks = [value.replace(", ", "\n") for value in records]
        axis.set_xticks(places, ticks, fontsize=8)
        axis.set_xlabel(_LABELS[sweep])
        report.accuracy_axis(axis)
    report.legend_below(drawn, ncols=5, fontsize=9)
    setting = report.setting_line(settings, rf"nmODE, $\ell_\infty$ {settings['eps']:g}")
    set_title(drawn, f"{_finding(sweeps)} ({setting})")
    return drawn


def _finding(sweeps: dict[str, dict[str, dict[str, Any]]]) -> str:
    """What the scale does, where it was measured."""
    robust = {
        sweep: [100 * record["interval"]["attacked"] for record in records.values()]
        for sweep, records in sweeps.items()
    }
    if "scale" not in robust:
        every = [accuracy for accuracies in robust.values() for accuracy in accuracies]
        return f"Robust accuracy is between {min(every):.1f} and {max(every):.1f} %"
    short, scaled_up, scaled_down, long = robust["scale"]
    return (
        f"With the slope of t={LONG:g}, the activation of t={SHORT:g} has {scaled_up:.1f} % robust "
        f"accuracy instead of {short:.1f} %; with the slope of t={SHORT:g}, that of t={LONG:g} has "
        f"{scaled_down:.1f} % instead of {long:.1f} %"
    )


def _listed(result: dict[str, Any]) -> list[Listed]:
    networks = []
    for name, record in result["runs"].items():
        point = dict(part.split("=") for part in name.split())  # as `Point.name` writes it
        shape = [f"{what}={point[what]}" for what in ("t", "lambda", "width")]
        shape += [f"times {point['factor']}"] if point["factor"] != "1" else []
        training = [CLEAN, f"{point['epochs']} epochs"]
        training += [f"weight decay {point['decay']}"] if point["decay"] != "0" else []
        names = f"nmODE {', '.join(shape)}", ", ".join(training)
        networks.append(Listed(*names, [record], [[record["interval"]]]))
    return networks


FIGURES = {"ablation": figure}
EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, FIGURES, notes, networks=_listed)

if __name__ == "__main__":
    run(EXPERIMENT)
