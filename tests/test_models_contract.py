"""What every model promises, whatever its architecture."""

from collections import Counter
from functools import lru_cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE, all_models, digits, predictor_of

from odejax import Predictor, load, save
from odejax.attacks import cross_entropy
from odejax.models import (
    MLP,
    AbstractDenseField,
    BatchNorm,
    ConvODENet,
    DenseODENet,
    EnResNet,
    FractalNet,
    LipschitzNet,
    NmODE,
    NmODENet,
    PolyNet,
    ResNet,
    RevNet,
    SSPNet,
)

KEY = jax.random.key(42)
LAYERED = [ResNet, SSPNet, PolyNet, FractalNet, RevNet, EnResNet]
SHAPED = [MLP, *LAYERED, ConvODENet, DenseODENet, NmODENet, LipschitzNet]

# Others of their class differ in a setting, which tests of that class cover as well.
VARIANTS = {
    "ResNet step 0.1",
    "SSPNet SSPRK22",
    "PreActResNet SSPRK22",
    "ConvODENet in time",
    "NmODENet solver",
    "LipschitzNet SLL",
    "StructuredNet switching",
}
# Made of layers that others have, and tested in files of their own.
LIKE_OTHERS = VARIANTS | {"WideResNet", "MixedEnResNet", "NeuralSDENet"}
# Differentiated by rules that others of the models, and `test_layered.py`, are tested with.
LIKE_OTHERS_IN_GRADIENT = LIKE_OTHERS | {
    "ResNet BatchNorm", "SSPNet SSPRK33", "PolyNet", "FractalNet", "AugmentedODENet",
    "DenseODENet Hopfield",
}  # fmt: skip
# One for each way through the code: outside jit, each primitive and shape is a program.
EAGER = {
    "MLP", "RevNet", "EnResNet", "ConvODENet", "NmODENet flow map", "LipschitzNet", "StructuredNet",
}  # fmt: skip


def each_model(slow):
    # A module's scope puts a model's tests one after another, so that one worker has its program.
    names = [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in all_models]
    return pytest.mark.parametrize("name", names, scope="module")


traces = Counter()


@eqx.filter_jit
def run(predictor, images, keys):
    """All that the contract asks of a network, in one program: logits, batches and gradients."""
    traces["run"] += 1

    def loss(x, key):
        logits = predictor(x, key=key)
        return cross_entropy(logits, jnp.asarray(0)), logits

    gradients, batch = jax.vmap(jax.grad(loss, has_aux=True))(images, keys)
    loop = jax.lax.map(lambda one: predictor(one[0], key=one[1]), (images, keys))
    return {"loop": loop, "logits": loop[0], "batch": batch, "gradients": gradients}


IMAGES = digits().pixels[:4]
OTHERS = np.concatenate([IMAGES[:1], digits("test").pixels[:3]])
KEYS = jax.random.split(KEY, 4)


@lru_cache
def result_of(name):
    return run(predictor_of(name), IMAGES, KEYS)


@each_model(slow=LIKE_OTHERS)
def test_logits_have_one_float_for_each_class(name):
    logits = result_of(name)["logits"]
    assert logits.shape == (10,)
    assert logits.dtype == jnp.result_type(float)  # float64 where JAX is set to
    assert np.isfinite(logits).all()


@each_model(slow=set(all_models) - EAGER)
def test_jit_computes_what_eager_does(name):
    eager = predictor_of(name)(jnp.asarray(IMAGES[0]), key=KEYS[0])
    np.testing.assert_allclose(result_of(name)["logits"], eager, atol=2e-5)


@each_model(slow=LIKE_OTHERS)
def test_vmap_computes_what_a_loop_does(name):
    np.testing.assert_allclose(result_of(name)["batch"], result_of(name)["loop"], atol=2e-5)


@each_model(slow=LIKE_OTHERS)
def test_examples_of_a_batch_do_not_influence_each_other(name):
    first = run(predictor_of(name), OTHERS, KEYS)["batch"][0]
    np.testing.assert_array_equal(first, result_of(name)["batch"][0])


@each_model(slow=LIKE_OTHERS)
def test_new_weights_and_images_share_one_trace(name):
    result_of(name)
    before = traces["run"]
    run(predictor_of(name, seed=1), OTHERS, jax.random.split(jax.random.key(7), 4))
    assert traces["run"] == before


@each_model(slow=LIKE_OTHERS)
def test_the_same_key_gives_the_same_result(name):
    again = run(predictor_of(name), IMAGES, KEYS)
    np.testing.assert_array_equal(again["batch"], result_of(name)["batch"])


@each_model(slow=LIKE_OTHERS)
def test_a_saved_model_gives_identical_logits_in_the_same_program(name, tmp_path):
    result, before = result_of(name), traces["run"]
    save(tmp_path / "net", predictor_of(name))
    loaded = run(load(tmp_path / "net"), IMAGES, KEYS)
    np.testing.assert_array_equal(loaded["batch"], result["batch"])
    assert traces["run"] == before


