"""`odejax evaluate`: robust accuracy of a network as an interval, as a table, JSON and a page."""

import dataclasses
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import odejax

from .._inputs import as_key
from .._logits import count_classes
from .._paths import writable_file
from .._words import counted
from ..data import ArrayDataset, load
from ..evaluation import (
    Bracket,
    Brackets,
    StateError,
    bracket,
    encode_array,
    provenance,
    save_result,
)
from ..evaluation.intervals import chance_note, percent
from ..relaxation import draws_noise
from .command_line import UsageError, say as printed
from .network import network
from .page import page
from .written import methods, number

KIND = "odejax.evaluate"
BALLS = {"linf": odejax.LinfBall, "l2": odejax.L2Ball}
_OF_MACHINE = ("what", "json", "html", "data_dir", "overwrite")  # options about its files
SAMPLE_SEED = 0  # not --seed: results of other seeds are of the same images


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
    """Which images: digits; what is prepared in the data folder; or any other data set of
    TensorFlow Datasets, such as mnist or cifar10, which is downloaded. To download one takes
    pip install "odejax[download]"."""
    split: str = "test"
    """Of the data set."""
    data_dir: Path | None = None
    """The data folder, where TensorFlow Datasets has prepared data sets as array_record; by default
    $ODEJAX_DATA_DIR, else ~/tensorflow_datasets."""
    images: int | Literal["all"] = 100
    """How many images, drawn at random, the same ones every time; or all."""
    linf: tuple[str, ...] = ()
    """Radii in L-infinity, in pixels in [0, 1], growing: 0.1, or 8/255."""
    l2: tuple[str, ...] = ()
    """Radii in l2."""
    attacks: tuple[str, ...] = ("PGD(40)",)
    """Attacks, written as in Python, or none; `odejax list attacks` names them."""
    last: Annotated[str, tyro.conf.arg(metavar="ATTACK|auto|none")] = "auto"
    """The last attack. auto: AutoAttack(), and AutoAttack.rand() for a network that draws noise;
    with the margin loss for a network of too few classes for the DLR loss."""
    certificates: tuple[str, ...] = ("auto",)
    """Certificates, written as in Python; auto: those that apply to the network; none: none."""
    draws: int | Literal["auto"] = "auto"
    """A network that draws noise is judged by its mean logits over so many draws; auto: 20."""
    verify_seconds: float = 0.0
    """Branch and bound for so long on each image that all of this neither broke nor proved."""
    seed: int = 0
    """Of attacks and noise."""
    json: Path | None = None
    """Write the result here; a run that was interrupted goes on from there."""
    html: Path | None = None
    """Write a page with table, curve and adversarial examples here."""
    overwrite: bool = False
    """Write over files that are there."""

    def __call__(self) -> None:
        radii = {norm: _growing(norm, getattr(self, norm)) for norm in BALLS}
        self._how()  # what is refused is so before the network is loaded
        json, html = (self._file(f"--{name}", getattr(self, name)) for name in ("json", "html"))
        if json is not None and json == html:
            raise UsageError(f"--json and --html must be two files; got {json} for both")
        data, images = _data(self)
        name = Path(self.what).name
        logits_fn = network(self.what, data.pixels[0], f"--dataset {self.dataset}")
        noisy = draws_noise(logits_fn, data.pixels[0])
        n_classes = count_classes(logits_fn, data.pixels[0], as_key(self.seed))
        options = self._for(noisy=noisy, n_classes=n_classes)
        say = partial(printed, go_on=json is not None or html is not None)
        say(images)
        if noisy:
            draws = counted(int(options.draws), "draw")
            say(f"the network draws noise: judged by its mean logits over {draws}")
        result = options._origin(self._written(), name, images, data)
        measured: list[Brackets] = []
        for norm, eps in radii.items():
            if eps:
                balls = [BALLS[norm](radius) for radius in eps]
                state = None if json is None else json.with_name(f"{json.name}.{norm}.state")
                pair = data.images, data.labels
                try:
                    several = bracket(logits_fn, *pair, balls, state_path=state, **options._how())
                except StateError as error:
                    raise UsageError(str(error).replace("state_path", "--json")) from None
                measured.append(several)
                say(measured[-1])
        if not measured:
            logits = odejax.predict(logits_fn, data.images, key=self.seed)
            result["clean"] = float(np.mean(logits.argmax(axis=1) == data.labels))
            say(f"clean accuracy {percent(result['clean'])} % (--linf or --l2 gives a radius)")
            for note in chance_note(result["clean"], len(data), n_classes):
                say(note)
        result["brackets"] = [_kept(one) for several in measured for one in several]
        if json is not None:
            save_result(json, KIND, result)
        if html is not None:
            page(html, name, measured, data, result)
        if written := [str(file) for file in (json, html) if file is not None]:
            say(f"{' and '.join(written)} written")

    def _file(self, name: str, path: Path | None) -> Path | None:
        try:
            file = None if path is None else writable_file(name, path)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if file is not None and file.exists() and not self.overwrite:
            raise UsageError(f"{name}: {file} is there already; give another file, or --overwrite")
        return file

    def _for(self, *, noisy: bool, n_classes: int) -> "Evaluate":
        """These options, with what depends on the network decided."""
        last, draws = ("AutoAttack.rand()", 20) if noisy else ("AutoAttack()", 1)
        if n_classes < (3 if noisy else 4):  # too few for its DLR loss
            suite = "rand" if noisy else "standard"
            last = f"AutoAttack.{suite}(loss=margin_loss)"
        last = last if self.last == "auto" else self.last
        return dataclasses.replace(
            self, last=last, draws=draws if self.draws == "auto" else self.draws
        )

    def _origin(self, command: str, name: str, images: str, data: ArrayDataset) -> dict[str, Any]:
        """What is said of the network, the options, the images and the machine."""
        options = {k: v for k, v in dataclasses.asdict(self).items() if k not in _OF_MACHINE}
        origin = {"network": name, "command": command, "settings": options}
        return origin | {"images": images, "data": data.provenance()} | provenance(self.seed)

    def _written(self) -> str:
        """The command line of these options, without folders of this machine."""
        words = ["odejax", "evaluate", Path(self.what).name]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _OF_MACHINE and value != field.default:
                several = value if isinstance(value, tuple) else (value,)
                words += [f"--{field.name.replace('_', '-')}", *map(str, several)]
        return shlex.join(words)

    def _how(self) -> dict[str, Any]:
        """The arguments of `bracket`."""
        auto = self.certificates == ("auto",)
        last = () if self.last == "auto" else methods((self.last,), "attack").values()
        return {
            "attacks": methods(self.attacks, "attack"),
            "certificates": "auto" if auto else methods(self.certificates, "certificate"),
            "last": next(iter(last), None),
            "key": self.seed,
            "draws": self.draws,
            "verify_seconds": self.verify_seconds,
        }


