"""Threat models: what an adversary may do to an image.

A threat model is the set {x' : norm(x' - x) <= eps} intersected with the box [0, 1] of valid
pixels. `eps` is an array leaf, in units of the pixel scale [0, 1], so a sweep over it compiles
once.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._checks import check_instance, check_radius
from ._rounding import PIXEL_ROUNDING
from ._types import BoolScalar, Image, Key, Scalar


class AbstractBall(eqx.Module):
    """A norm ball around an image, cut to the box [0, 1].

    Raises `ValueError` when `eps` is negative or not finite.
    """

    eps: eqx.AbstractVar[Float[Array, "..."]]
    name: eqx.AbstractClassVar[str]
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0

    def __check_init__(self):
        if eqx.is_array(self.eps):
            check_radius(self.eps)

    def in_words(self) -> str:
        """The norm and eps, as "linf 0.05"."""
        return f"{self.name} {float(self.eps):.3g}"

    def clip(self, x: Image) -> Image:
        """The nearest image in the box."""
        return jnp.clip(x, self.lower, self.upper)

    def contains(self, x_adv: Image, x: Image) -> BoolScalar:
        """Whether `x_adv` lies in the ball around `x` and in the box, to within rounding."""
        in_box = (x_adv >= self.lower - PIXEL_ROUNDING) & (x_adv <= self.upper + PIXEL_ROUNDING)
        return jnp.all(in_box) & self.reaches(self.norm(x_adv - x), x.size)

    def reaches(self, distance: Scalar, size: int) -> BoolScalar:
        """Whether a norm, computed over `size` pixels, is at most eps to within rounding.

        A sum of n squares is off by about sqrt(n) roundings, in proportion to itself: a tolerance
        without that part would reject what `project` returns from eps 3 on.
        """
        rounding = 0.5 * size**0.5 * jnp.finfo(distance.dtype).eps
        return distance <= self.eps * (1 + rounding) + PIXEL_ROUNDING

    @abc.abstractmethod
    def norm(self, v: Array) -> Scalar:
        """The norm that `eps` bounds."""

    @abc.abstractmethod
    def shrink(self, v: Array) -> Array:
        """The move of norm at most eps nearest to `v`; the box plays no part."""

    @abc.abstractmethod
    def project(self, x_adv: Image, x: Image) -> Image:
        """A point of ball and box near `x_adv`, for `x` in the box.

        First to the ball, then to the box; the second step cannot leave the ball, since
        projecting on a convex set that holds `x` brings no point further from `x`. For the
        infinity norm this is the nearest point of the intersection; for the 2-norm, nearly.
        """

    def to_grey_levels(self, x_adv: Image, x: Image, bits: int) -> Image:
        """A point of ball and box near `x_adv` with pixels k / (2^bits - 1); those of `x` are such.

        The nearest one where the ball holds it, else the nearest on the way to `x`: no pixel is
        further from `x` than it was, and so no norm is larger.
        """
        levels = 2**bits - 1
        nearest = jnp.round(x_adv * levels) / levels
        inwards = jnp.where(x_adv > x, jnp.floor(x_adv * levels), jnp.ceil(x_adv * levels))
        inwards = jnp.where(jnp.abs(nearest - x_adv) * levels < 1e-3, nearest, inwards / levels)
        return self._held(nearest, inwards, x)

    def _held(self, nearest: Image, inwards: Image, x: Image) -> Image:
        return jnp.where(self.contains(nearest, x), nearest, inwards)

    @abc.abstractmethod
    def steepest(self, gradient: Image) -> Image:
        """The step of norm 1 (0 for a zero gradient) with the largest inner product."""

    @abc.abstractmethod
    def dual_norm(self, gradient: Array) -> Scalar:
        """The largest inner product of `gradient` with a step of norm 1: that of `steepest`."""

    @abc.abstractmethod
    def largest_gain(
        self, x: Float[Array, " n"], w: Float[Array, "*rows n"]
    ) -> Float[Array, "*rows"]:
        """An upper bound on <w, x' - x> over the x' of ball and box, for x in the box.

        Exact for the infinity norm. For the 2-norm the smaller of two bounds: eps times the norm of
        w, without the coordinates that the box does not let move, and the gain in the cube that
        holds ball and box. Both are matrix products, so that many w and, under `vmap`, many x
        cost little.
        """

    @abc.abstractmethod
    def reach(self, x: Image, w: Image, gap: Scalar) -> Image:
        """The smallest move d in this norm with <w, d> = gap and x + d in the box, for x in it.

        Where the box holds no such point, the move that comes closest to one.
        """

    @abc.abstractmethod
    def random_direction(self, shape: tuple[int, ...], *, key: Key) -> Image:
        """A random step of norm 1."""

    @abc.abstractmethod
    def sample(self, x: Image, *, key: Key) -> Image:
        """A uniform draw from the ball, then cut to the box."""

    @abc.abstractmethod
    def covering_radius(self, ball: "AbstractBall", size: int) -> Scalar:
        """The radius, in this ball's norm, of the smallest ball that covers `ball`.

        In R^size, ||v||_inf <= ||v||_2 <= sqrt(size) ||v||_inf. A certified radius r in this
        ball's norm certifies `ball` when `covering_radius(ball, size) <= r`.
        """


class LinfBall(AbstractBall):
    """The images whose every pixel differs by at most `eps`, within the box [0, 1].

        {x' in [0, 1]^n : max_i |x'_i - x_i| <= eps}

    - `eps`: in the pixel scale [0, 1], such as 8 / 255; an array leaf, so other values need no new
      compilation.

    Raises `ValueError` when `eps` is negative or not finite.

    >>> ball = odejax.LinfBall(0.1)
    >>> ball.project(jnp.ones((1, 2, 1)), jnp.array([0.5, 0.95]).reshape(1, 2, 1)).ravel().tolist()
    [0.6000000238418579, 1.0]
    """

    eps: Float[Array, "..."]
    name: ClassVar[str] = "linf"

    def __init__(self, eps: ArrayLike):
        check_radius(eps)
        self.eps = jnp.asarray(eps, jnp.float32)

    def norm(self, v: Array) -> Scalar:
        return jnp.max(jnp.abs(v))

    def shrink(self, v: Array) -> Array:
        return jnp.clip(v, -self.eps, self.eps)

    def project(self, x_adv: Image, x: Image) -> Image:
        return self.clip(jnp.clip(x_adv, x - self.eps, x + self.eps))

    def _held(self, nearest: Image, inwards: Image, x: Image) -> Image:
        return jnp.where(
            jnp.abs(nearest - x) <= self.eps + PIXEL_ROUNDING, nearest, inwards
        )  # by pixel

    def steepest(self, gradient: Image) -> Image:
        return jnp.sign(gradient)

    def dual_norm(self, gradient: Array) -> Scalar:
        return jnp.sum(jnp.abs(gradient))

    def largest_gain(
        self, x: Float[Array, " n"], w: Float[Array, "*rows n"]
    ) -> Float[Array, "*rows"]:
        return _gain_in_cube(x, w, self)

    def reach(self, x: Image, w: Image, gap: Scalar) -> Image:
        return _reach(x, w, gap, jnp.sign, self)

    def random_direction(self, shape: tuple[int, ...], *, key: Key) -> Image:
        v = jax.random.uniform(key, shape, self.eps.dtype, minval=-1.0, maxval=1.0)
        return v / _positive(self.norm(v))

    def sample(self, x: Image, *, key: Key) -> Image:
        move = jax.random.uniform(key, x.shape, x.dtype, minval=-1.0, maxval=1.0)
        return self.clip(x + self.eps * move)

    def covering_radius(self, ball: AbstractBall, size: int) -> Scalar:
        return ball.eps  # the smallest cube around either ball has its radius


class L2Ball(AbstractBall):
    """The images within the Euclidean distance `eps` of x, within the box [0, 1].

        {x' in [0, 1]^n : ||x' - x||_2 <= eps},  over all pixels and channels

    - `eps`: in the pixel scale [0, 1], such as 0.5; an array leaf, so other values need no new
      compilation.

    Raises `ValueError` when `eps` is negative or not finite.

    >>> ball = odejax.L2Ball(0.5)
    >>> ball.project(jnp.array([0.6, 0.8]).reshape(1, 2, 1), jnp.zeros((1, 2, 1))).ravel().tolist()
    [0.30000001192092896, 0.4000000059604645]
    """

    eps: Float[Array, "..."]
    name: ClassVar[str] = "l2"

    def __init__(self, eps: ArrayLike):
        check_radius(eps)
        self.eps = jnp.asarray(eps, jnp.float32)

    def norm(self, v: Array) -> Scalar:
        return jnp.sqrt(jnp.sum(v**2))

    def shrink(self, v: Array) -> Array:
        return v * jnp.minimum(1.0, self.eps / _positive(self.norm(v)))

    def project(self, x_adv: Image, x: Image) -> Image:
        return self.clip(x + self.shrink(x_adv - x))

    def steepest(self, gradient: Image) -> Image:
        # Scaled first, so that gradients below 1e-19 do not underflow when squared.
        gradient = gradient / _positive(jnp.max(jnp.abs(gradient)))
        return gradient / _positive(self.norm(gradient))

    def dual_norm(self, gradient: Array) -> Scalar:
        largest = _positive(jnp.max(jnp.abs(gradient)))
        return largest * self.norm(gradient / largest)

    def largest_gain(
        self, x: Float[Array, " n"], w: Float[Array, "*rows n"]
    ) -> Float[Array, "*rows"]:
        scale = _positive(jnp.max(jnp.abs(w), axis=-1))  # that nothing underflows when squared
        up, down = map(jnp.square, _up_and_down(w / scale[..., None]))
        square = up @ (x < self.upper).astype(w.dtype) + down @ (x > self.lower).astype(w.dtype)
        return jnp.minimum(self.eps * scale * jnp.sqrt(square), _gain_in_cube(x, w, self))

    def reach(self, x: Image, w: Image, gap: Scalar) -> Image:
        return _reach(x, w, gap, lambda w: w, self)

    def random_direction(self, shape: tuple[int, ...], *, key: Key) -> Image:
        return self.steepest(jax.random.normal(key, shape, self.eps.dtype))

    def sample(self, x: Image, *, key: Key) -> Image:
        direction_key, radius_key = jax.random.split(key)
        direction = self.random_direction(x.shape, key=direction_key)
        radius = self.eps * jax.random.uniform(radius_key, dtype=x.dtype) ** (1 / x.size)
        return self.clip(x + radius * direction)

    def covering_radius(self, ball: AbstractBall, size: int) -> Scalar:
        if isinstance(ball, LinfBall):
            return ball.eps * size**0.5
        return ball.eps


def check_ball(ball):
    """Raise `ValueError` unless it is one."""
    check_instance(AbstractBall, "a ball, such as LinfBall(0.1)", ball=ball)


def _up_and_down(w: Array) -> tuple[Array, Array]:
    """w = up - down, both not negative."""
    return jnp.maximum(w, 0.0), jnp.maximum(-w, 0.0)


def _gain_in_cube(x: Array, w: Array, ball: AbstractBall) -> Array:
    """max <w, x' - x> over the x' of the box with max_i |x'_i - x_i| <= eps."""
    up, down = _up_and_down(w)
    rise, fall = jnp.minimum(ball.eps, ball.upper - x), jnp.minimum(ball.eps, x - ball.lower)
    return up @ rise + down @ fall