@each_model(slow=LIKE_OTHERS)
def test_every_image_has_a_finite_gradient_that_is_not_zero(name):
    gradient = np.asarray(result_of(name)["gradients"])
    assert gradient.shape == IMAGES.shape
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 1e-6).all()


# Diffrax holds the step sizes fixed when it differentiates an adaptive solve, so its gradient is
# that of the exact solution to the solve's tolerance: here one far below the test's.
accurately_solved = {
    "DenseODENet": lambda key: eqx.nn.make_with_state(DenseODENet)(
        IMAGE_SHAPE,
        width=8,
        stepsize_controller=diffrax.PIDController(1e-12, 1e-12),
        max_steps=4096,
        key=key,
    ),
    "NmODENet solver": lambda key: eqx.nn.make_with_state(NmODENet)(
        IMAGE_SHAPE, width=8, nmode=NmODE(solver=diffrax.Dopri5(), rtol=1e-12, atol=1e-12), key=key
    ),
}


@each_model(slow=LIKE_OTHERS_IN_GRADIENT)
def test_the_input_gradient_is_that_of_central_differences(name):
    adaptive = name in accurately_solved
    if adaptive:
        predictor = Predictor(*accurately_solved[name](jax.random.key(0)))
    else:
        predictor = predictor_of(name)
    # Between smooth rounding error, 1e-16 / h, and an adaptive solve's, some 1e-10 / h where ReLUs
    # switch within its steps.
    h, atol = (1e-4, 5e-5) if adaptive else (1e-6, 1e-7)
    pixels = np.arange(0, 64, 5)
    with jax.enable_x64(True):
        predictor = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a, np.float64)) if eqx.is_inexact_array(a) else a,
            predictor,
        )
        # Off 0 and off each other, where ReLUs and maxima of pixels have their kinks.
        x = 0.01 + 0.95 * digits().images[0] / 255.0
        x = x + 0.03 * np.random.default_rng(1).random(x.shape)
        weights = np.random.default_rng(0).normal(size=10)

        def value(x):
            return weights @ predictor(x, key=KEY)

        step = h * np.eye(64)[pixels].reshape(-1, *IMAGE_SHAPE)
        around = np.concatenate([x + step, x - step, x[None]])
        values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value)))(around)
        gradient = np.ravel(gradients[-1])[pixels]
    assert gradient.dtype == np.float64
    up, down = np.split(np.asarray(values[:-1]), 2)
    np.testing.assert_allclose(gradient, (up - down) / (2 * h), rtol=1e-6, atol=atol)
    assert np.abs(gradient).max() > 100 * atol


@each_model(slow=LIKE_OTHERS)
def test_an_image_of_another_size_is_refused_with_both_shapes(name):
    with pytest.raises(ValueError, match=r"\(8, 8, 1\), got \(9, 8, 1\)"):
        predictor_of(name)(jnp.zeros((9, 8, 1)), key=KEY)


def test_an_ensemble_with_noise_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        predictor_of("EnResNet")(jnp.asarray(IMAGES[0]))


def test_a_field_in_time_is_given_the_time():
    predictor = predictor_of("ConvODENet in time")

    @eqx.filter_jit
    def field(model, state, t):
        y, _ = model.encode(jnp.asarray(IMAGES[0]), state)
        return model.field(t, y, model.parameters(state))

    early, late = (np.asarray(field(predictor.model, predictor.state, t)) for t in np.eye(2)[0])
    assert np.abs(early - late).max() > 1e-3


def test_noise_depends_on_the_key():
    other = run(predictor_of("EnResNet"), IMAGES, jax.random.split(jax.random.key(1), 4))
    assert not np.array_equal(other["logits"], result_of("EnResNet")["logits"])


def _make(cls, *args, **settings):
    """Of shapes: what is refused is a setting, and nothing compiles."""
    make = eqx.nn.make_with_state(cls)
    return eqx.filter_eval_shape(lambda key: make(*args, key=key, **settings), KEY)


@pytest.mark.parametrize("cls", SHAPED)
def test_one_class_is_refused(cls):
    with pytest.raises(ValueError, match=r"n_classes .* got 1"):
        _make(cls, IMAGE_SHAPE, 1)


@pytest.mark.parametrize("cls", SHAPED)
def test_an_image_shape_without_channels_is_refused(cls):
    with pytest.raises(ValueError, match=r"image_shape .* got \(8, 8, 0\)"):
        _make(cls, (8, 8, 0))


@pytest.mark.parametrize("cls", LAYERED)
def test_no_layers_are_refused(cls):
    with pytest.raises(ValueError, match=r"depth .* got 0"):
        _make(cls, IMAGE_SHAPE, width=4, depth=0)


