# %% [markdown]
# # What strong stability guarantees, and what it does for a network
#
# *Robust Neural Networks inspired by Strong Stability Preserving Runge-Kutta methods* (*ssp*)
# interprets the blocks of a residual network as Euler steps. It replaces them by methods that
# preserve what Euler's step preserves. This notebook asks three questions. When does that hold?
# Does it hold in a network? Is the network more robust under attack?

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

from odejax import attacks, evaluation, models, plots, solvers, training

key = jax.random.key(0)

# %% [markdown]
# ## SSP methods are averages of Euler steps
#
# With $E(u) = u + h L(u)$, a step of Euler's for $\dot u = L(u)$, the method SSPRK(3,3) is
#
# $$u_1 = E(u), \qquad u_2 = \tfrac34 u + \tfrac14 E(u_1), \qquad
# u^+ = \tfrac13 u + \tfrac23 E(u_2).$$
#
# It consists of Euler steps and averages. Take a convex functional that $E$ does not increase, such
# as a norm or the total variation $\sum_i |u_{i+1} - u_i|$. Then SSPRK(3,3) does not increase it
# either, and it is of order 3. Other methods can be written with steps of length $h / c$. The
# largest $c$ is the SSP coefficient. That of the midpoint rule $u + h L(u + \tfrac h2 L(u))$ is 0,
# because it takes a step backwards: $u_1 = u + \tfrac h2 L(u)$, and then
# $u^+ = E(u_1) - \tfrac h2 L(u)$.
#
# The example is Burgers' equation $u_t + (u^2 / 2)_x = 0$ on a circle. It starts at 1 on the left
# half and at 0 on the right, and develops a shock and a fan. The exact total variation is 2 at all
# times. $L$ is a reconstruction of fifth order (WENO), the same for all methods.

# %%
cells, t1, courant = 200, 0.4, 0.5
x = (np.arange(cells) + 0.5) / cells
initial = jnp.where(x < 0.5, 1.0, 0.0)
methods = {
    "Euler": diffrax.Euler(),
    "midpoint rule": diffrax.Midpoint(),
    "SSPRK(3,3)": solvers.SSPRK33(),
}
colors = plots.colors([*methods, "SSPRK(4,3)", "counterexample"])
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(x, np.where(x < t1, x / t1, x < 0.5 + t1 / 2), "k", lw=0.8, label="exact solution")
for name, method in methods.items():
    states = solvers.burgers(initial, solver=method, courant=courant, t1=t1)
    variation = solvers.total_variation(states)
    left.plot(x, states[-1], ".-", ms=3, lw=0.8, color=colors[name], label=name)
    times = np.linspace(0, t1, len(states))
    right.semilogy(times, jnp.maximum(variation - 2, 1e-6), color=colors[name])
    print(f"{name:13}  largest total variation {float(variation.max()):.2f}")
