"""Floating-point operations counted from a trace: against XLA's analysis, and by hand."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments.lib.flop import flop
from odejax.models import PreActResNet, conv2d


def network(x, kernel, weight):
    """A convolution without padding, whose border XLA would not count, and a product."""
    return jax.nn.relu(conv2d(x, kernel)).ravel() @ weight


X, KERNEL, WEIGHT = jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 5)), jnp.ones((6 * 6 * 5, 7))
FORWARD = 2 * 6 * 6 * 5 * 3 * 3 * 3 + 2 * 6 * 6 * 5 * 7


def test_a_program_without_loops_takes_what_xla_says():
    def batch(xs, kernel, weight):
        return jax.vmap(network, (0, None, None))(xs, kernel, weight)

    arguments = jnp.ones((4, *X.shape)), KERNEL, WEIGHT
    assert flop(batch, *arguments) == 4 * FORWARD
    analysed = jax.jit(batch).lower(*arguments).cost_analysis()
    assert analysed["flops"] == pytest.approx(4 * FORWARD, rel=0.05)  # and its elementwise ones


def test_a_gradient_takes_three_times_as_much():
    def gradients(x, kernel, weight):
        return jax.grad(lambda *args: network(*args).sum(), (0, 1, 2))(x, kernel, weight)

    # The gradient by the image has a border of zeros.
    assert 3 * FORWARD <= flop(gradients, X, KERNEL, WEIGHT) < 4 * FORWARD


def test_a_loop_counts_as_often_as_it_runs():
    square = jnp.ones((5, 5))

    def times(n, x):
        return lax.fori_loop(0, n, lambda i, x: x @ x, x)

    def until(x):
        return lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ x, x)

    one = 2 * 5**3
    assert flop(partial(times, 7), square) == 7 * one
    with pytest.raises(ValueError, match="depends on the data"):
        flop(until, square)
    both = lax.cond, lambda x: x @ x, lambda x: x @ x @ x
    assert flop(lambda x: both[0](x.sum() > 0, *both[1:], x), square) == 2 * one


def test_a_resnet_takes_what_its_paper_says():
    model, state = eqx.filter_eval_shape(
        eqx.nn.make_with_state(PreActResNet), (32, 32, 3), 10, depth=20, key=jax.random.key(0)
    )
    arrays, static = eqx.partition((model, state), lambda a: isinstance(a, jax.ShapeDtypeStruct))

    def logits(arrays, x):
        model, state = eqx.nn.inference_mode(eqx.combine(arrays, static))
        return model(x, state, key=jax.random.key(0))[0]

    # 40.6 million multiply-adds; its blocks are the body of a loop.
    image = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    assert flop(logits, arrays, image) == pytest.approx(2 * 40.6e6, rel=0.02)
