"""Layers with a proven l2 Lipschitz constant, `lipschitz_bound()`.

*structured*: an explicit Euler step along a gradient flow, x+ = x - h A^T sigma(A x + b), sigma
with slopes in [a, 1], has the symmetric Jacobian I - h A^T D A with D diagonal in [a, 1]. With
m |x|^2 <= |A x|^2 <= M |x|^2 its eigenvalues lie between 1 - h M and 1 - h a m, so the step

- expands nothing for 0 <= h <= 2 / M;
- contracts for 0 < h < 2 / M, a > 0 and m > 0;
- expands by at most 1 - h M for a negative h, and such a step is allowed behind one that contracts
  as much: "1-Lipschitz networks including layers that are not 1-Lipschitz".

Which sizes two such steps take is said by the rules in `step_rules`.
"""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_fraction
from .._frozen import AbstractReparametrised
from .._rounding import LAYER_ROUNDING
from .._types import Features, Image, Key, Label, Scalar
from .operators import AbstractOperator, ConvOperator, DenseOperator
from .step_rules import AbstractSteps, step_norm


class ErrorBall(NamedTuple):
    """Where all images around one come to: within `radius` of `centre`, `error` off in float32.

    Both in l2, and of any shape: one entry for each radius around the image.
    """

    centre: Array
    radius: Float[Array, "..."]
    error: Float[Array, "..."]


class AbstractLipschitzLayer(eqx.Module):
    """A map of arrays with a proven l2 Lipschitz constant."""

    @abc.abstractmethod
    def __call__(self, x: Array) -> Array:
        """The layer's output."""

    @abc.abstractmethod
    def lipschitz_bound(self) -> Scalar:
        """A proven bound on |f(x) - f(x')|_2 / |x - x'|_2."""

    def summed_norms(self, size: Array, pixels: int) -> float | Array:
        """The l2 norms of what the layer adds up, in sum, for inputs of norm `size`."""
        return 0.0

    def propagate(self, ball: ErrorBall) -> ErrorBall:
        """The ball around the output, from that around the input."""
        bound, out = self.lipschitz_bound(), self(ball.centre)
        size = jnp.linalg.norm(jnp.ravel(ball.centre)) + ball.radius
        lost = LAYER_ROUNDING * self.summed_norms(size, math.prod(out.shape[:-1]))
        return ErrorBall(out, bound * ball.radius, bound * ball.error + lost)


def _norm(bias, pixels):
    return pixels**0.5 * jnp.linalg.norm(bias)


class Affine(AbstractLipschitzLayer):
    """x -> A x + b."""

    operator: AbstractOperator
    bias: Float[Array, " o"]

    def __call__(self, x: Array) -> Array:
        return self.operator(x) + self.bias

    def lipschitz_bound(self) -> Scalar:
        return self.operator.norm_bound()

    def summed_norms(self, size: Array, pixels: int) -> Array:
        return self.operator.norm_bound() * size + _norm(self.bias, pixels)


def lift(
    inputs: int,
    outputs: int,
    image_size: tuple[int, int],
    key: Key,
    *,
    gain: float | None = 1.0,
    circular: bool = False,
) -> Affine:
    """A 3x3 convolution to other channels, delta-orthogonal at the start: it loses nothing."""
    operator = ConvOperator(
        delta_orthogonal(key, inputs, outputs), image_size, gain, circular=circular
    )
    return Affine(operator, jnp.zeros(outputs))


def delta_orthogonal(key: Key, inputs: int, outputs: int):
    """A 3x3 kernel that is an orthogonal matrix in its centre and 0 around it."""
    return jnp.zeros((3, 3, inputs, outputs)).at[1, 1].set(_orthogonal(key, inputs, outputs))


def dense(inputs: int, outputs: int, key: Key, *, gain: float | None = 1.0) -> Affine:
    """A matrix and a bias, orthogonal at the start."""
    return Affine(DenseOperator(_orthogonal(key, outputs, inputs), gain), jnp.zeros(outputs))


def _orthogonal(key: Key, rows: int, columns: int):
    return jax.nn.initializers.orthogonal()(key, (rows, columns))


