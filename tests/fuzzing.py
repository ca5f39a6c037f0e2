"""Bad arguments to what is public: each must end in one sentence that names the value.

    python -m tests.fuzzing [CASES] [SEED]

prints how the cases ended and those that did not end so; `test_refusals.py` runs a few hundred.
"""

import collections
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import odejax
from odejax import LinfBall, MeanLogits, Predictor, attacks, certificates, models, solvers, training
from odejax.data import ArrayDataset, load
from odejax.evaluation import (
    bracket,
    certified_radii,
    confidence_interval,
    masking_flags,
    robust_accuracy,
    solver_flags,
    transfer_matrix,
)

SHAPE, KEY, BALL = (4, 4, 1), jax.random.key(0), LinfBall(0.1)
IMAGES, LABELS = np.full((3, *SHAPE), 0.5, np.float32), np.array([0, 1, 2], np.int32)
DATA = ArrayDataset(np.full((3, *SHAPE), 128, np.uint8), LABELS, 3)

NAN, INF = float("nan"), float("inf")
WORDS = ("x", "", "0.1")
NOTHING = (None, [], {}, (1, 2), object())


def numbers(rng):
    """Any finite number, large, small, or of this order."""
    return float(rng.choice([-1, 1]) * 10 ** rng.uniform(-6, 6))


def fraction_of(rng):
    return int(rng.integers(-3, 30)) + float(rng.uniform(0.01, 0.99))


# What is bad for each kind of argument, drawn at random.
BAD: dict[str, Callable[[np.random.Generator], Any]] = {
    "count": lambda r: pick(r, NAN, INF, -INF, 0, -int(r.integers(1, 99)), fraction_of(r), *WORDS),
    "count or 0": lambda r: pick(r, NAN, INF, -int(r.integers(1, 99)), fraction_of(r), *WORDS),
    "positive": lambda r: pick(r, NAN, INF, -INF, 0.0, -abs(numbers(r)), *WORDS, [], {}, object()),
    "not negative": lambda r: pick(r, NAN, INF, -INF, -abs(numbers(r)), *WORDS, *NOTHING[:3]),
    "finite": lambda r: pick(r, NAN, INF, -INF, *WORDS, *NOTHING[:3]),
    "fraction": lambda r: pick(r, NAN, INF, 1 + abs(numbers(r)), -abs(numbers(r)), *WORDS, None),
    "fraction or None": lambda r: pick(r, NAN, INF, 1 + abs(numbers(r)), -abs(numbers(r)), *WORDS),
    "function": lambda r: pick(r, numbers(r), "ce", "", None, [], object()),
    "function or None": lambda r: pick(r, numbers(r), "PGD", "", [], object()),
    "ball": lambda r: pick(r, numbers(r), "linf", None, [0.1], LinfBall),
    "key or seed": lambda r: pick(r, 1.5, "key", None, np.zeros(2), jax.random.split(KEY, 3)),
    "images": lambda r: pick(
        r,
        IMAGES * float(r.uniform(2.1, 300)),
        IMAGES - float(r.uniform(0.6, 3)),
        IMAGES * np.float32(NAN),
        IMAGES.astype(np.int32),
        IMAGES.astype(np.complex64),
        IMAGES[0],
        IMAGES[:0],
        IMAGES[..., None],
        "images",
        None,
        [[0.5], [0.5, 0.5]],
    ),
    "labels": lambda r: pick(
        r,
        LABELS + int(r.integers(3, 99)),
        LABELS - int(r.integers(3, 99)),
        LABELS.astype(np.float32),
        LABELS[:2],
        LABELS[:, None],
        "labels",
        None,
        7,
    ),
    "image": lambda r: pick(
        r,
        IMAGES[0] * float(r.uniform(2.1, 300)),
        IMAGES[0] - float(r.uniform(0.6, 3)),
        IMAGES[0].astype(np.uint8),
        IMAGES[0, 0],
        IMAGES,
        "image",
        None,
    ),
    "label": lambda r: pick(r, int(r.integers(3, 99)), -int(r.integers(1, 99)), 1.5, LABELS, "x"),
    "image shape": lambda r: pick(r, (8, 8), (8.5, 8, 1), (0, 8, 1), (8, 8, -1), 8, "8x8", None),
    "solver": lambda r: pick(r, "euler", 1, diffrax.Euler, [diffrax.Euler()]),
    "attack": lambda r: pick(r, "PGD", None, attacks.AutoAttack(), attacks.PGD, 0.1),
    "data set": lambda r: pick(r, (IMAGES, LABELS), IMAGES, "digits", None),
}  # fmt: skip


def pick(rng, *values):
    return values[rng.integers(len(values))]


