"""Gradient-flow layers expand nothing, and LipschitzNet's bound holds for any weights."""

import math
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits, train
from hypothesis import example, given, settings, strategies as st

from odejax import L2Ball, Predictor
from odejax.certificates import LipschitzMargin
from odejax.models import (
    ConvOperator,
    DenseOperator,
    FlexibleSteps,
    GradientFlow,
    LipschitzNet,
    NaivelyConstrained,
    NonExpansiveSteps,
    PrescribedSteps,
    Residual,
    Structured,
    StructuredNet,
    TwoFlows,
    Unconstrained,
)
from odejax.training import Hinge, clean_accuracy

SHAPE = (8, 8, 2)
deterministic = settings(max_examples=20, deadline=None, derandomize=True, database=None)


def from_numpy(make):
    """`make` with arrays of NumPy, which compile nothing to make; checked shapes are of JAX's."""
    return lambda *args, **settings: make(
        *jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, args),
        **settings,
    )


dense, conv = from_numpy(DenseOperator), from_numpy(ConvOperator)
gradient_flow, flows, residual = map(from_numpy, (GradientFlow, TwoFlows, Residual))


def flow(kind, seed, log_scale):
    rng = np.random.default_rng(seed)
    weights, points, n = {
        "conv": ((3, 3, 3, 4), (2, 5, 6, 3), 4), "dense": ((8, 12), (2, 12), 8),
    }[kind]  # fmt: skip
    weights = np.asarray(10.0**log_scale * rng.normal(size=weights), np.float32)
    bias, points = (np.asarray(rng.normal(size=s), np.float32) for s in (n, points))
    gain = math.sqrt(2)
    operator = conv(weights, (5, 6), gain) if kind == "conv" else dense(weights, gain)
    return gradient_flow(operator, bias), points


@eqx.filter_jit
def expansion(layer, points):
    x, y = points
    return jnp.linalg.norm(jnp.ravel(layer(x) - layer(y))) / jnp.linalg.norm(jnp.ravel(x - y))


