"""One set of weights in JAX and in PyTorch, and the attack libraries that are compared with odejax.

Two small classifiers of MNIST are trained here (kept in `odejax.data.cache_dir()`), carried over to
PyTorch, and handed to torchattacks, Foolbox, ART and AutoAttack. Whatever a library returns is
judged here, by the JAX classifier: an image counts as broken only if it is misclassified and in
ball and box.
"""

# pyright: reportMissingImports=false
import dataclasses
import zlib
from functools import lru_cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import odejax
from odejax import AbstractBall, LinfBall, Predictor, predict
from odejax.attacks import PGD
from odejax.data import cache_dir
from odejax.models import MLP
from odejax.models.blocks import Conv
from odejax.training import Adversarial, CrossEntropy, fit, steps_per_epoch

IMAGE_SHAPE = (28, 28, 1)
KEY = jax.random.key(0)
TOLERANCE = 1e-4  # of logits, between JAX and PyTorch


class ConvNet(eqx.Module):
    """Two 3x3 convolutions of stride 2, padded by 1 on every side as PyTorch pads, and a layer."""

    convs: list[Conv]
    linear: eqx.nn.Linear

    def __init__(self, image_shape, n_classes=10, *, widths=(16, 32), key):
        keys = jax.random.split(key, 3)
        channels = (image_shape[-1], *widths)
        self.convs = [
            Conv(i, o, 3, stride=2, padding=1, key=k)
            for i, o, k in zip(channels, widths, keys, strict=False)
        ]
        height, width = (-(-side // 4) for side in image_shape[:2])
        self.linear = eqx.nn.Linear(height * width * widths[-1], n_classes, key=keys[-1])

    def __call__(self, x, state, *, key=None):
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        return self.linear(jnp.ravel(x)), state


@dataclasses.dataclass(frozen=True)
class Training:
    """How a classifier is trained; adversarially, from the weights of `start`, where `eps` > 0."""

    model: type
    settings: dict
    epochs: int
    eps: float = 0.0
    start: str | None = None


CLASSIFIERS = {
    "mlp": Training(MLP, {"width": 256, "depth": 1}, 2),
    "cnn": Training(ConvNet, {}, 2),
    "cnn, warm": Training(ConvNet, {}, 1, 0.15, "cnn"),
    "robust cnn": Training(ConvNet, {}, 1, 0.3, "cnn, warm"),
}


@lru_cache
def classifier(name: str) -> Predictor:
    """One of `CLASSIFIERS`, from the cache or trained now (ten seconds; robust: two minutes)."""
    training = CLASSIFIERS[name]
    make = eqx.nn.make_with_state(training.model)
    model, state = make(IMAGE_SHAPE, key=KEY, **training.settings)
    path = cache_dir() / "benchmarks" / f"{zlib.crc32(repr((name, CLASSIFIERS)).encode()):08x}.eqx"
    if path.exists():
        return Predictor(eqx.tree_deserialise_leaves(path, model), state)
    if training.start is not None:
        model = classifier(training.start).model
    objective = CrossEntropy()
    if training.eps:
        objective = Adversarial(PGD(steps=10, step_size=None), LinfBall(training.eps))
    data = odejax.data.load("mnist", "train")
    steps = training.epochs * steps_per_epoch(len(data), 128)
    result = fit(
        model,
        state,
        data,
        objective,
        optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        epochs=training.epochs,
        batch_size=128,
        key=KEY,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    eqx.tree_serialise_leaves(path, result.model)
    return Predictor(result.model, result.state)


def in_torch(predictor: Predictor):
    """The classifier as a `torch.nn.Module` of NCHW images. Raises where the logits differ."""
    import torch

    def copy(parameter, array):
        parameter.data = torch.tensor(np.asarray(array))

    def linear(layer, chw=None):
        weight = np.asarray(layer.weight)
        if chw is not None:  # flattened as (h, w, c) here, as (c, h, w) in PyTorch
            c, h, w = chw
            weight = weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(len(weight), -1)
        out = torch.nn.Linear(weight.shape[1], weight.shape[0])
        copy(out.weight, weight)
        copy(out.bias, layer.bias)
        return out

    def conv(layer):
        kernel = np.asarray(layer.kernel).transpose(3, 2, 0, 1)
        out = torch.nn.Conv2d(*kernel.shape[1::-1], 3, stride=layer.stride, padding=layer.padding)
        copy(out.weight, kernel)
        copy(out.bias, layer.bias)
        return out

    model = predictor.model
    if isinstance(model, ConvNet):
        layers = [layer for c in model.convs for layer in (conv(c), torch.nn.ReLU())]
        channels = model.convs[-1].kernel.shape[-1]
        side = int((model.linear.weight.shape[1] / channels) ** 0.5)
        last = linear(model.linear, (channels, side, side))
        net = torch.nn.Sequential(*layers, torch.nn.Flatten(), last)
    else:
        first, last = (linear(layer) for layer in model.layers)
        net = torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), last)
    net = net.eval().requires_grad_(False)

    images = np.random.default_rng(0).uniform(size=(16, *IMAGE_SHAPE)).astype(np.float32)
    with torch.no_grad():
        theirs = net(to_torch(images)).numpy()
    error = np.abs(theirs - predict(predictor, images, key=KEY)).max()
    if error > TOLERANCE:
        raise AssertionError(f"the logits in PyTorch differ from those in JAX by {error:.1e}")
    return net


def to_torch(images):
    import torch

    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2))


