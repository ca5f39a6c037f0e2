"""*nmode* Tables 2, 3 and 5, the MNIST rows: what nmODE's robustness is, and where it comes from.

    python -m experiments.nmode_mnist --data-dir DIR                # 100 epochs, 3 seeds: hours
    python -m experiments.nmode_mnist --data-dir DIR --seeds 1 --networks ReLU "nmODE t=1"
    python -m experiments.nmode_mnist --dataset digits              # small, minutes

The 784-2048-activation-10 net on clean images (Adam 1e-3, batch 256), with ReLU, nmODE of t = 0.05
and 1 (lambda = 3, the flow map: exact gradients) and nmODE+ in its three forms; and, in the place
of the figures that the paper quotes, four neural ODEs trained here: vanilla, on images attacked by
PGD-10 (AT-NODE, eps 8/255), by TRADES with the same ball, and TisODE. They are fully connected, 128
wide, solved to t = 1 by Dopri5 at the paper's tolerances, and trained for 20 epochs; how the quoted
ones were made the paper does not say. B-NODE, also quoted, is not trained here.

Each network is attacked as in the paper (PGD-40, with steps of 0.01, which the paper does not give;
AutoPGD; Square with 5,000 queries; l2: PGD-40) and by the standard AutoAttack, and certified by
each certificate in turn. The paper's numbers are printed beside ours. A finished network is not
trained or attacked again: --resume.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import odejax
from odejax.attacks import APGD, PGD, AutoAttack, Square
from odejax.certificates import (
    FiniteTimeStableMapping,
    FlowMapSlope,
    LinearRelaxation,
    StableMapping,
)
from odejax.evaluation import bracket, provenance, save_result
from odejax.models import MLP, DenseODENet, NmODE, NmODENet
from odejax.plots.curves import AXIS_LABELS
from odejax.training import (
    TRADES,
    Adversarial,
    CrossEntropy,
    Penalised,
    clean_accuracy,
    clip_weights,
    drift_penalty,
    fit,
    row_sum_penalty,
)

from ._cli import RunConfig, check_choice, check_choices, check_counts, load_data, open_result, run
from ._report import copy_to_repository

KIND = "nmode_mnist"
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
ATTACKS = {
    "linf": {
        "PGD-40": PGD(40, 0.01),
        "AutoPGD": APGD(),
        "Square": Square(),
        "AutoAttack": AutoAttack(),
    },
    "l2": {"PGD-40": PGD(40, None), "AutoAttack": AutoAttack()},
}
BALLS = {"linf": odejax.LinfBall, "l2": odejax.L2Ball}
CERTIFICATES = {
    "Eq. 4": StableMapping(),
    "finite t": FiniteTimeStableMapping(),
    "slope": FlowMapSlope(),
    "relaxed": LinearRelaxation(),
}


def first_weight(model):
    return model.layers[0].weight


def plain():
    return optax.adam(LEARNING_RATE)


def weight_decay(wd: float):
    """The coupled weight decay of PyTorch's Adam, as the paper has it."""
    return optax.chain(optax.add_decayed_weights(wd), optax.adam(LEARNING_RATE))


