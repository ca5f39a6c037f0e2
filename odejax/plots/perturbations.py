"""Adversarial examples as pictures: image, perturbation and result, one row a model."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .axes import set_title


def perturbation_grid(
    examples: Mapping[str, Mapping[str, Any]], *, title: str, examples_shown: int = 4
) -> Figure:
    """A figure of adversarial examples: image, perturbation and result, one row for each model.

    The middle picture of each triple is the perturbation, red where a pixel grew and blue where it
    fell, scaled to its own largest entry, which is printed above it in units of pixels in [0, 1].

    - `examples`: by model, a mapping with

      - `images` and `x_adv` (m, h, w, c) in [0, 1]: images that the model classifies correctly,
        and adversarial examples of them,
      - `labels` and `predictions` (m,): the classes of the one and of the other.

    - `title`: the finding, as a sentence; it is wrapped to the figure's width.
    - `examples_shown`: the most triples in a row.

    Raises `ValueError` without a model.

    >>> import matplotlib.pyplot as plt, numpy as np
    >>> from odejax import plots
    >>> image = np.full((1, 8, 8, 1), 0.5)
    >>> example = {"images": image, "x_adv": image + 0.1, "labels": [3], "predictions": [8]}
    >>> figure = plots.perturbation_grid({"a network": example}, title="A 3 becomes an 8")
    >>> [axis.get_title() for axis in figure.axes[:3]]
    ['3', '±0.10', '→ 8']
    >>> plt.close(figure)
    """
    if not examples:
        raise ValueError("examples must hold at least one model; got none")
    columns = 3 * examples_shown
    figure, axes = plt.subplots(
        len(examples),
        columns,
        figsize=(0.9 * columns + 1.2, 1.12 * len(examples) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_visible(False)
    for row, (name, example) in zip(axes, examples.items(), strict=True):
        for i in range(min(examples_shown, len(example["images"]))):
            clean, adversarial = example["images"][i], example["x_adv"][i]
            label, prediction = int(example["labels"][i]), int(example["predictions"][i])
            left, middle, right = row[3 * i : 3 * i + 3]
            _show(left, clean, str(label))
            change = (adversarial - clean).mean(axis=-1)
            largest = float(np.abs(change).max()) or 1.0
            middle.imshow(change / largest, cmap="RdBu_r", vmin=-1, vmax=1)
            middle.set_title(f"±{largest:.2f}", fontsize=10, pad=2)
            middle.set_visible(True)
            _show(right, adversarial, f"→ {prediction}")
        row[0].set_visible(True)
        row[0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center")
    set_title(figure, title, 10)
    return figure


def _show(axis, image, title):
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=11, pad=2)
    axis.set_visible(True)
