# %% [markdown]
# # From an interval to a line to a proof, and where it ends
#
# An attack looks for one image that changes the prediction. A certificate is about all images of a
# ball at once. This notebook writes CROWN, the certificate that applies to most networks of odejax,
# in a few functions of NumPy. It compares CROWN with an attack and with the library, and shows what
# it cannot do.

# %%
# Installs odejax where it is missing, as on Colab. The session then restarts: run all cells again.
try:
    import odejax
except ImportError:
    # %pip install -q "git+https://github.com/odejax/odejax"
    get_ipython().kernel.do_shutdown(restart=True)

# %%
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from odejax import LinfBall, attacks, certificates, evaluation, models, plots, training

key = jax.random.key(0)
train, test = (odejax.data.load("digits", split) for split in ("train", "test"))
CERTIFIED, ATTACKED, BAND = "#2166ac", "#b2182b", "0.88"


def fit(make, epochs):
    model, state = eqx.nn.make_with_state(make)(train.image_shape, key=key)
    result = training.fit(
        model,
        state,
        train,
        training.CrossEntropy(),
        optax.adam(3e-3),
        epochs=epochs,
        batch_size=64,
        key=key,
        progress=False,
    )
    return odejax.Predictor(result.model, result.state)


network = fit(lambda *shape, key: models.MLP(*shape, width=32, depth=4, key=key), 40)
print(f"{100 * training.clean_accuracy(network, test, key=key):.1f} % clean accuracy")

# %% [markdown]
# ## An interval
#
# Each pixel lies in $[x - \epsilon, x + \epsilon]$. An affine layer $W z + b$ turns an interval
# with centre $c$ and radius $r$ into one with centre $W c + b$ and radius $|W| r$. ReLU is
# increasing, so it moves the two ends.

# %%
layers = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in network.model.layers]
image, label = test.pixels[22], test.labels[22]


def pixels(eps):
    x = image.ravel()
    return np.maximum(x - eps, 0), np.minimum(x + eps, 1)


def intervals(eps):
    low, high = pixels(eps)
    out = []
    for weight, bias in layers[:-1]:
        centre, radius = weight @ (low + high) / 2 + bias, np.abs(weight) @ (high - low) / 2
        out.append((centre - radius, centre + radius))
        low, high = (np.maximum(end, 0) for end in out[-1])
    return out


# %% [markdown]
# The next layer knows the interval of each neuron, but no longer that the neurons move together. So
# an interval becomes wider from layer to layer than what the neuron really does.
#
# ## A line
#
# On its interval a ReLU lies between two lines. A line, unlike an interval, still says *which*
# input the output moves with.


# %%
def lines(low, high):
    """The slope below, and the slope and the height above."""
    above = (np.maximum(high, 0) - np.maximum(low, 0)) / np.maximum(high - low, 1e-12)
    return (high > -low) * (high > 0), above, np.maximum(low, 0) - above * low


fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axis, (low, high) in zip(axes, ((-1.0, 2.0), (-2.0, 1.0)), strict=True):
    z = np.linspace(low, high, 200)
    below, above, height = lines(low, high)
    axis.fill_between(z, below * z, above * z + height, color="0.9")
    axis.plot(z, above * z + height, color=CERTIFIED, label="line above")
    axis.plot(z, below * z, color="#009E73", label="line below")
    axis.plot(z, np.maximum(z, 0), "k", lw=2, label="ReLU")
    axis.set(xlabel="z", title=f"z in [{low:g}, {high:g}]")
axes[0].set_ylabel("relu(z)")
plots.set_title(fig, "Two lines enclose a ReLU")
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# ## A proof
#
# A margin $z_{label} - z_j$ is linear in the last layer. CROWN carries it back to the image:
# through an affine layer by a matrix product, through a ReLU by the line below where the
# coefficient is positive, and by the line above where it is negative. What arrives is a linear
# function of the pixels that is below the margin on the whole ball. Its least value is known
# exactly. The intervals that the lines need are computed in the same way, layer by layer.


# %%
def least(rows, depth, bounds, eps):
    """The least value of <rows, z>, z being what layer `depth` makes, over the ball."""
    weight, bias = layers[depth]
    constant, rows = rows @ bias, rows @ weight
    for (weight, bias), (low, high) in zip(layers[:depth][::-1], bounds[:depth][::-1], strict=True):
        below, above, height = lines(low, high)
        constant = constant + np.minimum(rows, 0) @ height
        rows = np.maximum(rows, 0) * below + np.minimum(rows, 0) * above
        constant, rows = constant + rows @ bias, rows @ weight
    low, high = pixels(eps)
    return np.maximum(rows, 0) @ low + np.minimum(rows, 0) @ high + constant


