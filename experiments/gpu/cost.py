"""How long a slice takes: its floating-point operations, and the seconds of its own epochs."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from odejax._fingerprint import fingerprint
from odejax._paths import written_whole
from odejax.attacks import AutoAttack
from odejax.models import AbstractODENet
from odejax.training import AbstractGradientRule, CrossEntropy, Derivative, steps_per_epoch

from ..lib.flop import flop
from ..lib.recipe import Recipe
from .slices import Slice

# The images' shape, the classes and the training images of the papers' data sets.
DATA = {
    "mnist": ((28, 28, 1), 10, 60_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "cifar100": ((32, 32, 3), 100, 50_000),
}
SOLVER_STEPS = 64  # assumed of an adaptive solve, which is counted as so many equal steps
START_SECONDS = 60.0  # assumed, of a slice: imports and compiling
CLEAN = CrossEntropy()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a slice takes from where it is.

    - `epochs`: those done, and all.
    - `training`, `evaluation`: FLOP; of evaluation at most, as if no attack succeeded.
    - `trained`: seconds of each training, by the folder of its checkpoints; `other_seconds`: of
      evaluation, and to start; `epoch_seconds`: of the longest epoch.
    - `measured`: whether the seconds of training follow from its own epochs.
    """

    epochs: tuple[int, int]
    training: float
    evaluation: float
    trained: dict[str, float]
    other_seconds: float
    epoch_seconds: float
    measured: bool

    @property
    def seconds(self) -> float:
        return sum(self.trained.values()) + self.other_seconds

    def fits(self, seconds: float) -> bool:
        """Whether there is time for one epoch."""
        return START_SECONDS + self.epoch_seconds < seconds


class Counts:
    """The FLOP of a training step for each image, by network and objective, kept in a file.

    A count is a trace of the step, which takes a second or more.
    """

    def __init__(self, path: Path, version: str):
        self.path, self.version = path, version
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError):
            kept = {}
        self.known: dict[str, float] = kept.get(version, {})

    def uncounted(self, pieces: Iterable[Slice]) -> Iterator[tuple[Recipe, Any, str]]:
        """What `count` is to be called with before the pieces can be estimated."""
        for piece in pieces:
            for recipe in piece.work.trained.values():
                for objective in (recipe.objective, CLEAN):
                    wanted = recipe, objective, piece.dataset
                    if self._name(*wanted) not in self.known:
                        yield wanted

    def count(self, recipe: Recipe, objective: Any, dataset: str):
        name = self._name(recipe, objective, dataset)
        self.known[name] = step_flop(recipe, objective, dataset)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self.path) as temporary:
            temporary.write_text(json.dumps({self.version: self.known}))

    def __call__(self, recipe: Recipe, objective: Any, dataset: str) -> float:
        return self.known[self._name(recipe, objective, dataset)]

    def _name(self, recipe: Recipe, objective: Any, dataset: str) -> str:
        return fingerprint(recipe.make, objective, recipe.batch_size, DATA[dataset])


def step_flop(recipe: Recipe, objective: Any, dataset: str) -> float:
    """FLOP of the gradient of a batch, for each image of it."""
    shape, classes, _ = DATA[dataset]
    key = jax.random.key(0)
    model, state = eqx.filter_eval_shape(
        eqx.nn.make_with_state(recipe.make), shape, classes, key=key
    )
    if isinstance(model, AbstractODENet):
        model = eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(SOLVER_STEPS))
    own = objective if isinstance(objective, AbstractGradientRule) else Derivative(objective)
    arrays, static = eqx.partition((model, state), lambda a: isinstance(a, jax.ShapeDtypeStruct))

    def step(arrays, images, labels):
        model, state = eqx.combine(arrays, static)
        params, rest = eqx.partition(model, eqx.is_inexact_array)
        carry = own.init(images.shape)
        return own(params, rest, state, carry, images, labels, key=key)[1]

    n = recipe.batch_size
    images = jax.ShapeDtypeStruct((n, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((n,), jnp.int32)
    return flop(step, arrays, images, labels) * own.replays / n


def evaluations(attack: Any) -> tuple[int, int]:
    """How often an attack on one image takes the network's gradient, and its logits alone."""
    if isinstance(attack, AutoAttack):
        gradients, logits = zip(*map(evaluations, attack.parts), strict=True)
        return sum(gradients), sum(logits)
    n = attack.n_runs * attack.n_steps * getattr(attack, "draws", 1)
    return (0, n) if attack.black_box else (n, 0)


def estimate(piece: Slice, folder: Path, counts: Counts, rate: float) -> Estimate:
    """What the slice takes from where it is in its run's folder, at `rate` FLOP a second."""
    work, measured, trained = piece.work, True, {}
    done = epochs = 0
    training = evaluation = longest = 0.0
    for name, recipe in work.trained.items():
        own = epoch_seconds(folder / "checkpoints" / name)
        images = work.train_images or DATA[piece.dataset][2]
        images = steps_per_epoch(images, recipe.batch_size) * recipe.batch_size
        of_epoch = images * counts(recipe, recipe.objective, piece.dataset)
        left = recipe.epochs - len(own)
        # The first one compiles.
        each = statistics.median(own[1:] or own) if own else of_epoch / rate
        done, epochs = done + len(own), epochs + recipe.epochs
        training += left * of_epoch
        trained[name] = left * each
        longest = max(longest, each if left else 0.0)
        measured = measured and bool(own)
    for name in work.trained if work.attacked is None else work.attacked:
        # Of the gradient by the weights and all layers' inputs a third are the logits.
        forward = counts(work.trained[name], CLEAN, piece.dataset) / 3
        for attack, images in work.attacks:
            gradients, logits = evaluations(attack)
            evaluation += images * (2 * gradients + logits) * forward
    other = START_SECONDS + evaluation / rate
    return Estimate((done, epochs), training, evaluation, trained, other, longest, measured)


def epoch_seconds(folder: Path) -> list[float]:
    """Of the finished epochs of a training, validation aside, by its checkpoints' folder."""
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        return []
    return [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()]