@pytest.mark.parametrize("kind", ["conv", "dense"])
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-12, 12))
@example(seed=0, log_scale=-12.0)
@example(seed=0, log_scale=12.0)
@deterministic
def test_a_gradient_flow_expands_no_pair_of_points(kind, seed, log_scale):
    assert float(expansion(*flow(kind, seed, log_scale))) <= 1 + 1e-5


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_twice_the_norm_would_expand(kind):
    layer, points = flow(kind, 0, 0.0)
    operator = layer.operator
    weights = (operator.kernel, (5, 6)) if kind == "conv" else (operator.matrix,)
    longer = gradient_flow(type(operator)(*weights, 4 * math.sqrt(2)), layer.bias)
    assert float(expansion(longer, points)) > 1.01


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_adjoint_is_the_adjoint(kind):
    layer, (x, _) = flow(kind, 1, 0.0)

    @eqx.filter_jit
    def both(operator, x):
        ax, pullback = jax.vjp(operator, x)
        return operator.adjoint(ax), pullback(ax)[0]

    np.testing.assert_allclose(*both(layer.operator, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_a_layer_with_zero_weights_is_finite(kind):
    layer, (x, _) = flow(kind, 0, 0.0)
    layer = jax.tree.map(np.zeros_like, layer)
    assert np.isfinite(eqx.filter_jit(layer)(x)).all()


MAKES = {
    "CPL": partial(LipschitzNet, width=4, depth=1, features=16),
    "SLL": partial(LipschitzNet, width=4, depth=1, features=16, layer="SLL"),
    "non-expansive": partial(StructuredNet, channels=(4,), depth=2),
    "prescribed": partial(
        StructuredNet, channels=(4, 6), depth=2, regime=Structured(steps=PrescribedSteps())
    ),
    "flexible": partial(
        StructuredNet, channels=(4,), depth=2, regime=Structured(steps=FlexibleSteps())
    ),
}
OTHERS = {
    "naive": partial(StructuredNet, channels=(4,), depth=2, regime=NaivelyConstrained()),
    "unconstrained": partial(StructuredNet, channels=(4,), depth=2, regime=Unconstrained()),
}


def build(make, *args, **settings):
    """The model and its state, by one program."""
    return eqx.filter_jit(
        lambda key: eqx.nn.make_with_state(make)(*args, key=key, **settings)
    )(jax.random.key(0))  # fmt: skip


@cache
def started(name):
    return build((MAKES | OTHERS)[name], SHAPE, 5)


def net(name, scale=None):
    """As it starts, or with random weights of this size in its place."""
    model, state = started(name)
    if scale is None:
        return model, state
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(scale * rng.normal(size=a.shape), np.float32)
        if eqx.is_array(a)
        else a,
        model,
    ), state  # fmt: skip


@eqx.filter_jit
def study(model, state, key, pairs=32, ascents=40, shape=SHAPE):
    """||f(x) - f(x')|| / ||x - x'|| over random pairs, before and after gradient ascent; what the
    model and its predictor claim of it; and the logits of both.
    """
    predictor = Predictor(model, state)

    def ratio(pair):  # squared: it has a gradient at 0
        moved = predictor(pair[0]) - predictor(pair[1])
        return jnp.sum(moved**2) / jnp.sum((pair[0] - pair[1]) ** 2)

    def step(pair, _):
        gradient = jax.grad(ratio)(pair)
        size = jnp.linalg.norm(jnp.ravel(gradient))
        return pair + 0.3 * gradient / jnp.where(size > 0, size, 1.0), None

    start = jax.random.uniform(key, (pairs, 2, *shape))
    end = jax.vmap(lambda p: jax.lax.scan(step, p, length=ascents)[0])(start)
    sampled, ascended = (jnp.sqrt(jnp.max(jax.vmap(ratio)(pairs))) for pairs in (start, end))
    bounds = jnp.stack([m.lipschitz_bound() for m in (model, predictor.model)])
    images = start[:5, 0]
    logits = jax.vmap(predictor)(images), jax.vmap(lambda x: model(x, state)[0])(images)
    return sampled, ascended, bounds, logits


def slowly(names, *slow):
    """`names`, of which some take long and are of a kind that another one is of, too."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", slowly(MAKES, "prescribed", "non-expansive"))
def test_no_pair_exceeds_the_bound_and_the_bound_is_at_most_one(name):
    for scale in (None, 1.0, 30.0):
        sampled, ascended, bounds, _ = study(*net(name, scale), jax.random.key(2))
        sampled, ascended, bounds = float(sampled), float(ascended), np.asarray(bounds)
        # (Strong biases may leave all ReLUs behind a lifting convolution at 0.)
        assert 0 < sampled < ascended if scale is None else sampled <= ascended
        assert ascended <= bounds.min() + 1e-5
        assert bounds[0] == pytest.approx(bounds[1], abs=1e-4)
        assert bounds.max() <= 1 + 1e-4
        if name in ("CPL", "SLL"):
            assert bounds.min() >= 1 - 1e-4


@pytest.mark.slow  # training makes no other weights than those above, as far as the bound goes
@pytest.mark.parametrize("name", ["SLL", "flexible", "unconstrained"])
def test_no_pair_exceeds_the_bound_of_a_trained_network(name):
    make = eqx.filter_jit(eqx.nn.make_with_state((MAKES | OTHERS)[name]))
    predictor = train(lambda key: make((8, 8, 1), key=key), objective=Hinge(1.0), epochs=6)
    test = digits("test")
    assert clean_accuracy(predictor, test, key=jax.random.key(0)) > 0.6
    model, state = predictor.model, predictor.state
    _, ascended, bounds, _ = study(model, state, jax.random.key(2), shape=(8, 8, 1))
    bound = float(bounds[1])
    assert 0.2 * min(bound, 1) < float(ascended) <= bound * (1 + 1e-5)
    assert bound > 2 if name == "unconstrained" else bound <= 1 + 1e-4


@pytest.mark.parametrize("name", slowly(OTHERS, "unconstrained"))
def test_the_others_claim_no_more_than_holds(name):
    for scale in (None, 1.0):
        _, ascended, bounds, _ = study(*net(name, scale), jax.random.key(2))
        bound = float(bounds[0])
        assert float(ascended) <= bound * (1 + 1e-5)
        assert bound > 3.99 if name == "naive" or scale else bound > 1.01


@pytest.mark.parametrize("name", slowly(MAKES, "prescribed", "non-expansive"))
def test_the_frozen_predictor_computes_the_same(name):
    *_, (frozen, plain) = study(*net(name, 1.0), jax.random.key(2))
    np.testing.assert_allclose(frozen, plain, rtol=0, atol=1e-6)


@eqx.filter_jit
def many_logits(predictor, images):
    return jax.vmap(predictor)(images)


@eqx.filter_jit
def frozen_and_its_error(model, state, images):
    predictor = Predictor(model, state)
    error = jax.vmap(lambda x: predictor.model.float32_error(x, 0.0))(images)
    return predictor, error, jax.vmap(predictor)(images)


@pytest.mark.parametrize("name", slowly(MAKES, "CPL", "non-expansive", "prescribed"))
def test_float32_is_off_by_no_more_than_is_said(name):
    images = np.random.default_rng(2).uniform(size=(50, *SHAPE)).astype(np.float32)
    model, state = net(name)
    for bias in (0.0, 1.0, 1e5):
        moved = jax.tree.map(
            lambda a, b=bias: (
                np.asarray(a) + b * np.random.default_rng(a.size).normal(size=a.shape)
            ).astype(np.float32)
            if eqx.is_array(a) and a.ndim == 1
            else a,
            model,
        )  # fmt: skip
        predictor, stated, logits = frozen_and_its_error(moved, state, images)
        with jax.enable_x64(True):
            exact = jax.tree.map(
                lambda a: np.asarray(a, np.float64) if eqx.is_inexact_array(a) else a, predictor
            )
            exact = np.asarray(many_logits(exact, images.astype(np.float64)))
        off, stated = np.linalg.norm(exact - np.asarray(logits), axis=1), np.asarray(stated)
        assert (off < stated).all()
        assert off.max() > 0
        assert stated.max() < 1e4 * off.max() + 1e-3


def test_what_rounding_may_cost_grows_with_the_radius_as_a_line():
    """So the certificate needs it at two radii alone."""
    model, state = net("CPL")
    x = np.random.default_rng(2).uniform(size=SHAPE).astype(np.float32)
    radii = np.float32([0, 0.5, 1, 4])
    error = np.asarray(jax.jit(lambda x: Predictor(model, state).model.float32_error(x, radii))(x))
    np.testing.assert_allclose(error, error[0] + radii * (error[2] - error[0]), rtol=1e-5)
    assert (np.diff(error) > 0).all()


@pytest.mark.slow  # the error of a layer is tested above
def test_a_large_constant_does_not_make_rounding_cost_more_of_the_radius():
    """An error in a layer grows by no more than a perturbation there: of the radius it takes a few
    millionths of what the layers add up, and so of the image's norm."""
    x = np.random.default_rng(2).uniform(size=(8, 8, 1)).astype(np.float32)
    costs = []
    for depth in (2, 8):  # of constant 4 each two steps, three times
        model, state = build(
            StructuredNet,
            (8, 8, 1),
            4,
            regime=NaivelyConstrained(),
            channels=(2, 2, 2),
            depth=depth,
        )

        @eqx.filter_jit
        def constant_and_error(model, state, x):
            model = Predictor(model, state).model
            return model.lipschitz_bound(), model.float32_error(x, 0.0)

        constant, error = constant_and_error(model, state, x)
        costs.append(float(error / constant) / np.linalg.norm(x))
    assert float(constant) > 1e7
    assert max(costs) < 4e-6


def test_margins_that_cancel_in_float32_are_not_certified():
    """A bias of 1e4 in the first layer and its opposite in the last: logits are steps of 1e-3."""
    model, state = build(StructuredNet, (2, 2, 1), 2, channels=(1,), depth=2)
    grey, l2 = jnp.asarray(np.full((2, 2, 1), 0.5, np.float32)), L2Ball(1e-3)

    @eqx.filter_jit
    def judge(model, last):
        model = eqx.tree_at(
            lambda m: (m.layers.layers[0].bias, m.layers.layers[-1].bias),
            model,
            (jnp.full(1, 1e4), last),
        )
        predictor = Predictor(model, state)
        return predictor(grey), LipschitzMargin()(predictor, grey, 0, l2, key=jax.random.key(0))

    there, _ = judge(model, np.zeros(2, np.float32))
    for margin in (0.003, 0.01, 1.0):
        last = np.array([margin, 0.0], np.float32) - np.asarray(there)
        _, result = judge(model, last)
        assert int(result.label) == 0
        assert bool(result.certified) == (margin == 1.0)


@pytest.mark.parametrize("shape", [(7, 8, 1), (8, 7, 1), (9, 9, 3)], ids=str)
def test_images_with_odd_sides_are_refused(shape):
    with pytest.raises(ValueError, match="sides must be even"):
        LipschitzNet(shape, key=jax.random.key(0))


@eqx.filter_jit
def bound_and_jacobian(layer, point):
    return layer.lipschitz_bound(), jax.jacfwd(layer)(point)


def bound_and_stretch(layer, n):
    """The proven constant, and the norm of the Jacobian at a random point."""
    point = np.asarray(np.random.default_rng(5).normal(size=n), np.float32)
    bound, jacobian = bound_and_jacobian(layer, point)
    return float(bound), np.linalg.norm(np.asarray(jacobian, np.float64), 2)


@eqx.filter_jit
def frozen_of(operator):
    """The frozen operator, with what is proven of both."""
    frozen = operator.freeze()
    return frozen, operator.norm_bound(), frozen.norm_bound()


def matrix_of(operator, shape):
    """The operator as a matrix, in float64."""

    @eqx.filter_jit
    def jacobian(operator):
        return jax.jacfwd(lambda x: jnp.ravel(operator(x.reshape(shape))))(
            jnp.zeros(math.prod(shape))
        )

    return np.asarray(jacobian(operator), np.float64)


@pytest.mark.parametrize("step", [-0.4, 0.0, 0.7, 1.9, 3.0])
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("inputs", [6, 9], ids=["square", "wide"])
def test_a_step_stretches_by_no_more_than_its_constant(step, slope, inputs):
    rng = np.random.default_rng(0)
    near_orthogonal = np.linalg.qr(rng.normal(size=(9, 9)))[0][:6, :inputs]
    matrix = np.asarray(near_orthogonal + 0.1 * rng.normal(size=(6, inputs)), np.float32)
    bias = np.asarray(rng.normal(size=6), np.float32)
    operator = dense(matrix, 1.0)
    layer = gradient_flow(operator, bias, np.asarray(step, np.float32), slope)
    bound, stretch = bound_and_stretch(layer, inputs)
    a = np.asarray(frozen_of(operator)[0].matrix, np.float64)
    signs = rng.choice([slope, 1.0], size=(500, 6, 1))  # every Jacobian that there can be
    worst = np.linalg.norm(np.eye(inputs) - step * a.T @ (signs * a), 2, axis=(1, 2)).max()
    assert stretch <= bound * (1 + 1e-6)
    assert worst <= bound * (1 + 1e-6)
    if slope == 1.0 or step <= 0:
        assert bound <= 1.01 * worst + 1e-3  # then the worst case is among the Jacobians


def two_flows(steps, learned, seed=0, noise=0.05):
    """Near-orthogonal maps, so that both contract, and of two norms, which must not be swapped."""
    rng = np.random.default_rng(seed)
    matrices = np.linalg.qr(rng.normal(size=(2, 8, 8)))[0] + noise * rng.normal(size=(2, 8, 8))
    operators = tuple(
        dense(np.asarray(m, np.float32), gain) for m, gain in zip(matrices, (1.0, 2.0), strict=True)
    )
    biases = (np.zeros(8, np.float32), np.zeros(8, np.float32))
    return flows(operators, biases, np.asarray(learned, np.float32), steps, 0.5)


@eqx.filter_jit
def bounds_and_steps(layer):
    flows = layer.flows()
    return [flow.lipschitz_bound() for flow in flows], [flow.step for flow in flows]


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(
    "steps", [PrescribedSteps(), FlexibleSteps()], ids=lambda s: type(s).__name__
)
def test_a_pair_may_expand_first_and_is_still_of_constant_one(steps, noise):
    layer = two_flows(steps, [0.7, -30.0], noise=noise)  # the second as far uphill as it may
    (first, second), sizes = jax.tree.map(float, bounds_and_steps(layer))
    assert first * second == pytest.approx(1.0, abs=1e-4)
    if noise < 1:
        assert sizes[1] < 0  # it expands
        assert second > 1.2


@given(
    learned=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    seed=st.integers(0, 100),
    noise=st.floats(0, 1),
)
@deterministic
def test_learned_steps_stay_where_the_pair_expands_nothing(learned, seed, noise):
    for steps in (NonExpansiveSteps(), FlexibleSteps()):
        layer = two_flows(steps, learned, seed, noise)
        bound, stretch = bound_and_stretch(layer, 8)
        assert stretch <= min(bound, 1.0) + 1e-5
        assert bound <= 1 + 1e-4


@pytest.mark.parametrize("changes", [{"depth": 3}, {"channels": (4, 0)}, {"channels": (4,) * 4}])
def test_sizes_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=r"depth|channels|halve"):
        StructuredNet(SHAPE, key=jax.random.key(0), **changes)