def _growing(norm: str, words: tuple[str, ...]) -> list[float]:
    radii = [number(word) for word in words]
    if radii != sorted(set(radii)) or (radii and radii[0] <= 0):
        raise UsageError(f"--{norm} must be growing radii above 0; got {' '.join(words)}")
    return radii


def _data(options: Evaluate) -> tuple[ArrayDataset, str]:
    """The images, and which these are, in words."""
    try:
        data = load(options.dataset, options.split, data_dir=options.data_dir)
    except ValueError as error:
        raise UsageError(str(error)) from None
    n, total, of = options.images, len(data), f"{data.split} images of {data.name}"
    if n == "all":
        return data, f"all {total} {of}"
    if not 1 <= n <= total:
        raise UsageError(f"--images must be 1 to {total}, as many as there are, or all; got {n}")
    if n == total:
        return data, f"all {total} {of}"
    drawn = f"{n} of {total} {of} (drawn with seed {SAMPLE_SEED})"
    return data.sample(n, seed=SAMPLE_SEED), drawn


def _kept(measured: Bracket) -> dict[str, Any]:
    """Its numbers, and which images are correct and certified, so that runs can be compared."""
    each = ("still_correct", "certified_correct")
    return measured.summary() | {name: encode_array(getattr(measured, name)) for name in each}
