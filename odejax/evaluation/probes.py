"""Flags from a look at the network itself: its outputs, its gradients, its loss near the images."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._black_box import has_black_box
from .._checks import check_arrays, check_count, check_labels
from .._inputs import as_key, images_and_labels
from .._logits import hoist
from .._mesh import on_mesh, to_host
from .._predictor import predict
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .._words import counted
from ..attacks import cross_entropy, margin_loss
from .flags import (
    EXPLODING,
    NO_GRADIENT,
    NOT_FINITE,
    RANDOMISED,
    ROUGH,
    SOFTMAX,
    VANISHING,
    WRONG_GRADIENT,
    Flag,
    FlagKind,
)

_PROBES = 8  # directions of the finite differences
_H = WRONG_GRADIENT.width / 2  # their half width
_MOVE = (NOT_FINITE.beside - _H) / 2  # how far they are moved, so as to be that near the image
_RAY = int(ROUGH.steps)  # steps along the gradient


def kinds_probed(logits_fn: LogitsFn) -> tuple[FlagKind, ...]:
    """The flags that `masking_flags` checks of this network."""
    of_scores = (RANDOMISED, SOFTMAX, NO_GRADIENT)
    if has_black_box(logits_fn):
        return of_scores
    return (*of_scores, VANISHING, EXPLODING, WRONG_GRADIENT, NOT_FINITE, ROUGH)


@images_and_labels
@own_promotion
def masking_flags(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    *,
    key: Key | int,
    batch_size: int = 64,
) -> tuple[Flag, ...]:
    """The flags that the network's outputs and gradients raise (see `FLAGS`).

    Costs about 40 evaluations and 3 gradients of every image. Attacks raise others
    (`robust_accuracy`, `attack_flags`, `survivor_flags`), and so does a neural ODE's solver
    (`solver_flags`).

    - `images` (n, h, w, c): floats in [0, 1] or uint8; `labels` (n,): classes. `*dataset` gives
      both.
    - `key`: of `jax.random`, or an integer seed.

    Raises `ValueError` for images, labels or logits of another form.

    >>> from odejax import LinfBall, data, evaluation
    >>> constant = lambda x: 0 * x.sum() + jnp.arange(10.0)
    >>> few = data.load("digits", "test").take(slice(8))
    >>> print(*evaluation.masking_flags(constant, *few, LinfBall(0.1), key=0))
    vanishing gradients (8 of 8 images)
    """
    key = as_key(key)
    check_ball(ball)
    check_count(batch_size=batch_size)
    images, labels = check_arrays(images, labels)
    first_key, second_key, probe_key = jax.random.split(key, 3)
    logits_fn = on_mesh(hoist(logits_fn, images[0], probe_key))
    logits = predict(logits_fn, images, key=first_key, batch_size=batch_size)
    again = predict(logits_fn, images, key=second_key, batch_size=batch_size)
    check_labels(labels, logits.shape[1])
    flags = []
    if not np.array_equal(logits, again):
        moved = np.abs(np.where(np.isfinite(logits), again - logits, 0.0))
        flags.append(RANDOMISED(f"logits move by up to {moved.max():.2g}"))
    sums_to_one = np.allclose(logits.sum(axis=1), 1, atol=SOFTMAX.rounding)
    if logits.min() >= 0 and logits.max() <= 1 and sums_to_one:
        flags.append(SOFTMAX("the outputs are probabilities"))
    if has_black_box(logits_fn):
        return (*flags, NO_GRADIENT("the network is known by its scores alone"))
    precision = jnp.asarray(_precision(logits_fn, images[0]))
    parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
    probes = [_probe(logits_fn, images[p], labels[p], ball, precision, probe_key) for p in parts]
    size, wrong, promised, measured, turns, finite = (
        np.concatenate([to_host(p) for p in part]) for part in zip(*probes, strict=True)
    )

    def raise_if(kind: FlagKind, bad, what=""):
        if bad.mean() > kind.share:
            flags.append(kind(f"{bad.sum()} of {counted(len(bad), 'image')}{what}"))

    raise_if(VANISHING, size < VANISHING.least)
    explodes = ~np.isfinite(promised) | (promised > EXPLODING.factor * measured)
    raise_if(EXPLODING, explodes & (promised != 0))
    raise_if(WRONG_GRADIENT, wrong > WRONG_GRADIENT.error, f", median {np.median(wrong):.2g}")
    raise_if(NOT_FINITE, ~finite)
    if np.median(turns) >= ROUGH.turns:
        flags.append(ROUGH(f"{np.median(turns):.0f} turns in {_RAY} steps"))
    return tuple(flags)


def _precision(logits_fn, image) -> float:
    """What rounding may make of a logit, as a fraction of the largest: 8 units in its last place.

    A network that computes in half precision anywhere is taken for one that does so throughout.
    """
    program = str(jax.make_jaxpr(lambda x: logits_fn(x, key=jax.random.key(0)))(image))
    halves = {r"\bbf16\[": jnp.bfloat16, r"\bf16\[": jnp.float16}  # as a program prints them
    dtypes = [jnp.float32, *(half for text, half in halves.items() if re.search(text, program))]
    return 8 * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


@eqx.filter_jit
def _probe(logits_fn, images, labels, ball, precision, key):
    def one(x, y, key):
        draw_key, beside_key, signs_key = jax.random.split(key, 3)

        def logits(x):
            return logits_fn(x, key=draw_key)

        def gradients(x):
            """The logits, and the gradients of cross-entropy and of the margin."""
            z, pull_back = jax.vjp(logits, x)
            cotangents = [jax.grad(loss)(z, y) for loss in (cross_entropy, margin_loss)]
            return z, jax.vmap(lambda c: pull_back(c)[0])(jnp.stack(cotangents))

        # Beside the image, since on its flat black a ReLU may sit exactly on its kink, and on its
        # white two logits be equal; and so far inside the box that the differences stay in it.
        centre = jnp.clip(x, ball.lower + _H + _MOVE, ball.upper - _H - _MOVE)
        beside = centre + _MOVE * jax.random.uniform(beside_key, x.shape, x.dtype, -1.0, 1.0)
        # Mapped, not unrolled: most of the time here is compiling the network.
        (z, z_there), ((cross, gradient), (_, there)) = jax.lax.map(
            gradients, jnp.stack([x, beside])
        )
        signs = jax.random.rademacher(signs_key, (_PROBES, *x.shape), x.dtype)
        along = ball.eps * ball.steepest(gradient)
        ray = jnp.linspace(0, 1, _RAY + 1).reshape(-1, 1, 1, 1)
        ends = (beside + _H * signs, beside - _H * signs)
        on_way = jax.vmap(ball.clip)(x + ray * along)
        of_ends, of_way = jnp.split(
            jax.lax.map(logits, jnp.concatenate([*ends, on_way])), [2 * _PROBES]
        )
        # To the same class in all differences: where two run up, the margin itself has a kink.
        runner_up = jnp.argmax(z_there.at[y].set(-jnp.inf))
        ups, downs = jnp.split(jax.vmap(lambda z: margin_loss(z, y, runner_up))(of_ends), 2)
        values = jax.vmap(lambda z: margin_loss(z, y))(of_way)

        differences = (ups - downs) / (2 * _H)
        slopes = jnp.sum(signs * there, axis=(1, 2, 3))
        # Rounding of the logits alone moves the differences by this much.
        noise = precision * jnp.max(jnp.where(jnp.isfinite(z), jnp.abs(z), 0.0)) / _H
        scale = jnp.maximum(jnp.max(jnp.abs(differences)), jnp.max(jnp.abs(slopes)))
        error = jnp.max(jnp.abs(differences - slopes))
        finite = jnp.isfinite(error)
        wrong = jnp.where(finite & (error > 5 * noise), error / scale, 0.0)

        rises = jnp.sign(jnp.diff(values) * (jnp.abs(jnp.diff(values)) > noise * _H))
        turns = jnp.sum(rises[1:] * rises[:-1] < 0)
        measured = jnp.max(jnp.abs(values - values[0]))
        promised = jnp.vdot(gradient, on_way[-1] - x)  # no more than the box allows
        return jnp.max(jnp.abs(cross)), wrong, promised, measured, turns, finite

    return jax.vmap(one)(images, labels, jax.random.split(key, len(images)))