left.set(xlabel="x", ylabel="u", title=f"u at t = {t1:g}: Euler's method oscillates")
right.set(xlabel="t", ylabel="total variation - 2", title="Its total variation grows")
fig.legend(loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# Euler's step oscillates and SSPRK(3,3) does not. SSP methods are usually shown in this way. But
# most of the figure is not strong stability. Strong stability says that nothing grows *if it does
# not grow under Euler's step*, and with this $L$ it does grow under Euler's step. The figure shows
# that Euler's method is unstable with slopes of high order. Methods that are stable there do well.
# The midpoint rule does nearly as well, although its SSP coefficient is 0: its total variation
# stays within a few per cent of 2.
#
# ## With upwind differences the premise holds
#
# With upwind differences of first order for $L$, Euler's step preserves the total variation up to
# the Courant number 1. Now the premise holds, and $c$ says how far: SSPRK(3,3) must preserve it up
# to 1, SSPRK(4,3) up to 2. We add one more method, the counterexample of Gottlieb and Shu (1998).
# It is of order 2, equals the midpoint rule for linear slopes, and its SSP coefficient is 0 too.


# %%
def upwind(u):
    return -(u**2 - jnp.roll(u, 1) ** 2) / 2 * cells


def counterexample(f, u, h):
    slope = f(u)
    return u + h * (41 * slope - f(u - 20 * h * slope)) / 40


@eqx.filter_jit
def largest_variation(step, courant):
    def advance(u, _):
        u = step(upwind, u, courant / cells)
        return u, solvers.total_variation(u)

    _, variation = jax.lax.scan(advance, initial, length=100)
    return jnp.max(jnp.where(jnp.isfinite(variation), variation, jnp.inf))


steps = {name: solvers.RungeKutta(method) for name, method in methods.items()}
steps["SSPRK(4,3)"] = solvers.RungeKutta(solvers.SSPRK43())
steps["counterexample"] = counterexample
promised = {"Euler": 1, "SSPRK(3,3)": 1, "SSPRK(4,3)": 2}
courants = np.linspace(0.05, 2.5, 50)
fig, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
for name, step in steps.items():
    largest = np.array([largest_variation(step, jnp.asarray(c)) for c in courants])
    kept = courants[np.logical_and.accumulate(largest < 2 + 1e-4)].max(initial=0)
    axis.barh(name, kept, color=colors[name], alpha=0.6)
    theory = promised.get(name, 0)
    axis.plot(theory, name, "k|", ms=22, mew=2, label=None if name != "Euler" else "guaranteed")
    print(f"{name:15} keeps the total variation up to the Courant number {kept:.2f}")
axis.invert_yaxis()
axis.set(xlabel="largest Courant number that keeps the total variation")
axis.set_title("Every method keeps what its SSP coefficient guarantees", fontsize=11)
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# Every method preserves what its coefficient guarantees. A method with $c = 0$ has no guarantee:
# the counterexample fails at every step size tried, the midpoint rule does not.
#
# ## The same methods as blocks of a network
#
# A block of an SSP network is one of these steps with $h = 1$ along the block's residual function
# $f$. SSP-2 is SSPRK(2,2), SSP-3 is SSPRK(3,3). All stages of a block share $f$, so a network has
# as many weights as the ResNet and two or three times its cost. The paper's adaptive block learns
# its coefficients. `LearnedRK2` has two stages, has order 2 for all coefficients that it can learn,
# and starts where all of them are positive. In the form of the authors' code (`published`) one
# starts below 0, and the SSP coefficient is 0.

# %%
train, test = (odejax.data.load("digits", split) for split in ("train", "test"))
DEPTH = 3
blocks = {"ResNet": diffrax.Euler(), "SSP-2": solvers.SSPRK22(), "SSP-3": solvers.SSPRK33()}


def make(solver):
    return eqx.nn.make_with_state(models.ResNet)(
        train.image_shape, width=8, depth=DEPTH, solver=solver, key=key
    )


for name, solver in blocks.items():
    model, _ = make(solver)
    weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    stages = len(solvers.RungeKutta(solver).weights)
    print(f"{name:6}  {weights} weights, f evaluated {stages}x in each block")


def f(u):
    return jnp.tanh(u[::-1])


u = jnp.array([0.3, -1.0])
u1 = u + f(u)
u2 = 3 / 4 * u + 1 / 4 * (u1 + f(u1))
by_hand = 1 / 3 * u + 2 / 3 * (u2 + f(u2))
off = jnp.abs(solvers.RungeKutta(solvers.SSPRK33())(f, u, 1.0) - by_hand).max()
print(f"SSP-3 written as three residual blocks and averages: off by {float(off):.0e}")

for name, published in (("LearnedRK2", False), ("published", True)):
    learned = solvers.LearnedRK2(1, published=published)
    written = ", ".join(f"{k} {v[0]:.2f}" for k, v in learned.coefficients()._asdict().items())
    print(f"{name:10}  {written}; SSP coefficient {learned.ssp_coefficient()[0]:.2f}")

# %% [markdown]
# ## Two networks, trained in two ways
#
# ResNet and SSP-3 start from the same weights and are trained on clean digits. Each is then trained
# further against one long step of PGD in an L-infinity ball. That makes four networks.

# %%
ball = odejax.LinfBall(0.1)


def fit(model, state, objective, epochs):
    steps = epochs * training.steps_per_epoch(len(train), 64)
    rates = optax.cosine_onecycle_schedule(steps, 1e-2)
    return training.fit(
        model,
        state,
        train,
        objective,
        optax.adam(rates),
        epochs=epochs,
        batch_size=64,
        key=key,
        progress=False,
    )


against = training.Adversarial(attacks.PGD(1, 0.125, last=True), ball)
networks = {}
for name, solver in blocks.items():
    if name == "SSP-2":
        continue
    fitted = fit(*make(solver), training.CrossEntropy(), 10)
    networks[name, "clean"] = odejax.Predictor(fitted.model, fitted.state)
    fitted = fit(fitted.model, fitted.state, against, 12)
    networks[name, "PGD"] = odejax.Predictor(fitted.model, fitted.state)
some, clean = test.take(slice(100)), {}
for (name, kind), network in networks.items():
    logits = odejax.predict(network, some.pixels, key=key)
    clean[name, kind] = np.mean(logits.argmax(axis=1) == some.labels)
    print(f"{name:6} trained on {kind:5} images: clean accuracy {100 * clean[name, kind]:.0f} %")

# %% [markdown]
# ## Perturbations grow from block to block
#
# The paper's perturbation growth ratio is the distance between the states of a clean and an
# attacked image after block $n$, divided by the distance after the first block. The images are
# those of PGD-20 against each network.

# %%
pgd = attacks.PGD(20, None)


@eqx.filter_jit
def ratios(network, images, attacked):
    """By norm, image and block."""

    def one(x, x_adv):
        states = [network.model.block_states(image, network.state) for image in (x, x_adv)]
        return jnp.stack([solvers.growth_ratios(*states, order) for order in (1, 2)])

    return jax.vmap(one, out_axes=1)(images, attacked)


fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
line_colors = plots.colors(["ResNet", "SSP-3"])
reports, number = {}, np.arange(1, DEPTH + 1)
for (name, kind), network in networks.items():
    reports[name, kind] = report = evaluation.robust_accuracy(
        network, *some, ball, pgd, key=key, attack_misclassified=True, stop_at_first_success=False
    )
    growth = ratios(network, some.pixels, report.x_adv)
    low, middle, high = np.quantile(growth, (0.25, 0.5, 0.75), axis=1)
    print(f"{name:6} trained on {kind:5} images: {middle[1, -1]:.1f} after the last block (l2)")
    for i, axis in enumerate(axes):
        style = {"color": line_colors[name], "ls": "-" if kind == "clean" else "--"}
        axis.plot(number, middle[i], label=f"{name}, trained on {kind} images", **style)
        axis.fill_between(number, low[i], high[i], color=line_colors[name], alpha=0.1, lw=0)
for i, axis in enumerate(axes):
    axis.axhline(1, color="k", lw=0.5)
    axis.set(xlabel="block", xticks=number, title=f"in l{i + 1}: median, quartiles")
axes[0].set_ylabel("growth ratio")
plots.set_title(fig, "Perturbations grow from block to block in all four networks")
handles = axes[0].get_legend_handles_labels()
fig.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# ## Robust accuracy differs by training, not by block
#
# The attacks are PGD-20 and, on the images that PGD-20 does not change to another class, APGD on
# the DLR loss, which does not saturate. No certificate was run on these networks, so the lower end
# of each interval is 0. The error bars are the sampling error of 100 images (95 %).

# %%
rows = []
print(f"accuracy in %; eps {float(ball.eps):g}, {len(some)} images")
print("trained on            clean    PGD-20      both    95 % sampling interval of both")
for (name, kind), network in networks.items():
    weak = reports[name, kind]
    strong = evaluation.robust_accuracy(
        network,
        *some,
        ball,
        attacks.APGD(20, loss=attacks.dlr),
        key=key,
        already_broken=~weak.still_correct,
    )
    error = evaluation.confidence_interval(int(strong.still_correct.sum()), len(some))
    rows.append([clean[name, kind], weak.accuracy, strong.accuracy, *error])
    shown = "".join(f"{100 * value:10.0f}" for value in rows[-1][:3])
    print(f"{name + ', on ' + kind:17}{shown}    {100 * error[0]:.0f} to {100 * error[1]:.0f}")
natural, weakly, attacked, low, high = 100 * np.array(rows).T
places = np.arange(len(rows))
fig, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
axis.bar(places, attacked, color="0.88", label="possible robust accuracy")
axis.plot(places, natural, "_", color="k", ms=16, label="clean accuracy")
axis.plot(places - 0.1, weakly, "s", color="#ef8a62", ms=5, label="under PGD-20")
error = (attacked - low, high - attacked)
label = "under both attacks"
axis.errorbar(places, attacked, error, fmt="o", color="#b2182b", capsize=4, label=label)
axis.set_xticks(places, [f"{name},\non {kind} images" for name, kind in networks])
axis.set(ylabel="accuracy (%)", ylim=(0, 102))
plots.set_title(fig, "Training against an attack raises the accuracy under attack of both networks")
fig.legend(loc="outside right center", frameon=False)
plt.show()

# %% [markdown]
# These numbers support three conclusions and no more:
#
# - The growth ratios end well above 1. If Euler's step along these fields did not increase
#   distances, an SSP step could not either. So Euler's step does increase them. As with WENO, the
#   premise of strong stability does not hold. If SSP blocks help, the theorem that they are named
#   after is not the reason.
# - A smaller ratio does not mean a more robust network. The ratio leaves out the effect of the stem
#   and the first block. Among networks trained alike the error bars overlap, whatever their ratios.
# - The training images matter more than the blocks. (The networks trained against PGD were also
#   trained for longer.) One seed and 100 images cannot tell which block is best.
#
# `python -m experiments.ssp.networks` compares more blocks over several seeds, and compares the
# growth of attacks with that of a random perturbation. `python -m experiments.ssp.burgers` draws
# the shock for more methods and Courant numbers.