def _room(x: Array, w: Array, box: AbstractBall) -> Array:
    """How far each coordinate can move in the direction of w before it leaves the box."""
    return jnp.where(w > 0, box.upper - x, x - box.lower)


def _reach(x: Image, w: Image, gap: Scalar, along: Callable[[Image], Image], box) -> Image:
    """d = clip(lambda * along(w)) to the box's room, with <w, d> = gap (`AbstractBall.reach`).

    <w, d> grows with lambda, piecewise linearly and ever slower: lambda times the sum over what is
    free, plus what the others, at the end of their room, have given. Solving for lambda with those
    that are free at the last one (Newton's method) rises to the solution without passing it, and
    is exact once no further coordinate stops.
    """
    scale = jnp.sign(gap) / _positive(jnp.max(jnp.abs(w)))
    w, gap = w * scale, jnp.abs(gap * scale)
    rate, room = jnp.abs(along(w)), _room(x, w, box)
    free_gain, stopped_gain = jnp.abs(w) * rate, jnp.abs(w) * room

    def newton(carry):
        size, _, k = carry
        free = size * rate < room
        slope = jnp.sum(jnp.where(free, free_gain, 0.0))
        given = jnp.sum(jnp.where(free, 0.0, stopped_gain))
        # Where the whole room is used up nothing more is gained.
        new = jnp.where(slope > 0, (gap - given) / _positive(slope), size)
        new = jnp.minimum(new, jnp.finfo(new.dtype).max)  # infinity times a rate of 0 is NaN
        return new, new > size * (1 + 1e-6), k + 1

    start = (jnp.zeros_like(gap), gap > 0, 0)
    size, _, _ = jax.lax.while_loop(lambda carry: carry[1] & (carry[2] < 50), newton, start)
    return jnp.sign(w) * jnp.minimum(size * rate, room)


def _positive(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(x > 0, x, 1.0)
