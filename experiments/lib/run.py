"""How every experiment is run: `Experiment`, its command line, its folder, and going on with it."""

import dataclasses
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from rich.console import Console

from odejax._paths import lock_folder, writable_folder
from odejax.commands.command_line import UsageError, command, parse
from odejax.data import ArrayDataset, load
from odejax.evaluation import load_result, provenance, save_result
from odejax.training import CheckpointError

from .report import print_all, published, published_networks

Setting = TypeVar("Setting")
HIDDEN = {"--data-dir": "FOLDER", "--out": None}  # paths of the machine: in a stored command
SWITCHES = ("--resume", "--overwrite", "--publish", "--publish-weights")


@dataclasses.dataclass
class Config:
    """The options of every experiment."""

    out: Path | None = None
    """Run folder; by default runs/EXPERIMENT."""
    publish: bool = False
    """Also copy results and figures into experiments/results and experiments/figures."""


@dataclasses.dataclass
class RunConfig(Config):
    """The options of every experiment that can be resumed."""

    dataset: Any = "digits"
    """Which images."""
    epochs: int | None = None
    """Epochs; by default the preset's."""
    test_images: int | None = None
    """How many test images to attack (the first ones); by default the preset's."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    resume: bool = False
    """Go on with the run in the folder: what is finished is not measured again, an interrupted
    training goes on from its last epoch."""
    overwrite: bool = False
    """Start anew in a folder that holds a run, whose result and checkpoints are lost."""
    publish_weights: bool = False
    """Also copy the trained networks into experiments/weights."""

    def settle(self, setting: Setting) -> Setting:
        """`setting` with the epochs and test images that were asked for in the place of its own."""
        asked = {name: getattr(self, name) for name in ("epochs", "test_images")}
        check_counts(self, *asked)
        changes = {name: n for name, n in asked.items() if n}
        return dataclasses.replace(setting, **changes)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass
class PresetConfig(RunConfig):
    """The options of an experiment of several sizes."""

    preset: str = "cpu"
    """paper (for a GPU), cpu (small networks, few epochs) or smoke."""
    dataset: Any = None
    """Which images; by default the preset's first data set."""

    def choose(self, presets: Mapping[str, Mapping[str, Setting]]) -> Setting:
        """The setting of `presets` for the preset and data set asked for, by default its first."""
        check_choice("preset", self.preset, presets)
        self.dataset = self.dataset or next(iter(presets[self.preset]))
        check_choice(f"dataset for the preset {self.preset}", self.dataset, presets[self.preset])
        return self.settle(presets[self.preset][self.dataset])

    def settings(self, preset: Any, *omitted: str) -> dict[str, Any]:
        """What the result says of a run: its data set, its preset, and the preset's fields."""
        fields = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
        kept = {name: value for name, value in fields.items() if name not in omitted}
        return {"dataset": self.dataset, "preset": self.preset} | kept

    @property
    def run_name(self) -> str:
        return f"{self.dataset}_{self.preset}"


class Job(NamedTuple):
    """One measurement of a run, kept as `result[into][name]`, or `result[name]` if `into` is ""."""

    name: str
    seed: int
    measure: Callable[[], dict[str, Any]]
    into: str = "runs"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run measures: `jobs(checkpoints' folder, result)`, one after another.

    `name` is that of the run among those of the experiment, `data` all that it uses.
    """

    name: str
    settings: dict[str, Any]
    data: Sequence[ArrayDataset]
    jobs: Callable[[Path, dict[str, Any]], Iterable[Job]]


@dataclasses.dataclass(frozen=True)
class Once:
    """What is measured in one go, without a folder to resume."""

    measure: Callable[[], dict[str, Any]]
    name: str = ""
    seed: int | None = 0  # None: nothing is computed that depends on where


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is measured, and how it is shown.

    - `kind`: in its results, of which `stem` and the plan's name are the file's name in
      `experiments/results`.
    - `about`: for --help: what it makes, how long it takes, what the paper has.
    - `plan(config)`: what is measured.
    - `tables(result)`, `notes(result)`: what is printed; `figures`: drawn from the result, by name.
    - `sources(claim)`: how it measures a claim of a paper, for the ledger; none of most.
    - `networks(result)`: those whose robustness is an interval (`intervals.Listed`), and
      `examples(result)`: what `measure.examples` stored, by network, for the page of results.
    """

    kind: str
    about: str | None
    config: type
    plan: Callable[..., Plan | Once]
    tables: Callable[[dict[str, Any]], Iterable[Any]]
    figures: Mapping[str, Callable[[dict[str, Any]], Any]]
    notes: Callable[[dict[str, Any]], list[str]] = lambda result: []
    sources: Callable[[Any], list[Any]] = lambda claim: []
    networks: Callable[[dict[str, Any]], Iterable[Any]] = lambda result: []
    examples: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda result: {}
    stem: str | None = None
    figure_stem: str | None = None


