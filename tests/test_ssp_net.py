"""SSP networks of several groups, their states, and how perturbations grow in them."""

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
    SSPRK33,
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
    model, state = net(SSPRK33())
    same, _ = net([SSPRK33()] * 3)
    np.testing.assert_array_equal(model(image(), state)[0], same(image(), state)[0])
    euler, _ = net()
    assert not np.allclose(model(image(), state)[0], euler(image(), state)[0], atol=1e-3)


def test_the_adaptive_network_of_the_paper_mixes_its_groups():
    """ark blocks, ResNet blocks, SSP-2 blocks."""
    model, state = net([LearnedRK2(2), None, SSPRK22()])

    def by_hand(y, group, step):
        for i in range(jax.tree.leaves(group)[0].shape[0]):
            layer = jax.tree.map(lambda a, i=i: a[i], eqx.filter(group, eqx.is_array))
            layer = eqx.combine(layer, group)
            y = step(lambda v, layer=layer: layer(v, state)[0], y, i)
        return y

    net_ = model.net
    c = net_.solvers[0].coefficients()

    def ark(f, y, i):
        x1 = y + c.b10[i] * f(y)
        return c.a20[i] * y + c.b20[i] * f(y) + c.a21[i] * x1 + c.b21[i] * f(x1)

    def ssp2(f, y, i):
        x1 = y + f(y)
        return (y + x1 + f(x1)) / 2

    steps = [ark, lambda f, y, i: y + f(y), ssp2]
    y, state_ = net_.stem(image()), state
    for transition, group, step in zip(net_.transitions, net_.layers, steps, strict=True):
        if transition is not None:
            y, _ = transition(y, state_, step_size=1.0)
        y = by_hand(y, group, step)
    expected, _ = net_.head(y, state)
    np.testing.assert_allclose(model(image(), state)[0], expected, rtol=0, atol=1e-5)


def test_a_learned_step_learns():
    model, state = net([LearnedRK2(2), None, None])
    gradient = eqx.filter_grad(lambda m: m(image(), state)[0][3])(model)
    assert float(jnp.abs(gradient.net.solvers[0].first).min()) > 0


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_solvers_as_groups(count):
    with pytest.raises(ValueError, match=f"3 groups of layers take one solver, or 3; got {count}"):
        net([SSPRK22()] * count)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eqx.nn.make_with_state(ResNet)(IMAGE_SHAPE, 10, width=4, depth=3, key=KEY),
        lambda: eqx.nn.make_with_state(SSPNet)(IMAGE_SHAPE, 10, width=4, depth=3, key=KEY),
        lambda: net(SSPRK22(), depth=8),
    ],
    ids=["ResNet", "SSPNet", "PreActResNet"],
)
def test_the_last_block_state_is_what_the_head_sees(make):
    model, state = make()
    model = Predictor(model, state).model
    states = model.block_states(image(), state)
    head = model.head if isinstance(model, ResNet) else model.net.head
    np.testing.assert_allclose(head(states[-1], state)[0], model(image(), state)[0], atol=1e-6)
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
    assert float(one) == 3.0 == float(published.growth(1.0))
