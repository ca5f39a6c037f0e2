"""TRADES (Zhang et al. 2019): accuracy and robustness, traded by a factor."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from equinox.nn import State

from .._checks import check_callable, check_not_negative
from .._threat_model import AbstractBall, check_ball
from .._types import Images, Key, Labels
from ..attacks import PGD, AbstractClimb
from .objectives import Loss, as_attacked, batch_logits, loss_and_correct


class TRADES(eqx.Module):
    """The cross-entropy plus the divergence between the predictions at x and at an attacked x'.

        cross-entropy(z(x), y) + beta KL(p(x) || p(x')),  x' in the ball where they differ most

    (*nmode* Table 4 and the ODE-TRADES of Table 2.) BatchNorm's statistics are updated by the clean
    batch, then by the attacked one.

    - `ball`: the threat model.
    - `beta`: the paper's 1 / lambda, not negative, 6 by default.
    - `attack`: climbs the divergence from p(x), from a random start in the ball (the paper: a
      normal draw of size 0.001), and returns its last iterate, as published: `PGD(steps=10,
      last=True)`.

    Raises `ValueError` for what is no ball, a negative `beta`, or an attack without a random start.

    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> images, labels, key = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0]), jax.random.key(0)
    >>> objective = odejax.training.TRADES(odejax.LinfBall(0.1), beta=6.0)
    >>> round(float(objective(model, eqx.nn.State(None), images, labels, key=key)[0]), 3)
    0.723

    Zhang et al. 2019, arXiv:1901.08573.
    """

    ball: AbstractBall
    beta: float = 6.0
    attack: AbstractClimb = PGD(steps=10, last=True)

    def __check_init__(self):
        check_ball(self.ball)
        check_not_negative(beta=self.beta)
        check_callable(attack=self.attack)
        if not self.attack.random_start:
            raise ValueError("attack needs a random start: at x itself the divergence has no slope")

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        attack_key, clean_key, key = jax.random.split(key, 3)
        predictor = as_attacked(model, state)

        def attacked(x, y, key):
            first_key, key = jax.random.split(key)
            log_p = jax.nn.log_softmax(predictor(x, key=first_key))

            def divergence(logits, y, target=None):
                return _divergence(log_p, jax.nn.log_softmax(logits))

            attack = dataclasses.replace(self.attack, loss=divergence)
            return attack(predictor, x, y, self.ball, key=key).x_adv

        x_adv = jax.vmap(attacked)(images, labels, jax.random.split(attack_key, len(images)))
        logits, state = batch_logits(model, state, images, key=clean_key)
        moved, state = batch_logits(model, state, jax.lax.stop_gradient(x_adv), key=key)
        natural, correct = loss_and_correct(logits, labels)
        robust = jnp.mean(_divergence(jax.nn.log_softmax(logits), jax.nn.log_softmax(moved)))
        return natural + self.beta * robust, (state, correct)


def _divergence(log_p, log_q):
    """KL(p || q) along the last axis."""
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)
