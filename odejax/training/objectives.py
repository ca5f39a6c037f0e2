"""Objectives: what a training step minimises.

`objective(model, state, images, labels, key=key) -> (loss, (state, n_correct))` on a batch of
float images (n, h, w, c); the model is vmapped over `BATCH_AXIS`, where BatchNorm finds its batch.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._predictor import Predictor
from .._threat_model import AbstractBall
from .._types import BATCH_AXIS, Key, Scalar
from ..attacks import AbstractAttack, cross_entropy

Aux = tuple[eqx.nn.State, Int[Array, ""]]


def batch_logits(
    model, state: eqx.nn.State, images: Float[Array, "n h w c"], *, key: Key
) -> tuple[Float[Array, "n k"], eqx.nn.State]:
    """Logits of a batch in training mode, and the new state (the same for all examples)."""
    keys = jax.random.split(key, len(images))
    return jax.vmap(
        lambda x, key: model(x, state, key=key), out_axes=(0, None), axis_name=BATCH_AXIS
    )(images, keys)


class CrossEntropy(eqx.Module):
    """mean -log softmax(z / T)_y.

    The temperature T is for networks whose Lipschitz constant, and so whose logits, are bounded: a
    small T asks them for certified margins no larger than they can have.
    """

    temperature: float = 1.0

    def __check_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and positive; got {self.temperature}")

    def __call__(
        self,
        model,
        state: eqx.nn.State,
        images: Float[Array, "n h w c"],
        labels: Int[Array, " n"],
        *,
        key: Key,
    ) -> tuple[Scalar, Aux]:
        logits, state = batch_logits(model, state, images, key=key)
        losses = jax.vmap(cross_entropy)(logits / self.temperature, labels)
        correct = jnp.sum(jnp.argmax(logits, axis=1) == labels)
        return jnp.mean(losses), (state, correct)


class Adversarial(eqx.Module):
    """`objective` on the attacked batch: min_model E max_{x' in ball} loss (Madry et al. 2018).

    The attack sees the model as a `Predictor`, in inference mode: BatchNorm uses its running
    statistics there, and the statistics are updated by the attacked batch alone.
    """

    attack: AbstractAttack
    ball: AbstractBall
    objective: CrossEntropy = CrossEntropy()

    def __call__(
        self,
        model,
        state: eqx.nn.State,
        images: Float[Array, "n h w c"],
        labels: Int[Array, " n"],
        *,
        key: Key,
    ) -> tuple[Scalar, Aux]:
        attack_key, key = jax.random.split(key)
        predictor = as_attacked(model, state)

        def attacked(x, y, key):
            return self.attack(predictor, x, y, self.ball, key=key).x_adv

        keys = jax.random.split(attack_key, len(images))
        images = jax.vmap(attacked)(images, labels, keys)
        return self.objective(model, state, jax.lax.stop_gradient(images), labels, key=key)


def as_attacked(model, state: eqx.nn.State) -> Predictor:
    """The model in inference mode, its weights constants."""
    arrays, static = eqx.partition(model, eqx.is_array)
    return Predictor(eqx.combine(jax.lax.stop_gradient(arrays), static), state)