def clipped(c: float):
    return optax.chain(optax.adam(LEARNING_RATE), clip_weights(c, first_weight))


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture and how it is trained."""

    make: Callable[..., Any]
    optimizer: Callable[[], optax.GradientTransformation] = plain
    objective: Any = dataclasses.field(default_factory=CrossEntropy)
    certificates: tuple[str, ...] = tuple(CERTIFICATES)
    width: int | None = None  # None: the data set's
    epochs: int | None = None


def _node(objective: Any) -> Network:
    return Network(DenseODENet, objective=objective, certificates=(), width=128, epochs=20)


def _nmode(t1: float):
    return partial(NmODENet, nmode=NmODE(3.0, t1))


def _networks() -> dict[str, Network]:
    penalised = Penalised(penalty=row_sum_penalty(first_weight), eta=0.01)
    attack, ball = PGD(10, None), odejax.LinfBall(8 / 255)
    return {
        "ReLU": Network(partial(MLP, depth=1), certificates=("relaxed",)),
        "nmODE t=0.05": Network(_nmode(0.05)),
        "nmODE t=1": Network(_nmode(1.0)),
        "nmODE+ t=0.05, wd=1e-5": Network(_nmode(0.05), partial(weight_decay, 1e-5)),
        "nmODE+ t=0.05, wd=1e-4": Network(_nmode(0.05), partial(weight_decay, 1e-4)),
        "nmODE+ t=0.05, wd=1e-3": Network(_nmode(0.05), partial(weight_decay, 1e-3)),
        "nmODE+ t=1, wd=1e-4": Network(_nmode(1.0), partial(weight_decay, 1e-4)),
        "nmODE+ t=0.05, clip": Network(_nmode(0.05), partial(clipped, 0.05)),
        "nmODE+ t=0.05, penalty": Network(_nmode(0.05), objective=penalised),
        "NODE": _node(CrossEntropy()),
        "AT-NODE": _node(Adversarial(attack, ball)),
        "ODE-TRADES": _node(TRADES(ball, attack=attack)),
        "TisODE": _node(Penalised(penalty=drift_penalty, eta=0.1)),
    }


NETWORKS = _networks()

# The paper's figures, by network, attack and eps.
PAPER_CLEAN = {
    "nmODE t=0.05": 98.38,
    "nmODE+ t=0.05, wd=1e-5": 98.36,
    "nmODE+ t=0.05, wd=1e-4": 98.30,
    "nmODE+ t=0.05, wd=1e-3": 97.25,
}
PAPER_LINF = {  # Table 2, by eps: 0.01, 0.03, 0.05
    "NODE": {
        "PGD-40": (86.14, 71.04, 47.40),
        "AutoPGD": (84.41, 68.99, 46.31),
        "Square": (86.55, 72.50, 51.58),
    },
    "AT-NODE": {
        "PGD-40": (91.76, 85.80, 78.38),
        "AutoPGD": (91.34, 87.60, 78.35),
        "Square": (92.65, 89.50, 81.13),
    },
    "ODE-TRADES": {
        "PGD-40": (91.46, 85.08, 77.32),
        "AutoPGD": (92.19, 85.31, 76.89),
        "Square": (92.06, 90.08, 82.41),
    },
    "TisODE": {
        "PGD-40": (92.67, 87.48, 81.28),
        "AutoPGD": (91.12, 87.02, 79.48),
        "Square": (94.10, 87.60, 83.24),
    },
    "nmODE": {
        "PGD-40": (94.92, 93.02, 90.23),
        "AutoPGD": (97.92, 94.16, 85.13),
        "Square": (98.35, 97.82, 95.77),
    },
}
PAPER_L2 = {"nmODE": {"PGD-40": (99.49, 99.36)}}  # Table 3, by eps: 0.1, 0.2
PAPER_TABLE_5 = {
    "nmODE t=0.05": 96.71,
    "nmODE+ t=0.05, wd=1e-5": 97.87,
    "nmODE+ t=0.05, wd=1e-4": 97.91,
    "nmODE+ t=0.05, wd=1e-3": 96.37,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What depends on the data set."""

    epochs: int
    test_images: int
    eps: tuple[float, ...]
    eps_l2: tuple[float, ...]
    width: int


SETTINGS = {
    "mnist": Setting(100, 1000, (0.01, 0.03, 0.05), (0.1, 0.2), 2048),
    "fashion_mnist": Setting(100, 1000, (0.01, 0.03, 0.05), (0.1, 0.2), 2048),
    "digits": Setting(60, 250, (0.01, 0.03, 0.05), (0.1, 0.2), 256),
}


@dataclasses.dataclass
class Config(RunConfig):
    """Train the networks of *nmode* on MNIST, attack and certify them, print Tables 2, 3 and 5."""

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits (embedded)."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which networks, by name."""
    seeds: int = 3
    """How many seeds of each."""
    epochs: int | None = None
    """Epochs; by default 100, the paper's (digits: 60), of the neural ODEs 20."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default 1,000 (digits: 250)."""


def main(config: Config):
    setting = _check(config)
    console = Console()
    train, test = load_data(config, setting.test_images)
    folder = config.out or Path("runs/nmode_mnist") / config.dataset
    path = folder / "result.json"
    epochs = {
        name: config.epochs or network.epochs or setting.epochs
        for name, network in NETWORKS.items()
    }
    settings = {"dataset": config.dataset, "epochs": epochs, "n": setting.test_images}
    result = open_result(path, KIND, settings, config.resume)

    for seed in range(config.seeds):
        for name in config.networks:
            if f"{name}/{seed}" in result["runs"]:
                continue
            console.print(f"[bold]{name}[/], seed {seed}")
            origin = provenance(seed)
            slug = name.replace(" ", "_").replace(",", "")
            checkpoints = folder / "checkpoints" / f"{slug}_{seed}"
            network = NETWORKS[name]
            width = network.width or setting.width
            trained, record = train_network(network, train, epochs[name], width, seed, checkpoints)
            if isinstance(trained.model, (MLP, NmODENet)):
                record |= row_sums(first_weight(trained.model))
            record |= _evaluate(name, trained, test, setting, seed)
            result["runs"][f"{name}/{seed}"] = origin | record
            save_result(path, KIND, result)
    for table in tables(result):
        console.print(table)
    figure(result).savefig(folder / "intervals.png", dpi=150)
    plt.close("all")
    if config.publish:
        copy_to_repository(path, f"nmode_mnist_{config.dataset}.json")
        copy_to_repository(folder / "intervals.png", f"nmode_mnist_{config.dataset}.png")
    console.print(f"{path} and intervals.png written")


