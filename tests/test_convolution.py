"""conv2d is XLA's convolution, in values and in every derivative, batched in every way."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from odejax.models import conv2d

PADDINGS = [0, 1, 2, ((1, 0), (0, 2)), ((0, 3), (2, 1))]


@pytest.fixture(autouse=True)
def _full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def plain(x, kernel, *, stride=1, padding=0):
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x[None], kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def shifted(x, kernel, *, stride=1, padding=0):
    """The definition: a sum over the taps of the kernel."""
    x = jnp.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    kh, kw = kernel.shape[:2]
    h, w = x.shape[0] - kh + 1, x.shape[1] - kw + 1
    return sum(
        x[a : a + h : stride, b : b + w : stride] @ kernel[a, b]
        for a in range(kh)
        for b in range(kw)
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tol=2e-6):
    """To within `tol` of the largest entry: what summing in another order may change."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=0, atol=tol * float(np.abs(e).max()))


def jaxprs_in(value):
    if isinstance(value, jax.extend.core.Jaxpr):
        yield value
    elif isinstance(value, jax.extend.core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from jaxprs_in(item)


def equations(jaxpr):
    """Every equation of a jaxpr, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in(list(equation.params.values())):
            yield from equations(inner)


def largest_intermediate_of(jaxpr):
    sizes = [
        np.prod(v.aval.shape)
        for equation in equations(jaxpr)
        for v in equation.outvars
        if hasattr(v.aval, "shape")
    ]
    return max(sizes)


def largest_intermediate(fn, *args):
    return largest_intermediate_of(jax.make_jaxpr(fn)(*args).jaxpr)


# Every size with every stride, every size with three paddings at least, every stride with all.
CASES = {
    size: [(stride, PADDINGS[(size + 2 * stride) % 5]) for stride in (1, 2, 3)]
    for size in (1, 2, 3, 4, 5)
}


@pytest.mark.parametrize("size", CASES)
def test_values_and_both_gradients_are_xlas(size):
    x, kernel = normal(0, 7, 8, 2), normal(1, size, size, 2, 3)

    @jax.jit
    def both(x, kernel):  # one program for all strides and paddings
        out = {conv: [] for conv in ("odejax", "xla")}
        for stride, padding in CASES[size]:
            for name, conv in (("odejax", conv2d), ("xla", plain)):
                conv = partial(conv, stride=stride, padding=padding)
                y, pullback = jax.vjp(conv, x, kernel)
                out[name].append((y, pullback(jnp.cos(3 * y))))
        return out

    out = both(x, kernel)
    for actual, expected in zip(out["odejax"], out["xla"], strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    "shape", [pytest.param((5, 5), marks=pytest.mark.slow), (6, 6),
              pytest.param((9, 4), marks=pytest.mark.slow), (4, 9)], ids=str,
)  # fmt: skip
def test_odd_and_even_images_and_oblong_kernels(shape):
    # Not against XLA's gradient, which aborts the process on 6 x 6 pixels with this kernel.
    x, kernel = normal(2, *shape, 3), normal(3, 4, 2, 3, 2)

    @jax.jit
    def both(x, kernel):
        return [
            jax.value_and_grad(
                lambda x, k, conv=conv, s=stride: jnp.sum(conv(x, k, stride=s, padding=1) ** 2),
                (0, 1),
            )(x, kernel)
            for conv in (conv2d, shifted)
            for stride in (1, 2)
        ]

    *actual, first, second = both(x, kernel)
    assert_close(actual, [first, second])


def test_kernel_as_large_as_the_image_gives_one_pixel():
    x, kernel = normal(4, 5, 4, 3), normal(5, 5, 4, 3, 6)
    assert_close(jax.jit(conv2d)(x, kernel)[0, 0], np.einsum("abi,abio->o", x, kernel))


def test_no_jit_and_jit_agree():
    x, kernel = normal(6, 8, 7, 3), normal(7, 3, 3, 3, 4)
    assert_close(jax.jit(conv2d)(x, kernel), conv2d(x, kernel), 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_kept_by_values_and_gradients(dtype):
    x, kernel = normal(8, 6, 6, 2).astype(dtype), normal(9, 3, 3, 2, 2).astype(dtype)

    def values_and_gradients(x, kernel):
        y, pullback = jax.vjp(lambda x, k: conv2d(x, k, stride=2, padding=1), x, kernel)
        return y, *pullback(y)

    y, dx, dk = jax.eval_shape(values_and_gradients, x, kernel)
    assert (y.dtype, dx.dtype, dk.dtype) == (dtype, dtype, dtype)


def test_per_example_kernel_gradients_are_those_of_a_loop():
    xs, kernel = normal(10, 4, 7, 6, 2), normal(11, 3, 3, 2, 3)

    def loss(kernel, x, conv):
        return jnp.sum(jnp.sin(conv(x, kernel, stride=2, padding=1)))

    actual = jax.jit(jax.vmap(lambda x: jax.grad(loss)(kernel, x, conv2d)))(xs)
    assert actual.shape == (4, *kernel.shape)
    expected = jax.jit(lambda x: jax.grad(loss)(kernel, x, plain))
    assert_close(actual, np.stack([expected(x) for x in xs]))


def test_gradient_of_a_batched_loss_is_the_sum_over_examples():
    xs, kernel = normal(12, 4, 7, 6, 2), normal(13, 3, 3, 2, 3)

    def loss(kernel, x, conv):
        return jnp.sum(jnp.sin(conv(x, kernel, stride=2, padding=1)))

    actual = jax.jit(jax.grad(lambda k: jnp.sum(jax.vmap(lambda x: loss(k, x, conv2d))(xs))))
    expected = jax.jit(lambda x: jax.grad(loss)(kernel, x, plain))
    assert_close(actual(kernel), sum(np.asarray(expected(x)) for x in xs), 4e-6)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_vmap_over_images_along_any_axis(axis):
    xs, kernel = normal(14, 3, 7, 6, 2), normal(15, 3, 3, 2, 4)
    actual = jax.jit(jax.vmap(conv2d, in_axes=(axis, None)))(np.moveaxis(xs, 0, axis), kernel)
    expected = jax.jit(plain)
    assert_close(actual, np.stack([expected(x, kernel) for x in xs]))


@pytest.mark.parametrize("axis", [0, 3, -1])
def test_vmap_over_kernels_only(axis):
    x, kernels = normal(16, 7, 6, 2), normal(17, 3, 3, 3, 2, 4)
    actual = jax.jit(jax.vmap(conv2d, in_axes=(None, axis)))(x, np.moveaxis(kernels, 0, axis))
    expected = jax.jit(plain)
    assert_close(actual, np.stack([expected(x, k) for k in kernels]))


def test_gradients_under_vmap_over_kernels_only():
    x, kernels = normal(18, 7, 6, 2), normal(19, 3, 3, 3, 2, 4)

    def loss(x, k, conv):
        return jnp.sum(jnp.sin(conv(x, k, padding=1)))

    actual = jax.vmap(jax.grad(lambda x, k: loss(x, k, conv2d), (0, 1)), in_axes=(None, 0))
    one = jax.jit(jax.grad(lambda x, k: loss(x, k, plain), (0, 1)))
    expected = [one(x, k) for k in kernels]
    assert_close(
        jax.jit(actual)(x, kernels), jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    )


@pytest.mark.parametrize("order", ["members outside", "batch outside"])
def test_ensembles_of_kernels_on_a_batch(order):
    xs, kernels = normal(20, 5, 7, 6, 2), normal(21, 3, 3, 3, 2, 4)
    if order == "members outside":
        actual = jax.jit(jax.vmap(lambda k: jax.vmap(lambda x: conv2d(x, k))(xs)))(kernels)
    else:
        actual = jax.vmap(lambda x: jax.vmap(lambda k: conv2d(x, k))(kernels), out_axes=1)
        actual = jax.jit(actual)(xs)
    expected = jax.jit(plain)
    assert_close(actual, np.stack([np.stack([expected(x, k) for x in xs]) for k in kernels]))


def test_gradients_of_an_ensemble_on_its_own_images():
    xs, kernels = normal(22, 3, 7, 6, 2), normal(23, 3, 3, 3, 2, 4)

    def loss(xs, kernels):
        return jnp.sum(jnp.sin(jax.vmap(lambda x, k: conv2d(x, k, stride=2))(xs, kernels)))

    def looped(xs, kernels):
        return sum(
            jnp.sum(jnp.sin(plain(x, k, stride=2))) for x, k in zip(xs, kernels, strict=True)
        )

    actual, expected = (jax.jit(jax.grad(f, (0, 1)))(xs, kernels) for f in (loss, looped))
    assert_close(actual, expected)


def _potential(conv, stride, padding):
    return lambda args: jnp.sum(jnp.tanh(conv(*args, stride=stride, padding=padding)) ** 2)


# Stride 2 is also that of the third derivatives below.
@pytest.mark.parametrize(
    ("stride", "padding"),
    [(1, 1), pytest.param(2, 1, marks=pytest.mark.slow), (3, ((0, 3), (2, 1)))],
    ids=str,
)
def test_second_derivatives_in_both_compositions(stride, padding):
    rng = np.random.default_rng(24)
    args = rng.normal(size=(7, 6, 2)), rng.normal(size=(3, 3, 2, 2))
    v = jax.tree.map(lambda a: rng.normal(size=a.shape), args)

    def forward_over_reverse(f, args):
        return jax.jvp(jax.grad(f), (args,), (v,))[1]

    def reverse_over_reverse(f, args):
        def along(a):
            gradients = jax.tree.leaves(jax.grad(f)(a))
            return sum(jnp.vdot(g, w) for g, w in zip(gradients, v, strict=True))

        return jax.grad(along)(args)

    @jax.jit
    def all_of_them(args):
        actual = _potential(conv2d, stride, padding)
        expected = forward_over_reverse(_potential(plain, stride, padding), args)
        return expected, forward_over_reverse(actual, args), reverse_over_reverse(actual, args)

    with jax.enable_x64(True):
        expected, *results = all_of_them(args)
    for actual in results:
        assert_close(actual, expected, 1e-13)


THIRD = normal(25, 4, 5, 2).astype(np.float64), normal(26, 3, 2, 2, 2).astype(np.float64)


def _of_third_order(x, kernel):
    return jnp.sin(conv2d(jnp.asarray(x), jnp.asarray(kernel), stride=2, padding=1))


def test_third_derivatives_are_finite_differences_of_the_second():
    """Forward and reverse mode, each inside each."""
    rng = np.random.default_rng(27)
    weights = rng.normal(size=(2, 3, 2))
    along = [jax.tree.map(lambda a: rng.normal(size=a.shape), THIRD) for _ in range(3)]

    def derivative(f, mode, v):
        def forward(args):
            return jax.jvp(f, (args,), (v,))[1]

        def reverse(args):
            return sum(map(jnp.vdot, jax.grad(f)(args), v))

        return forward if mode == "f" else reverse

    def value(args):
        return jnp.vdot(weights, _of_third_order(*args))

    def of_order(modes):
        f = value
        for mode, v in zip(modes, along, strict=False):
            f = derivative(f, mode, v)
        return f

    @jax.jit
    def run(args):
        h = 1e-5
        beside = jax.tree.map(lambda a, d: jnp.stack([a + h * d, a - h * d]), args, along[-1])
        above, below = jax.vmap(of_order("fr"))(beside)
        actual = [of_order(modes)(args) for modes in ("fff", "frf", "rfr", "rrr")]
        return jnp.stack(actual), (above - below) / (2 * h)

    with jax.enable_x64(True):
        actual, expected = map(np.asarray, run(THIRD))
    assert abs(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_to_third_order_are_finite_differences():
    with jax.enable_x64(True):
        check_grads(jax.jit(_of_third_order), THIRD, order=3, atol=1e-6)


def test_forward_mode_is_bilinear():
    x, kernel = normal(26, 6, 6, 2), normal(27, 3, 3, 2, 2)
    dx, dk = normal(28, 6, 6, 2), normal(29, 3, 3, 2, 2)
    tangent = jax.jit(lambda *args: jax.jvp(conv2d, args, (dx, dk))[1])(x, kernel)
    assert_close(tangent, jax.jit(lambda x, k: plain(dx, k) + plain(x, dk))(x, kernel))


def test_values_and_gradients_inside_scan_are_those_outside():
    xs, kernels = normal(30, 4, 6, 6, 3), normal(31, 3, 3, 3, 3, 3) / 3

    def scanned(xs, kernels):
        def step(y, kernel):
            return jax.vmap(lambda v: jnp.tanh(conv2d(v, kernel, padding=1)))(y), None

        return jnp.sum(lax.scan(step, xs, kernels)[0] ** 2)

    def looped(xs, kernels):
        for kernel in kernels:
            xs = jnp.stack([jnp.tanh(plain(x, kernel, padding=1)) for x in xs])
        return jnp.sum(xs**2)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(xs, kernels) for f in (scanned, looped)
    )
    assert_close(actual, expected, 4e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_shared_kernel_never_has_one_gradient_per_example(stride):
    # Images this small have fewer entries altogether than seven kernels, stacked for every column
    # of the kernel too, so any array of that size would be a kernel gradient per example.
    xs, kernel = normal(32, 7, 4, 4, 5), normal(33, 3, 3, 5, 11)
    per_example = len(xs) * kernel.size

    def loss(k, x):
        return jnp.sum(conv2d(x, k, stride=stride) ** 2)

    def shared(k):
        return jax.grad(lambda k: jnp.sum(jax.vmap(lambda x: loss(k, x))(xs)))(k)

    def one_by_one(k):
        return jnp.sum(jax.vmap(lambda x: jax.grad(loss)(k, x))(xs), axis=0)

    assert largest_intermediate(shared, kernel) < per_example
    assert largest_intermediate(one_by_one, kernel) >= per_example  # so the walk counts them


def test_matmul_precision_is_captured_when_called_and_reaches_the_gradients():
    x, kernel = normal(34, 6, 6, 2), normal(35, 3, 3, 2, 2)

    def traced(x, kernel):
        with jax.default_matmul_precision("high"):
            return jax.grad(lambda x, k: jnp.sum(conv2d(x, k, stride=2) ** 2), (0, 1))(x, kernel)

    used = [
        equation.params["precision"]
        for equation in equations(jax.make_jaxpr(traced)(x, kernel).jaxpr)
        if equation.primitive.name in ("odejax_conv2d", "dot_general", "conv_general_dilated")
    ]
    assert len(used) > 2  # forward and both gradients
    high = (lax.Precision.HIGH, lax.Precision.HIGH)
    assert {high if p == "high" else p for p in used} == {high}


def test_captured_precision_outlives_its_block_until_lowering():
    x, kernel = normal(36, 6, 6, 2), normal(37, 3, 3, 2, 2)

    def inside(x, kernel):
        with jax.default_matmul_precision("highest"):
            return conv2d(x, kernel)

    with jax.default_matmul_precision("default"):
        assert "HIGHEST" in jax.jit(inside).lower(x, kernel).as_text()
        assert "HIGHEST" not in jax.jit(conv2d).lower(x, kernel).as_text()


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape"),
    [((2, 6, 6, 3), (3, 3, 3, 4)), ((6, 6), (3, 3, 3, 4)), ((6, 6, 3), (3, 3, 4)),
     ((6, 6, 3), (3, 3, 2, 4))],
    ids=["a batch", "no channels", "kernel of three axes", "channels differ"],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(x_shape, kernel_shape, unchecked):
    with pytest.raises(ValueError, match=r"takes an image \(h, w, i\)") as error:
        conv2d(jnp.zeros(x_shape), jnp.zeros(kernel_shape))
    assert str(x_shape) in str(error.value)
    assert str(kernel_shape) in str(error.value)


def test_a_kernel_larger_than_the_padded_image_is_refused():
    kernel = jnp.zeros((5, 5, 1, 1))
    with pytest.raises(ValueError, match="larger than the padded image"):
        conv2d(jnp.zeros((4, 6, 1)), kernel)
    padded = partial(conv2d, padding=((1, 0), (0, 0)))
    assert jax.eval_shape(padded, jnp.zeros((4, 6, 1)), kernel).shape == (1, 2, 1)
