"""What a certificate is: a radius within which the prediction provably does not change."""

import abc
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import as_array, check_example, check_labels
from .._inputs import as_key, method_name
from .._logits import Checked
from .._predictor import Predictor
from .._promotion import own_promotion
from .._rounding import MARGIN_ROUNDING, RADIUS_ROUNDING
from .._threat_model import AbstractBall, check_ball
from .._types import BoolScalar, Image, Key, Label, Logits, Scalar


class CertificateResult(eqx.Module):
    """What is proven of one example; batched by `vmap`.

    - `label`: the predicted class; -1 where there is none (logits that are not finite, a vote that
      is too close).
    - `radius`: in the norm of the ball; no image of [0, 1] nearer than it changes `label`. The
      proof is in real numbers; `MARGIN_ROUNDING` is taken off first for those of the machine. Under
      `RandomizedSmoothing` it holds with a confidence.
    - `certified`: `label` is `y`, and `radius` is at least the ball's eps.

        >>> import jax.numpy as jnp, odejax
        >>> label, radius = jnp.asarray(3), jnp.asarray(0.25)
        >>> result = odejax.certificates.CertificateResult(label, radius, jnp.asarray(True))
        >>> float(result.radius)
        0.25

    Tsuzuku et al. (2018), arXiv:1802.04034, for a certified radius of a margin.
    """

    label: Int[Array, "*batch"]
    radius: Float[Array, "*batch"]
    certified: BoolScalar | Any


class AbstractCertificate(eqx.Module):
    """A proof: `certificate(predictor, x, y, ball, key=key)` is a `CertificateResult`; use `vmap`.

        argmax f(x') = argmax f(x) for all x' of the box with |x' - x| < radius

    A subclass defines `prove(predictor, x, ball, key=key)`; one about a deterministic network is an
    `AbstractDeterministicCertificate`. Raises `ValueError` for a model that the certificate says
    nothing about.

    - `predictor`: a frozen network; with `of_any_function` any function of one image.
    - `x`, `y`: one image (h, w, c) in [0, 1], and its label.
    - `ball`: the threat model, whose norm the radius is in.

        >>> import odejax
        >>> issubclass(odejax.certificates.LipschitzMargin, odejax.certificates.AbstractCertificate)
        True

    Two of them: Zhang et al. (2018), arXiv:1811.00866; Tsuzuku et al. (2018), arXiv:1802.04034.
    """

    of_any_function: ClassVar[bool] = False  # or only of a `Predictor`, whose model is looked at

    @property
    def images_at_once(self) -> int:
        """How many images `evaluation.certified_radii` takes in one batch, by default."""
        return 512

    @abc.abstractmethod
    def prove(
        self, predictor: Any, x: Image, ball: AbstractBall, *, key: Key
    ) -> tuple[Logits, Scalar]:
        """Logits (or votes), whose largest is the class proven, and its radius in the ball's norm.

        Where they are not all finite nothing is proven. `ball.eps` says which radius is asked for,
        and may be ignored. Raises `ValueError` for a model that the certificate says nothing about.
        """

    @final
    @own_promotion
    def __call__(
        self, predictor: Any, x: Image, y: Label | int, ball: AbstractBall, *, key: Key | int
    ) -> CertificateResult:
        """Raises `ValueError` for pixels outside the box or a label that is not a class, where
        these are known (not traced; `evaluation.certified_radii` checks whole arrays), for logits
        of another form than (k,), half precision, and a model that it says nothing about.
        """
        x, y = as_array("x", x), as_array("y", y)
        check_ball(ball)
        key = as_key(key)
        if not (self.of_any_function or isinstance(predictor, Predictor)):
            name = getattr(predictor, "function", method_name(predictor))
            raise ValueError(f"{type(self).__name__} needs a Predictor; got {name}")
        check_example(x, y, ball)
        for leaf in jax.tree.leaves(eqx.filter((predictor, x), eqx.is_inexact_array)):
            if jnp.finfo(leaf.dtype).bits < 32:
                raise ValueError(f"certificates are for float32 and float64; got {leaf.dtype}")
        with jax.default_matmul_precision("highest"):  # TF32 would lose more than MARGIN_ROUNDING
            logits, radius = self.prove(predictor, x, ball, key=key)
        check_labels(y, len(logits))
        label = jnp.where(jnp.all(jnp.isfinite(logits)), jnp.argmax(logits), -1)
        return CertificateResult(label, radius, (label == y) & (radius >= ball.eps))


