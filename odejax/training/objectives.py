"""Objectives: what a training step minimises.

`objective(model, state, images, labels, key=key) -> (loss, (state, n_correct))` on a batch of
float images (n, h, w, c): an `Objective`. The model is vmapped over `BATCH_AXIS`, where BatchNorm
finds its batch.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, Int

from .._batch import vmap_batch
from .._checks import check_callable, check_not_negative, check_positive
from .._predictor import Predictor, stateless_logits
from .._promotion import own_promotion
from .._threat_model import AbstractBall, check_ball
from .._types import BATCH_AXIS, BatchLogits, Image, Images, Key, Labels, Logits, Scalar
from ..attacks import AbstractAttack, cross_entropy

Aux = tuple[State, Int[Array, ""]]  # the new state, and how many images are classified correctly
Loss = tuple[Scalar, Aux]


@runtime_checkable
class Objective(Protocol):
    """What is minimised: the loss of a batch of float images, for a model in training mode."""

    def __call__(
        self, model: Any, state: State, images: Images, labels: Labels, /, *, key: Key
    ) -> Loss: ...


@own_promotion
def batch_logits(model, state: State, images: Images, *, key: Key) -> tuple[BatchLogits, State]:
    """The logits (n, k) of a batch in training mode, and the new state, the same for all examples.

    - `model(x, state, key=key) -> (logits, state)`.
    - `state`: its state.
    - `images`: (n, h, w, c), in [0, 1].
    - `key`: of the network's noise, one of its own for each image.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, key = jnp.ones((5, 1, 2, 1)), jax.random.key(0)
    >>> logits, state = odejax.training.batch_logits(model, eqx.nn.State(None), images, key=key)
    >>> logits.shape
    (5, 2)
    """
    keys = jax.random.split(key, len(images))
    logits = vmap_batch(lambda x, key: model(x, state, key=key), out_axes=(0, None))
    return logits(images, keys)


def loss_and_correct(logits: BatchLogits, labels: Labels) -> tuple[Scalar, Int[Array, ""]]:
    """The mean cross-entropy of a batch, and how many of it are classified correctly."""
    correct = jnp.sum(jnp.argmax(logits, axis=1) == labels, dtype=jnp.int32)
    return jnp.mean(jax.vmap(cross_entropy)(logits, labels)), correct


class CrossEntropy(eqx.Module):
    """The mean cross-entropy of a batch, with a temperature T and a margin m.

        mean -log softmax((z - m e_y) / T)_y

    Both are for networks whose Lipschitz constant, and so whose
    logits, are bounded: a small T asks them for certified margins no larger than they can have, and
    with m = sqrt(2) L eps an image counts as classified only if it is so in the l2 ball of eps.

    - `temperature`: T, positive, 1 by default.
    - `margin`: m, in logits, not negative, 0 by default.

    Raises `ValueError` for other values.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, labels, key = jnp.zeros((3, 1, 2, 1)), jnp.array([0, 0, 1]), jax.random.key(0)
    >>> objective = odejax.training.CrossEntropy()
    >>> loss, (state, n_correct) = objective(model, eqx.nn.State(None), images, labels, key=key)
    >>> round(float(loss), 4), int(n_correct)  # log 2
    (0.6931, 2)
    """

    temperature: float = 1.0
    margin: float = 0.0

    def __check_init__(self):
        check_positive(temperature=self.temperature)
        check_not_negative(margin=self.margin)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        logits, state = batch_logits(model, state, images, key=key)
        loss, correct = loss_and_correct(logits / self.temperature, labels)
        if self.margin:
            shifted = logits - self.margin * jax.nn.one_hot(labels, logits.shape[1])
            loss, _ = loss_and_correct(shifted / self.temperature, labels)
        return loss, (state, correct)


class RadiusCrossEntropy(eqx.Module):
    """The mean cross-entropy of a batch, each image moved by eps in l2 towards every other class.

        mean -log softmax((z + eps L_y) / T)_y,  L_yj: how fast z_y - z_j can change per unit of l2

    For a network that states these constants, one for each pair of classes, as
    `model.margin_bounds(y)`, (k,): an image counts as classified only if it is certified within
    eps. The constants are differentiated too. `CrossEntropy(T, margin=sqrt(2) L eps)` is the same
    with one constant for all pairs.

    - `eps`: the l2 radius, positive; somewhat above that which is certified in the end.
    - `temperature`: T, in logits, positive (0.25).

    Raises `ValueError` for other values, and for a model without `margin_bounds`.

    >>> net = eqx.nn.make_with_state(odejax.models.OrthogonalNet)
    >>> model, state = net((2, 2, 1), 2, widths=(4,), key=jax.random.key(0))
    >>> images, labels, key = jnp.full((3, 2, 2, 1), 0.5), jnp.array([0, 1, 1]), jax.random.key(0)
    >>> objective = odejax.training.RadiusCrossEntropy(eps=0.5)
    >>> bool(objective(model, state, images, labels, key=key)[0] > 0)
    True

    Leino, Wang and Fredrikson (2021), arXiv:2102.08452 (GloRo); Hu et al. (2023), arXiv:2301.12549.
    """

    eps: float
    temperature: float = 0.25

    def __check_init__(self):
        check_positive(eps=self.eps, temperature=self.temperature)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        if not hasattr(model, "margin_bounds"):
            raise ValueError(
                f"RadiusCrossEntropy needs a model with margin_bounds(label), such as "
                f"OrthogonalNet and LipschitzNet; {type(model).__name__} has none"
            )
        logits, state = batch_logits(model, state, images, key=key)
        _, correct = loss_and_correct(logits, labels)
        apart = jax.vmap(model.margin_bounds)(jnp.arange(logits.shape[1]))[labels]
        loss, _ = loss_and_correct((logits + self.eps * apart) / self.temperature, labels)
        return loss, (state, correct)


class Hinge(eqx.Module):
    """The mean multi-class hinge loss, of k classes with margin m.

        mean 1/k sum_{j != y} max(0, m - (z_y - z_j))

    PyTorch's `MultiMarginLoss`.

    - `margin`: m, in logits, not negative, 0.07 by default; *structured* trains its networks with
      margins 0.07, 0.15 and 0.3.

    Raises `ValueError` for another margin.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, labels, key = jnp.zeros((3, 1, 2, 1)), jnp.array([0, 0, 1]), jax.random.key(0)
    >>> objective = odejax.training.Hinge(margin=0.5)
    >>> float(objective(model, eqx.nn.State(None), images, labels, key=key)[0])
    0.25
    """

    margin: float = 0.07

    def __check_init__(self):
        check_not_negative(margin=self.margin)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        logits, state = batch_logits(model, state, images, key=key)
        _, correct = loss_and_correct(logits, labels)
        own = jnp.take_along_axis(logits, labels[:, None], axis=1)
        lacking = jax.nn.relu(self.margin - own + logits)  # the label's own term is the margin
        return jnp.mean(jnp.sum(lacking, axis=1) - self.margin) / logits.shape[1], (state, correct)


class Adversarial(eqx.Module):
    """`objective` on the attacked batch: adversarial training.

        min_model E max_{x' in ball} loss

    The attack is on the model as a `Predictor`, in inference mode: BatchNorm uses its running
    statistics there, and the statistics are updated by the attacked batch alone.

    PGD adversarial training is `Adversarial(PGD(10, 2 / 255, last=True), ball)`, the fast one
    (Wong et al. 2020) `Adversarial(PGD(1, 10 / 255, last=True), ball)`, at eps 8/255.

    - `attack`: such as `PGD(10, 2 / 255, last=True)`.
    - `ball`: the threat model.
    - `objective`: `CrossEntropy()` by default.
    - `train_mode`: False by default. With True the attack is on the model as it is trained, as
      in the code of *enresnet*: batch statistics are those of the attacked batch in every step, and
      the attack climbs the loss of all images together. (That is for attacks of a fixed number of
      steps.)

    Raises `ValueError` for what is no ball, or an attack or objective that is not callable.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, labels, key = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), jax.random.key(0)
    >>> objective = odejax.training.Adversarial(odejax.attacks.FGSM(), odejax.LinfBall(0.1))
    >>> loss, _ = objective(model, eqx.nn.State(None), images, labels, key=key)
    >>> round(float(loss), 4), round(float(jnp.log(1 + jnp.exp(0.2))), 4)
    (0.7981, 0.7981)

    Madry et al. 2018, arXiv:1706.06083.
    """

    attack: AbstractAttack
    ball: AbstractBall
    objective: Objective = CrossEntropy()
    train_mode: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_ball(self.ball)
        check_callable(attack=self.attack, objective=self.objective)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        attack_key, key = jax.random.split(key)
        predictor = (
            _Training(_constant(model), state) if self.train_mode else as_attacked(model, state)
        )

        images = attacked_images(self.attack, predictor, images, labels, self.ball, key=attack_key)
        return self.objective(model, state, images, labels, key=key)


def attacked_images(
    attack: AbstractAttack, predictor: Any, images: Images, labels: Labels, ball, *, key: Key
) -> Images:
    """The attacked batch, as a constant."""

    def attacked(x, y, key):
        return attack(predictor, x, y, ball, key=key).x_adv

    keys = jax.random.split(key, len(images))
    x_adv = jax.vmap(attacked, axis_name=BATCH_AXIS)(images, labels, keys)
    return jax.lax.stop_gradient(x_adv)


def as_attacked(model, state: State) -> Predictor:
    """The model in inference mode, its weights constants."""
    return Predictor(_constant(model), state)


class _Training(eqx.Module):
    """The logits of a model as it is trained."""

    model: Any
    state: State

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        return stateless_logits(self.model, self.state, x, key)


def _constant(model):
    arrays, static = eqx.partition(model, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)
