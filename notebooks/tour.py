# %% [markdown]
# # A tour of odejax: how robust is this network?
#
# A small change of an image, too small to matter to you, can change the class that a network
# predicts. *Robust accuracy* is the share of images whose class stays correct under every such
# change. Nobody can measure it directly. odejax reports an interval that it lies in:
#
# > **certified <= true <= attacked**
#
# *Certified* images come with a proof. *Attacked* is the share that no attack changed to another
# class. This notebook trains a small network, measures its interval, looks at the images that an
# attack made, and shows when not to trust an attack. It needs no download and takes under two
# minutes on two CPU cores.

# %%
# Installs odejax where it is missing, as on Colab. The session then restarts: run all cells again.
try:
    import odejax
except ImportError:
    # %pip install -q "git+https://github.com/odejax/odejax"
    get_ipython().kernel.do_shutdown(restart=True)

# %%
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from odejax import attacks, evaluation, models, plots, training

key = jax.random.key(0)
train = odejax.data.load("digits", "train")
test = odejax.data.load("digits", "test").take(slice(100))
print(f"{len(train)} images to train on, {len(test)} to test; shape {train.image_shape}")

fig, axes = plt.subplots(1, 10, figsize=(7, 1), layout="constrained")
for axis, image, label in zip(axes, test.pixels, test.labels, strict=False):
    axis.imshow(image.squeeze(), cmap="gray")
    axis.set_title(str(label), fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train a network
#
# In odejax a network is a vector field and an integrator. `NmODENet` puts a differential equation
# between two linear layers. Each of its 64 neurons follows $y' = -\lambda y + \sin^2(y + \gamma)$
# from $y = 0$ to the time 1, where $\gamma$ is what the first layer returns. The training loop
# takes any objective and any Optax optimizer.

# %%
model, state = eqx.nn.make_with_state(models.NmODENet)(train.image_shape, width=64, key=key)
fitted = training.fit(
    model,
    state,
    train,
    training.CrossEntropy(),
    optax.adam(3e-3),
    epochs=20,
    batch_size=64,
    key=key,
    progress=False,
)
network = odejax.Predictor(fitted.model, fitted.state)
accuracy = training.clean_accuracy(network, test, key=key)
print(f"clean accuracy {100 * accuracy:.0f} %")

# %% [markdown]
# ## An interval in place of a number
#
# A perturbation may change every pixel by at most eps: the ball `LinfBall(eps)`. Pixels are in
# [0, 1]. `bracket` attacks every image, runs the certificates that apply to the network, and
# returns both ends for every eps.

# %%
radii = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)
balls = [odejax.LinfBall(eps) for eps in radii]
pgd = attacks.PGD(steps=20)
intervals = evaluation.bracket(
    network, *test, balls, attacks=[attacks.FGSM(), pgd], key=key, progress=False
)
print(intervals)

# %%
fig, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
clean = 100 * intervals[0].clean
plots.draw_interval(
    axis,
    (0.0, *radii),
    [clean, *(100 * one.attacked for one in intervals)],
    [clean, *(100 * one.certified for one in intervals)],
)
axis.set(xlabel=plots.AXIS_LABELS["linf"], ylabel="accuracy (%)", ylim=(0, 100))
axis.set_title("True robust accuracy lies in the grey band")
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# Up to eps 0.03 the band is narrow: we know robust accuracy to within a few images. In larger balls
# it is wide. There the attack may be too weak, or the certificate.
#
# ## What an attack made
#
# A `Bracket` keeps what happened to every image. These are digits that the network classified
# correctly before PGD or FGSM changed them. The middle picture of each triple is the change.

# %%
widest = intervals[-1]
changed = np.flatnonzero(~widest.still_correct & intervals[0].still_correct)[:3]
examples = {
    "images": test.pixels[changed],
    "x_adv": widest.x_adv[changed],
    "labels": test.labels[changed],
    "predictions": odejax.predict(network, widest.x_adv[changed], key=key).argmax(axis=1),
}
plots.perturbation_grid(
    {"NmODENet": examples},
    title=f"A change of {radii[-1]} per pixel changes the class",
    examples_shown=3,
)
plt.show()

# %% [markdown]
# ## A flag says when not to trust an attack
#
# Multiply the logits by 10,000. The largest logit is the same, so every prediction is the same, and
# so is true robust accuracy. But the cross-entropy is now flat, and its gradient is zero. An attack
# that follows this gradient does not move.


# %%
def scaled(x):
    return 10_000 * network(x)


