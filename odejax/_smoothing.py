"""Randomised smoothing: the majority vote of a network under Gaussian noise on the image."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_callable, check_count, check_positive
from ._logits import Checked, finite_logits, hoist
from ._types import Image, Key, Logits, LogitsFn


class Smoothed(eqx.Module):
    """The majority vote of a network under Gaussian noise on the image: a classifier.

        z_c(x) = #{d : argmax f(x + sigma e_d) = c} / draws - 1 / k,  e_d ~ N(0, I)

    The largest logit is that of the class with most votes. The logits are shares of the votes, not
    logarithms of them, so that a mean of logits is a vote, too: `attacks.EOT` attacks the vote of
    several evaluations, `MeanLogits` fixes the draws, and a `bracket` judges by the vote of all
    that it fixes. Less the share 1 / k of an even split, they saturate no loss.

    A vote has no gradient. Its derivative is replaced by that of the mean softmax over the same
    draws. The gradient of cross-entropy then has the direction of SmoothAdv's (Salman et al.) where
    the other classes have equal shares. It is not the gradient of what is evaluated, so a bracket
    raises "gradient unlike finite differences": run an attack without gradients as well.

    The noise is not clipped, so the network gets pixels outside [0, 1].
    A network that draws noise itself, such as `EnResNet`, draws it anew for every vote.
    `certificates.RandomizedSmoothing` certifies the exact vote, of infinitely many draws. A vote of
    finitely many estimates it.

    - `logits_fn(x, key=key)`: the network, f.
    - `sigma`: standard deviation of the noise, in units of the pixel scale [0, 1]; an array leaf.
    - `draws`: votes in one evaluation, fresh for every key (100).
    - `chunk`: how many of them are computed at once (16); memory grows with it, not with `draws`.

    Raises `ValueError` for counts below 1, a sigma that is not finite and positive, and when it is
    called without a key. A draw whose logits are not finite makes all logits NaN.

    >>> bright = lambda x: jnp.stack([0.5 - x.mean(), x.mean() - 0.5])
    >>> smoothed = odejax.Smoothed(bright, sigma=0.1, draws=1000)
    >>> logits = smoothed(jnp.full((1, 1, 1), 0.6), key=jax.random.key(0))
    >>> bool(0.8 < logits[1] + 1 / 2 < 0.88)  # the share of class 1: P(N(0.6, 0.1^2) > 0.5) = 0.84
    True

    Cohen et al. (2019), arXiv:1902.02918; Salman et al. (2019), arXiv:1906.04584, for the gradient.
    """

    logits_fn: LogitsFn
    sigma: Float[Array, ""]
    draws: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True)

    def __init__(self, logits_fn: LogitsFn, sigma: ArrayLike, draws: int = 100, chunk: int = 16):
        check_callable(logits_fn=logits_fn)
        check_positive(sigma=sigma)
        check_count(draws=draws, chunk=chunk)
        self.logits_fn, self.sigma = logits_fn, jnp.asarray(sigma, jnp.float32)
        self.draws, self.chunk = draws, chunk

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        if key is None:
            raise ValueError(
                "Smoothed draws noise in every call: give it key=jax.random.key(...), or fix the "
                "draws with MeanLogits"
            )
        votes = self.votes(x, self.draws, key=key)
        # In this order: XLA may round a product and a sum as one operation here, as two there, and
        # then no logit equals the largest one, where a loss takes its gradient.
        return (votes - self.draws / len(votes)) / self.draws

    def votes(self, x: Image, n: int, *, key: Key) -> Float[Array, " k"]:
        """How many of `n` draws of noise vote for each class; NaN if logits are not finite.

        Draw d has the key `fold_in(key, d)`, so the votes do not depend on `chunk`.
        """
        checked, size = Checked(self.logits_fn), min(n, self.chunk)

        def one(draw):
            noise_key, own_key = jax.random.split(jax.random.fold_in(key, draw))
            noise = self.sigma * jax.random.normal(noise_key, x.shape, x.dtype)
            logits = checked(x + noise, key=own_key)
            return _vote(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

        @jax.checkpoint  # a gradient recomputes each chunk: memory does not grow with n
        def add(total, first):
            draws = first + jnp.arange(size)
            cast = jnp.where((draws < n)[:, None], jax.vmap(one)(draws), 0.0)
            return total + jnp.sum(cast, axis=0), None

        like = jax.eval_shape(one, 0)
        return jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), jnp.arange(0, n, size))[0]

    def hoisted(self, x, key: Key) -> "Smoothed":
        return eqx.tree_at(lambda s: s.logits_fn, self, hoist(self.logits_fn, x, key))


@jax.custom_jvp
def _vote(logits: Logits) -> Logits:
    """1 for the class with the largest logit, 0 for the others; NaN if they are not finite.

    Its derivative is that of softmax.
    """
    vote = jnp.arange(len(logits)) == jnp.argmax(logits)
    return jnp.where(finite_logits(logits), vote.astype(logits.dtype), jnp.nan)


@_vote.defjvp
def _(primals, tangents):
    (logits,), (moved,) = primals, tangents
    p = jax.nn.softmax(logits)
    # dp_i = sum_{j != i} p_i p_j (dz_i - dz_j), never by 1 - p_i: where one class has nearly all of
    # p that is lost to rounding, and a confident network would have no gradient.
    pairs = jnp.where(jnp.eye(len(p), dtype=bool), 0.0, p[:, None] * p)
    jacobian = jnp.diag(jnp.sum(pairs, axis=1)) - pairs
    return _vote(logits), jnp.sum(jacobian * moved, axis=1)
