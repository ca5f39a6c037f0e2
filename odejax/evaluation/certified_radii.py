"""Certified radii of a set of images."""

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_count, check_labels, check_order
from .._inputs import as_key, as_method, images_and_labels, method_name
from .._logits import count_classes, hoist
from .._mesh import on_mesh, spread, to_host
from .._predictor import batches
from .._progress import add_stage, progress_bar
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn


@images_and_labels
@own_promotion
def certified_radii(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    certificate: Callable,
    *,
    key: Key | int,
    batch_size: int | None = None,
    order: np.ndarray | None = None,
    until_none: bool = False,
    name: str | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """The certified radius of every image in the ball's norm, (n,), 0 where misclassified.

    Image i draws its noise from `fold_in(key, i)`, where a certificate draws any.

    - `logits_fn`: a `Predictor`; for bound propagation any function of one image; for
      `RandomizedSmoothing` a `Smoothed`.
    - `images` (n, h, w, c): floats in [0, 1], or uint8; `labels` (n,): classes. `*dataset` gives
      both.
    - `ball`: its norm is that of the radii; its eps is the radius asked for, which a certificate
      may ignore.
    - `key`: of `jax.random`, or an integer seed.
    - `batch_size`: images at once; by default what the certificate says (`images_at_once`).
    - `order` (m,): the images that a radius is sought for, by their index, in this order; that of
      the others is 0. By default all.
    - `until_none`: end after the first batch of which no image is proven at the ball's eps.
    - `name`: what the progress calls the certificate, by default its class.
    - `progress`: as for `robust_accuracy`.

    Raises `ValueError` for images or labels of another form, pixels outside [0, 1], and a network
    that the certificate says nothing about.

    >>> from odejax import L2Ball, Predictor, certificates, data, evaluation, models
    >>> make = eqx.nn.make_with_state(models.LipschitzNet)
    >>> model, state = make((8, 8, 1), width=2, depth=1, features=8, key=jax.random.key(0))
    >>> few = data.load("digits", "test").take(slice(4))
    >>> radii = evaluation.certified_radii(
    ...     Predictor(model, state), *few, L2Ball(0.1), certificates.LipschitzMargin(), key=0
    ... )
    >>> radii.shape
    (4,)
    """
    key, certificate = as_key(key), as_method("certificate", certificate)
    name = method_name(certificate) if name is None else name
    check_ball(ball)
    at_once = getattr(certificate, "images_at_once", 512) if batch_size is None else batch_size
    check_count(batch_size=at_once)
    images, labels = check_arrays(images, labels)
    check_labels(labels, count_classes(logits_fn, images[0], key))
    sought = np.arange(len(images)) if order is None else check_order(order, len(images))
    logits_fn, radii = on_mesh(hoist(logits_fn, images[0], key)), np.zeros(len(images))
    with progress_bar(enabled=progress, transient=True) as bar:
        task = add_stage(bar, f"{ball.in_words()}, {name}", len(sought), "images")
        # Batches as large as for the full set, however few are sought: one shape.
        for first, rows, n in batches(len(sought), min(at_once, len(images))):
            batch = sought[rows]
            x, y, i = spread(images[batch]), spread(labels[batch]), spread(batch)
            result = _certify_batch(certificate, logits_fn, x, y, i, ball, key)
            right = to_host(result.label) == labels[batch]
            radii[batch] = np.where(right, to_host(result.radius), 0.0)
            proven = radii[sought[: first + n]] >= np.asarray(ball.eps)
            bar.update(task, completed=first + n, note=f"{proven.sum()} proven")
            if until_none and not proven[first:].any():
                break
    return radii


@eqx.filter_jit
def _certify_batch(certificate, logits_fn, images, labels, index, ball, key):
    def one(x, y, i):
        return certificate(logits_fn, x, y, ball, key=jax.random.fold_in(key, i))

    return jax.vmap(one)(images, labels, index)