def _check(config: Config) -> Setting:
    check_choice("dataset", config.dataset, SETTINGS)
    check_choices("network", config.networks, NETWORKS)
    check_counts(config, "seeds")
    return config.settle(SETTINGS[config.dataset])


def train_network(network: Network, train, epochs: int, width: int, seed: int, folder: Path):
    """The trained network, and what there is to say about its training."""
    key = jax.random.key(seed)
    make = partial(network.make, width=width)
    model, state = eqx.nn.make_with_state(make)(train.image_shape, train.n_classes, key=key)
    started = time.perf_counter()
    trained = fit(
        model,
        state,
        train,
        network.objective,
        network.optimizer(),
        epochs=epochs,
        batch_size=min(BATCH_SIZE, len(train)),
        key=jax.random.fold_in(key, 1),
        checkpoint_dir=folder,
    )
    return odejax.Predictor(trained.model, trained.state), {
        "epochs": epochs,
        "training_seconds": time.perf_counter() - started,
        "epoch_seconds": float(np.median([epoch["seconds"] for epoch in trained.history])),
        "last_epoch": trained.history[-1],
    }


def row_sums(weight) -> dict[str, float]:
    """tau = max_i sum_j |w_ij| (*nmode* Eq. 4), and the mean over i."""
    rows = np.abs(np.asarray(weight)).sum(axis=1)
    return {"tau": float(rows.max()), "mean_row_sum": float(rows.mean())}