class Call(NamedTuple):
    """`call(**good)` is right; every argument of `kinds` may be spoilt."""

    call: Callable
    kinds: dict[str, str]
    good: dict[str, Any]


def linear(x, *, key=None):
    return jnp.ravel(x)[:3] * jnp.arange(1.0, 4.0)


@eqx.filter_jit
def _mlp(key):
    return eqx.nn.make_with_state(models.MLP)(SHAPE, 3, width=4, key=key)


def calls() -> dict[str, Call]:
    entries: dict[str, Call] = {}

    def add(called, call, kinds, **good):
        entries[called] = Call(call, kinds, good)

    count, positive, share = "count", "positive", "fraction"
    climb = {"steps": count, "step_size": positive, "loss": "function"}
    add("PGD", attacks.PGD, climb)
    add("IFGSM", attacks.IFGSM, climb)
    add("MIFGSM", attacks.MIFGSM, climb | {"decay": "finite"})
    add("DI2FGSM", attacks.DI2FGSM, climb | {"decay": "finite", "probability": share})
    add("FGSM", attacks.FGSM, {"loss": "function"})
    add("APGD", attacks.APGD, {"steps": count, "rho": share, "loss": "function"})
    add("FAB", attacks.FAB, {"steps": count, "largest_pull": share, "beta": share, "eta": "finite"})
    add(
        "DeepFool",
        attacks.DeepFool,
        {"steps": count, "classes": count, "overshoot": "not negative"},
    )
    add("Square", attacks.Square, {"n_queries": count, "p_initial": positive, "loss": "function"})
    add("SPSA", attacks.SPSA, {"n_queries": count, "samples": count, "delta": positive,
                               "learning_rate": positive, "loss": "function"})  # fmt: skip
    add("Boundary", attacks.Boundary, {"n_queries": count, "spherical_step": positive,
                                       "source_step": positive, "adaptation": "finite",
                                       "spherical_window": count})  # fmt: skip
    carlini = {"steps": count, "learning_rate": positive, "c": positive, "kappa": "not negative"}
    add("CarliniWagnerLinf", attacks.CarliniWagnerLinf, carlini)
    add("CarliniWagner", attacks.CarliniWagner, carlini | {"search_steps": count})
    for name, n in (("EOT", "draws"), ("Restarts", "n"), ("Targeted", "classes")):
        call = getattr(attacks, name)
        add(name, call, {"attack": "attack", n: count}, attack=attacks.PGD())
    add("LinearRelaxation", certificates.LinearRelaxation, {"chunk": count})
    add("RandomizedSmoothing", certificates.RandomizedSmoothing,
        {"n0": count, "n": count, "alpha": positive, "images": count})  # fmt: skip
    add("Smoothed", odejax.Smoothed, {"logits_fn": "function", "sigma": positive, "draws": count,
                                      "chunk": count}, logits_fn=linear, sigma=0.1)  # fmt: skip

    net = {"image_shape": "image shape", "n_classes": count, "width": count}
    for name, more in {
        "MLP": {},
        "CNN": {},
        "ResNet": {"depth": count, "step_size": "not negative", "solver": "solver"},
        "PolyNet": {"depth": count},
        "FractalNet": {"depth": count, "columns": count},
        "RevNet": {"depth": count, "step_size": "not negative"},
        "EnResNet": {"depth": count, "members": count},
        "NeuralSDENet": {"steps": count, "paths": count, "t1": positive},
        "ConvODENet": {"t1": positive, "max_steps": count, "dt0": positive},
        "AugmentedODENet": {"augment": "count or 0", "t1": positive},
        "DenseODENet": {"t1": positive, "max_steps": count},
        "NmODENet": {},
        "LipschitzNet": {"depth": count, "features": count},
        "HamiltonianNet": {"depth": count, "features": count, "step_size": "finite"},
        "VolumePreservingNet": {"depth": count, "step_size": "finite"},
        "MassPreservingNet": {"depth": count, "step_size": "finite"},
        "SpherePreservingNet": {"depth": count, "step_size": "finite"},
    }.items():
        call = partial(eqx.nn.make_with_state(getattr(models, name)), key=KEY)
        add(name, call, net | more, image_shape=(8, 8, 1), n_classes=3)
    add("StructuredNet", partial(models.StructuredNet, key=KEY),
        {"image_shape": "image shape", "n_classes": count, "depth": count},
        image_shape=(8, 8, 1), channels=(2,))  # fmt: skip
    add("PreActResNet", partial(eqx.nn.make_with_state(models.PreActResNet), key=KEY),
        {"image_shape": "image shape", "n_classes": count, "solver": "solver",
         "step_size": "not negative"},
        image_shape=(8, 8, 1), n_classes=3, depth=8)  # fmt: skip
    add("NmODE", models.NmODE, {"lam": "finite", "t1": positive, "y0": "finite", "rtol": positive,
                                "max_steps": count}, solver=diffrax.Dopri5())  # fmt: skip
    add("GroupNorm", models.GroupNorm, {"channels": count, "eps": positive}, channels=4)
    add("BatchNorm", models.BatchNorm, {"channels": count, "eps": positive, "momentum": share},
        channels=4)  # fmt: skip
    add("Conv", partial(models.Conv, key=KEY), {"inputs": count, "outputs": count, "size": count,
                                               "stride": count, "padding": "count or 0"},
        inputs=1, outputs=1, size=3)  # fmt: skip
    add("Normalised", models.Normalised, {"mean": share, "std": positive},
        model=linear, mean=0.5, std=0.25)  # fmt: skip
    add("ArrayDataset", ArrayDataset, {"labels": "labels", "n_classes": count},
        images=IMAGES, labels=LABELS, n_classes=3)  # fmt: skip
    add("ODESolve", models.ODESolve, {"t1": positive, "dt0": positive, "max_steps": count,
                                      "solver": "solver"}, dt0=0.1)  # fmt: skip
    add("conv2d", models.conv2d, {"stride": count}, x=IMAGES[0], kernel=np.ones((3, 3, 1, 1)))

    add("AcceptedSteps", solvers.AcceptedSteps, {"states": count})
    add("ConstantNoise", solvers.ConstantNoise, {"sigma": "not negative"}, sigma=0.1)
    add("RelativeNoise", solvers.RelativeNoise, {"a": "not negative"})
    add("NeumannSeries", solvers.NeumannSeries, {"order": count})
    add("LearnedRK2", solvers.LearnedRK2, {"depth": count}, depth=2)
    add("feynman_kac", solvers.feynman_kac,
        {"steps": count, "paths": count, "t1": positive, "key": "key or seed", "solver": "solver"},
        terminal=jnp.sum, drift=lambda t, x: x, noise=solvers.ConstantNoise(0.1),
        x=jnp.ones(2), steps=2, paths=4, key=KEY)  # fmt: skip

    add("Hinge", training.Hinge, {"margin": "not negative"})
    add("CrossEntropy", training.CrossEntropy, {"temperature": positive, "margin": "not negative"})
    add("CertifiedTraining", training.CertifiedTraining,
        {"ball": "ball", "weight": share, "box": share, "progress": share,
         "attack": "function or None", "penalty": "not negative"},
        ball=BALL, attack=attacks.PGD(), weight=0.5)  # fmt: skip
    add("TRADES", training.TRADES, {"ball": "ball", "beta": "not negative"}, ball=BALL)
    add("Adversarial", training.Adversarial, {"ball": "ball", "objective": "function"},
        attack=attacks.PGD(), ball=BALL)  # fmt: skip
    add("FreeAdversarial", training.FreeAdversarial, {"ball": "ball", "replays": count}, ball=BALL)
    add("YOPO", training.YOPO, {"ball": "ball", "first": "function", "m": count, "n": count,
                                "step_size": positive}, ball=BALL, first=len)  # fmt: skip
    add("Derivative", training.Derivative, {"parts": count}, objective=training.CrossEntropy())
    add("Penalised", training.Penalised, {"penalty": "function", "eta": "not negative"},
        penalty=len, eta=0.1)  # fmt: skip
    add("clip_weights", training.clip_weights, {"c": positive}, c=0.1, where=len)
    add("energy_penalty", training.energy_penalty,
        {"kinetic": "not negative", "jacobian": "not negative"},
        kinetic=0.1, jacobian=0.1)  # fmt: skip
    model, state = _mlp(KEY)
    predictor = Predictor(model, state)
    add("fit", partial(training.fit, model, state, progress=False),
        {"dataset": "data set", "objective": "function", "epochs": count, "batch_size": count,
         "average": "fraction or None", "key": "key or seed"},
        dataset=DATA, objective=training.CrossEntropy(), optimizer=optax.sgd(0.1), epochs=1,
        batch_size=1, key=KEY)  # fmt: skip

    data = {"images": "images", "labels": "labels", "ball": "ball", "key": "key or seed"}
    good = {"images": IMAGES, "labels": LABELS, "ball": BALL, "key": KEY}
    logits = {"logits_fn": "function", "batch_size": count}
    add("predict", odejax.predict, {"images": "images", "key": "key or seed", **logits},
        logits_fn=linear, images=IMAGES, key=KEY)  # fmt: skip
    add("robust_accuracy", robust_accuracy, data | logits | {"attack": "function"},
        attack=attacks.FGSM(), logits_fn=linear, **good)  # fmt: skip
    add("masking_flags", masking_flags, data | logits, logits_fn=linear, **good)
    add("solver_flags", solver_flags, data, predictor=predictor, **good)
    add("transfer_matrix", transfer_matrix, data | {"attack": "function", "batch_size": count},
        attack=attacks.FGSM(), oracles={"a": linear}, targets={"b": linear}, **good)  # fmt: skip
    add("certified_radii", certified_radii,
        data | {"certificate": "function", "batch_size": count},
        certificate=certificates.LinearRelaxation(), logits_fn=predictor, **good)  # fmt: skip
    add("best", certificates.best,
        {"logits_fn": "function", "max_neurons": "count or 0"},
        logits_fn=linear, image_shape=IMAGES.shape[1:], max_neurons=9)  # fmt: skip
    add("bracket", bracket,
        {"images": "images", "labels": "labels", "balls": "ball", "key": "key or seed",
         "draws": count, "flag_images": "count or 0", "batch_size": count, "bits": count},
        logits_fn=predictor, images=IMAGES, labels=LABELS, balls=BALL, attacks=[attacks.FGSM()],
        certificates=(), key=KEY)  # fmt: skip
    one = {"x": "image", "y": "label", "ball": "ball", "key": "key or seed"}
    example = {"x": IMAGES[0], "y": 0, "ball": BALL, "key": KEY}
    add("an attack", attacks.FGSM(), {"logits_fn": "function", **one}, logits_fn=linear, **example)
    add("a certificate", certificates.LinearRelaxation(), one, predictor=predictor, **example)
    add("confidence_interval", confidence_interval,
        {"successes": "count or 0", "n": count, "level": share}, successes=1, n=3)  # fmt: skip
    add("LinfBall", LinfBall, {"eps": "not negative"}, eps=0.1)
    add("L2Ball", odejax.L2Ball, {"eps": "not negative"}, eps=0.1)
    add("load", load, {"name": "solver", "split": "solver"}, name="digits", split="test")
    add("MeanLogits", lambda logits_fn: odejax.predict(
        MeanLogits(logits_fn, jax.random.split(KEY, 2)), IMAGES, key=KEY),
        {"logits_fn": "function"}, logits_fn=linear)  # fmt: skip
    return entries