def crown(eps):
    bounds = []
    for depth, (_, bias) in enumerate(layers[:-1]):
        one = np.eye(len(bias))
        bounds.append((least(one, depth, bounds, eps), -least(-one, depth, bounds, eps)))
    return bounds


def margin(bounds, eps):
    """A lower bound on z_label - z_j for the worst j."""
    rows = np.delete(np.eye(10)[label] - np.eye(10), label, axis=0)
    return least(rows, len(layers) - 1, bounds, eps).min()


# %% [markdown]
# One neuron of each hidden layer, at $\epsilon$ = 0.02. The black bar is what 20,000 random images
# of the ball reach.

# %%
eps, neuron = 0.02, 0
corners = np.random.default_rng(0).choice([-eps, eps], (20000, image.size))
z, reached = np.clip(image.ravel() + corners, 0, 1), []
for weight, bias in layers[:-1]:
    z = z @ weight.T + bias
    reached.append((z.min(axis=0), z.max(axis=0)))
    z = np.maximum(z, 0)

fig, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
kinds = {
    "interval arithmetic": ("0.75", intervals(eps)),
    "CROWN": (CERTIFIED, crown(eps)),
    "reached by images": ("k", reached),
}
for place, (name, (color, bounds)) in zip((-0.22, 0, 0.22), kinds.items(), strict=True):
    low, high = np.array([(low[neuron], high[neuron]) for low, high in bounds]).T
    axis.bar(np.arange(len(low)) + place, high - low, 0.2, low, color=color, label=name)
