"""What an adaptive solver hides from gradients (Huang et al. 2022): flags for neural ODEs."""

from collections.abc import Mapping
from typing import TypeGuard

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_arrays, check_labels
from .._inputs import as_key, images_and_labels
from .._logits import count_classes
from .._mesh import on_mesh, to_host
from .._predictor import Predictor
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import Key, LogitsFn
from .._words import counted
from ..attacks import margin_loss
from .flags import SOLVER_GRADIENT, SOLVER_STEPS, Flag, FlagKind

_DRAWS = 8


def solver_variants(predictor: Predictor, *, steps: int = 32) -> dict[str, Predictor]:
    """The network's equation, solved or differentiated in other ways, by name.

    - "fixed steps": Dopri5 with `steps` equal steps, differentiated through them.
    - "own steps": the network's solver, differentiated through its own steps.
    - "continuous adjoint": the network's solver, its gradient from solving the adjoint equation
      backwards, as many published neural ODEs compute it.

    - `steps`: how many of the fixed steps there are.

    Raises `ValueError` for a network that is not a solve (its model has no `ode`).

    >>> make = eqx.nn.make_with_state(odejax.models.ConvODENet)
    >>> network = odejax.Predictor(*make((8, 8, 1), width=2, key=jax.random.key(0)))
    >>> list(odejax.evaluation.solver_variants(network))
    ['fixed steps', 'own steps', 'continuous adjoint']

    Y. Huang et al., "Adversarial robustness of stabilized neural ODEs might be from obfuscated
    gradients", MSML 2021, arXiv:2009.13145.
    """
    model = predictor.model
    if not hasattr(model, "ode"):
        raise ValueError(f"{type(model).__name__} has no ode: it is not the solve of one")
    fixed = {
        "solver": diffrax.Dopri5(),
        "stepsize_controller": diffrax.ConstantStepSize(),
        "dt0": model.ode.t1 / steps,
        "adjoint": None,
    }
    variants = {
        "fixed steps": fixed,
        "own steps": {"adjoint": None},
        "continuous adjoint": {"adjoint": diffrax.BacksolveAdjoint()},
    }
    return {
        name: eqx.tree_at(lambda p: p.model.ode, predictor, model.ode.replace(**changes))
        for name, changes in variants.items()
    }


@images_and_labels
def gradient_cosines(
    logits_fn: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    variants: Mapping[str, LogitsFn],
    *,
    key: Key | int,
) -> dict[str, np.ndarray]:
    """The cosine between the margin's input gradient and that through each variant, (n,) each.

    - `logits_fn`, `images`, `labels`, `key`: as for `robust_accuracy`.
    - `variants`: other networks by name, such as `solver_variants`.

    >>> few = odejax.data.load("digits", "test").take(slice(2))
    >>> linear, scaled = (lambda x, key: x.ravel()[:10]), (lambda x, key: 3 * x.ravel()[:10])
    >>> cosines = odejax.evaluation.gradient_cosines(linear, *few, {"scaled": scaled}, key=0)
    >>> cosines["scaled"].round(3).tolist()
    [1.0, 1.0]
    """
    key = as_key(key)
    images, labels = check_arrays(images, labels)
    own = _gradients(logits_fn, images, labels, key)
    return {
        name: to_host(_cosine(own, _gradients(variant, images, labels, key)))
        for name, variant in variants.items()
    }


def kinds_of_solver(logits_fn: LogitsFn) -> tuple[FlagKind, ...]:
    """The flags that `solver_flags` checks of this network."""
    return (SOLVER_STEPS, SOLVER_GRADIENT) if _is_solve(logits_fn) else ()


def _is_solve(logits_fn: LogitsFn) -> TypeGuard[Predictor]:
    return isinstance(logits_fn, Predictor) and hasattr(logits_fn.model, "ode")


@images_and_labels
@own_promotion
def solver_flags(
    predictor: LogitsFn,
    images: ArrayLike,
    labels: ArrayLike,
    ball: AbstractBall,
    *,
    key: Key | int,
) -> tuple[Flag, ...]:
    """The flags of a network that is an ODE solve (see `FLAGS`); none for any other network.

    - the arguments: as for `masking_flags`.

    >>> few = odejax.data.load("digits", "test").take(slice(2))
    >>> no_solve = lambda x: x.ravel()[:10]
    >>> odejax.evaluation.solver_flags(no_solve, *few, odejax.LinfBall(0.1), key=0)
    ()
    """
    key = as_key(key)
    check_ball(ball)
    images, labels = check_arrays(images, labels)
    check_labels(labels, count_classes(predictor, images[0], key))
    predictor = on_mesh(predictor)
    if not _is_solve(predictor):
        return ()
    flags, n = [], len(images)
    steps = to_host(_solver_steps(predictor, images, ball, key))
    changes = (steps != steps[:, :1]).any(axis=1)
    if changes.mean() > SOLVER_STEPS.share:
        evidence = f"{changes.sum()} of {counted(n, 'image')}; {steps.min()} to {steps.max()} steps"
        flags.append(SOLVER_STEPS(evidence))
    variants = solver_variants(predictor)
    # Of another kind, and slow: it belongs to the evidence, not to what raises the flag.
    continuous = {"continuous adjoint": variants.pop("continuous adjoint")}
    cosines = gradient_cosines(predictor, images, labels, variants, key=key)
    limit = SOLVER_GRADIENT
    if any((cosine < limit.cosine).mean() > limit.share for cosine in cosines.values()):
        cosines |= gradient_cosines(predictor, images, labels, continuous, key=key)
        medians = ", ".join(f"{name} {np.median(c):.2f}" for name, c in cosines.items())
        flags.append(SOLVER_GRADIENT(f"median cosine: {medians}"))
    return tuple(flags)


@eqx.filter_jit
def _gradients(logits_fn, images, labels, key):
    def one(x, y):
        return jax.grad(lambda x: margin_loss(logits_fn(x, key=key), y))(x)

    return jax.vmap(one)(images, labels)


def _cosine(a, b):
    axes = (1, 2, 3)
    norms = jnp.sqrt(jnp.sum(a**2, axes) * jnp.sum(b**2, axes))
    return jnp.sum(a * b, axes) / jnp.where(norms > 0, norms, 1.0)


@eqx.filter_jit
def _solver_steps(predictor, images, ball, key):
    """Steps taken at each image and at random points of its ball, (n, 1 + draws)."""

    def steps(x):
        state = jax.tree.map(lambda leaf: leaf, predictor.state)
        solution, _ = predictor.model.solve(x, state)
        return solution.stats["num_steps"]

    def one(x, key):
        points = jax.vmap(lambda k: ball.sample(x, key=k))(jax.random.split(key, _DRAWS))
        return jax.vmap(steps)(jnp.concatenate([x[None], points]))

    return jax.vmap(one)(images, jax.random.split(key, len(images)))