def run(experiment: Experiment) -> None:
    """Run the experiment that the command line asks for."""
    kept = "finished epochs and models are kept, go on with --resume"
    resumes = issubclass(experiment.config, RunConfig)
    with command(CheckpointError, interrupted=kept if resumes else "nothing was kept"):
        provenance(0)  # of the code as it is now, whatever is committed during the run
        config = parse(experiment.config, experiment.about)
        execute(experiment, config, command_line(sys.argv))


def execute(experiment: Experiment, config: Any, command: str = "", **given: Any) -> dict[str, Any]:
    """Measure what is not measured yet, show and keep it; the result. `given`: to `plan`."""
    started = time.perf_counter()
    plan = experiment.plan(config, **given)
    folder = config.out or Path("runs") / experiment.kind / plan.name
    if isinstance(plan, Once):
        path = folder / "result.json"
        origin = {} if plan.seed is None else _origin(plan.seed, command)
        result = origin | plan.measure()
        save_result(path, experiment.kind, result)
    else:
        kept = Runs.open(folder, experiment.kind, plan.settings, config, plan.data, command)
        for job in plan.jobs(folder / "checkpoints", kept.result):
            kept.record(*job)
        kept.save()
        path, result = kept.path, kept.result
    print_all([*experiment.tables(result), *experiment.notes(result)])
    name = "_".join(part for part in (experiment.stem or experiment.kind, plan.name) if part)
    written = published(
        result, experiment.figures, path, config.publish and name, experiment.figure_stem
    )
    if not isinstance(plan, Once) and config.publish_weights:
        networks = published_networks(folder / "checkpoints", name)
        if not networks:
            raise UsageError(f"--publish-weights: {folder} holds no trained network")
        written += networks
    minutes = (time.perf_counter() - started) / 60
    Console().print(f"{', '.join(map(str, written))} written after {minutes:.1f} minutes")
    return result


@dataclasses.dataclass
class Runs:
    """A run's folder: `result` gains one record after another, each saved when it is there."""

    path: Path
    kind: str
    result: dict[str, Any]
    command: str = ""

    @classmethod
    def open(
        cls,
        folder: Path,
        kind: str,
        settings: dict[str, Any],
        config: Any,
        data: Iterable[ArrayDataset],
        command: str = "",
    ) -> "Runs":
        """The run in the folder, with `config.resume`, or a new one. `data`: all that it uses.

        Raises `UsageError` where the folder holds a run and neither `resume` nor `overwrite` says
        what becomes of it, where the run to be resumed was started with other settings or data, and
        where another process is at work there.
        """
        try:
            folder = writable_folder("--out", folder)
            lock_folder("--out", folder)
        except ValueError as error:
            raise UsageError(str(error)) from None
        path = folder / "result.json"
        settings = json.loads(json.dumps(settings))  # as they are read back
        used = [dataset.provenance() for dataset in data]
        runs = cls(path, kind, {"settings": settings, "data": used}, command)
        if config.resume and path.exists():
            earlier = load_result(path, kind)
            for name, value in settings.items():
                stored = earlier["settings"].get(name)
                if stored != value:
                    raise UsageError(
                        f"--resume: {path} was started with {name} {stored}, not {value}; "
                        f"give the same arguments, --overwrite, or another --out"
                    )
            _check_data(path, earlier.get("data"), used)
            runs.result |= earlier
            return runs
        if path.exists() and not config.overwrite:
            raise UsageError(
                f"{folder} holds a run: go on with it by --resume, start anew by --overwrite, or "
                f"give another --out"
            )
        if config.overwrite:
            _forget(folder)
        runs.save()  # before anything else, so that --resume can tell which run it was
        return runs

    def record(self, name: str, seed: int, measure: Callable[[], dict[str, Any]], into="runs"):
        """Keep what `measure` returns, and where it was measured, unless the run has it."""
        records = self.result.setdefault(into, {}) if into else self.result
        known = name in records
        Console().print(f"[bold]{name}[/]" + (f": already in {self.path}" if known else ""))
        if known:
            return
        origin = _origin(seed, self.command)
        records[name] = origin | measure()
        self.save()
        # A process may map only so many pieces of memory, and every compiled program takes some.
        jax.clear_caches()

    def save(self) -> None:
        save_result(self.path, self.kind, self.result)


