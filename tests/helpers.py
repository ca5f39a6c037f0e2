"""What several test files share: tiny instances of every model, attack and certificate."""

from functools import lru_cache, partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from odejax import Predictor, data
from odejax.attacks import (
    APGD,
    DI2FGSM,
    EOT,
    FAB,
    FGSM,
    IFGSM,
    MIFGSM,
    PGD,
    SPSA,
    AttackProblem,
    AutoAttack,
    BestAdversarial,
    Boundary,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    Restarts,
    Square,
    Targeted,
    dlr,
    start,
    step,
)
from odejax.certificates import (
    FiniteTimeStableMapping,
    FlowMapSlope,
    IntervalBounds,
    LinearRelaxation,
    LipschitzMargin,
    LocalLipschitz,
    RandomizedSmoothing,
    StableMapping,
)
from odejax.evaluation.flags import is_black_box
from odejax.models import (
    CNN,
    MLP,
    AugmentedODENet,
    BatchNorm,
    ConvODENet,
    DenseODENet,
    EnResNet,
    FlexibleSteps,
    FractalNet,
    HamiltonianNet,
    HopfieldField,
    LipschitzNet,
    MassPreservingNet,
    MixedEnResNet,
    NeuralSDENet,
    NmODE,
    NmODENet,
    OrthogonalNet,
    PolyNet,
    PreActResNet,
    ResNet,
    RevNet,
    SpherePreservingNet,
    SSPNet,
    Structured,
    StructuredNet,
    VolumePreservingNet,
    WideResNet,
)
from odejax.solvers import SSPRK22, SSPRK33
from odejax.training import CrossEntropy, fit

IMAGE_SHAPE = (8, 8, 1)


def _maker(cls, **settings):
    def make(key):
        return eqx.nn.make_with_state(cls)(IMAGE_SHAPE, 10, key=key, **settings)

    return make


_HEUN = {
    "solver": diffrax.Heun(),
    "stepsize_controller": diffrax.ConstantStepSize(),
    "dt0": 0.25,
}

# name -> (key -> (model, state)): a new architecture joins here and inherits the contract.
all_models = {
    "MLP": _maker(MLP, width=8),
    "CNN": _maker(CNN, channels=(4,), width=8, norm=BatchNorm),
    "ResNet": _maker(ResNet, width=4, depth=2),
    "ResNet BatchNorm": _maker(ResNet, width=4, depth=2, norm=BatchNorm),
    "ResNet step 0.1": _maker(ResNet, width=4, depth=2, step_size=0.1),
    "SSPNet SSPRK22": _maker(SSPNet, width=4, depth=2, solver=SSPRK22()),
    "SSPNet SSPRK33": _maker(SSPNet, width=4, depth=2, solver=SSPRK33()),
    "PolyNet": _maker(PolyNet, width=4, depth=2),
    "FractalNet": _maker(FractalNet, width=4, depth=2, columns=2),
    "RevNet": _maker(RevNet, width=8, depth=2),
    "EnResNet": _maker(EnResNet, width=4, depth=2, members=2),
    "MixedEnResNet": _maker(MixedEnResNet, bases=(partial(ResNet, width=4, depth=1),) * 2),
    "NeuralSDENet": _maker(NeuralSDENet, width=4, depth=2, steps=2, paths=2),
    "PreActResNet": _maker(PreActResNet, depth=8),
    "PreActResNet SSPRK22": _maker(PreActResNet, depth=8, solver=SSPRK22()),
    "WideResNet": _maker(WideResNet, depth=8, width=2),
    "ConvODENet": _maker(ConvODENet, width=4, **_HEUN),
    "ConvODENet in time": _maker(ConvODENet, width=4, layers=1, time=True, last_norm=True, **_HEUN),
    "AugmentedODENet": _maker(AugmentedODENet, width=4, augment=2, time=True, **_HEUN),
    "DenseODENet": _maker(DenseODENet, width=8),
    "DenseODENet Hopfield": _maker(DenseODENet, width=8, field=HopfieldField),
    "NmODENet flow map": _maker(NmODENet, width=8),
    "NmODENet solver": _maker(NmODENet, width=8, nmode=NmODE(solver=diffrax.Dopri5())),
    "LipschitzNet": _maker(LipschitzNet, width=4, depth=1, features=16),
    "LipschitzNet SLL": _maker(LipschitzNet, width=4, depth=1, features=16, layer="SLL"),
    "OrthogonalNet": _maker(OrthogonalNet, widths=(16, 16)),
    "StructuredNet": _maker(StructuredNet, channels=(4,), depth=2),
    "StructuredNet switching": _maker(
        StructuredNet, channels=(4,), depth=2, regime=Structured(steps=FlexibleSteps())
    ),
    "HamiltonianNet": _maker(HamiltonianNet, features=8, depth=2, width=8),
    "VolumePreservingNet": _maker(VolumePreservingNet, features=8, depth=2, width=8),
    "MassPreservingNet": _maker(MassPreservingNet, features=8, depth=2, width=8),
    "SpherePreservingNet": _maker(SpherePreservingNet, features=8, depth=2, width=8),
}
NOISY = ("EnResNet", "MixedEnResNet", "NeuralSDENet")
# Their programs hold a primitive without a rule for bounds: a solver's loop, a linear solve.
REFUSED = {"NmODENet solver": "while", "SpherePreservingNet": "lu"}