def test_slopes_and_kernels_that_cannot_be_are_refused(unchecked):
    with pytest.raises(ValueError, match="slope must lie in"):
        Structured(slope=1.5)
    for shape in ((2, 2), (3, 5)):
        with pytest.raises(ValueError, match="odd sides"):
            conv(np.zeros((*shape, 1, 1)), (5, 5), 1.0)


def test_an_operator_is_for_images_of_one_size():
    operator = conv(np.ones((3, 3, 1, 1)), (1, 1), 1.0)
    with pytest.raises(ValueError, match=r"images of \(1, 1\); got \(8, 8\)"):
        jax.eval_shape(operator, np.ones((8, 8, 1)))  # which it would stretch almost ninefold


@pytest.mark.parametrize("log_q", [[-110.0, 0.0, 0.0], [90.0, 0.0, -90.0], [300.0, 0.0, 0.0]])
@pytest.mark.parametrize("off", [0.0, 1.0])
def test_weights_of_rows_beyond_float32_leave_the_norm_proven(log_q, off):
    matrix = np.asarray(5 * np.eye(3) + off, np.float32)
    kernel = matrix[None, None]
    log_q = np.array(log_q, np.float32)
    for operator in (dense(matrix, 1.0, log_q), conv(kernel, (2, 2), 1.0, log_q)):
        frozen, bound, _ = frozen_of(operator)
        frozen = np.reshape(getattr(frozen, "matrix", getattr(frozen, "kernel", None)), (3, 3))
        assert np.linalg.norm(np.asarray(frozen, np.float64), 2) <= float(bound)
        assert np.abs(frozen).max() > 0.1


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("entry", [1e-30, 1e-19, 1e-8, 1e19, 1e30])
def test_rows_whose_squares_float32_cannot_hold_are_scaled_all_the_same(kind, entry):
    """As many small entries as make a row whose norm is 33 times the largest entry."""
    rng = np.random.default_rng(0)
    sizes, log_q = np.array([entry, 1.0, 1.0, 1.0]), np.zeros(4, np.float32)
    if kind == "dense":
        weights = np.concatenate([np.ones((1, 1100)), rng.normal(size=(3, 1100))])
        operator = dense(np.asarray(weights * sizes[:, None], np.float32), 1.0, log_q)
    else:
        weights = np.concatenate([np.ones((122, 1)), rng.normal(size=(122, 3))], 1)
        kernel = np.asarray(weights * sizes, np.float32)[None, None]
        operator = conv(kernel, (1, 1), 1.0, log_q)
    frozen, _, bound = frozen_of(operator)
    scaled = frozen.matrix if kind == "dense" else frozen.kernel[0, 0].T
    norm = np.linalg.norm(np.asarray(scaled, np.float64), 2)
    assert 0.1 < norm <= float(bound) <= 1 + 1e-3


