"""Results of experiments as tables and figures: means over seeds, panels, where they are kept."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from odejax.evaluation import decode_array
from odejax.plots import AXIS_LABELS, perturbation_grid

from .recipe import NETWORK

Record = dict[str, Any]
Read = Callable[[dict[str, Any]], float]  # of a bracket's numbers
KEPT = Path(__file__).parents[1]


def by_name(result: dict[str, Any]) -> dict[str, list[Record]]:
    """The records of every name, one for each seed: runs are called "NAME/SEED", or "NAME"."""
    records: dict[str, list] = {}
    for run, record in result["runs"].items():
        records.setdefault(run.rpartition("/")[0] or run, []).append(record)
    return records


def mean_and_deviation(fractions: list[float]) -> tuple[float, float | None]:
    """In percent; no deviation of a single seed."""
    percent = 100 * np.asarray(fractions)
    return float(percent.mean()), float(percent.std(ddof=1)) if len(percent) > 1 else None


def cell(fractions: Iterable[float]) -> str:
    """Mean ± deviation, as a table has it."""
    return shown(*mean_and_deviation([*fractions]))


def shown(mean: float, deviation: float | None) -> str:
    """With the deviation where there is one."""
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def attack(name: str) -> Read:
    """Robust accuracy under one attack."""
    return lambda bracket: bracket["per_attack"][name]


def end(name: str) -> Read:
    """`clean`, `attacked` or `certified`."""
    return lambda bracket: bracket[name]


def curve(grid: list[list], read: Read) -> np.ndarray:
    """In percent and as means over the seeds: clean accuracy, then `read` at each eps."""
    clean = np.mean([b["clean"] for b in grid[0]])
    return 100 * np.array([clean, *(np.mean([read(b) for b in row]) for row in grid)])


def table(title: str | None, *columns: str, names: int = 1, **settings: Any) -> Table:
    """An empty one; its first columns hold `names`, the others numbers."""
    made = Table(
        **{"title": title, "box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
        | settings
    )
    for i, column in enumerate(columns):
        number = i >= names
        made.add_column(
            column,
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
        )
    return made


def panels(
    names: Iterable[Any], columns: int = 5, size: tuple[float, float] = (3.0, 2.7), **settings: Any
) -> tuple[Any, Iterator[tuple[Any, Any]]]:
    """A figure, and each name with an axis for it; other places of the grid are hidden."""
    names = list(names)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    drawn, axes = plt.subplots(
        rows,
        columns,
        **{
            "figsize": (max(6.4, size[0] * columns + 0.6), size[1] * rows + 0.9),
            "sharey": True,
            "squeeze": False,
            "layout": "constrained",
        }
        | settings,
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return drawn, zip(names, axes.flat, strict=False)


def accuracy_axis(axis: Any, norm: str | None = None, title: str | None = None):
    """Percent upwards, and the radius to the right."""
    axis.set_ylim(-2, 102)
    axis.grid(alpha=0.3, lw=0.5)
    if norm:
        axis.set_xlabel(AXIS_LABELS[norm])
    if title:
        axis.set_title(title, fontsize=9)
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("accuracy (%)")


def legend_below(drawn: Any, ncols: int, **settings: Any):
    """One legend for all axes, each label once."""
    handles: dict[str, Any] = {}
    for axis in drawn.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    settings = {"loc": "outside lower center", "frameon": False, "fontsize": 8} | settings
    settings = {"title_fontsize": settings["fontsize"]} | settings
    drawn.legend(handles.values(), handles.keys(), ncols=ncols, **settings)


def flag_notes(flags: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Every flag with its evidence, of each network by name."""
    return [
        f"{name}: [bold]{flag}[/] ({evidence})"
        for name, raised in flags.items()
        for flag, evidence in raised.items()
    ]


def setting_line(settings: Mapping[str, Any], *more: str) -> str:
    """Which images were attacked."""
    return ", ".join(
        (settings["dataset"], f"the first {settings['test_images']} test images", *more)
    )


def print_all(things: Iterable[Any]):
    console = Console()
    for thing in things:
        console.print(thing, highlight=False)


def published(
    result: dict[str, Any],
    figures: Mapping[str, Callable[[dict[str, Any]], Any]],
    path: Path,
    name: str | None,
    figure_stem: str | None = None,
) -> list[Path]:
    """Draw the figures beside the result at `path`; all files. The repository keeps `name`'s.

    A figure that cannot be drawn of this result is None.
    """
    written = [path]
    for figure, draw in figures.items():
        drawn = draw(result)
        if drawn is None:
            continue
        written.append(path.parent / f"{figure}.png")
        drawn.savefig(written[-1], dpi=150)
        plt.close(drawn)
    if name:
        (KEPT / "results").mkdir(exist_ok=True)
        shutil.copy(path, KEPT / "results" / f"{name}.json")
        kept = figure_files(figures, name, figure_stem)
        for file in written[1:]:
            shutil.copy(file, kept[file.stem])
    return written


def published_networks(checkpoints: Path, name: str) -> list[Path]:
    """The repository's copies, in `weights/NAME`, of the networks that a run has trained.

    Each is called by the folder of its checkpoints; `odejax.load` reads it. Those that another run
    has trained stay.
    """
    folder, copies = KEPT / "weights" / name, []
    for network in sorted(checkpoints.rglob(NETWORK)):
        folder.mkdir(parents=True, exist_ok=True)
        own = "_".join(network.parent.relative_to(checkpoints).parts)
        copies.append(shutil.copy(network, folder / f"{own}.odejax"))
    return copies


def figure_files(figures: Iterable[str], name: str, figure_stem: str | None) -> dict[str, Path]:
    """Where the repository keeps the figures of the result `name`, by figure."""
    figures, stem = list(figures), figure_stem or name
    own = {figure: f"{stem}_{figure}" if len(figures) > 1 else stem for figure in figures}
    return {figure: KEPT / "figures" / f"{file}.png" for figure, file in own.items()}


def examples_figure(stored: Mapping[str, Record | None], title: str, shown: int = 4) -> Any:
    """The adversarial examples that `measure.examples` stored, by network; None without any."""
    decoded = {
        name: e | {which: decode_array(e[which]) for which in ("images", "x_adv")}
        for name, e in stored.items()
        if e and e["labels"]
    }
    return perturbation_grid(decoded, title=title, examples_shown=shown) if decoded else None
