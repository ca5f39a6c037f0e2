"""Pictures as data URIs: adversarial examples from their stored arrays, and the figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from odejax.evaluation import decode_array
from odejax.plots.pictures import example, png_uri

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
                "examples": [example(*triple) for triple in triples],
            }
        )
    return made


def figures_of(name: str, experiment: Experiment) -> list[dict[str, Any]]:
    """The figures that were drawn of a result, where they are kept."""
    files = figure_files(experiment.figures, name, experiment.figure_stem)
    return [_figure(file) for file in files.values() if file.exists()]


def _figure(file: Path) -> dict[str, Any]:
    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(COLORS)
    width, height = reduced.size
    return {"name": file.stem, "width": width, "height": height, "uri": png_uri(reduced)}