_SQUARE = np.asarray(np.eye(4) + 0.3, np.float32)
_KERNEL = np.ones((3, 3, 2, 2), np.float32)
FROZEN = {
    "dense": dense(_SQUARE, 1.0),
    "dense, rows": dense(_SQUARE, 1.0, np.arange(4, dtype=np.float32)),
    "convolution": conv(_KERNEL, (5, 5), 1.0),
    "convolution, rows": conv(_KERNEL, (5, 5), 1.0, np.arange(2, dtype=np.float32)),
    "circular": conv(_KERNEL, (5, 5), 1.0, circular=True),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_proven_of_frozen_weights_is_of_those_that_are_there(name):
    """A frozen network may be trained on, or edited: then its weights are no longer scaled."""
    frozen, of_operator, of_frozen = frozen_of(FROZEN[name])
    assert 0.8 < float(of_frozen) <= float(of_operator) * (1 + 1e-6)
    edited = eqx.tree_at(
        lambda o: o.matrix if isinstance(o, DenseOperator) else o.kernel,
        frozen,
        replace_fn=lambda weights: (
            np.asarray(weights) * np.linspace(1, 3, weights.shape[-1], dtype=np.float32)
        ),
    )
    norm = np.linalg.norm(matrix_of(edited, (4,) if "dense" in name else (5, 5, 2)), 2)
    assert 1.5 < norm <= float(frozen_of(edited)[2])


def test_a_residual_step_of_norm_one_stretches_by_two():
    """And no more is claimed of it."""
    identity = dense(np.eye(3, dtype=np.float32), 1.0)
    layer, ones = residual(identity, identity, np.zeros(3, np.float32)), np.ones(3, np.float32)
    np.testing.assert_allclose(eqx.filter_jit(layer)(ones), 2 * ones, rtol=0.03)
    bound, jacobian = bound_and_jacobian(layer, ones)
    assert 1.9 < np.linalg.norm(jacobian, 2) <= float(bound) <= 2


@pytest.mark.parametrize("frozen", [False, True])
def test_rows_that_are_orthogonal_cost_the_diagonal_scaling_nothing(frozen):
    """There T is A A^T itself; the norm computed of the scaled matrix alone has 4 % of slack."""
    operator = dense(np.eye(64, dtype=np.float32), math.sqrt(2), np.zeros(64, np.float32))

    @eqx.filter_jit
    def bound(operator):
        operator = operator.freeze() if frozen else operator
        return gradient_flow(operator, jnp.zeros(64)).lipschitz_bound()

    assert float(bound(operator)) == pytest.approx(1.0, abs=1e-3)


def test_the_diagonal_of_a_convolution_is_tight_where_all_entries_are_positive():
    """Of the constant image a kernel of ones makes 9 n times as much, and T says just that."""
    operator = conv(_KERNEL, (6, 5), 1.0, np.zeros(2, np.float32), circular=True)
    constant = np.ones((6, 5, 2), np.float32)
    out = eqx.filter_jit(lambda operator, x: operator.freeze()(x))(operator, constant)
    stretch = np.linalg.norm(np.asarray(out)) / np.linalg.norm(constant)
    assert 1 - 1e-3 <= float(stretch) <= 1


@eqx.filter_jit
def told_of(operator, y):
    return operator.adjoint(y), operator.norm_bound(), operator.smallest_square()


@pytest.mark.parametrize(
    ("image_size", "size"),
    [((1, 1), 3), ((2, 1), 3), ((3, 2), 1), ((3, 2), 5), ((5, 4), 3)],
    ids=str,
)
def test_circular_convolutions_of_small_images(image_size, size):
    """Adjoint, norm and smallest singular value against the dense matrix."""
    kernel = np.asarray(np.random.default_rng(0).normal(size=(size, size, 2, 3)), np.float32)
    operator = conv(kernel, image_size, None, circular=True)
    n = image_size[0] * image_size[1]
    matrix = matrix_of(operator, (*image_size, 2))
    y = np.asarray(np.random.default_rng(1).normal(size=3 * n), np.float32)
    adjoint, bound, square = told_of(operator, y.reshape(*image_size, 3))
    np.testing.assert_allclose(np.ravel(adjoint), matrix.T @ y, rtol=0, atol=1e-4)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values.max() <= float(bound) <= 1.02 * values.max()
    assert values.min() ** 2 - 0.03 * values.max() ** 2 <= float(square) <= values.min() ** 2


@eqx.filter_jit
def orthogonality(layer):
    return layer.orthogonality()


@pytest.mark.parametrize("size", [None, 1, 3])
def test_orthogonality_is_that_of_the_matrix_as_applied(size):
    rng, shape = np.random.default_rng(0), (6, 5, 2) if size else (4,)
    operator = dense(np.asarray(rng.normal(size=(7, 4)), np.float32), 1.0)
    if size:
        kernel = np.asarray(rng.normal(size=(size, size, 2, 3)), np.float32)
        operator = conv(kernel, (6, 5), 1.0, circular=True)
    n, matrix = math.prod(shape), matrix_of(operator, shape)
    expected = np.sum((matrix.T @ matrix - np.eye(n)) ** 2) / n
    assert float(orthogonality(operator)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [NonExpansiveSteps(), PrescribedSteps()])
def test_only_networks_with_switching_steps_start_orthogonal(steps):
    model, _ = build(StructuredNet, SHAPE, regime=Structured(steps), channels=(4, 8), depth=2)
    distance = float(orthogonality(model))
    assert distance < 0.01 if steps.switching else distance > 1


@pytest.mark.parametrize("steps", [NonExpansiveSteps(), PrescribedSteps(), FlexibleSteps()])
def test_maps_of_zeros_are_the_identity(steps):
    zeros, x = np.zeros(8, np.float32), np.arange(8, dtype=np.float32)
    operators = (dense(np.zeros((8, 8), np.float32), None),) * 2
    layer = flows(operators, (zeros, zeros), np.zeros(2, np.float32), steps, 0.5)
    out, bound = eqx.filter_jit(lambda layer, x: (layer(x), layer.lipschitz_bound()))(layer, x)
    np.testing.assert_array_equal(out, x)
    assert float(bound) == pytest.approx(1.0)


@pytest.mark.parametrize("layer", ["SDP", "cpl", ""])
def test_a_layer_of_another_name_is_refused(layer):
    with pytest.raises(ValueError, match=f'layer must be "CPL" or "SLL"; got {layer!r}'):
        LipschitzNet((8, 8, 1), layer=layer, key=jax.random.key(0))


@pytest.mark.parametrize("gain", [0.0, -2.0, float("inf"), float("nan")])
def test_gains_that_cannot_be_are_refused(gain):
    for make in (
        lambda: dense(np.eye(3), gain),
        lambda: conv(np.ones((3, 3, 1, 1)), (5, 5), gain),
    ):
        with pytest.raises(ValueError, match=f"gain must be finite and positive; got {gain}"):
            make()


def test_all_scaled_kernels_start_at_norm_one():
    """Whose learning rate is that over the squared norm."""
    for regime in (Structured(), Structured(steps=FlexibleSteps()), NaivelyConstrained()):
        model, _ = build(StructuredNet, SHAPE, regime=regime, channels=(8,), depth=2)
        operators = [
            node
            for node in jax.tree.leaves(model, is_leaf=lambda n: isinstance(n, ConvOperator))
            if isinstance(node, ConvOperator)
        ]
        for operator in operators[1:]:
            raw = conv(operator.kernel, operator.image_size, None, circular=True)
            assert float(frozen_of(raw)[1]) == pytest.approx(1.0, abs=0.02)