all_attacks = {
    "FGSM": FGSM(),
    "PGD": PGD(steps=5, step_size=None),
    "PGD restarts": Restarts(PGD(steps=4, step_size=0.05), 3),
    "PGD from the image": PGD(steps=5, step_size=None, random_start=False),
    "PGD EOT": EOT(PGD(steps=4, step_size=0.05), 2),
    "IFGSM": IFGSM(steps=5, step_size=None),
    "MIFGSM": MIFGSM(steps=5),
    "DI2FGSM": DI2FGSM(steps=8),
    "CarliniWagnerLinf": CarliniWagnerLinf(steps=12, learning_rate=0.1),
    "CarliniWagner": CarliniWagner(steps=20, search_steps=4, learning_rate=0.1, c=0.1),
    "APGD": APGD(steps=10),
    "APGD-DLR": APGD(steps=10, loss=dlr),
    "APGD-T": Targeted(APGD(steps=6, loss=dlr), 2),
    "FAB": FAB(steps=6),
    "FAB-T": Targeted(FAB(steps=6), 2),
    "DeepFool": DeepFool(steps=20),
    "Square": Square(n_queries=60),
    "Boundary": Boundary(n_queries=250),
    "SPSA": SPSA(n_queries=7 * 13, samples=6, learning_rate=0.05),
    "AutoAttack": AutoAttack({"APGD": APGD(steps=5), "Square": Square(n_queries=10)}),
}

# What `AttackResult.queries` says for each that does not stop at its first success: gradients and
# evaluations, and the judge's one. For those that do, it is the most that it may say.
attack_queries = {
    "FGSM": 1 + 1 + 1,
    "PGD": 5 + 1 + 1,
    "PGD restarts": 3 * (4 + 1) + 1,
    "PGD from the image": 5 + 1 + 1,
    "PGD EOT": 2 * (4 + 1) + 1,
    "IFGSM": 5 + 1 + 1,
    "MIFGSM": 5 + 1 + 1,
    "DI2FGSM": 8 + 1 + 1,
    "CarliniWagnerLinf": 12 + 1 + 1,
    "CarliniWagner": 20 * 4 + 1,
    "APGD": 10 + 1 + 1,
    "APGD-DLR": 10 + 1 + 1,
    "APGD-T": 2 * (1 + 6 + 1) + 1,
    "FAB": 6 + 1 + 1,
    "FAB-T": 2 * (1 + 6 + 1) + 1,
    "DeepFool": 20 + 1 + 1,
    "Square": 60 + 1,
    "Boundary": 250 + 1,
    "SPSA": 7 * 13 + 1,
    "AutoAttack": (5 + 1) + 1 + 10 + 1 + 1,
}
# Those that use outputs alone, and sequences with such a one.
stopping_attacks = [
    name
    for name, attack in all_attacks.items()
    if any(map(is_black_box, attack.parts if isinstance(attack, AutoAttack) else [attack]))
]

