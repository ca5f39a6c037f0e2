"""Gradient-flow layers expand nothing, and LipschitzNet's bound holds for any weights."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import digits, train
from hypothesis import given, settings, strategies as st

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
deterministic = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def conv_flow(kernel, bias):
    return GradientFlow(ConvOperator(kernel, (5, 6), math.sqrt(2)), bias)


def dense_flow(matrix, bias):
    return GradientFlow(DenseOperator(matrix, math.sqrt(2)), bias)


def flow(kind, seed, log_scale):
    rng = np.random.default_rng(seed)
    weights, points, n = {
        "conv": ((3, 3, 3, 4), (2, 5, 6, 3), 4), "dense": ((8, 12), (2, 12), 8),
    }[kind]  # fmt: skip
    weights = jnp.asarray(10.0**log_scale * rng.normal(size=weights), jnp.float32)
    bias, points = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in (n, points))
    return (conv_flow if kind == "conv" else dense_flow)(weights, bias), points


@eqx.filter_jit
def expansion(layer, points):
    x, y = points
    return jnp.linalg.norm(jnp.ravel(layer(x) - layer(y))) / jnp.linalg.norm(jnp.ravel(x - y))


@pytest.mark.parametrize("kind", ["conv", "dense"])
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-12, 12))
@deterministic
def test_a_gradient_flow_expands_no_pair_of_points(kind, seed, log_scale):
    assert float(expansion(*flow(kind, seed, log_scale))) <= 1 + 1e-5


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_twice_the_norm_would_expand(kind):
    layer, points = flow(kind, 0, 0.0)
    operator = layer.operator
    weights = (operator.kernel, (5, 6)) if kind == "conv" else (operator.matrix,)
    longer = GradientFlow(type(operator)(*weights, 4 * math.sqrt(2)), layer.bias)
    assert float(expansion(longer, points)) > 1.01


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_the_adjoint_is_the_adjoint(kind):
    layer, (x, _) = flow(kind, 1, 0.0)
    ax, pullback = jax.vjp(layer.operator, x)
    np.testing.assert_allclose(layer.operator.adjoint(ax), pullback(ax)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_a_layer_with_zero_weights_is_finite(kind):
    layer, (x, _) = flow(kind, 0, 0.0)
    layer = jax.tree.map(jnp.zeros_like, layer)
    assert jnp.isfinite(layer(x)).all()


MAKES = {
    "CPL": partial(LipschitzNet, width=4, depth=1, features=16),
    "SDP": partial(LipschitzNet, width=4, depth=1, features=16, sdp=True),
    "non-expansive": partial(StructuredNet, channels=(4, 6), depth=2),
    "prescribed": partial(
        StructuredNet, channels=(4,), depth=2, regime=Structured(steps=PrescribedSteps())
    ),
    "flexible": partial(
        StructuredNet, channels=(4,), depth=2, regime=Structured(steps=FlexibleSteps())
    ),
}
OTHERS = {
    "naive": partial(StructuredNet, channels=(4,), depth=2, regime=NaivelyConstrained()),
    "unconstrained": partial(StructuredNet, channels=(4,), depth=2, regime=Unconstrained()),
}


def net(scale=None, seed=0, make=MAKES["CPL"]):
    model, state = eqx.nn.make_with_state(make)(SHAPE, 5, key=jax.random.key(seed))
    if scale is not None:
        weights, static = eqx.partition(model, eqx.is_array)
        leaves, tree = jax.tree.flatten(weights)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        leaves = [
            scale * jax.random.normal(k, leaf.shape)
            for k, leaf in zip(keys, leaves, strict=True)
        ]  # fmt: skip
        model = eqx.combine(jax.tree.unflatten(tree, leaves), static)
    return model, state


@eqx.filter_jit
def largest_ratio(predictor, key, pairs=64, ascents=60, shape=SHAPE):
    """||f(x) - f(x')|| / ||x - x'|| over random pairs, before and after gradient ascent."""

    def ratio(pair):  # squared: it has a gradient at 0
        moved = predictor(pair[0]) - predictor(pair[1])
        return jnp.sum(moved**2) / jnp.sum((pair[0] - pair[1]) ** 2)

    def step(pair, _):
        gradient = jax.grad(ratio)(pair)
        size = jnp.linalg.norm(jnp.ravel(gradient))
        return pair + 0.3 * gradient / jnp.where(size > 0, size, 1.0), None

    start = jax.random.uniform(key, (pairs, 2, *shape))
    end = jax.vmap(lambda p: jax.lax.scan(step, p, length=ascents)[0])(start)
    return tuple(jnp.sqrt(jnp.max(jax.vmap(ratio)(pairs))) for pairs in (start, end))


@pytest.mark.parametrize("scale", [None, 1.0, 30.0])
@pytest.mark.parametrize("name", MAKES)
def test_no_pair_exceeds_the_bound_and_the_bound_is_at_most_one(name, scale):
    model, state = net(scale, make=MAKES[name])
    predictor = Predictor(model, state)
    sampled, ascended = largest_ratio(predictor, jax.random.key(2))
    bounds = [float(m.lipschitz_bound()) for m in (model, predictor.model)]
    # (Strong biases may leave all ReLUs behind a lifting convolution at 0.)
    assert 0 < float(sampled) < float(ascended) if scale is None else sampled <= ascended
    assert float(ascended) <= min(bounds) + 1e-5
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-4)
    assert max(bounds) <= 1 + 1e-4
    if name in ("CPL", "SDP"):
        assert min(bounds) >= 1 - 1e-4


@pytest.mark.parametrize("name", ["SDP", "flexible", "unconstrained"])
def test_no_pair_exceeds_the_bound_of_a_trained_network(name):
    make = eqx.nn.make_with_state((MAKES | OTHERS)[name])
    predictor = train(lambda key: make((8, 8, 1), key=key), objective=Hinge(1.0), epochs=6)
    test = digits("test")
    assert clean_accuracy(predictor, test, key=jax.random.key(0)) > 0.6
    _, ascended = largest_ratio(predictor, jax.random.key(2), shape=(8, 8, 1))
    bound = float(predictor.model.lipschitz_bound())
    assert 0.2 * min(bound, 1) < float(ascended) <= bound * (1 + 1e-5)
    assert bound > 2 if name == "unconstrained" else bound <= 1 + 1e-4


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("name", OTHERS)
def test_the_others_claim_no_more_than_holds(name, scale):
    model, state = net(scale, make=OTHERS[name])
    _, ascended = largest_ratio(Predictor(model, state), jax.random.key(2))
    bound = float(model.lipschitz_bound())
    assert float(ascended) <= bound * (1 + 1e-5)
    assert bound > 3.99 if name == "naive" or scale else bound > 1.01


@pytest.mark.parametrize("name", MAKES)
def test_the_frozen_predictor_computes_the_same(name):
    model, state = net(1.0, make=MAKES[name])
    predictor = Predictor(model, state)
    for x in jax.random.uniform(jax.random.key(3), (5, *SHAPE)):
        np.testing.assert_allclose(predictor(x), model(x, state)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [0.0, 1.0, 1e5])
@pytest.mark.parametrize("name", [*MAKES, "naive"])
def test_float32_is_off_by_no_more_than_is_said(name, bias):
    model, state = net(make=(MAKES | OTHERS)[name])
    model = jax.tree.map(
        lambda a: (
            a + bias * jax.random.normal(jax.random.key(a.size), a.shape)
            if eqx.is_array(a) and a.ndim == 1
            else a
        ),
        model,
    )
    predictor = Predictor(model, state)
    images = jax.random.uniform(jax.random.key(2), (50, *SHAPE))

    @eqx.filter_jit
    def logits(predictor, images):
        return jax.vmap(predictor)(images)

    said = float(eqx.filter_jit(lambda p: p.model.float32_error())(predictor))
    found = logits(predictor, images)
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda a: a.astype(jnp.float64) if eqx.is_inexact_array(a) else a, predictor
        )
        exact = logits(exact, jnp.asarray(np.asarray(images), jnp.float64))
    off = np.linalg.norm(np.asarray(exact) - np.asarray(found), axis=1).max()
    assert 0 < off < said < 1e4 * off + 1e-3


def test_margins_that_cancel_in_float32_are_not_certified():
    """A bias of 1e4 in the first layer and its opposite in the last: logits are steps of 1e-3."""
    make = partial(StructuredNet, channels=(1,), depth=2)
    model, state = eqx.nn.make_with_state(make)((2, 2, 1), 2, key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: (m.layers.layers[0].bias, m.layers.layers[-1].bias),
        model,
        (jnp.full(1, 1e4), jnp.zeros(2)),
    )
    grey, l2 = jnp.full((2, 2, 1), 0.5), L2Ball(1e-3)
    for margin in (0.003, 0.01, 1.0):
        there = Predictor(model, state)(grey)
        last = model.layers.layers[-1].bias + jnp.array([margin, 0.0]) - there
        predictor = Predictor(eqx.tree_at(lambda m: m.layers.layers[-1].bias, model, last), state)
        result = LipschitzMargin()(predictor, grey, 0, l2, key=jax.random.key(0))
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
    point = jnp.asarray(np.random.default_rng(5).normal(size=n), jnp.float32)
    bound, jacobian = bound_and_jacobian(layer, point)
    return float(bound), np.linalg.norm(np.asarray(jacobian, np.float64), 2)


@pytest.mark.parametrize("step", [-0.4, 0.0, 0.7, 1.9, 3.0])
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("inputs", [6, 9], ids=["square", "wide"])
def test_a_step_stretches_by_no_more_than_its_constant(step, slope, inputs):
    rng = np.random.default_rng(0)
    near_orthogonal = np.linalg.qr(rng.normal(size=(9, 9)))[0][:6, :inputs]
    matrix = jnp.asarray(near_orthogonal + 0.1 * rng.normal(size=(6, inputs)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=6), jnp.float32)
    layer = GradientFlow(DenseOperator(matrix, 1.0), bias, jnp.asarray(step, jnp.float32), slope)
    bound, stretch = bound_and_stretch(layer, inputs)
    a = np.asarray(DenseOperator(matrix, 1.0).freeze().matrix, np.float64)
    worst = 0.0
    for signs in rng.choice([slope, 1.0], size=(500, 6)):  # every Jacobian that there can be
        worst = max(worst, np.linalg.norm(np.eye(inputs) - step * a.T @ np.diag(signs) @ a, 2))
    assert stretch <= bound * (1 + 1e-6)
    assert worst <= bound * (1 + 1e-6)
    if slope == 1.0 or step <= 0:
        assert bound <= 1.01 * worst + 1e-3  # then the worst case is among the Jacobians


def two_flows(steps, learned, seed=0, noise=0.05):
    """Near-orthogonal maps, so that both contract."""
    rng = np.random.default_rng(seed)
    matrices = np.linalg.qr(rng.normal(size=(2, 8, 8)))[0] + noise * rng.normal(size=(2, 8, 8))
    operators = tuple(DenseOperator(jnp.asarray(m, jnp.float32), 1.0) for m in matrices)
    biases = (jnp.zeros(8), jnp.zeros(8))
    return TwoFlows(operators, biases, jnp.asarray(learned, jnp.float32), steps, 0.5)


@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(
    "steps", [PrescribedSteps(), FlexibleSteps()], ids=lambda s: type(s).__name__
)
def test_a_pair_may_expand_first_and_is_still_of_constant_one(steps, noise):
    layer = two_flows(steps, [0.7, -30.0], noise=noise)  # the second as far uphill as it may
    first, second = (float(flow.lipschitz_bound()) for flow in layer.flows())
    assert first * second == pytest.approx(1.0, abs=1e-4)
    if noise < 1:
        assert float(layer.flows()[1].step) < 0  # it expands
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
    with pytest.raises(ValueError, match="slope must be in"):
        Structured(slope=1.5)
    for shape in ((2, 2), (3, 5)):
        with pytest.raises(ValueError, match="odd sides"):
            ConvOperator(jnp.zeros((*shape, 1, 1)), (5, 5), 1.0)


def test_an_operator_is_for_images_of_one_size():
    operator = ConvOperator(jnp.ones((3, 3, 1, 1)), (1, 1), 1.0)
    with pytest.raises(ValueError, match=r"images of \(1, 1\); got \(8, 8\)"):
        operator(jnp.ones((8, 8, 1)))  # which it would stretch almost ninefold


@pytest.mark.parametrize("log_q", [[-110.0, 0.0, 0.0], [90.0, 0.0, -90.0], [300.0, 0.0, 0.0]])
@pytest.mark.parametrize("off", [0.0, 1.0])
def test_weights_of_rows_beyond_float32_leave_the_norm_proven(log_q, off):
    matrix = 5 * jnp.eye(3) + off * jnp.ones((3, 3))
    kernel = matrix[None, None]
    log_q = jnp.array(log_q)
    for operator in (DenseOperator(matrix, 1.0, log_q), ConvOperator(kernel, (2, 2), 1.0, log_q)):
        frozen = operator.freeze()
        frozen = jnp.reshape(getattr(frozen, "matrix", getattr(frozen, "kernel", None)), (3, 3))
        assert np.linalg.norm(np.asarray(frozen, np.float64), 2) <= float(operator.norm_bound())
        assert np.abs(frozen).max() > 0.1


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("entry", [1e-30, 1e-19, 1e-8, 1e19, 1e30])
def test_rows_whose_squares_float32_cannot_hold_are_scaled_all_the_same(kind, entry):
    """As many small entries as make a row whose norm is 33 times the largest entry."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        weights = np.concatenate([np.ones((1, 1100)), rng.normal(size=(3, 1100))])
        sizes = np.array([entry, 1.0, 1.0, 1.0])
        matrix = jnp.asarray(weights * sizes[:, None], jnp.float32)
        frozen = DenseOperator(matrix, 1.0, jnp.zeros(4)).freeze()
        scaled = frozen.matrix
    else:
        weights = np.concatenate([np.ones((122, 1)), rng.normal(size=(122, 3))], 1)
        kernel = jnp.asarray(weights * np.array([entry, 1.0, 1.0, 1.0]), jnp.float32)
        kernel = kernel[None, None]
        frozen = ConvOperator(kernel, (1, 1), 1.0, jnp.zeros(4)).freeze()
        scaled = frozen.kernel[0, 0].T
    norm = np.linalg.norm(np.asarray(scaled, np.float64), 2)
    assert 0.1 < norm <= float(frozen.norm_bound()) <= 1 + 1e-3


FROZEN = {
    "dense": DenseOperator(jnp.eye(4) + 0.3, 1.0),
    "dense, rows": DenseOperator(jnp.eye(4) + 0.3, 1.0, jnp.arange(4.0)),
    "convolution": ConvOperator(jnp.ones((3, 3, 2, 2)), (5, 5), 1.0),
    "convolution, rows": ConvOperator(jnp.ones((3, 3, 2, 2)), (5, 5), 1.0, jnp.arange(2.0)),
    "circular": ConvOperator(jnp.ones((3, 3, 2, 2)), (5, 5), 1.0, circular=True),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_proven_of_frozen_weights_is_of_those_that_are_there(name):
    """A frozen network may be trained on, or edited: then its weights are no longer scaled."""
    operator = FROZEN[name]
    frozen = operator.freeze()
    assert 0.8 < float(frozen.norm_bound()) <= float(operator.norm_bound()) * (1 + 1e-6)
    edited = eqx.tree_at(
        lambda o: o.matrix if isinstance(o, DenseOperator) else o.kernel,
        frozen,
        replace_fn=lambda weights: weights * jnp.linspace(1.0, 3.0, weights.shape[-1]),
    )
    shape = (4,) if "dense" in name else (5, 5, 2)
    jacobian = jax.jacfwd(lambda x: jnp.ravel(edited(x.reshape(shape))))(
        jnp.zeros(math.prod(shape))
    )
    norm = np.linalg.norm(np.asarray(jacobian, np.float64), 2)
    assert 1.5 < norm <= float(edited.norm_bound())


def test_a_residual_step_of_norm_one_stretches_by_two():
    """And no more is claimed of it."""
    identity = DenseOperator(jnp.eye(3), 1.0)
    layer = Residual(identity, identity, jnp.zeros(3))
    np.testing.assert_allclose(layer(jnp.ones(3)), 2 * jnp.ones(3), rtol=0.03)
    assert (
        1.9
        < np.linalg.norm(jax.jacfwd(layer)(jnp.ones(3)), 2)
        <= float(layer.lipschitz_bound())
        <= 2
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_rows_that_are_orthogonal_cost_the_diagonal_scaling_nothing(frozen):
    """There T is A A^T itself; the norm computed of the scaled matrix alone has 4 % of slack."""
    operator = DenseOperator(jnp.eye(64), math.sqrt(2), jnp.zeros(64))
    layer = GradientFlow(operator.freeze() if frozen else operator, jnp.zeros(64))
    assert float(layer.lipschitz_bound()) == pytest.approx(1.0, abs=1e-3)


def test_the_diagonal_of_a_convolution_is_tight_where_all_entries_are_positive():
    """Of the constant image a kernel of ones makes 9 n times as much, and T says just that."""
    operator = ConvOperator(
        jnp.ones((3, 3, 2, 2)), (6, 5), 1.0, jnp.zeros(2), circular=True
    ).freeze()
    constant = jnp.ones((6, 5, 2))
    stretch = jnp.linalg.norm(operator(constant)) / jnp.linalg.norm(constant)
    assert 1 - 1e-3 <= float(stretch) <= 1


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("image_size", [(1, 1), (2, 1), (3, 2), (5, 4)], ids=str)
def test_circular_convolutions_of_small_images(image_size, size):
    """Adjoint, norm and smallest singular value against the dense matrix."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(size, size, 2, 3)), jnp.float32)
    operator = ConvOperator(kernel, image_size, None, circular=True)
    n = image_size[0] * image_size[1]

    def flat(v):
        return jnp.ravel(operator(v.reshape(*image_size, 2)))

    matrix = np.asarray(jax.jacfwd(flat)(jnp.zeros(2 * n)), np.float64)
    y = jnp.asarray(np.random.default_rng(1).normal(size=3 * n), jnp.float32)
    adjoint = jnp.ravel(operator.adjoint(y.reshape(*image_size, 3)))
    np.testing.assert_allclose(adjoint, matrix.T @ np.asarray(y), rtol=0, atol=1e-4)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert values.max() <= float(operator.norm_bound()) <= 1.02 * values.max()
    found = float(operator.smallest_square())
    assert values.min() ** 2 - 0.03 * values.max() ** 2 <= found <= values.min() ** 2


@pytest.mark.parametrize("size", [None, 1, 3])
def test_orthogonality_is_that_of_the_matrix_as_applied(size):
    rng, shape = np.random.default_rng(0), (6, 5, 2) if size else (4,)
    operator = DenseOperator(jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), 1.0)
    if size:
        kernel = jnp.asarray(rng.normal(size=(size, size, 2, 3)), jnp.float32)
        operator = ConvOperator(kernel, (6, 5), 1.0, circular=True)
    n = math.prod(shape)

    def flat(v):
        return jnp.ravel(operator(v.reshape(shape)))

    matrix = np.asarray(jax.jacfwd(flat)(jnp.zeros(n)), np.float64)
    expected = np.sum((matrix.T @ matrix - np.eye(n)) ** 2) / n
    assert float(operator.orthogonality()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [NonExpansiveSteps(), PrescribedSteps()])
def test_only_networks_with_switching_steps_start_orthogonal(steps):
    model, _ = eqx.nn.make_with_state(StructuredNet)(
        SHAPE, regime=Structured(steps), channels=(4, 8), depth=2, key=jax.random.key(0)
    )
    found = float(model.orthogonality())
    assert found < 0.01 if steps.switching else found > 1


@pytest.mark.parametrize("steps", [NonExpansiveSteps(), PrescribedSteps(), FlexibleSteps()])
def test_maps_of_zeros_are_the_identity(steps):
    operators = (DenseOperator(jnp.zeros((8, 8)), None),) * 2
    layer = TwoFlows(operators, (jnp.zeros(8), jnp.zeros(8)), jnp.zeros(2), steps, 0.5)
    x = jnp.arange(8.0)
    np.testing.assert_array_equal(layer(x), x)
    assert float(layer.lipschitz_bound()) == pytest.approx(1.0)


@pytest.mark.parametrize("gain", [0.0, -2.0, float("inf"), float("nan")])
def test_gains_that_cannot_be_are_refused(gain):
    for make in (
        lambda: DenseOperator(jnp.eye(3), gain),
        lambda: ConvOperator(jnp.ones((3, 3, 1, 1)), (5, 5), gain),
    ):
        with pytest.raises(
            ValueError, match=f"gain must be None, or finite and positive; got {gain}"
        ):
            make()


def test_all_scaled_kernels_start_at_norm_one():
    """Whose learning rate is that over the squared norm."""
    for regime in (Structured(), Structured(steps=FlexibleSteps()), NaivelyConstrained()):
        model, _ = eqx.nn.make_with_state(StructuredNet)(
            SHAPE, regime=regime, channels=(8,), depth=2, key=jax.random.key(0)
        )
        operators = [
            node
            for node in jax.tree.leaves(model, is_leaf=lambda n: isinstance(n, ConvOperator))
            if isinstance(node, ConvOperator)
        ]
        for operator in operators[1:]:
            raw = ConvOperator(operator.kernel, operator.image_size, None, circular=True)
            assert float(raw.norm_bound()) == pytest.approx(1.0, abs=0.02)