def _evaluate(name: str, predictor, test, setting: Setting, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    key = jax.random.key(seed + 1)
    certificates = {c: CERTIFICATES[c] for c in NETWORKS[name].certificates}
    balls: dict[str, list] = {}
    for ball, values in (("linf", setting.eps), ("l2", setting.eps_l2)):
        balls[ball] = []
        for i, eps in enumerate(values):
            measured = bracket(
                predictor,
                test.take(slice(setting.test_images)),
                BALLS[ball](eps),
                attacks=ATTACKS[ball],
                certificates=certificates,
                key=key,
                flag_images=64 if i == 0 else 0,
                progress=True,
            )
            balls[ball].append(
                measured.summary() | {"median_radius": float(np.median(measured.radius))}
            )
    return {
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        "balls": balls,
        "evaluation_seconds": time.perf_counter() - started,
    }


def _by_network(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The records of every network, one for each seed."""
    runs: dict[str, list] = {}
    for name, record in result["runs"].items():
        runs.setdefault(name.split("/")[0], []).append(record)
    return runs


def _published(result: dict[str, Any], paper: dict[str, Any], name: str) -> dict[str, Any]:
    """What the paper has of a network (it does not say which t1 Table 2 has), if on this data."""
    on_mnist = result["settings"]["dataset"] == "mnist"
    return paper.get(name.split(" t=")[0], {}) if on_mnist else {}


def tables(result: dict[str, Any]) -> list[Table]:
    """Tables 2, 3 and 5, and what each certificate proves: mean +- deviation over the seeds.

    The paper's figures are in rows of their own.
    """
    runs = _by_network(result)
    title = "nmode {}: {dataset}, the first {n} test images, accuracy in %"
    out = []
    for number, ball, attacks, published in (
        (2, "linf", ["PGD-40", "AutoPGD", "Square", "AutoAttack"], (0.01, 0.03, 0.05)),
        (3, "l2", ["PGD-40", "AutoAttack"], (0.1, 0.2)),
    ):
        table = _table(title.format(f"Table {number}", **result["settings"]), ball, "eps", *attacks)
        for name, records in runs.items():
            paper = _published(result, PAPER_LINF if number == 2 else PAPER_L2, name)
            for i, first in enumerate(records[0]["balls"][ball]):
                eps = first["eps"]
                measured = [record["balls"][ball][i]["per_attack"] for record in records]
                cells = (_cell([m[attack] for m in measured]) for attack in attacks)
                table.add_row(name, f"{eps:g}", *cells)
                if paper and eps in published:
                    printed = (paper.get(attack) for attack in attacks)
                    at = published.index(eps)
                    table.add_row("  paper", "", *(f"{p[at]:.1f}" if p else "" for p in printed))
        out.append(table)
    table = _table(title.format("certified", **result["settings"]), "", "eps", *CERTIFICATES)
    for name, records in runs.items():
        for ball, intervals in records[0]["balls"].items():
            for i, first in enumerate(intervals):
                measured = [record["balls"][ball][i]["per_certificate"] for record in records]
                cells = (
                    _cell([m[c] for m in measured]) if c in first["per_certificate"] else ""
                    for c in CERTIFICATES
                )
                if first["per_certificate"]:
                    table.add_row(name, f"{ball} {first['eps']:g}", *cells)
    out.append(table)
    columns = ("clean", "PGD-40", "ratio", "AutoAttack", "certified", "tau", "epochs")
    table = _table(title.format("Table 5", **result["settings"]), "eps 0.05", *columns)
    table.caption = "clean: of all test images; ratio: PGD-40 / clean of the attacked ones"
    for name, records in runs.items():
        last = [record["balls"]["linf"][-1] for record in records]
        pgd = [m["per_attack"]["PGD-40"] for m in last]
        tau = [record["tau"] for record in records if "tau" in record]
        table.add_row(
            name,
            _cell([record["clean_accuracy"] for record in records]),
            _cell(pgd),
            _cell([p / m["clean"] for p, m in zip(pgd, last, strict=True)]),
            _cell([m["per_attack"]["AutoAttack"] for m in last]),
            _cell([m["certified"] for m in last]) if last[0]["per_certificate"] else "",
            f"{np.mean(tau):.1f}" if tau else "",
            str(records[0]["epochs"]),
        )
        if name in PAPER_TABLE_5 and result["settings"]["dataset"] == "mnist":
            clean, left = PAPER_CLEAN[name], PAPER_TABLE_5[name]
            table.add_row("  paper", f"{clean:.1f}", f"{left:.1f}", f"{100 * left / clean:.1f}")
    return [*out, table]


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold", min_width=12)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def figure(result: dict[str, Any]):
    """A panel for each network: the interval against eps, and what the paper has there."""
    runs, settings = _by_network(result), result["settings"]
    columns = min(5, len(runs))
    rows = -(-len(runs) // columns)
    drawn, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.4 * columns + 0.6, 2.3 * rows + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (name, records) in zip(axes.flat, runs.items(), strict=False):
        brackets = [record["balls"]["linf"] for record in records]
        eps = [0.0, *(b["eps"] for b in brackets[0])]
        clean = np.mean([b[0]["clean"] for b in brackets])

        def mean(pick, brackets=brackets, clean=clean):
            return 100 * np.array([clean, *np.mean([[*map(pick, b)] for b in brackets], axis=0)])

        attacked, certified = mean(lambda b: b["attacked"]), mean(lambda b: b["certified"])
        axis.fill_between(eps, certified, attacked, color="0.9", label="the truth lies in here")
        axis.plot(
            eps,
            mean(lambda b: b["per_attack"]["PGD-40"]),
            ":s",
            ms=3,
            color="#ef8a62",
            label="PGD-40 alone",
        )
        axis.plot(eps, attacked, "-o", ms=3, color="#b2182b", label="worst case of all attacks")
        if brackets[0][0]["per_certificate"]:
            axis.plot(eps, certified, "-o", ms=3, color="#2166ac", label="certified")
        paper = _published(result, PAPER_LINF, name).get("PGD-40")
        if paper:
            axis.plot((0.01, 0.03, 0.05), paper, "kx", label="paper, PGD (Table 2)")
        if name in PAPER_TABLE_5 and settings["dataset"] == "mnist":
            axis.plot(0.05, PAPER_TABLE_5[name], "k+", ms=9, label="paper, PGD (Table 5)")
        axis.set_title(name, fontsize=9)
        axis.set_ylim(-2, 102)
        axis.grid(alpha=0.3, lw=0.5)
        axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel(AXIS_LABELS["linf"])
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)")
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    drawn.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3 if columns < 5 else 6,
        frameon=False,
        fontsize=8,
    )
    drawn.suptitle(
        f"nmode Tables 2 and 5, {settings['dataset']}, the first {settings['n']} test images",
        fontsize=11,
    )
    return drawn


def _cell(fractions: list[float]) -> str:
    percent = 100 * np.asarray(fractions)
    spread = f" ± {percent.std(ddof=1):.1f}" if len(percent) > 1 else ""
    return f"{percent.mean():.1f}{spread}"


if __name__ == "__main__":
    run(main, Config)