class GradientFlow(AbstractLipschitzLayer):
    """A step down a convex potential: x, an image or a vector, to the same shape.

        x -> x - h A^T sigma(A x + b),  sigma(v) = max(v, a v)

    - `operator`: A, an operator such as `DenseOperator`.
    - `bias`: b, (o,).
    - `step`: h, of either sign (1.0).
    - `slope`: a in [0, 1] (0.0, the ReLU).

    Raises `ValueError` for a slope outside [0, 1].

        >>> import jax.numpy as jnp, odejax
        >>> identity = odejax.models.DenseOperator(jnp.eye(2), None)
        >>> layer = odejax.models.GradientFlow(identity, jnp.zeros(2), step=0.5)
        >>> layer(jnp.array([2.0, -2.0])).tolist()
        [1.0, -2.0]

    Celledoni et al. (2022), arXiv:2210.02373; Meunier et al. (2022), arXiv:2110.12690.
    """

    operator: AbstractOperator
    bias: Float[Array, " o"]
    step: float | Scalar = 1.0
    slope: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        check_fraction(slope=self.slope)

    def __call__(self, x: Array) -> Array:
        operator = self.operator.freeze()
        raised = operator(x) + self.bias  # pyright: ignore[reportCallIssue]
        sigma = jnp.maximum(raised, self.slope * raised)
        return x - self.step * operator.adjoint(sigma)  # pyright: ignore

    def lipschitz_bound(self) -> Scalar:
        high = self.operator.norm_bound() ** 2
        low = self.operator.smallest_square() if self.slope else 0.0
        return step_norm(self.step, self.slope * low, high)

    def summed_norms(self, size: Array, pixels: int) -> Array:
        norm = self.operator.norm_bound()
        raised = norm * size + _norm(self.bias, pixels)
        return size + 2 * jnp.abs(self.step) * norm * raised  # once in A x + b, once behind A^T