class AbstractDeterministicCertificate(AbstractCertificate):
    """A certificate of the class with the largest logit, argmax(predictor(x)).

    A subclass defines `radius(predictor, x, logits, ball)`.

        >>> import odejax
        >>> abstract = odejax.certificates.AbstractDeterministicCertificate
        >>> issubclass(odejax.certificates.LinearRelaxation, abstract)
        True

    Zhang et al. (2018), arXiv:1811.00866, for one.
    """

    @abc.abstractmethod
    def radius(self, predictor: Any, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        """The certified radius of the predicted class, argmax(logits), in the ball's norm.

        `ball.eps` says which radius is asked for, and may be ignored. Raises `ValueError` for a
        model that the certificate says nothing about.
        """

    @final
    def prove(
        self, predictor: Any, x: Image, ball: AbstractBall, *, key: Key
    ) -> tuple[Logits, Scalar]:
        logits = Checked(predictor)(x, key=key)
        return logits, self.radius(predictor, x, logits, ball)


class AbstractLipschitzCertificate(AbstractDeterministicCertificate):
    """A certificate whose proof is a Lipschitz constant, for all x, in the one norm `norm`.

        radius = min_j (z_label - z_j) / L_j

    It is carried over to the ball's norm by ||v||_inf <= ||v||_2 <= sqrt(n) ||v||_inf. A subclass
    states `norm`, a class variable, and defines `margin_lipschitz(predictor, label)`, L_j; and
    `rounding`, where float32 may lose what is not in proportion to the logits.

        >>> import odejax
        >>> odejax.certificates.LipschitzMargin.norm.__name__
        'L2Ball'

    Tsuzuku et al. (2018), arXiv:1802.04034.
    """

    norm: eqx.AbstractClassVar[type[AbstractBall]]

    @abc.abstractmethod
    def margin_lipschitz(self, predictor: Predictor, label: Label) -> Float[Array, "..."]:
        """How fast z_label - z_j can fall at most per unit of `norm`: (k,), or one for all j."""

    def rounding(
        self, predictor: Predictor, x: Image, label: Label
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """What float32 may take off z_label - z_j, where that is not in proportion to the logits:
        a constant, and what is added for each unit of the radius. Each (k,), or one for all j.
        """
        return jnp.zeros(()), jnp.zeros(())

    @final
    def radius(self, predictor: Predictor, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        label = jnp.argmax(logits)
        lost, more = self.rounding(predictor, x, label)
        lipschitz = (self.margin_lipschitz(predictor, label) + more) * (1 + MARGIN_ROUNDING)
        return carried_over(smallest_radius(logits, lipschitz, lost), self.norm, ball, x.size)


def carried_over(radius: Scalar, norm: type[AbstractBall], ball: AbstractBall, size: int) -> Scalar:
    """A radius that is certified in `norm`, in the norm of `ball`; rounded down."""
    # The ball of radius 1, seen in the certificate's norm, has this radius.
    stretch = norm(1.0).covering_radius(type(ball)(1.0), size)  # pyright: ignore
    return radius / stretch * (1 - RADIUS_ROUNDING)


def smallest_radius(
    logits: Logits, lipschitz: Float[Array, "..."], lost: Float[Array, "..."]
) -> Scalar:
    """The radius at which the first margin, less what is `lost` to rounding and then falling by
    `lipschitz`, could reach zero.
    """
    label = jnp.argmax(logits)
    margins = logits[label] - logits - logit_rounding(logits) - lost
    radii = margins / jnp.maximum(lipschitz, jnp.finfo(logits.dtype).tiny)
    radii = jnp.where(jnp.arange(len(logits)) == label, jnp.inf, radii)
    return jnp.maximum(jnp.min(radii), 0.0)


def logit_rounding(logits: Logits) -> Scalar:
    """What a margin may lose to float32: `MARGIN_ROUNDING` of the largest logit, at x and at x'."""
    return 2 * MARGIN_ROUNDING * jnp.maximum(1.0, jnp.max(jnp.abs(logits)))