def from_torch(images) -> np.ndarray:
    return np.asarray(images).transpose(0, 2, 3, 1)


class Peers:
    """A classifier in PyTorch and images, in the form that each library needs.

    Every method runs one attack and returns its images, (n, h, w, c).
    """

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray):
        import torch

        self.net = in_torch(classifier(name))
        self.x, self.y = to_torch(images), torch.tensor(labels, dtype=torch.int64)

    def torchattacks(self, attack: str, *, batch_size: int = 1000, **settings) -> np.ndarray:
        import torch
        import torchattacks

        run = getattr(torchattacks, attack)(self.net, **settings)
        batches = zip(self.x.split(batch_size), self.y.split(batch_size), strict=True)
        return from_torch(torch.cat([run(x, y).detach() for x, y in batches]))

    def foolbox(self, attack: str, eps: float, **settings) -> np.ndarray:
        import foolbox

        net = foolbox.PyTorchModel(self.net, bounds=(0, 1), device="cpu")
        run = getattr(foolbox.attacks, attack)(**settings)
        x_adv, _, _ = run(net, self.x, self.y, epsilons=eps)
        return from_torch(x_adv)

    def art(self, attack: str, **settings) -> np.ndarray:
        import torch
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        net = PyTorchClassifier(
            self.net,
            torch.nn.CrossEntropyLoss(),
            tuple(self.x.shape[1:]),
            10,
            clip_values=(0, 1),
            device_type="cpu",
        )
        run = getattr(evasion, attack)(net, batch_size=len(self.x), **settings)
        return from_torch(run.generate(self.x.numpy(), self.y.numpy()))

    def autoattack(
        self,
        ball: AbstractBall,
        *names: str,
        steps: int = 100,
        classes: int = 9,
        restarts: int = 1,
        queries: int = 5000,
    ) -> np.ndarray:
        """The authors' attacks `names`, by default their standard suite."""
        import pyautoattack
        import torch

        norm, eps = "Linf" if isinstance(ball, LinfBall) else "L2", float(ball.eps)
        seed = torch.initial_seed()  # which they set again before every attack
        suite = pyautoattack.AutoAttack(self.net, norm=norm, eps=eps, seed=seed)
        if names:
            suite.attacks_to_run = list(names)
        for attack in (suite.apgd, suite.apgd_targeted):
            # Set as its constructor would: the checkpoints follow from the steps.
            attack.__init__(self.net, n_iter=steps, norm=norm, eps=eps, device="cpu")
        suite.fab.n_iter, suite.square.n_queries = steps, queries
        suite.apgd.n_restarts = suite.fab.n_restarts = restarts
        suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = classes
        suite.verbose = False
        return from_torch(suite.run_standard_evaluation(self.x, self.y, batch_size=len(self.x))[0])


def broken(predictor, x_adv, images, labels, ball) -> np.ndarray:
    """(n,) bool: misclassified, and inside ball and box up to rounding."""
    v = (x_adv.astype(np.float64) - images).reshape(len(images), -1)
    size = np.abs(v).max(1) if isinstance(ball, LinfBall) else np.linalg.norm(v, axis=1)
    inside = size <= float(ball.eps) * (1 + 1e-5) + 1e-6  # false for NaN
    inside &= ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).all((1, 2, 3))
    judged = np.where(inside[:, None, None, None], x_adv, images).astype(np.float32)
    return predict(predictor, judged, key=KEY).argmax(1) != labels