# name -> (certificate, a model that it certifies, or that a vote under noise is of)
all_certificates = {
    "StableMapping": (StableMapping(), _maker(NmODENet, width=32)),
    "FiniteTimeStableMapping": (FiniteTimeStableMapping(), _maker(NmODENet, width=32)),
    "FlowMapSlope": (FlowMapSlope(), _maker(NmODENet, width=32)),
    "IntervalBounds": (IntervalBounds(), _maker(NmODENet, width=32)),
    "LinearRelaxation": (LinearRelaxation(bisections=4), _maker(NmODENet, width=32)),
    "LocalLipschitz": (LocalLipschitz(), _maker(NmODENet, width=32)),
    "LipschitzMargin": (LipschitzMargin(), _maker(LipschitzNet, width=4, depth=1, features=16)),
    "RandomizedSmoothing": (RandomizedSmoothing(n=100), _maker(MLP, width=8)),
}


def alternate(names):
    """Parameters of a test, every other one slow: what one of them shows the next one shows too."""
    marks = ([], [pytest.mark.slow])
    return [pytest.param(name, marks=marks[i % 2]) for i, name in enumerate(names)]


@lru_cache
def digits(split="train", n=None):
    """The first `n` embedded digits of a split."""
    return data.load("digits", split).take(slice(n))


@eqx.filter_jit
def warm(model, state, images, key):
    """`state` after a training batch, so that batch statistics are those of real images."""
    _, (state, _) = CrossEntropy()(model, state, images, jnp.zeros(len(images), jnp.int32), key=key)
    return state


@eqx.filter_jit
def _frozen(make, key, images):
    model, state = make(key)
    return Predictor(model, warm(model, state, images, key) if jax.tree.leaves(state) else state)


@lru_cache
def predictor_of(name, seed=0):
    """An untrained model of `all_models`, frozen, its batch statistics warm."""
    return _frozen(all_models[name], jax.random.key(seed), digits().pixels[:64])


def train(make, *, epochs=15, seed=0, objective=None, learning_rate=1e-2, **settings):
    """The model of `make`, trained on digits for a second or two."""
    model_key, fit_key = jax.random.split(jax.random.key(seed))
    model, state = eqx.filter_jit(make)(model_key)
    result = fit(
        model,
        state,
        digits(),
        CrossEntropy() if objective is None else objective,
        optax.adam(learning_rate),
        epochs=epochs,
        batch_size=64,
        key=fit_key,
        progress=False,
        **settings,
    )
    return Predictor(result.model, result.state)


@lru_cache
def trained_mlp():
    """A small MLP that classifies more than nine in ten of the test digits."""
    return train(_maker(MLP, width=32))


@lru_cache
def trained_nmode(lam=3.0, t1=1.0):
    return train(_maker(NmODENet, width=32, nmode=NmODE(lam, t1)))


@lru_cache
def trained_lipschitz():
    make = _maker(LipschitzNet, width=4, depth=1, features=32)
    return train(make, objective=CrossEntropy(temperature=0.1), epochs=8)


class LinearLogits(eqx.Module):
    """z = W ravel(x) + b: what an attack does to it is known in closed form."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x, *, key=None):
        return self.weight @ jnp.ravel(x) + self.bias


def linear_logits(image_shape=IMAGE_SHAPE, n_classes=2, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weight = scale * rng.normal(size=(n_classes, int(np.prod(image_shape))))
    return LinearLogits(
        jnp.asarray(weight, jnp.float32), jnp.asarray(0.1 * rng.normal(size=n_classes), jnp.float32)
    )


def constant_image(value, image_shape=IMAGE_SHAPE):
    return jnp.full(image_shape, value, jnp.float32)


class NoisyLogits(eqx.Module):
    """A classifier whose logits carry normal noise, fresh for every key."""

    logits_fn: eqx.Module
    size: float = 1.0

    def __call__(self, x, *, key):
        return self.logits_fn(x) + self.size * jax.random.normal(key, (10,))


@eqx.filter_jit
def run_attack(attack, logits_fn, x, y, ball, key):
    """A single call, as one compiled program."""
    return attack(logits_fn, x, y, ball, key=key)


@eqx.filter_jit
def attack_path(attack, logits_fn, x, y, ball, key):
    """The state before every step, and after the last, stacked."""
    problem = AttackProblem(logits_fn, x, y, ball)
    state, run_key = start(attack, problem, BestAdversarial.none(x), jnp.asarray(0), key)

    def body(state, i):
        return step(attack, problem, run_key, i, state), state

    last, states = jax.lax.scan(body, state, jnp.arange(attack.n_steps))
    return jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), states, last)
