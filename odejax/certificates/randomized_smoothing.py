"""Randomised smoothing as a certificate: a confidence bound in place of a proof (Cohen et al.)."""

import functools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import check_count, check_positive, check_share
from .._inputs import method_name
from .._smoothing import Smoothed
from .._threat_model import AbstractBall, L2Ball
from .._types import Image, Key, Logits, LogitsFn, Scalar
from .base import AbstractCertificate, carried_over


class RandomizedSmoothing(AbstractCertificate):
    """Certifies the exact vote of a `Smoothed` in l2, with a confidence: algorithm CERTIFY.

        radius = sigma Phi^-1(p),  p <= P(argmax f(x + sigma e) = c) with confidence 1 - alpha

    The class c has the most of `n0` votes. p is the exact lower bound of Clopper and Pearson from
    `n` other votes. Where p <= 1/2 the certificate abstains: label -1, radius 0. Else, with
    confidence 1 - alpha, c is the class that the vote over infinitely many draws gives to every
    image nearer than the radius. Nothing is asked of the network f, which may draw noise of its
    own: the probability is over both. (The inner noise of an `EnResNet` alone proves nothing.)

    The confidence is that of one image: its radius is too large with probability at most alpha,
    over the draws. The radii of m images are right all at once with confidence 1 - m alpha (the
    union bound). With `images=m` each is certified at alpha / m, and the confidence 1 - alpha is
    that of all m at once. The statement is about the exact vote. A vote of finitely many draws, by
    which attacks are judged, may differ from it where the exact vote is close.

    All of R^n is covered, so also the box. For `LinfBall` the radius is divided by sqrt(n pixels).
    No radius exceeds sigma Phi^-1(alpha^(1/n)): 3.2 sigma by default, 3.8 sigma at n = 100,000. It
    is rounded down; the bound is computed in float64 and checked against the binomial tail. The
    noise counts as exactly normal, and its pseudorandom numbers as independent.

    - `n0`, `n`: votes that choose the class (100), and that bound its probability (10,000).
      `Smoothed.chunk` of them are computed at once.
    - `alpha`: the probability of a radius that is too large (0.001), in (0, 1).
    - `images`: the number of images for which alpha holds at once (1).

    Raises `ValueError` for a network that is no `Smoothed`, counts below 1, an alpha outside
    (0, 1), and an n so small that n votes of n would prove nothing.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> bright = lambda x: jnp.stack([0.5 - x.mean(), x.mean() - 0.5])
        >>> certify = eqx.filter_jit(odejax.certificates.RandomizedSmoothing())
        >>> x, ball, key = jnp.full((1, 1, 1), 0.6), odejax.L2Ball(0.09), jax.random.key(0)
        >>> result = certify(odejax.Smoothed(bright, sigma=0.1), x, 1, ball, key=key)
        >>> bool(0.09 < result.radius < 0.1), bool(result.certified)  # the true radius is 0.1
        (True, True)

    Cohen et al. (2019), arXiv:1902.02918, Section 3.2.2; C. Clopper and E. Pearson, Biometrika 26,
    1934.
    """

    of_any_function: ClassVar[bool] = True
    n0: int = eqx.field(static=True, default=100)
    n: int = eqx.field(static=True, default=10_000)
    alpha: float = eqx.field(static=True, default=0.001)
    images: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        check_count(n0=self.n0, n=self.n, images=self.images)
        check_positive(alpha=self.alpha)
        check_share(alpha=self.alpha)
        least = math.floor(math.log2(1 / self.alpha_per_image)) + 1
        if self.n < least:
            raise ValueError(
                f"n must be at least {least} for alpha / images = {self.alpha_per_image:.3g}: "
                f"fewer votes prove nothing; got {self.n}"
            )

    @property
    def alpha_per_image(self) -> float:
        """The probability that the radius of one image is too large."""
        return self.alpha / self.images

    def prove(
        self, predictor: LogitsFn, x: Image, ball: AbstractBall, *, key: Key
    ) -> tuple[Logits, Scalar]:
        if not isinstance(predictor, Smoothed):
            name = method_name(getattr(predictor, "model", predictor))
            raise ValueError(
                f"RandomizedSmoothing certifies a vote under noise, such as "
                f"Smoothed(network, sigma=0.25); got {name}"
            )
        choice_key, bound_key = jax.random.split(key)
        choice = predictor.votes(x, self.n0, key=choice_key)
        count = predictor.votes(x, self.n, key=bound_key)[jnp.argmax(choice)]
        units = jnp.asarray(radii_of_counts(self.n, self.alpha_per_image))
        # No comparison with NaN is true: a network that diverged in one draw is not certified.
        known = (count >= 0) & jnp.all(choice >= 0)
        unit = jnp.where(known, units[jnp.where(known, count, 0).astype(jnp.int32)], 0.0)
        radius = carried_over(predictor.sigma * unit, L2Ball, ball, x.size)
        return jnp.where(unit > 0, choice, jnp.nan), radius


@functools.lru_cache
def radii_of_counts(n: int, alpha: float) -> np.ndarray:
    """Phi^-1 of the lower confidence bound for 0, ..., n votes of n: radii of sigma 1, float32.

        P(Binomial(n, p) >= count) = alpha

    p is lowered by 1e-9 of itself, more than what its inversion loses in float64; the tail is then
    computed as well, and a p for which it is above alpha is not used. Phi^-1, whose relative error
    in float64 is below 1e-13 here, loses as much, and is rounded down to float32. 0 for p <= 1/2.
    """
    from scipy.special import betainc, betaincinv, ndtri

    count = np.arange(1, n + 1)
    p = betaincinv(count, n - count + 1, alpha) * (1 - 1e-9)
    holds = betainc(count, n - count + 1, p) <= alpha
    units = np.where(holds & (p > 0.5), ndtri(np.maximum(p, 0.5)) * (1 - 1e-9), 0.0)
    rounded = units.astype(np.float32)
    down = np.where(rounded > units, np.nextafter(rounded, np.float32(0)), rounded)
    return np.concatenate([np.zeros(1, np.float32), down])
