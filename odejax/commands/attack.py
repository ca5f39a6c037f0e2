"""`odejax attack`: one image, and what an attack makes of it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.backend_bases import FigureCanvasBase
from PIL import Image

import odejax

from .._checks import check_labels
from .._inputs import as_key
from .._logits import count_classes
from .._paths import writable_file, written_whole
from ..data import load
from ..plots import perturbation_grid
from .command_line import UsageError, say
from .network import network
from .written import methods, number


@dataclasses.dataclass
class Attack:
    """Attack one image, and draw what it becomes.

    odejax attack net.odejax digits:3 --linf 0.1

    odejax attack my_network.py:logits photo.png --linf 8/255 --attack "CarliniWagner()"
    """

    what: tyro.conf.Positional[str]
    """The network, as for evaluate."""
    image: tyro.conf.Positional[str]
    """A picture file of the network's size, or DATASET:INDEX, a test image by its index."""
    linf: str | None = None
    """The radius in L-infinity, in pixels in [0, 1]: 0.1, or 8/255; or else"""
    l2: str | None = None
    """the radius in l2."""
    attack: str = "PGD(40)"
    """Written as in Python; `odejax list attacks` names them. EOT(PGD(40)) for a network that draws
    noise."""
    label: int | None = None
    """The right class; by default the data set's, of a picture what the network says."""
    data_dir: Path | None = None
    """The data folder, where TensorFlow Datasets has prepared data sets as array_record; by default
    $ODEJAX_DATA_DIR, else ~/tensorflow_datasets."""
    seed: int = 0
    """Of the attack and of noise."""
    out: Path = Path("attacked.png")
    """The drawing, which takes the place of an earlier one."""

    def __call__(self) -> None:
        if (self.linf is None) == (self.l2 is None):
            raise UsageError("give one radius: --linf or --l2")
        made = odejax.LinfBall if self.l2 is None else odejax.L2Ball
        try:
            ball, key = made(number(str(self.linf or self.l2))), as_key(self.seed)
            out = writable_file("--out", self.out)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if out.suffix[1:].lower() not in ("", *FigureCanvasBase.filetypes):
            formats = ", ".join(FigureCanvasBase.filetypes)
            raise UsageError(f"--out must end in the name of a format: {formats}; got {self.out}")
        if out.exists() and out == Path(self.image).absolute():
            raise UsageError(f"--out must be another file than the image; got {self.out}")
        if self.attack == "none":
            raise UsageError("--attack must be an attack, such as PGD(40); got none")
        chosen = methods((self.attack,), "attack")[self.attack]
        x, label = _image(self.image, self.data_dir)
        logits_fn = network(self.what, x, self.image)

        def predicted(image: Any) -> int:
            return int(odejax.predict(logits_fn, image[None], key=key).argmax())

        before = predicted(x)
        label = next(v for v in (self.label, label, before) if v is not None)
        check_labels(label, count_classes(logits_fn, x, key))
        if before != label:
            say(f"class {before} without an attack; the right class is {label}")
            return
        try:
            x_adv = np.asarray(chosen(logits_fn, jnp.asarray(x), label, ball, key=key).x_adv)
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"{self.attack} fails on {self.what}: {reason}") from error
        after = predicted(x_adv)
        move = x_adv - x
        if before == after:
            tried = f"{self.attack} within {ball.in_words()}"
            say(f"no adversarial example: after {tried} it is of class {after} as before")
        else:
            say(f"class {before} before {self.attack}, {after} after")
        say(f"moved by {np.abs(move).max():.4g} in L-infinity, {np.linalg.norm(move):.4g} in l2")
        norm = "L-infinity" if self.l2 is None else "l2"
        within = f"{self.attack}, {norm} {float(ball.eps):.3g}"
        pair = {"images": x[None], "x_adv": x_adv[None], "labels": [label], "predictions": [after]}
        became = "stays in its class" if after == before else f"becomes class {after}"
        title = f"Class {before} {became} under {within}"
        figure = perturbation_grid({Path(self.what).name: pair}, title=title, examples_shown=1)
        with written_whole(out) as temporary:
            figure.savefig(temporary, format=out.suffix[1:] or "png", dpi=200)
        plt.close(figure)
        say(f"{out} written")


def _image(word: str, data_dir: Path | None) -> tuple[np.ndarray, int | None]:
    """The image, float32 in [0, 1], and its label if it is known."""
    name, colon, index = word.rpartition(":")
    if colon and index.isdecimal() and not Path(word).exists():
        try:
            data = load(name, "test", data_dir=data_dir)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if int(index) >= len(data):
            raise UsageError(f"{name} has {len(data)} test images; got index {index}")
        return data.pixels[int(index)], int(data.labels[int(index)])
    try:
        with Image.open(word) as picture:
            grey = picture.mode in ("1", "L", "I;16")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / 255
    except OSError as error:
        reason = error.strerror or "it is no picture"
        raise UsageError(f"{word}: {reason}; a picture file or DATASET:INDEX is accepted") from None
    return (pixels[..., None] if pixels.ndim == 2 else pixels), None