ENDS = ("one sentence", "another sentence", "raised elsewhere", "accepted")


def outcome(call: Call, argument: str, value: Any) -> tuple[str, str]:
    """How it ended, and what was said."""
    try:
        call.call(**call.good | {argument: value})
    except Exception as error:
        said = " ".join(str(error).split())
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        library = [f for f in frames if "site-packages" not in f and "fuzzing" not in f]
        raised_here = bool(library) and frames[-1] == library[-1]
        if not (raised_here and type(error) is ValueError):
            return "raised elsewhere", f"{type(error).__name__}: {said[:150]}"
        names = _names(value)
        if len(said) < 300 and "\n" not in str(error) and any(name in said for name in names):
            return "one sentence", said
        return "another sentence", said[:200]
    return "accepted", ""


def _names(value) -> list[str]:
    """What a message may call a value by."""
    kind = type(value).__name__
    names = [repr(value), str(value), f"a {kind}", f"got {kind}", "unequal rows"]
    if isinstance(value, list):
        names += [f"got {len(value)}", *(f"got {one}" for one in value)]
    if isinstance(value, np.ndarray | jax.Array):
        names += [str(value.shape), str(value.dtype), "empty"]
        if value.size and isinstance(value, np.ndarray):
            names += [str(float(np.min(value).real)), str(np.max(value)), str(value.flat[0])]
    return names


def drawn(n: int, seed: int = 0):
    """`n` cases: (call's name, argument, kind, value)."""
    rng, every = np.random.default_rng(seed), calls()
    places = [(name, argument) for name, call in every.items() for argument in call.kinds]
    for i in range(n):
        name, argument = (
            places[i % len(places)] if i < len(places) else places[rng.integers(len(places))]
        )
        yield name, argument, every[name], BAD[every[name].kinds[argument]](rng)


def main(n: int, seed: int):
    ended, shown = collections.Counter(), set()
    for name, argument, call, value in drawn(n, seed):
        end, said = outcome(call, argument, value)
        ended[end] += 1
        place = (name, argument, end, re.sub(r"[0-9.e+-]+", "#", said))
        if end != "one sentence" and place not in shown:
            shown.add(place)
            print(f"{end:17} {name}({argument}={str(value)[:40]!r}): {said}")
    for end in ENDS:
        print(f"{end:17} {ended[end]:6} {100 * ended[end] / n:5.1f} %")


if __name__ == "__main__":
    main(*map(int, (*sys.argv[1:], *("2000", "0")[len(sys.argv) - 1 :])))
