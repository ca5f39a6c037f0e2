"""You only propagate once (Zhang et al. 2019)."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State
from jaxtyping import Array, PyTree

from .._batch import vmap_batch
from .._checks import check_callable, check_count, check_positive
from .._threat_model import AbstractBall, check_ball
from .._types import Images, Key, Labels
from ..attacks import default_step
from .gradients import AbstractGradientRule, Gradient
from .objectives import loss_and_correct


class YOPO(AbstractGradientRule):
    """You only propagate once: adversarial training with attacks through the first layer alone.

    YOPO-m-n: `m` times the network's loss is differentiated at x + eta, by the weights and by the
    first layer's output (the adjoint p), and between two times eta takes `n` steps of
    steepest(grad_eta <p, f_0(x + eta)>) with p fixed. The weights' gradient is the mean of the m.
    So m backward passes replace the (m - 1) n + 1 of PGD. (Where f_0 is linear, as a convolution
    is, its n steps all have one direction: they are a single step n times as long.)

    From a random start in the ball; batch statistics are those of each attacked batch.

    - `ball`: the threat model.
    - `first(model)`: the layer f_0, called as f_0(x), such as `lambda m: m.stem` of a
      `PreActResNet`.
    - `m`, `n`: 5 and 3 by default; m is at least 2.
    - `step_size`: in the ball's norm; None, the default, is `attacks.default_step` for the (m - 1)
      n steps that move.
    - `apply(layer, x)`: how it is applied; for the stacked layers of an `EnResNet`
      `eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))`.

    Raises `ValueError` for what is no ball, an `m` below 2, an `n` below 1, or a step size that is
    not positive.

    >>> data = odejax.data.ArrayDataset(np.zeros((8, 4, 4, 1), np.uint8), np.zeros(8, np.int32))
    >>> net = eqx.nn.make_with_state(odejax.models.MLP)((4, 4, 1), 2, key=jax.random.key(0))
    >>> settings = {"epochs": 1, "batch_size": 4, "key": jax.random.key(1), "progress": False}
    >>> rule = odejax.training.YOPO(odejax.LinfBall(0.1), first=lambda model: model.layers[0], m=2,
    ...     apply=lambda layer, x: layer(x.ravel()))
    >>> len(odejax.training.fit(*net, data, rule, optax.sgd(0.1), **settings).history)
    1

    Zhang et al. 2019, arXiv:1905.00877.
    """

    ball: AbstractBall
    first: Callable[[Any], Callable] = eqx.field(static=True)
    m: int = eqx.field(static=True, default=5)
    n: int = eqx.field(static=True, default=3)
    step_size: float | None = None
    apply: Callable = eqx.field(static=True, default=lambda layer, x: layer(x))
    replays: ClassVar[int] = 1

    def __check_init__(self):
        check_ball(self.ball)
        check_count(n=self.n)
        check_count(2, m=self.m)  # the first is at random noise
        check_positive(step_size=self.step_size)
        check_callable(first=self.first, apply=self.apply)

    def init(self, shape: tuple[int, int, int, int]) -> PyTree:
        return None

    def __call__(
        self, params, static, state: State, carry, images: Images, labels: Labels, *, key: Key
    ) -> Gradient:
        start_key, *keys = jax.random.split(key, 1 + self.m)
        ball, n = self.ball, len(images)
        size = self.step_size
        if size is None:
            size = default_step(ball, (self.m - 1) * self.n)
        layer = self.first(eqx.combine(params, static))
        output = jax.eval_shape(lambda x: self.apply(layer, x), images[0])
        taps = jnp.zeros((n, *output.shape), output.dtype)

        def outer(total, key):
            x_adv, adjoint, state, gradient = total

            def inner(x_adv, _):
                def ascend(x_adv, p, x):
                    _, pull_back = jax.vjp(lambda x: self.apply(layer, x), x_adv)
                    return ball.project(x_adv + size * ball.steepest(pull_back(p)[0]), x)

                return jax.vmap(ascend)(x_adv, adjoint, images), None

            # Before the first adjoint is known it is 0, and these steps stay where they are.
            x_adv, _ = jax.lax.scan(inner, x_adv, None, length=self.n)

            def loss(params, taps):
                model = eqx.combine(params, static)
                logits, new_state = self._logits(model, state, x_adv, taps, key)
                value, correct = loss_and_correct(logits, labels)
                return value, (new_state, correct)

            (value, (state, correct)), (slope, adjoint) = jax.value_and_grad(
                loss, (0, 1), has_aux=True
            )(params, taps)

            gradient = jax.tree.map(jnp.add, gradient, slope)
            return (x_adv, adjoint, state, gradient), (value, correct)

        x_adv = jax.vmap(lambda x, key: ball.sample(x, key=key))(
            images, jax.random.split(start_key, n)
        )
        total = x_adv, taps, state, jax.tree.map(jnp.zeros_like, params)
        (_, _, state, gradient), (values, corrects) = jax.lax.scan(outer, total, jnp.stack(keys))
        mean = jax.tree.map(lambda g: g / self.m, gradient)
        return (jnp.mean(values), (state, corrects[-1])), mean, carry

    def _logits(self, model, state, images, taps, key):
        """Logits with an array for each image added to what the first layer says of it."""

        def tapped_logits(x, tap, key):
            tapped = eqx.tree_at(self.first, model, _Tapped(self.first(model), tap))
            return tapped(x, state, key=key)

        keys = jax.random.split(key, len(images))
        return vmap_batch(tapped_logits, out_axes=(0, None))(images, taps, keys)


class _Tapped(eqx.Module):
    """layer(x) + tap: the derivative by the tap is that by the layer's output."""

    layer: Callable
    tap: Array

    def __call__(self, x):
        return self.layer(x) + self.tap
