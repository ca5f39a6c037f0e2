"""What the main job shows: its tables and figures, drawn from the result alone."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from odejax.evaluation import decode_array
from odejax.plots import perturbation_grid, robustness_curves

BALL_NAMES = {"linf": "L-infinity", "l2": "l2"}


def tables(results: dict[str, Any]) -> list[Table]:
    """For each ball: clean accuracy, and certified - attacked accuracy at every eps, in percent."""
    out = []
    first = next(iter(results.values()))
    for ball in first["balls"]:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column(BALL_NAMES[ball])
        table.add_column("clean", justify="right")
        certified = any(model["balls"][ball]["certificates"] for model in results.values())
        for interval in first["balls"][ball]["brackets"]:
            table.add_column(f"eps {interval['eps']:.3g}", justify="right", no_wrap=True)
        if certified:
            table.add_column("radius", justify="right")
        for name, model in results.items():
            curves = model["balls"][ball]
            cells = [f"{100 * curves['brackets'][0]['clean']:.1f}"]
            for interval in curves["brackets"]:
                low = f"{100 * interval['certified']:.1f}-" if curves["certificates"] else "<= "
                cells.append(f"{low}{100 * interval['attacked']:.1f}")
            if certified:
                has = curves["certificates"] > 0
                cells.append(f"{np.median(curves['radii']):.3f}" if has else "")
            table.add_row(name, *cells)
        out.append(table)
    return out


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the tables must know: how sure, by which attacks, and the flags raised."""
    brackets = {
        name: [b for curves in model["balls"].values() for b in curves["brackets"]]
        for name, model in results.items()
    }
    ends = ("clean", "attacked", "certified")
    error = 100 * max(
        max(b[end] - b[f"{end}_interval"][0], b[f"{end}_interval"][1] - b[end])
        for all_ in brackets.values()
        for b in all_
        for end in ends
    )
    attacks = " and ".join(next(iter(brackets.values()))[0]["per_attack"])
    out = [
        f"Attacked: still correct under {attacks}, whichever is worse. <=: no certificate. "
        f"Radius: the median certified one. 95 % sampling error: at most {error:.1f} points.",
        "Clean accuracy on all test images: "
        + ", ".join(f"{name} {100 * m['clean_accuracy']:.1f}" for name, m in results.items()),
    ]
    for name, all_ in brackets.items():
        flags = sorted({flag for b in all_ for flag in b["flags"]})
        if flags:
            out.append(f"{name}: {', '.join(flags)}; stronger attacks may leave less.")
    return out


def figures(results: dict[str, Any], dataset: str, n: int, folder: Path):
    """Draw `curves.png` and `images.png` into `folder`."""
    curves = robustness_curves(results, title=f"{dataset}, {n} test images: how robust, really?")
    curves.savefig(folder / "curves.png", dpi=150)
    examples = {name: model["examples"] for name, model in results.items() if model["examples"]}
    if examples:
        eps = next(iter(examples.values()))["eps"]
        decoded = {
            name: e | {which: decode_array(e[which]) for which in ("images", "x_adv")}
            for name, e in examples.items()
        }
        grid = perturbation_grid(decoded, title=f"{dataset}: broken within L-infinity {eps:.3g}")
        grid.savefig(folder / "images.png", dpi=150)
    plt.close("all")


def publish(dataset: str, folder: Path, path: Path):
    """Copy a run's result and figures to where the repository keeps them."""
    copy_to_repository(path, f"benchmark_{dataset}.json")
    for figure in ("curves", "images"):
        if (folder / f"{figure}.png").exists():
            copy_to_repository(folder / f"{figure}.png", f"benchmark_{dataset}_{figure}.png")


def present(tables: Iterable[Table], drawn: Figure, path: Path, png: str, name: str | None):
    """Print the tables and draw the figure beside the result at `path`.

    With a `name` the repository keeps both under it.
    """
    console = Console()
    for table in tables:
        console.print(table)
    drawn.savefig(path.parent / png, dpi=150)
    plt.close(drawn)
    if name is not None:
        copy_to_repository(path, f"{name}.json")
        copy_to_repository(path.parent / png, f"{name}.png")
    console.print(f"{path} and {png} written")


def copy_to_repository(path: Path, name: str):
    """Copy a result (JSON) or figure (PNG) into `experiments/results` or `experiments/figures`."""
    kept = Path(__file__).parents[1] / ("results" if path.suffix == ".json" else "figures")
    kept.mkdir(exist_ok=True)
    shutil.copy(path, kept / name)
