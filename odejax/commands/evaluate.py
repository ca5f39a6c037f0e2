"""`odejax evaluate`: robust accuracy of a network as an interval, as a table, JSON and a page."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

import odejax

from .. import attacks, certificates
from .._paths import writable_file
from ..data import ArrayDataset, load
from ..evaluation import Bracket, Brackets, bracket, encode_array, provenance, save_result
from .command_line import UsageError
from .network import network
from .page import page
from .written import methods, number, public_classes

KIND = "odejax.evaluate"
BALLS = {"linf": odejax.LinfBall, "l2": odejax.L2Ball}


@dataclasses.dataclass
class Evaluate:
    """Attack and certify a network: certified <= true robust accuracy <= attacked.

    The attacks are run on every image that is classified correctly, the last one on those that no
    attack broke and no certificate proved. Without a radius clean accuracy alone is measured.

    odejax evaluate net.odejax --dataset digits --linf 0.05 0.1

    odejax evaluate my_network.py:logits --linf 8/255 --attacks "PGD(100)" "Square(1000)"
    """

    what: tyro.conf.Positional[str]
    """A file that odejax.save wrote, a folder of checkpoints, or FILE.py:NAME, a function of one
    image (h, w, c), or one without arguments that makes one."""
    dataset: str = "digits"
    """Which images: a name that odejax.data.load knows."""
    split: str = "test"
    """Of the data set."""
    data_dir: Path | None = None
    """Folder of prepared TFDS data; by default $ODEJAX_DATA_DIR, else TFDS's own."""
    images: int | None = 100
    """How many images, the first ones; None for all."""
    linf: tuple[str, ...] = ()
    """Radii in L-infinity, in pixels in [0, 1], growing: 0.1, or 8/255."""
    l2: tuple[str, ...] = ()
    """Radii in l2."""
    attacks: tuple[str, ...] = ("PGD(40)",)
    """Attacks, written as in Python; `odejax list attacks` names them."""
    last: Annotated[str, tyro.conf.arg(metavar="ATTACK|none")] = "AutoAttack()"
    """The last attack."""
    certificates: tuple[str, ...] = ("auto",)
    """Certificates, written as in Python; auto: those that apply to the network; none: none."""
    draws: int = 1
    """For a network that draws noise: it is judged by its mean logits over so many draws."""
    verify_seconds: float = 0.0
    """Branch and bound for so long on each image that all of this neither broke nor proved."""
    seed: int = 0
    """Of attacks and noise."""
    json: Path | None = None
    """Write the result here; a run that was interrupted goes on from there."""
    html: Path | None = None
    """Write a page with table, curve and adversarial examples here."""

    def __call__(self) -> None:
        json, html = _file("--json", self.json), _file("--html", self.html)
        how = self._how()
        radii = {norm: _growing(norm, getattr(self, norm)) for norm in BALLS}
        data = _data(self)
        name, logits_fn = Path(self.what).name, network(self.what, data.pixels[0])
        say = Console(highlight=False).print
        result = self._origin(name, data)
        measured: list[Brackets] = []
        for norm, eps in radii.items():
            if eps:
                balls = [BALLS[norm](radius) for radius in eps]
                state = None if json is None else json.with_suffix(f".{norm}.state")
                pair = data.images, data.labels
                measured.append(bracket(logits_fn, *pair, balls, state_path=state, **how))
                say(measured[-1])
        if not measured:
            logits = odejax.predict(logits_fn, data.images, key=self.seed)
            result["clean"] = float(np.mean(logits.argmax(axis=1) == data.labels))
            say(f"{len(data)} images: clean accuracy {100 * result['clean']:.1f} %")
        result["brackets"] = [_kept(one) for several in measured for one in several]
        if json is not None:
            save_result(json, KIND, result)
        if html is not None:
            page(html, name, measured, data, result)
        if written := [str(file) for file in (json, html) if file is not None]:
            say(f"{' and '.join(written)} written")

    def _origin(self, name: str, data: ArrayDataset) -> dict[str, Any]:
        """What is said of the network, the options, the images and the machine."""
        files = ("what", "json", "html", "data_dir")
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in files}
        origin = {"network": name, "settings": options, "data": data.provenance()}
        return origin | provenance(self.seed)

    def _how(self) -> dict[str, Any]:
        """The arguments of `bracket`."""
        known = public_classes(attacks, attacks.AbstractAttack, attacks.RelativeStep)
        proofs = public_classes(certificates, certificates.AbstractCertificate)
        chosen: Any = self.certificates
        if chosen == ("auto",):
            chosen = "auto"
        else:
            chosen = () if chosen == ("none",) else methods(chosen, "certificate", proofs)
        last = None if self.last == "none" else methods((self.last,), "attack", known)[self.last]
        return {
            "attacks": methods(self.attacks, "attack", known),
            "certificates": chosen,
            "last": last,
            "key": self.seed,
            "draws": self.draws,
            "verify_seconds": self.verify_seconds,
        }


def _file(name: str, path: Path | None) -> Path | None:
    try:
        return None if path is None else writable_file(name, path)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _growing(norm: str, words: tuple[str, ...]) -> list[float]:
    radii = [number(word) for word in words]
    if radii != sorted(set(radii)) or (radii and radii[0] <= 0):
        raise UsageError(f"--{norm} must be growing radii above 0; got {' '.join(words)}")
    return radii


def _data(options: Any) -> ArrayDataset:
    try:
        data = load(options.dataset, options.split, data_dir=options.data_dir)
    except ValueError as error:
        raise UsageError(str(error)) from None
    n = options.images
    if n is None:
        return data
    if not 1 <= n <= len(data):
        raise UsageError(f"--images must be 1 to {len(data)}, as many as there are; got {n}")
    return data.take(slice(n))


def _kept(measured: Bracket) -> dict[str, Any]:
    """Its numbers, and which images are correct and certified, so that runs can be compared."""
    each = ("still_correct", "certified_correct")
    return measured.summary() | {name: encode_array(getattr(measured, name)) for name in each}
