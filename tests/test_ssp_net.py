"""SSP networks of several stages, their states, and how perturbations grow in them."""

from functools import cache

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_SHAPE, digits

from odejax import Predictor
from odejax.models import GroupNorm, PreActResNet, ResNet, SSPNet
from odejax.solvers import (
    SSPRK22,
    LearnedRK2,
    PublishedMidpoint,
    RungeKutta,
    growth_ratios,
)

KEY = jax.random.key(5)


def image(i=0):
    return jnp.asarray(digits().pixels[i])


def net(solver=None, depth=14, norm=GroupNorm):
    make = eqx.nn.make_with_state(PreActResNet)
    return make(IMAGE_SHAPE, 10, depth=depth, solver=solver, norm=norm, key=KEY)


def test_one_solver_is_that_of_every_group():
    @jax.jit
    def logits_of_three(x):
        nets = [net(solver) for solver in (SSPRK22(), [SSPRK22()] * 3, None)]
        return [model(x, state)[0] for model, state in nets]

    one, same, euler = logits_of_three(image())
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, euler, atol=1e-3)


@cache
def adaptive():
    """The network of the paper, ark blocks, ResNet blocks, SSP-2 blocks: its logits, what they are
    by hand, and the gradient by the steps that it learns, in one program."""

    def by_hand(y, stage, state, step):
        arrays, static = eqx.partition(stage, eqx.is_array)

        def one(y, turn):
            arrays, i = turn
            return step(lambda v: eqx.combine(arrays, static)(v, state)[0], y, i), None

        return jax.lax.scan(one, y, (arrays, jnp.arange(len(jax.tree.leaves(arrays)[0]))))[0]

    def expected_of(model, state, x):
        c = model.solvers[0].coefficients()

        def ark(f, y, i):
            slope = f(y)
            x1 = y + c.b10[i] * slope
            return c.a20[i] * y + c.b20[i] * slope + c.a21[i] * x1 + c.b21[i] * f(x1)

        def ssp2(f, y, i):
            x1 = y + f(y)
            return (y + x1 + f(x1)) / 2

        steps = [ark, lambda f, y, i: y + f(y), ssp2]
        y = model.stem(x)
        for downsample, stage, step in zip(model.downsamples, model.layers, steps, strict=True):
            if downsample is not None:
                y, _ = downsample(y, state, step_size=1.0)
            y = by_hand(y, stage, state, step)
        return model.head(y, state)[0]

    @jax.jit
    def compute(x):
        model, state = net([LearnedRK2(2), None, SSPRK22()])

        def logit(first):
            learned = eqx.tree_at(lambda m: m.solvers[0].first, model, first)
            logits, _ = learned(x, state)
            return logits[3], logits

        gradient, logits = jax.grad(logit, has_aux=True)(model.solvers[0].first)
        return logits, expected_of(model, state, x), gradient

    return compute(image())


def test_the_adaptive_network_of_the_paper_mixes_its_stages():
    logits, expected, _ = adaptive()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_a_learned_step_learns():
    _, _, gradient = adaptive()
    assert np.abs(gradient).min() > 0


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_solvers_as_stages(count):
    with pytest.raises(ValueError, match=f"3 stages take one solver, or 3; got {count}"):
        eqx.filter_eval_shape(net, [SSPRK22()] * count)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eqx.nn.make_with_state(ResNet)(IMAGE_SHAPE, 10, width=4, depth=3, key=KEY),
        lambda: eqx.nn.make_with_state(SSPNet)(IMAGE_SHAPE, 10, width=4, depth=3, key=KEY),
        lambda: net(SSPRK22(), depth=8),
    ],
    ids=["ResNet", "SSPNet", "PreActResNet"],
)
def test_the_last_block_state_is_the_input_of_the_head(make):
    @jax.jit
    def compute(x):
        model, state = make()
        model = Predictor(model, state).model
        states = model.block_states(x, state)
        return states, model.head(states[-1], state)[0], model(x, state)[0]

    states, of_the_last, logits = compute(image())
    np.testing.assert_allclose(of_the_last, logits, atol=1e-6)
    assert len(states) == 3


def test_growth_ratios_are_distances_over_the_first():
    rng = np.random.default_rng(0)
    shapes = [(4, 4, 2), (4, 4, 2), (2, 2, 4)]
    ys, zs = ([rng.normal(size=s).astype(np.float32) for s in shapes] for _ in range(2))
    for order in (1, 2):
        ratios = growth_ratios(list(map(jnp.asarray, ys)), list(map(jnp.asarray, zs)), order)
        distances = [
            (np.abs(y - z) ** order).sum() ** (1 / order) for y, z in zip(ys, zs, strict=True)
        ]
        np.testing.assert_allclose(ratios, np.array(distances) / distances[0], rtol=1e-5)


def test_the_published_midpoint_is_not_the_rule():
    """It goes 3/2 of the way, and so its order is 0; the rule is diffrax.Midpoint."""

    def end(step, n):
        y = jnp.ones(())
        for _ in range(n):
            y = step(lambda v: -v, y, 1 / n)
        return float(y)

    rule, published = RungeKutta(diffrax.Midpoint()), PublishedMidpoint()
    assert end(rule, 64) == pytest.approx(np.exp(-1), rel=1e-4)
    assert end(published, 64) == pytest.approx(np.exp(-1.5), rel=0.02)
    one = published(lambda v: v, jnp.ones(()), 1.0)
    assert float(one) == 3.0 == float(published.lipschitz_factor(1.0))