@pytest.mark.parametrize("cls", [MLP, *LAYERED, LipschitzNet])
def test_a_negative_depth_is_refused(cls):
    with pytest.raises(ValueError, match=r"depth .* got -1"):
        _make(cls, IMAGE_SHAPE, width=4, depth=-1)


@pytest.mark.parametrize("cls", SHAPED)
def test_no_channels_or_neurons_are_refused(cls):
    with pytest.raises(ValueError, match="0"):
        _make(cls, IMAGE_SHAPE, width=0)


@pytest.mark.parametrize("cls", [ResNet, SSPNet, EnResNet, ConvODENet])
def test_a_width_that_groups_do_not_divide_is_refused(cls):
    with pytest.raises(ValueError, match="9 channels do not divide into 2 groups"):
        _make(cls, IMAGE_SHAPE, width=9)


@pytest.mark.parametrize("step_size", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [ResNet, PolyNet, RevNet])
def test_a_step_size_that_is_negative_or_not_finite_is_refused(cls, step_size):
    with pytest.raises(ValueError, match=f"step_size .* got {step_size}"):
        _make(cls, IMAGE_SHAPE, width=4, depth=1, step_size=step_size)


def test_a_polynomial_without_a_first_power_is_refused():
    with pytest.raises(ValueError, match=r"order .* got 0"):
        _make(PolyNet, IMAGE_SHAPE, order=0)


def test_a_fractal_without_columns_is_refused():
    with pytest.raises(ValueError, match=r"columns .* got 0"):
        _make(FractalNet, IMAGE_SHAPE, columns=0)


def test_an_odd_width_does_not_halve():
    with pytest.raises(ValueError, match=r"width must be even.* got 5"):
        _make(RevNet, IMAGE_SHAPE, width=5)


@pytest.mark.parametrize("t1", [0.0, -1.0, float("nan"), float("inf")])
def test_an_integration_time_that_is_not_positive_and_finite_is_refused(t1):
    with pytest.raises(ValueError, match=f"t1 .* got {t1}"):
        _make(ConvODENet, IMAGE_SHAPE, width=4, t1=t1)
    with pytest.raises(ValueError, match=f"t1 .* got {t1}"):
        NmODE(3.0, t1)


def test_a_field_that_is_no_dense_field_is_refused():
    with pytest.raises(ValueError, match="field must be a subclass of AbstractDenseField; got"):
        _make(DenseODENet, IMAGE_SHAPE, field=MLP)


class DecayingField(AbstractDenseField):
    """f(t, y) = -2 t y, whose solution is e^(-t^2) y(0)."""

    n_keys = 0

    def __init__(self, width, keys):
        assert keys.shape == (0,)

    def __call__(self, t, y):
        return -2 * t * y


def test_a_dense_neural_ode_takes_any_field():
    @eqx.filter_jit
    def logits(key, x):
        accurate = diffrax.PIDController(1e-6, 1e-6)
        make = eqx.nn.make_with_state(DenseODENet)
        model, state = make(
            IMAGE_SHAPE, width=4, field=DecayingField, stepsize_controller=accurate, key=key
        )
        return model(x, state)[0], model.outputs(jnp.exp(-1.0) * model.inputs(jnp.ravel(x)))

    np.testing.assert_allclose(*logits(KEY, jnp.asarray(IMAGES[0])), atol=1e-5)


def test_batch_statistics_inside_an_adaptive_solve_are_refused():
    with pytest.raises(ValueError, match="GroupNorm"):
        _make(ConvODENet, IMAGE_SHAPE, width=4, norm=BatchNorm)


def test_constant_steps_without_a_step_are_refused():
    with pytest.raises(ValueError, match="dt0"):
        _make(ConvODENet, IMAGE_SHAPE, width=4, stepsize_controller=diffrax.ConstantStepSize())


@pytest.mark.parametrize("dt0", [0.0, -0.1, float("inf")])
def test_steps_that_lead_nowhere_are_refused(dt0):
    with pytest.raises(ValueError, match=f"dt0 .* got {dt0}"):
        _make(ConvODENet, IMAGE_SHAPE, width=4, dt0=dt0)


def test_an_ensemble_without_members_is_refused():
    with pytest.raises(ValueError, match=r"members .* got 0"):
        _make(EnResNet, IMAGE_SHAPE, members=0)


def test_odd_sides_are_refused_where_images_are_halved():
    with pytest.raises(ValueError, match=r"even; got \(7, 8, 1\)"):
        _make(LipschitzNet, (7, 8, 1))


def test_a_solve_that_needs_too_many_steps_gives_nan():
    @eqx.filter_jit
    def logits(key, x):
        make = eqx.nn.make_with_state(ConvODENet)
        return Predictor(*make(IMAGE_SHAPE, width=4, max_steps=1, key=key))(x, key=key)

    assert jnp.isnan(logits(KEY, IMAGES[0])).all()
