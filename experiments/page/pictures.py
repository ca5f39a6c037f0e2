"""Pictures as data URIs: adversarial examples from their stored arrays, and the figures."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from odejax.evaluation import decode_array

from ..lib.report import figure_files
from ..lib.run import Experiment
from .rows import eps_text

COLORS = 128  # of a figure: its lines and letters lose nothing, and it takes a third of the space


def pictures_of(name: str, dataset: str, examples: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The adversarial examples of a result, by network: image, perturbation and sum.

    The perturbation is red where a pixel grew and blue where it fell, scaled to its own largest
    entry, which is `largest`.
    """
    made = []
    for network, stored in examples.items():
        if not stored or not stored["labels"]:
            continue
        images, x_adv = decode_array(stored["images"]), decode_array(stored["x_adv"])
        triples = zip(images, x_adv, stored["labels"], stored["predictions"], strict=True)
        made.append(
            {
                "result": name,
                "network": network,
                "eps": stored["eps"],
                "eps_text": eps_text(stored["eps"], dataset),
                "examples": [_example(*triple) for triple in triples],
            }
        )
    return made


def _example(image: np.ndarray, x_adv: np.ndarray, label: int, prediction: int) -> dict[str, Any]:
    change = (x_adv - image).mean(axis=-1)
    largest = float(np.abs(change).max()) or 1.0
    colored = colormaps["RdBu_r"]((change / largest + 1) / 2)[..., :3]
    return {
        "label": label,
        "prediction": prediction,
        "largest": largest,
        "image": picture_uri(image),
        "change": picture_uri(colored),
        "x_adv": picture_uri(x_adv),
    }


def picture_uri(pixels: np.ndarray) -> str:
    """An array (h, w, c) in [0, 1] as PNG, pixel for pixel."""
    levels = np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    return _uri(Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels))


def figures_of(name: str, experiment: Experiment) -> list[dict[str, Any]]:
    """The figures that were drawn of a result, where they are kept."""
    files = figure_files(experiment.figures, name, experiment.figure_stem)
    return [_figure(file) for file in files.values() if file.exists()]


def _figure(file: Path) -> dict[str, Any]:
    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(COLORS)
    width, height = reduced.size
    return {"name": file.stem, "width": width, "height": height, "uri": _uri(reduced)}


def _uri(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