eps, ball = radii[-1], balls[-1]
masked = evaluation.bracket(
    scaled, *test, ball, attacks=pgd, certificates=(), key=key, progress=False
)
print(f"the network, eps {eps}: {100 * widest.per_attack['PGD']:.0f} % under PGD")
print(f"the same, scaled:  {100 * masked.attacked:.0f} % under PGD\n")
for flag in masked.flags:
    print(f"{flag.name.upper()}: {flag.evidence}")
    print(f"  why it matters: {flag.kind.why}\n  what to do: {flag.kind.what_to_do}")

# %% [markdown]
# True robust accuracy is the same for both, so it is at most the lower number. The flag says why
# the higher one cannot be trusted. We do what it advises, and attack the margin between the logits
# in place of the cross-entropy.

# %%
on_margin = attacks.PGD(steps=20, loss=attacks.margin_loss)
report = evaluation.robust_accuracy(scaled, *test, ball, on_margin, key=key)
print(f"scaled, under PGD on the margin: {100 * report.accuracy:.0f} %")

# %% [markdown]
# ## Save it, and load it
#
# A file holds data only, never code. The command line reads the same file:
# `odejax evaluate nmode.odejax --dataset digits --linf 0.05`.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "nmode.odejax"
    odejax.save(path, network)
    loaded = odejax.load(path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
same = np.array_equal(
    odejax.predict(loaded, test.pixels, key=key), odejax.predict(network, test.pixels, key=key)
)
print("the same logits:", same)

# %% [markdown]
# ## An ensemble is one more axis
#
# Networks are pytrees of arrays, as in all of JAX. `eqx.filter_vmap` over keys builds five networks
# with different weights, and one compiled program trains them all.

# %%
make = eqx.nn.make_with_state(models.MLP)
images, labels = jnp.asarray(train.pixels), jnp.asarray(train.labels)
optimizer = optax.adam(3e-3)


@eqx.filter_jit
@eqx.filter_vmap
def train_one(key):
    params, static = eqx.partition(make(train.image_shape, width=32, key=key), eqx.is_array)

    def loss(params, rows):
        network = odejax.Predictor(*eqx.combine(params, static))
        logits = jax.vmap(network)(images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.randint(key, (64,), 0, len(train))
        updates, opt_state = optimizer.update(jax.grad(loss)(params, rows), opt_state)
        return (eqx.apply_updates(params, updates), opt_state), None

    carry = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, carry, jax.random.split(key, 300))
    return odejax.Predictor(*eqx.combine(params, static))


members = train_one(jax.random.split(key, 5))
print("first layers of all members:", members.model.layers[0].weight.shape)

# %% [markdown]
# The ensemble is a function of one image, as every network: the mean of its members' logits. So the
# same attack applies. Below, each member is attacked by itself, and the ensemble as a whole.


# %%
class Ensemble(eqx.Module):
    members: odejax.Predictor  # every array has a leading axis

    def __call__(self, x, *, key=None):
        return eqx.filter_vmap(lambda member: member(x))(self.members).mean(axis=0)


def robust(network, eps):
    """Of every image, whether the class is correct under PGD."""

    def one(x, y):
        return ~pgd(network, x, y, odejax.LinfBall(eps), key=key).success

    return jax.vmap(one)(test.pixels, test.labels)


eps = 0.05
of_each = eqx.filter_jit(eqx.filter_vmap(lambda member: robust(member, eps)))(members)
of_all = eqx.filter_jit(robust)(Ensemble(members), eps)
print(f"robust accuracy under PGD at eps {eps}, {len(test)} images")
print("each member: ", ", ".join(f"{100 * share:.0f} %" for share in of_each.mean(axis=1)))
print(f"the ensemble: {100 * of_all.mean():.0f} %")

# %% [markdown]
# The ensemble's robust accuracy under PGD is in the range of its members'.
#
# ## Where to go
#
# | notebook | question |
# | --- | --- |
# | [certificates](certificates.ipynb) | How can a computer prove that no attack will succeed? |
# | [natural_robustness](natural_robustness.ipynb) | Are neural ODEs naturally robust? |
# | [nmode](nmode.ipynb) | What does an ODE as an activation function guarantee? |
# | [feynman_kac](feynman_kac.ipynb) | Why would noise in every layer help? |
# | [ssp](ssp.ipynb) | Does strong stability make a network robust? |
# | [structured](structured.ipynb) | What does a network that increases no distance prove? |
#
# Your own network, of Flax, Haiku or PyTorch, is evaluated in the same way: `docs/own_model.md`.