axis.axhline(0, color="0.5", lw=0.6)
axis.margins(y=0.08)
axis.use_sticky_edges = False
axis.set_xticks(range(len(reached)), [f"layer {i + 1}" for i in range(len(reached))])
axis.set(ylabel="value of one neuron", title="Intervals widen from layer to layer, CROWN's less")
fig.legend(loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# ## How much is proven, and how much is attacked
#
# One image. The true margin lies between PGD's and CROWN's. Where CROWN's is positive, no image of
# the ball has another prediction. Where PGD's is negative, one has.

# %%
radii = np.linspace(0.0, 0.1, 41)


@jax.jit
@jax.vmap
def pgd(eps):
    attack = attacks.Restarts(attacks.PGD(40, None, loss=attacks.margin_loss), 5)
    x_adv = attack(network, image, label, LinfBall(eps), key=key).x_adv
    logits = network(x_adv)
    return logits[label] - jnp.max(jnp.delete(logits, label, assume_unique_indices=True))


attacked = np.minimum.accumulate(pgd(radii))
proven = np.array([margin(crown(eps), eps) for eps in radii])
by_intervals = np.array([margin(intervals(eps), eps) for eps in radii])

fig, axis = plt.subplots(figsize=(8, 4), layout="constrained")
axis.plot(radii, attacked, color=ATTACKED, label="PGD-40: the true margin is at most this")
axis.fill_between(radii, proven, attacked, color=BAND, label="true margin")
axis.plot(radii, proven, color=CERTIFIED, label="CROWN: at least this")
axis.plot(radii, by_intervals, "--", color="0.5", label="intervals: at least this")
axis.axhline(0, color="k", lw=0.8)
axis.set(xlabel=plots.AXIS_LABELS["linf"], ylabel="least margin of one image")
axis.set(xlim=(0, 0.1), ylim=(-15, attacked[0] + 1))
axis.set_title("CROWN is tight in small balls, and ever looser in larger ones")
fig.legend(loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# The library's `LinearRelaxation` does the same for any function written in JAX. Its radius is
# about where the blue curve crosses zero: it takes the better of two lines for the intervals, and
# gives up what float32 may lose.


# %%
def crossing(low=0.0, high=0.1):
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if margin(crown(middle), middle) > 0 else (low, middle)
    return low


certificate = certificates.LinearRelaxation(bisections=16)
result = eqx.filter_jit(certificate)(network, image, label, LinfBall(0.02), key=key)
print(f"radius by NumPy {crossing():.4f}, by the library {float(result.radius):.4f}")

# %% [markdown]
# ## Branch and bound closes the interval
#
# A ReLU whose sign is known is linear, and loses nothing. `evaluation.verify` splits ReLUs by their
# sign until every case is proven, or one of them holds an image that changes the prediction. Here
# it decides all 40 images.

# %%
ball, some = LinfBall(0.05), test.take(slice(40))
before = evaluation.bracket(
    network, *some, ball, attacks=[attacks.PGD(40)], key=key, flag_images=0, progress=False
)
verified = evaluation.verify(network, *some, ball, time_limit=10.0, key=key, progress=False)
print(verified)

fig, axis = plt.subplots(figsize=(8, 2.2), layout="constrained")
for place, ends in enumerate((verified, before)):
    low, high = 100 * ends.certified, 100 * ends.attacked
    axis.barh(place, low, color=CERTIFIED, label="proven" if place else None)
    axis.barh(place, high - low, left=low, color="0.8", label="not known" if place else None)
    axis.barh(place, 100 - high, left=high, color=ATTACKED, label="broken" if place else None)
axis.set_yticks(range(2), ["branch and bound", "CROWN and PGD"])
axis.set(xlabel=f"% of {len(some)} images at eps {float(ball.eps):g}", xlim=(0, 100))
axis.set_title("Branch and bound decides what CROWN and PGD left open", fontsize=11)
fig.legend(loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# ## Where it ends
#
# **Size of the ball.** CROWN's margin falls faster and faster as more signs are unknown. In the
# last figure of this notebook most of the certified accuracy is lost between two neighbouring
# radii. In the worst case the time of branch and bound grows exponentially with the number of
# unknown signs.
#
# **Float32.** A proof in real numbers is not one about the machine. Here the reals say that class 0
# wins by $0.1 + x$. In float32, $x + 10^8 - 10^8$ is 0 or 8. The certificate counts that, and
# proves nothing.


# %%
def rounded(x):
    return jnp.stack([x.ravel()[0] + 1e8 - 1e8 + 0.1, 0.0])


def plain(x):
    return jnp.stack([x.ravel()[0] + 0.1, 0.0])


for function in (plain, rounded):
    result = certificates.LinearRelaxation()(function, image, 0, LinfBall(1e-3), key=key)
    print(f"{function.__name__}: certified {bool(result.certified)}")

# %% [markdown]
# **Steps that depend on the image.** An adaptive solver chooses its steps by the image, and accepts
# or rejects them. Its program has jumps that no line encloses, so a neural ODE is refused. On a
# grid of equal steps it is one function, which is evaluated, attacked and certified as such.


# %%
def adaptive(*shape, key):
    return models.DenseODENet(*shape, width=16, solver=diffrax.Heun(), key=key)


def on_grid(*shape, key):
    model = adaptive(*shape, key=key)
    return eqx.tree_at(lambda m: m.ode, model, model.ode.on_grid(4))


untrained = odejax.Predictor(*eqx.nn.make_with_state(adaptive)(train.image_shape, key=key))
try:
    certificates.LinearRelaxation()(untrained, image, label, LinfBall(0.01), key=key)
except ValueError as error:
    print(f"refused: {error}\n")

ode = fit(on_grid, 10)
radii = evaluation.certified_radii(
    ode, *some, LinfBall(0.01), certificates.LinearRelaxation(), key=key, progress=False
)
print(f"on a grid: {100 * np.mean(radii > 0):.0f} % of {len(some)} images certified at eps 0.01")

# %% [markdown]
# ## All of it in one call
#
# `bracket` attacks, runs every certificate that applies, the cheapest first, and reports the
# interval.

# %%
eps = (0.01, 0.02, 0.03, 0.05, 0.08)
result = evaluation.bracket(
    network,
    *test.take(slice(100)),
    [LinfBall(e) for e in eps],
    attacks=attacks.PGD(40, None, loss=attacks.margin_loss),
    key=key,
    progress=False,
)
print(result)

fig, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
ends = [(r.attacked, r.certified) for r in result]
high, low = 100 * np.array([(result[0].clean,) * 2, *ends]).T
plots.draw_interval(axis, (0.0, *eps), high, low)
axis.set(xlabel=plots.AXIS_LABELS["linf"], ylabel="accuracy (%)", ylim=(0, 102))
axis.set_title("CROWN is close to the attack in small balls only")
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# To go on: `python -m experiments.soundness` compares 12 networks' bounds with attacks, and
# `python -m experiments.benchmark` draws the last figure for every family of networks.
#
# - CROWN: Zhang et al. (2018), arXiv:1811.00866.
# - Branch and bound: Bunel et al. (2020), arXiv:1909.06588; Wang et al. (2021), arXiv:2103.06624.