class Residual(AbstractLipschitzLayer):
    """A residual layer: x, an image or a vector, to the same shape.

        x -> x + B sigma(A x + b),  sigma the ReLU

    No more is known of it than the constant 1 + |A| |B|.

    - `first`: A, an operator such as `DenseOperator`.
    - `second`: B^T, a map of the same sizes as A.
    - `bias`: b, (o,).

        >>> import jax.numpy as jnp, odejax
        >>> identity = odejax.models.DenseOperator(jnp.eye(2), None)
        >>> layer = odejax.models.Residual(identity, identity, jnp.zeros(2))
        >>> layer(jnp.array([2.0, -2.0])).tolist()
        [4.0, -2.0]

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    first: AbstractOperator
    second: AbstractOperator
    bias: Float[Array, " o"]

    def __call__(self, x: Array) -> Array:
        return x + self.second.adjoint(jax.nn.relu(self.first(x) + self.bias))

    def lipschitz_bound(self) -> Scalar:
        return 1 + self.first.norm_bound() * self.second.norm_bound()

    def summed_norms(self, size: Array, pixels: int) -> Array:
        raised = self.first.norm_bound() * size + _norm(self.bias, pixels)
        return size + 2 * self.second.norm_bound() * raised


class TwoFlows(AbstractReparametrised, AbstractLipschitzLayer):
    """Two gradient-flow steps that together expand nothing: x, an image or a vector, to the same
    shape.

        x+ = x - h_1 A_1^T sigma(A_1 x + b_1),  then the same with h_2, A_2 and b_2

    - `operators`, `biases`: A_1 and A_2, b_1 and b_2.
    - `learned`: two real numbers, (2,), that `steps` makes the step sizes of.
    - `steps`: how, `NonExpansiveSteps()`, `PrescribedSteps()` or `FlexibleSteps()`.
    - `slope`: sigma(v) = max(v, slope v).

        >>> import jax.numpy as jnp, odejax
        >>> maps, zeros = (odejax.models.DenseOperator(jnp.eye(2), 1.0),) * 2, jnp.zeros(2)
        >>> steps = odejax.models.PrescribedSteps()
        >>> layer = odejax.models.TwoFlows(maps, (zeros, zeros), zeros, steps, 0.5)
        >>> [round(float(flow.step), 1) for flow in layer.flows()]
        [1.3, -2.0]

    Celledoni et al. (2022), arXiv:2210.02373.
    """

    operators: tuple[AbstractOperator, AbstractOperator]
    biases: tuple[Float[Array, " o"], Float[Array, " o"]]
    learned: Float[Array, " 2"]
    steps: AbstractSteps
    slope: float = eqx.field(static=True)

    def flows(self) -> tuple[GradientFlow, GradientFlow]:
        """The two, with the step sizes that they take."""
        high = jnp.stack([operator.norm_bound() ** 2 for operator in self.operators])
        high = jnp.where(high > 0, high, 1.0)  # of maps that are 0, any step will do
        low = jnp.stack([operator.smallest_square() for operator in self.operators])
        sizes = self.steps(self.learned, low, high, self.slope)
        first, second = (
            GradientFlow(operator.freeze(), bias, h, self.slope)  # pyright: ignore
            for operator, bias, h in zip(self.operators, self.biases, sizes, strict=True)
        )
        return first, second

    def freeze(self) -> "Sequential":
        return Sequential(self.flows())

    def __call__(self, x: Array) -> Array:
        return self.freeze()(x)

    def lipschitz_bound(self) -> Scalar:
        return self.freeze().lipschitz_bound()

    def propagate(self, ball: ErrorBall) -> ErrorBall:
        return self.freeze().propagate(ball)


class Sequential(AbstractLipschitzLayer):
    """One layer after the other; the constants multiply."""

    layers: tuple[AbstractLipschitzLayer, ...]

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def lipschitz_bound(self) -> Scalar:
        bound = jnp.ones(())
        for layer in self.layers:
            bound = bound * layer.lipschitz_bound()
        return bound

    def propagate(self, ball: ErrorBall) -> ErrorBall:
        for layer in self.layers:
            ball = layer.propagate(ball)
        return ball

    def margin_bounds(self, label: Label) -> Float[Array, " k"]:
        """How fast z_label - z_j can change at most per unit of l2, (k,).

        It is <a_label - a_j, h> of the head's rows and the features h before them, so at most
        |a_label - a_j| times the constant up to there, and at most sqrt(2) times the whole.
        """
        whole = 2**0.5 * self.lipschitz_bound()
        *body, head = self.layers
        assert isinstance(head, Affine)
        rows = head.operator.freeze().matrix  # pyright: ignore[reportAttributeAccessIssue]
        squares = jnp.sum((rows[label] - rows) ** 2, axis=1)
        # Of the label itself the root has no derivative.
        apart = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        return jnp.minimum(whole, Sequential(tuple(body)).lipschitz_bound() * apart)

    def float32_error(self, x: Array, radius: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """How far sums in float32 may take the outputs off, in l2, within `radius` of x.

        In proportion to what is added up in each layer, however much of it cancels: a constant, and
        what grows with the radius.
        """
        # In the dtype that the layers compute in, which is not JAX's own where that is float64.
        dtype = jax.eval_shape(self, x).dtype
        radius = jnp.asarray(radius, dtype)
        return self.propagate(ErrorBall(x, radius, jnp.zeros_like(radius))).error


class ReLU(AbstractLipschitzLayer):
    """max(x, 0), of constant 1."""

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(x)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class MinMax(AbstractLipschitzLayer):
    """Halves p and q of the last axis to max(p, q) and min(p, q), of constant 1.

    At each x it is a permutation, which keeps the length of every gradient, where a ReLU loses
    part of it. Raises `ValueError` for an odd number of channels.

        >>> import jax.numpy as jnp, odejax
        >>> odejax.models.MinMax()(jnp.array([1.0, 5.0, 2.0, 3.0])).tolist()
        [2.0, 5.0, 1.0, 3.0]

    Anil, Lucas and Grosse (2019), arXiv:1811.05381.
    """

    def __call__(self, x: Array) -> Array:
        if x.shape[-1] % 2:
            raise ValueError(f"MinMax takes pairs of channels; got {x.shape[-1]}")
        p, q = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([jnp.maximum(p, q), jnp.minimum(p, q)], axis=-1)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class SpaceToDepth(AbstractLipschitzLayer):
    """2 x 2 pixels to 4 channels: halves the image without losing anything, an isometry."""

    def __call__(self, x: Image) -> Features:
        h, w, c = x.shape
        x = x.reshape(h // 2, 2, w // 2, 2, c)
        return jnp.transpose(x, (0, 2, 1, 3, 4)).reshape(h // 2, w // 2, 4 * c)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class MaxPool(AbstractLipschitzLayer):
    """The largest of every 2 x 2 pixels; a last odd row or column is left out.

    |max u - max v| <= |u - v|_inf <= |u - v|_2 in each window, and the windows are disjoint: 1.
    """

    def __call__(self, x: Image) -> Features:
        h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
        # In pairs: the gradient of `jnp.max` looks for the entries that equal the largest, and is
        # NaN where XLA rounds the two computations of them differently.
        x = jnp.maximum(x[:h:2], x[1:h:2])
        return jnp.maximum(x[:, :w:2], x[:, 1:w:2])

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())


class Flatten(AbstractLipschitzLayer):
    """All entries in one vector, an isometry."""

    def __call__(self, x: Image) -> Float[Array, " n"]:
        return jnp.ravel(x)

    def lipschitz_bound(self) -> Scalar:
        return jnp.ones(())
