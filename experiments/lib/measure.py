"""What is measured of a trained network: the interval in several balls, and its clean accuracy."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import odejax
from odejax.data import ArrayDataset
from odejax.evaluation import Bracket, Brackets, bracket, certified_radii, encode_array
from odejax.training import clean_accuracy

BALLS = {"linf": odejax.LinfBall, "l2": odejax.L2Ball}


def brackets(
    predictor: Any, images: ArrayDataset, norm: str, eps: Sequence[float], **settings: Any
) -> Brackets:
    """`odejax.evaluation.bracket` on the images and labels of a data set, for every eps.

    Without certificates, unless they are given: the papers' networks take too long.
    """
    balls = [BALLS[norm](radius) for radius in eps]
    settings = {"certificates": ()} | settings
    return bracket(predictor, *images, balls, **settings)  # pyright: ignore[reportCallIssue]


def summaries(measured: Brackets) -> list[dict[str, Any]]:
    """Their numbers, and the median radius where there is a certificate."""
    return [
        b.summary() | ({"median_radius": float(np.median(b.radius))} if b.per_certificate else {})
        for b in measured
    ]


def measure(
    predictor: Any,
    test: ArrayDataset,
    n: int | Mapping[str, int],
    eps: Mapping[str, Sequence[float]],
    seed: int,
    *,
    attacks: Mapping[str, Any],
    state: Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Clean accuracy on all of `test`, and the interval of the first `n` images for every eps.

    `eps` is by norm; the intervals are `brackets` of one norm, `balls` of several. Where `n` or
    `attacks` (by name) depend on the norm, they are by norm as well.

    An evaluation that is interrupted goes on from the file `state`, in the norm that it was in; its
    seconds are those of the last time.
    """
    started, key = time.perf_counter(), jax.random.key(seed + 1)
    balls = {norm: [] for norm in eps}
    for norm, radii in eps.items():
        if not radii:
            continue
        attacked = test.take(slice(n[norm] if isinstance(n, Mapping) else n))
        chosen = attacks.get(norm, attacks)
        anew = settings.get("anew", set(chosen))  # by default every attack in every ball
        given = settings | {"attacks": chosen, "anew": anew}
        given["state_path"] = None if state is None else f"{state}_{norm}"
        balls[norm] = summaries(brackets(predictor, attacked, norm, radii, key=key, **given))
    one_norm = len(balls) == 1
    return {
        "clean_accuracy": clean_accuracy(predictor, test, key=key),
        **({"brackets": next(iter(balls.values()))} if one_norm else {"balls": balls}),
        "evaluation_seconds": time.perf_counter() - started,
    }


def radii_of_all(
    predictor: Any, test: ArrayDataset, eps: Sequence[float], certificate: Any, seed: int
) -> dict[str, Any]:
    """What a certificate in closed form proves of all of `test`, in l2."""
    ball, key = odejax.L2Ball(eps[0]), jax.random.key(seed + 1)
    radii = certified_radii(predictor, test.pixels, test.labels, ball, certificate, key=key)
    return {
        "certified_of_all": [float(np.mean(radii >= radius)) for radius in eps],
        "median_radius": float(np.median(radii)),
        "lipschitz_bound": float(predictor.model.lipschitz_bound()),
    }


def judged_accuracy(measured: Bracket, images: ArrayDataset, key, **settings: Any) -> float:
    """Clean accuracy of the network as the bracket judges it: with noise, by its mean logits."""
    logits = odejax.predict(measured.judge, images.images, key=key, **settings)
    return float(np.mean(logits.argmax(axis=1) == images.labels))


def examples(measured: Bracket, attacked: ArrayDataset, count: int = 4) -> dict[str, Any]:
    """A few images, and the first adversarial example of each, for `report.examples_figure`."""
    moved = np.flatnonzero((measured.x_adv != attacked.pixels).any(axis=(1, 2, 3)))[:count]
    logits = odejax.predict(measured.judge, measured.x_adv, key=jax.random.key(0))
    return {
        "eps": measured.eps,
        "images": encode_array(attacked.pixels[moved]),
        "x_adv": encode_array(measured.x_adv[moved]),
        "labels": attacked.labels[moved].tolist(),
        "predictions": logits.argmax(axis=1)[moved].tolist(),
    }
