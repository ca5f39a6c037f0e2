"""*nmode* Figs. 9 and 10, and what they leave open: which part of the robustness is what?

    python -m experiments.nmode.ablation --data-dir DIR           # MNIST
    python -m experiments.nmode.ablation --dataset digits         # small, minutes

The 784-2048-nmODE-10 net, trained briefly on clean images as in the paper (Adam 1e-3, batch 256),
attacked and certified at L-infinity 0.05, along five lines:

- *time* (Fig. 9): the integration time t.
- *dimension* (Fig. 10): how many neurons.
- *lambda*: the decay.
- *scale*: t without its scale. The longer t, the larger y(t; gamma) and its slope, and a larger
  activation only needs smaller weights behind it. But Adam's steps are as large for any scale, so
  it changes what is learned. Here t = 0.05 gets the slope of t = 1, and t = 1 that of t = 0.05: the
  activation is multiplied by a factor, which is (up to Adam's epsilon) to multiply the last layer's
  initial weights and its learning rate.
- *decay*: decoupled weight decay, of all weights, at t = 0.05.

The lines cross; a point on several is measured once, and a finished one not again: --resume.

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

from ..lib import report
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
    """The networks, by line and by value."""
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
    """Train nmODE along five lines, attack and certify every point, draw Figs. 9 and 10."""

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits (embedded)."""
    sweeps: tuple[str, ...] = ("time", "dimension", "lambda", "scale", "decay")
    """Which lines, by name."""
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
        certificates = {"relaxed": LinearRelaxation()}
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
        lines = sweeps_of(setting)
        for line in config.sweeps:
            names = {value: point.name for value, point in lines[line].items()}
            result.setdefault("lines", {})[line] = names
            for point in lines[line].values():
                yield Job(point.name, seed, partial(measured, point, folder))

    return Plan(config.dataset, settings, (images, test), jobs)


def _lines(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The records by line and by value."""
    return {
        line: {value: result["runs"][name] for value, name in points.items()}
        for line, points in result["lines"].items()
    }


def tables(result: dict[str, Any]) -> list[Any]:
    """Of each line; W1 and W2 are the mean row sums |w_i1| + |w_i2| + ... of both layers."""
    out = []
    for line, records in _lines(result).items():
        title = "nmode, {dataset}: {line}; accuracy in % at eps {eps:g}, {test_images} test images"
        title = title.format(line=line, **result["settings"])
        columns = ("clean (all)", *ATTACKS, "certified", "radius", "W1", "W2")
        table = report.table(title, line, *columns, collapse_padding=False)
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
    return [
        f"{name}: [bold]{flag}[/] ({evidence})"
        for name, record in result["runs"].items()
        for flag, evidence in record["interval"]["flags"].items()
    ]


_LABELS = {
    "time": "integration time $t$ (Fig. 9)",
    "dimension": "neurons, $t$ = 1 (Fig. 10)",
    "lambda": r"$\lambda$, $t$ = 1",
    "scale": "$t$, and its scale taken out",
    "decay": "weight decay, $t$ = 0.05",
}


def figure(result: dict[str, Any]):
    """A panel for each line: clean, attacked and certified accuracy."""
    lines = _lines(result)
    drawn, axes = report.panels(lines.items(), size=(3.0, 2.7))
    for (line, records), axis in axes:
        places = np.arange(len(records))
        intervals = [record["interval"] for record in records.values()]
        reads = (*map(report.end, ("attacked", "certified", "clean")), report.attack("PGD-40"))
        values = ([100 * read(interval) for interval in intervals] for read in reads)
        attacked, certified, clean, pgd = map(np.array, values)
        band = {"color": "0.9", "label": "the truth lies in here"}
        if line == "scale":  # no scale to draw lines along
            axis.bar(places, attacked - certified, 0.5, certified, **band)
        else:
            axis.fill_between(places, certified, attacked, **band)
        lines_of = "" if line == "scale" else "-"
        axis.plot(places, clean, "--", color="0.5", label="clean")
        axis.plot(places, pgd, "s", ms=6, color=report.ORANGE, label="PGD-40 alone")
        axis.plot(places, attacked, f"{lines_of}o", ms=4, color="#b2182b", label="attacked (both)")
        axis.plot(places, certified, f"{lines_of}o", ms=4, color="#2166ac", label="certified")
        ticks = [value.replace(", ", "\n") for value in records]
        axis.set_xticks(places, ticks, fontsize=8)
        axis.set_xlabel(_LABELS[line])
        report.accuracy_axis(axis)
    report.legend_below(drawn, ncols=5, fontsize=9)
    settings = result["settings"]
    drawn.suptitle(
        f"nmODE, {report.setting_line(settings)}, L-infinity {settings['eps']:g}, "
        f"{settings['epochs']} epochs (dimension: twice as many)",
        fontsize=11,
    )
    return drawn


EXPERIMENT = Experiment(KIND, __doc__, Config, plan, tables, {"ablation": figure}, notes)

if __name__ == "__main__":
    run(EXPERIMENT)
