"""Complete verification: every image proven, broken, or open when its time is over."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_count, check_labels, check_positive
from .._inputs import as_key, as_method, images_and_labels
from .._logits import count_classes, hoist
from .._predictor import predict
from .._progress import add_stage, progress_bar
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .._words import counted
from ..attacks import PGD, Restarts, margin_loss
from ..certificates.branch_and_bound import AbstractSplitting, search
from ..certificates.input_splitting import InputSplitting
from ..certificates.kink_splitting import KinkSplitting, operations_without_kinks
from .intervals import confidence_interval, percent
from .robust_accuracy import robust_accuracy
from .tables import Shown

VERIFY_ATTACK = Restarts(PGD(40, loss=margin_loss), 5)
SPLITS = ("auto", "kinks", "inputs")
STATUSES = ("proven", "broken", "open")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verification(Shown):
    """What is known of each of n images: `certified` <= true robust accuracy <= `attacked`.

    - `status`: (n,) "proven": no image of ball and box has another prediction than the label;
      "broken": `x_adv` has; "open": neither, since the time was over, or since the least margin is
      within what float32 may lose.
    - `x_adv`: (n, h, w, c), in ball and box; the image itself where none was found.
    - `bound`: (n,) the margin z_label - max_j z_j is nowhere less in ball and box; minus infinity
      where it was not sought.
    - `subdomains`: (n,) how many were bounded; 0 where the attack broke the image, and where
      nothing had to be split.
    - `seconds`: (n,) of branch and bound; `attack_seconds`: of the attack on all images.

    >>> images, labels = np.full((4, 1, 2, 1), 0.5, np.float32), np.zeros(4, int)
    >>> first_wins = lambda x: jnp.stack([jax.nn.relu(x[0, 0, 0]) + 0.1, x[0, 1, 0]])
    >>> result = odejax.evaluation.verify(
    ...     first_wins, images, labels, odejax.LinfBall(0.04), key=0
    ... )
    >>> result.status.tolist(), result.certified, result.attacked
    (['proven', 'proven', 'proven', 'proven'], 1.0, 1.0)
    """

    status: np.ndarray
    x_adv: np.ndarray
    bound: np.ndarray
    subdomains: np.ndarray
    seconds: np.ndarray
    attack_seconds: float

    @property
    def certified(self) -> float:
        """The fraction that is proven."""
        return float((self.status == "proven").mean())

    @property
    def attacked(self) -> float:
        """The fraction that is not broken."""
        return float((self.status != "broken").mean())

    def table(self) -> tuple[str, list[str], list[list[str]], list[str]]:
        n = len(self.status)
        rows = []
        for status in STATUSES:
            of = self.status == status
            low, high = confidence_interval(int(of.sum()), n)
            sums = [f"{self.subdomains[of].sum()}", f"{self.seconds[of].sum():.1f}"]
            interval = f"{percent(low)} to {percent(high)}"
            rows.append([status, f"{of.sum()}", percent(of.mean()), interval, *sums])
        title = (
            f"{percent(self.certified)} % certified <= robust accuracy <= "
            f"{percent(self.attacked)} % ({counted(n, 'image')})"
        )
        head = ["", "images", "%", "95 % sampling interval", "subdomains", "seconds"]
        return title, head, rows, [f"the attack took {self.attack_seconds:.1f} s"]


@images_and_labels
@own_promotion
def verify(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    *,
    split: Literal["auto", "kinks", "inputs"] = "auto",
    time_limit: float = 60.0,
    attack: Callable = VERIFY_ATTACK,
    key: Key | int,
    batch_size: int = 64,
    steps: int = 5,
    progress: bool | None = None,
) -> Verification:
    """Prove every image, or break it, by branch and bound: on the signs at kinks, or on pixels.

        min {m(x') : x' in D} = min (min {m(x') : x' in D_1}, min {m(x') : x' in D_2})

    D is ball and box, and D_1 and D_2 are D together. An attack goes first. Of what it does not
    break each margin is bounded by linear relaxation. Where that is not enough D is split in two,
    again and again. The image that a bound is least at is evaluated, and may break the prediction
    too. The images between the two ends of a `bracket` are `still_correct & ~certified_correct`.

    | split | in D_1, and in D_2 | for |
    | --- | --- | --- |
    | "kinks" | the operand of a kink is >= 0, and <= 0 | networks that are affine but for kinks |
    | "inputs" | a pixel is below, and above, its middle | any deterministic network |

    Kinks are those of ReLU, leaky ReLU, abs, and max and min of two values. Splitting inputs
    decides networks of few pixels. It is valid for any number, but the number of cells grows
    exponentially with that of the pixels that matter: of a whole image it proves what linear
    relaxation nearly proves, and the rest stays open.

    Images of float64, where JAX's float64 is enabled, are searched in float64, with the network's
    weights converted. The result is then about the network in float64, where rounding hardly
    widens a bound. The attack itself runs on images of float32.

    - `logits_fn`: a deterministic network.
    - `images`, `labels`, `ball`: as for `robust_accuracy`.
    - `split`: "auto" (the default) splits kinks where all that is not affine are kinks, and inputs
      elsewhere.
    - `time_limit`: seconds for each image (60), the attack and compilation not counted. An image
      without a proof by then is open.
    - `attack`: PGD-40 on the margin, started 5 times, by default.
    - `key`: of `jax.random`, or an integer seed.
    - `batch_size`: subdomains that are bounded at a time (64).
    - `steps`: of gradient ascent on the slopes and multipliers of a subdomain (5), where kinks are
      split.
    - `progress`: as for `robust_accuracy`.

    Raises `ValueError` for what `robust_accuracy` refuses, for another `split`, for "kinks" and an
    operation that is neither affine nor a kink, for a network that draws noise, for a neural ODE
    that is not solved on a grid, and for a primitive without a rule.

    >>> make, key = eqx.nn.make_with_state(odejax.models.MLP), jax.random.key(0)
    >>> net = odejax.Predictor(*make((2, 2, 1), 3, width=4, depth=2, key=key))
    >>> images = np.full((2, 2, 2, 1), 0.5, np.float32)
    >>> labels = odejax.predict(net, images, key=0).argmax(axis=1)
    >>> odejax.evaluation.verify(net, images, labels, odejax.LinfBall(1e-3), key=0).certified
    1.0

    Bunel et al. (2020), arXiv:1909.06588; Wang et al. (2021), arXiv:2103.06624 (beta-CROWN);
    Wang et al. (2018), arXiv:1804.10829 (ReluVal), for splitting inputs.
    """
    key, attack = as_key(key), as_method("attack", attack)
    check_ball(ball)
    check_count(steps=steps)
    check_count(16, batch_size=batch_size)
    check_positive(time_limit=time_limit)
    if split not in SPLITS:
        raise ValueError(f"split must be auto, kinks or inputs; got {split!r}")
    given = images
    images, labels = check_arrays(images, labels)
    check_labels(labels, count_classes(logits_fn, images[0], key))
    attacked_images, network = images, logits_fn
    if jnp.result_type(float) == np.float64 == np.asarray(given).dtype:
        images, network = np.asarray(given), _in_float64(logits_fn)
    network = hoist(network, images[0], key)
    by_kinks = _by_kinks(split, network, images[0])

    def splitting(i: int) -> AbstractSplitting:
        around = network, jnp.asarray(images[i]), jnp.asarray(labels[i]), ball, batch_size
        return KinkSplitting(*around, steps) if by_kinks else InputSplitting(*around)

    def is_broken(i: int, x_adv: np.ndarray) -> bool:
        (logits,) = predict(network, x_adv[None], key=key)
        return bool(
            logits.argmax() != labels[i]
            and ball.contains(jnp.asarray(x_adv), jnp.asarray(images[i]))
        )

    started = time.perf_counter()
    report = robust_accuracy(
        logits_fn, attacked_images, labels, ball, attack, key=key, progress=progress
    )
    attack_seconds, x_adv = time.perf_counter() - started, report.x_adv.astype(images.dtype)
    still_correct = report.still_correct | (predict(network, x_adv, key=key).argmax(1) == labels)
    x_adv[still_correct] = images[still_correct]
    n, left = len(images), np.flatnonzero(still_correct).tolist()
    status = np.where(still_correct, "open", "broken")
    bound, subdomains, seconds = np.full(n, -np.inf), np.zeros(n, int), np.zeros(n)
    if len(left):
        splitting(left[0]).compile()
    with progress_bar(enabled=progress, transient=True) as bar:
        name = f"{ball.in_words()}, branch and bound"
        task = add_stage(bar, name, len(left), "images")
        for done, i in enumerate(left, 1):
            started = time.perf_counter()
            result = search(
                splitting(i),
                deadline=started + time_limit,
                batch_size=batch_size,
                is_broken=partial(is_broken, i),
            )
            bound[i], subdomains[i] = result.bound, result.subdomains
            seconds[i] = time.perf_counter() - started
            if result.x_adv is not None:
                status[i], x_adv[i] = "broken", result.x_adv
            elif result.bound > 0:
                status[i] = "proven"
            bar.update(task, completed=done, note=f"{(status == 'proven').sum()} proven")
    return Verification(status, x_adv, bound, subdomains, seconds, attack_seconds)


def _by_kinks(split: str, network: LogitsFn, x: np.ndarray) -> bool:
    """Whether kinks are split; `ValueError` where they are to be, and would not be enough."""
    others = operations_without_kinks(network, x)
    if split == "kinks" and others:
        raise ValueError(
            f'split="kinks" splits kinks (of ReLU, leaky ReLU, abs, and max of two), and this '
            f"network has other operations that are not affine: {', '.join(others)}; "
            f'split="inputs" takes any of them'
        )
    return split != "inputs" and not others


def _in_float64(logits_fn: LogitsFn) -> LogitsFn:
    """The same function; a module's weights as float64."""
    weights, rest = eqx.partition(logits_fn, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), weights), rest)
