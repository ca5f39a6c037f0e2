"""Pictures as data URIs: an image, what an attack added to it, and what it became."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image


def example(image: np.ndarray, x_adv: np.ndarray, label: int, prediction: int) -> dict[str, Any]:
    """An adversarial example (h, w, c) as pictures: "image", "change" and "x_adv".

    The change is red where a pixel grew and blue where it fell, scaled to its own largest entry,
    which is "largest".
    """
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
    return png_uri(Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels))


def png_uri(picture: Image.Image) -> str:
    """A picture as PNG in a data URI."""
    written = io.BytesIO()
    picture.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