def _origin(seed: int, command: str) -> dict[str, Any]:
    return provenance(seed) | ({"command": command} if command else {})


def command_line(arguments: list[str]) -> str:
    """The command as anybody can give it: without paths of this machine, and with no switches."""
    spec = sys.modules["__main__"].__spec__
    words, skip = ["python", "-m", spec.name if spec else Path(arguments[0]).stem], False
    for word in arguments[1:]:
        name, _, value = word.partition("=")
        if skip or name in SWITCHES:
            skip = False
            continue
        if name in HIDDEN:
            skip = not value
            words += [name, HIDDEN[name]] if HIDDEN[name] else []
        else:
            words.append(f'"{word}"' if re.search(r"[ ,=]", word) else word)
    return " ".join(words)


def seeded(seeds: int, names: Iterable[str], measure: Callable[[str, int], dict]) -> Iterable[Job]:
    """A job for every seed and name, called "NAME/SEED"."""
    names = tuple(names)
    for seed in range(seeds):
        for name in names:
            yield Job(f"{name}/{seed}", seed, lambda name=name, seed=seed: measure(name, seed))


def each(datasets: Iterable[str], setting: Setting) -> dict[str, Setting]:
    """The same setting for each data set."""
    return dict.fromkeys(datasets, setting)


def check_choice(what: str, value: str, accepted: Collection[str]) -> None:
    """`UsageError` for a name that is not among the accepted ones."""
    if value not in accepted:
        raise UsageError(f"unknown {what} {value!r}; accepted: {', '.join(accepted)}")


def check_choices(what: str, values: Collection[str], accepted: Collection[str]) -> None:
    """`UsageError` for an empty list of names, or one that is not among the accepted ones."""
    if not values:
        raise UsageError(f"no {what}s; accepted: {', '.join(accepted)}")
    for value in values:
        check_choice(what, value, accepted)


def check_counts(config: Any, *names: str) -> None:
    """`UsageError` for a field of `config` that is neither None nor at least 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name.replace('_', '-')} must be at least 1; got {value}")


def check_positive(config: Any, *names: str) -> None:
    """`UsageError` for a field of `config` that is neither None nor finite and positive."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name} must be finite and positive; got {value}")


def load_data(config: Any, test_images: int) -> tuple[ArrayDataset, ArrayDataset]:
    """The training and the test set of `config.dataset`; `UsageError` where the latter is short."""
    train, test = (
        load(config.dataset, split, data_dir=config.data_dir) for split in ("train", "test")
    )
    if test_images > len(test):
        raise UsageError(f"{test.name} has {len(test)} test images; got {test_images}")
    return train, test


def _check_data(path: Path, stored: Any, used: list[dict[str, Any]]):
    """`UsageError` unless the run used these images and labels, and says so."""
    if not isinstance(stored, list):
        raise UsageError(
            f"--resume: {path} does not say which data it used; give --overwrite or another --out"
        )
    digests = {data["split"]: data["digest"] for data in stored}
    for data in used:
        if (earlier := digests.get(data["split"])) != data["digest"]:
            raise UsageError(
                f"--resume: {path} was started with other {data['split']} images of "
                f"{data['name']} (digest {str(earlier)[:12]}, not {data['digest'][:12]}); "
                f"give the same data, --overwrite, or another --out"
            )


def _forget(folder: Path):
    """Remove the checkpoints of an earlier run, and nothing that no run has made."""
    for metrics in sorted((folder / "checkpoints").rglob("metrics.jsonl")):
        shutil.rmtree(metrics.parent, ignore_errors=True)
