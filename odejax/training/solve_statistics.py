"""What the solves of a neural ODE take, measured after every epoch of its training."""

from contextlib import closing

import equinox as eqx
import jax
import numpy as np

from .._mesh import on_mesh, to_host
from .._predictor import as_pixels
from .._warnings import warn
from ..data import ArrayDataset, StreamedDataset

_IMAGES = 256  # that they are measured on


def solve_statistics(
    model, state, dataset: ArrayDataset | StreamedDataset, *, epoch: int
) -> dict[str, float]:
    """The means of `ODESolve.statistics` over the first 256 images; nothing of other models.

    Warns where a solve needs more than its `max_steps`.
    """
    if not hasattr(model, "with_solution"):
        return {}
    images = _first_images(dataset)
    model, state = on_mesh((eqx.nn.inference_mode(model), state))
    statistics = _statistics(model, state, images)
    record = {name: float(np.mean(to_host(values))) for name, values in statistics.items()}
    if record["unsolved"] > 0:
        warn(
            f"epoch {epoch}: {record['unsolved']:.1%} of {len(images)} solves need more than "
            f"max_steps={model.ode.max_steps} steps, so their logits are NaN; "
            f"allow more, or loosen the tolerance",
            RuntimeWarning,
        )
    return record


def _first_images(dataset: ArrayDataset | StreamedDataset) -> np.ndarray:
    n = min(_IMAGES, len(dataset))
    if isinstance(dataset, ArrayDataset):
        return dataset.images[:n]
    with closing(dataset.read(np.arange(n), n)) as batches:
        return next(batches)[0]


@eqx.filter_jit
def _statistics(model, state, images):
    def statistics_of_image(x):
        _, _, solution = model.with_solution(as_pixels(x), jax.tree.map(lambda a: a, state))
        return model.ode.statistics(solution)

    return jax.vmap(statistics_of_image)(images)
