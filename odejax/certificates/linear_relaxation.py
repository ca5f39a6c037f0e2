"""Linear relaxation: local bounds, propagated through the last layer as one margin.

Over the interval that a neuron's gamma runs through in the ball, its activation lies between two
parallel lines, y(gamma) = a gamma + [low, high]. The lines replace the activation in
z_label - z_j, taken as one function. The result is linear in x, and its least value over ball and
box is known (CROWN, Zhang et al. 2018, with parallel lines).
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_count
from .._predictor import Predictor
from .._rounding import MARGIN_ROUNDING, SUM_ROUNDING
from .._threat_model import AbstractBall
from .._types import BoolScalar, Image, Label, Logits, Scalar
from ..models import MLP, NmODE, NmODENet
from .base import AbstractCertificate, logit_rounding
from .stable_mapping import check_exact, check_linear

# (activation, lower, upper) of a layer to (slope, low, high) of its lines
Lines = tuple[Float[Array, " width"], Float[Array, " width"], Float[Array, " width"]]


class LinearRelaxation(AbstractCertificate):
    """Certifies fully connected nets of nmODE (`NmODENet`, `MLP`) or of ReLU (`MLP`).

        a gamma + low <= y(gamma) <= a gamma + high in each neuron's interval

    For a flow map the lines are its chord's, moved to enclose it: `nodes` + 1 points in the
    interval, and between two of them the curvature's bound, spacing^2 / 8 max |y''|; where a
    constant is the better enclosure, that. Of both, whichever proves the larger margin is used for
    each class.

    The radius asked for, `ball.eps`, is tried first, and then the largest one is sought in
    `bisections` halvings. Intervals of deeper layers come from those of the layer before.

    - `nodes`: pieces of a neuron's interval (16).
    - `bisections`: halvings of the radius (10).

    Raises `ValueError` for counts below 1, and for another network.

        >>> import equinox as eqx, jax, jax.numpy as jnp, odejax
        >>> make, key = eqx.nn.make_with_state(odejax.models.MLP), jax.random.key(0)
        >>> net = odejax.Predictor(*make((2, 2, 1), width=4, depth=1, key=key))
        >>> certify = eqx.filter_jit(odejax.certificates.LinearRelaxation())
        >>> float(certify(net, jnp.ones((2, 2, 1)), 0, odejax.LinfBall(0.1), key=key).radius) > 0
        True

    Zhang et al. (2018), arXiv:1811.00866, with parallel lines.
    """

    nodes: int = eqx.field(static=True, default=16)
    bisections: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_count(nodes=self.nodes, bisections=self.bisections)

    def radius(self, predictor: Predictor, x: Image, logits: Logits, ball: AbstractBall) -> Scalar:
        layers, activation = _layers_of(self, predictor.model)
        label = jnp.argmax(logits)

        def proven(eps) -> BoolScalar:
            around = type(ball)(eps)  # pyright: ignore[reportCallIssue]
            margins = self._margins(layers, activation, jnp.ravel(x), label, around)
            margins = jnp.where(jnp.arange(len(logits)) == label, jnp.inf, margins)
            return jnp.min(margins) > logit_rounding(logits)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            certified = proven(middle)
            return jnp.where(certified, middle, low), jnp.where(certified, high, middle)

        def grow(carry):
            low, high, _ = carry
            certified = proven(high)
            low, high = jnp.where(certified, high, low), jnp.where(certified, 2 * high, high)
            return low, high, certified

        asked = jnp.asarray(ball.eps)
        start = jnp.where(asked > 0, asked, 1e-3)
        # No image is further away than sqrt(n), in either norm.
        low, high, _ = jax.lax.while_loop(
            lambda carry: carry[2] & (carry[0] < 2 * x.size**0.5),
            grow,
            (jnp.zeros_like(start), start, jnp.asarray(True)),
        )
        low, _ = jax.lax.fori_loop(0, self.bisections, halve, (low, high))
        return low

    def _margins(self, layers, activation, x, label: Label, ball: AbstractBall):
        """A lower bound on z_label - z_j over ball and box, for every j."""
        weight, bias = layers[0]
        gamma = weight @ x + bias
        fall, rise = ball.largest_gain(x, -weight), ball.largest_gain(x, weight)
        slack = SUM_ROUNDING * (jnp.abs(weight) @ jnp.abs(x) + jnp.abs(bias) + fall + rise)
        intervals = [(gamma - fall - slack, gamma + rise + slack)]
        chords, constants = [], []
        for i, (weight, bias) in enumerate(layers[1:]):
            chord, constant = _relax(activation, *intervals[i], self.nodes)
            chords.append(chord)
            constants.append(constant)
            _, low, high = constant
            middle, reach = weight @ ((low + high) / 2) + bias, jnp.abs(weight) @ ((high - low) / 2)
            sizes = jnp.abs(weight) @ (jnp.abs(low) + jnp.abs(high))
            slack = SUM_ROUNDING * (sizes + jnp.abs(bias) + reach)
            intervals.append((middle - reach - slack, middle + reach + slack))
        # The largest input of each layer; pixels are at most 1.
        inputs = [jnp.ones_like(x)]
        inputs += [jnp.maximum(jnp.abs(low), jnp.abs(high)) for _, low, high in constants]
        return jnp.maximum(
            _through(layers, chords, inputs, x, label, ball),
            _in_box(layers[-1], constants[-1], inputs[-1], label),
        )


def _through(layers, lines: list[Lines], inputs: list[Array], x, label, ball: AbstractBall):
    """The least margins when every activation is replaced by its lines.

    `inputs` bound what goes into each layer, for the rounding of the sums over it.
    """
    weight, bias = layers[-1]
    rows, offset = weight[label] - weight, bias[label] - bias
    size = jnp.abs(offset)
    size = size + jnp.abs(rows) @ inputs[-1]
    below = zip(layers[-2::-1], lines[::-1], inputs[-2::-1], strict=True)
    for (weight, bias), (slope, low, high), largest in below:
        offset = offset + jnp.sum(jnp.where(rows > 0, rows * low, rows * high), axis=1)
        size = size + jnp.abs(rows) @ jnp.maximum(jnp.abs(low), jnp.abs(high))
        rows = rows * slope
        offset, size = offset + rows @ bias, size + jnp.abs(rows) @ jnp.abs(bias)
        size = size + jnp.abs(rows) @ (jnp.abs(weight) @ largest)
        rows = rows @ weight
    losses = ball.largest_gain(x, -rows)
    return offset + rows @ x - losses * (1 + MARGIN_ROUNDING) - SUM_ROUNDING * size


def _in_box(layer: tuple[Array, Array], constant: Lines, largest: Array, label):
    """The least margins when each of the last activations is anywhere in its own interval."""
    (weight, bias), (_, low, high) = layer, constant
    rows, offset = weight[label] - weight, bias[label] - bias
    size = jnp.abs(offset) + 2 * jnp.abs(rows) @ largest
    offset = offset + jnp.sum(jnp.where(rows > 0, rows * low, rows * high), axis=1)
    return offset - SUM_ROUNDING * size


def _relax(activation: Callable, lower, upper, nodes: int) -> tuple[Lines, Lines]:
    """Two enclosures of the activation on [lower, upper]: around its chord, and constant."""
    zero = jnp.zeros_like(lower)
    if activation is jax.nn.relu:
        width = jnp.where(upper > lower, upper - lower, 1.0)
        slope = jnp.where(upper > lower, (jnp.maximum(upper, 0) - jnp.maximum(lower, 0)) / width, 0)
        # Between the lines: the chord above, and below the parallel through the kink.
        ends = jnp.maximum(lower, 0) - slope * lower
        kink = jnp.where((lower < 0) & (upper > 0), 0.0, ends)
        chord = slope, jnp.minimum(kink, ends), jnp.maximum(kink, ends)
        return chord, (zero, jnp.maximum(lower, 0), jnp.maximum(upper, 0))
    flow_map = activation.flow_map
    spacing = (upper - lower) / nodes
    gamma = lower + spacing * jnp.arange(nodes + 1)[:, None]
    y = flow_map(gamma)
    least, most = flow_map.value_range()
    # gamma itself is rounded, which moves y by up to the largest slope times that.
    largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    rounding = 2 * flow_map.error + SUM_ROUNDING * (
        max(abs(least), abs(most)) + flow_map.max_slope() * largest
    )
    between = spacing**2 / 8 * flow_map.max_curvature() + rounding
    slope = (y[-1] - y[0]) / jnp.maximum(upper - lower, jnp.finfo(y.dtype).tiny)
    slope = jnp.clip(slope, -flow_map.max_slope(), flow_map.max_slope())
    rest = y - slope * gamma
    constant = (
        zero,
        jnp.maximum(jnp.min(y, axis=0) - between, least),
        jnp.minimum(jnp.max(y, axis=0) + between, most),
    )
    return (slope, jnp.min(rest, axis=0) - between, jnp.max(rest, axis=0) + between), constant


def _layers_of(certificate, model) -> tuple[list[tuple[Array, Array]], Callable]:
    """The layers (W, b) of a fully connected net, and its activation."""
    if isinstance(model, NmODENet):
        layers, activation = [*model.layers, model.outputs], model.nmode
    elif isinstance(model, MLP) and (
        model.activation is jax.nn.relu or isinstance(model.activation, NmODE)
    ):
        layers, activation = model.layers, model.activation
    else:
        raise ValueError(
            f"{type(certificate).__name__} certifies an NmODENet, or an MLP of nmODE or "
            f"jax.nn.relu; got {type(model).__name__}"
        )
    if isinstance(activation, NmODE):
        check_exact(certificate, activation)
    check_linear(certificate, layers)
    return [(layer.weight, layer.bias) for layer in layers], activation  # pyright: ignore
