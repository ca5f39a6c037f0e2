"""What keeps a network stable while it is trained: penalties and constraints for any objective.

nmODE+ (*nmode* 4.3) is nmODE trained with one of them: `Penalised` by `row_sum_penalty`, an
optimizer that ends in `clip_weights`, or Optax's own weight decay (`optax.adamw`; the coupled one
of the paper's PyTorch is `optax.add_decayed_weights` before `optax.adam`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from equinox.nn import State
from jaxtyping import Array

from .._batch import vmap_batch
from .._checks import check_callable, check_count, check_not_negative, check_positive
from .._types import Images, Key, Labels, Scalar
from .objectives import CrossEntropy, Loss, Objective


@runtime_checkable
class Penalty(Protocol):
    """What is added to an objective: a function of the model and a batch of images."""

    def __call__(self, model: Any, state: State, images: Images, /, *, key: Key) -> Scalar: ...


class Penalised(eqx.Module):
    """objective + eta * penalty(model, state, images, key=key).

    - `objective`: `CrossEntropy()` by default.
    - `penalty`: any such function, or one of those below.
    - `eta`: its factor, not negative.

    Penalties:

    - `row_sum_penalty(where)`: nmODE+ (*nmode* Eqs. 6 and 7).
    - `drift_penalty`: TisODE (Yan et al. 2019).
    - `energy_penalty(kinetic, jacobian)`: RNODE (Finlay et al. 2020), solves that stay cheap.
    - `orthogonality_penalty`: *structured*, steps that are proven to contract.

    Raises `ValueError` for an `eta` that is negative or not finite.

    >>> from odejax.training import Penalised
    >>> model = lambda x, state, *, key: (x.ravel(), state)
    >>> objective = Penalised(penalty=lambda model, state, images, *, key: jnp.sum(images), eta=0.5)
    >>> images, labels, key = jnp.ones((1, 1, 2, 1)), jnp.array([0]), jax.random.key(0)
    >>> loss, _ = objective(model, eqx.nn.State(None), images, labels, key=key)
    >>> round(float(loss), 4)  # log 2 + 1
    1.6931
    """

    objective: Objective = CrossEntropy()
    penalty: Penalty = eqx.field(kw_only=True)
    eta: float = eqx.field(kw_only=True)

    def __check_init__(self):
        check_not_negative(eta=self.eta)
        check_callable(objective=self.objective, penalty=self.penalty)

    def __call__(self, model, state: State, images: Images, labels: Labels, *, key: Key) -> Loss:
        loss, aux = self.objective(model, state, images, labels, key=key)
        # Not one of the keys that the objective splits its own into, one for each image.
        penalty_key = jax.random.fold_in(key, 2**31)
        return loss + self.eta * self.penalty(model, state, images, key=penalty_key), aux


def row_sum_penalty(where: Callable[[Any], Array]) -> Penalty:
    """L_stable, the largest row sum of |W| (*nmode* Eq. 7), as a penalty.

        max_i sum_j |w_ij|

    - `where(model)`: the matrix W.

    >>> penalty = odejax.training.row_sum_penalty(lambda model: model)
    >>> weight = jnp.array([[1.0, -2.0], [0.5, 0.5]])
    >>> float(penalty(weight, eqx.nn.State(None), jnp.zeros((1, 4, 4, 1)), key=jax.random.key(0)))
    3.0
    """

    def penalty(model, state, images, *, key):
        return jnp.max(jnp.sum(jnp.abs(where(model)), axis=1))

    return penalty


def drift_penalty(model, state: State, images: Images, *, key: Key) -> Scalar:
    """The mean of `model.drift(x, state)`: int |f(y(t))| dt over the time after the end.

    A flow that does not move from t1 to 2 t1 is at rest: it has forgotten where it started.
    TisODE is this, with a field that does not depend on time, such as `DenseODENet`'s.

    - `model`: one with `drift(x, state) -> scalar`.
    - `state`: its state.
    - `images`: (n, h, w, c).
    - `key`: not used.

    Raises `ValueError` for a model without `drift`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(drift=lambda x, state: jnp.mean(x))
    >>> images, key = jnp.full((2, 4, 4, 1), 0.5), jax.random.key(0)
    >>> float(odejax.training.drift_penalty(model, eqx.nn.State(None), images, key=key))
    0.5

    Yan et al. 2019.
    """
    _check_has(model, "drift(x, state)", "DenseODENet")
    return jnp.mean(vmap_batch(lambda x: model.drift(x, state))(images))


def energy_penalty(kinetic: float, jacobian: float) -> Penalty:
    """The energy of the flow and of its Jacobian, per entry of the state, as a penalty.

        kinetic int |f|^2 dt + jacobian int |df/dy|_F^2 dt

    Straight lines at constant speed take an adaptive solver few steps. The Frobenius norm is
    estimated from one draw for each image. The penalty is for models with `energies(x, state,
    key=key) -> (scalar, scalar)`.

    - `kinetic`, `jacobian`: factors; Finlay et al. take 0.01 of each.

    Raises `ValueError` for factors that are negative or not finite, and for a model without
    `energies`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(energies=lambda x, state, *, key: (jnp.mean(x), jnp.mean(2 * x)))
    >>> penalty = odejax.training.energy_penalty(1.0, 10.0)
    >>> images, key = jnp.full((2, 4, 4, 1), 0.5), jax.random.key(0)
    >>> float(penalty(model, eqx.nn.State(None), images, key=key))
    10.5

    Finlay et al. 2020 (RNODE).
    """
    check_not_negative(kinetic=kinetic, jacobian=jacobian)

    def penalty(model, state, images, *, key):
        _check_has(model, "energies(x, state, ...)", "DenseODENet")
        energies = vmap_batch(lambda x, key: model.energies(x, state, key=key))
        flow_energy, jacobian_energy = energies(images, jax.random.split(key, len(images)))
        return kinetic * jnp.mean(flow_energy) + jacobian * jnp.mean(jacobian_energy)

    return penalty


def orthogonality_penalty(model, state: State, images, *, key: Key) -> Scalar:
    """`model.orthogonality()`: |A^T A - I|^2 over its steps' maps (*structured*, eta = 0.01).

    - `model`: one with `orthogonality() -> scalar`.
    - `state`, `images`, `key`: not used.

    Raises `ValueError` for a model without `orthogonality`.

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(orthogonality=lambda: jnp.asarray(2.0))
    >>> state, images, key = eqx.nn.State(None), jnp.zeros((1, 4, 4, 1)), jax.random.key(0)
    >>> float(odejax.training.orthogonality_penalty(model, state, images, key=key))
    2.0
    """
    _check_has(model, "orthogonality()", "StructuredNet")
    return model.orthogonality()


def _check_has(model, call: str, example: str):
    if not hasattr(model, call.partition("(")[0]):
        raise ValueError(
            f"this penalty is for models with {call}, such as {example}; "
            f"{type(model).__name__} has none"
        )


def clip_weights(c: float, where: Callable[[Any], Array]) -> optax.GradientTransformation:
    """W <- clip(W, -c, c) after every step (*nmode* Eq. 5), as the last link of any optimizer.

    - `c`: the bound, positive.
    - `where(model)`: the weights W.

    Raises `ValueError` for a `c` that is not finite and positive, and for an update without
    weights.

    >>> clip = odejax.training.clip_weights(0.1, lambda params: params["w"])
    >>> optimizer = optax.chain(optax.sgd(1.0), clip)
    >>> params, gradient = {"w": jnp.array([0.25, 0.05])}, {"w": jnp.zeros(2)}
    >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> [round(float(w), 2) for w in optax.apply_updates(params, updates)["w"]]
    [0.1, 0.05]
    """
    check_positive(c=c)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("clip_weights needs the weights: optimizer.update(..., params)")
        weight, change = where(params), where(updates)
        return eqx.tree_at(where, updates, jnp.clip(weight + change, -c, c) - weight), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class _Mixture(NamedTuple):
    inner: optax.OptState
    gradient: Array  # summed since the last update
    steps: Array


def mixture_weights(
    optimizer: optax.GradientTransformation,
    where: Callable[[Any], Array],
    *,
    learning_rate: float,
    every: int,
) -> optax.GradientTransformation:
    """`optimizer` for all but the weights w = `where(model)` of an ensemble (*enresnet* 5).

    Those are fixed for `every` steps, then take one step along their mean gradient g and are
    divided by their sum, so that sum w = 1:

        w <- w - learning_rate g,  w <- w / sum w

    For `MixedEnResNet(softmax=False)`.

    - `optimizer`: of all other weights.
    - `where(model)`: w, of shape (n,).
    - `learning_rate`: of w, positive.
    - `every`: a number of steps; an epoch is `steps_per_epoch`.

    Raises `ValueError` for a `learning_rate` that is not positive, an `every` below 1, and for an
    update without weights.

    >>> mixture = odejax.training.mixture_weights(
    ...     optax.sgd(0.1), lambda params: params["w"], learning_rate=0.5, every=1)
    >>> params, gradient = {"w": jnp.array([0.5, 0.5])}, {"w": jnp.array([0.5, 0.0])}
    >>> updates, _ = mixture.update(gradient, mixture.init(params), params)
    >>> [round(float(w), 3) for w in optax.apply_updates(params, updates)["w"]]  # of (0.25, 0.5)
    [0.333, 0.667]
    """
    check_positive(learning_rate=learning_rate)
    check_count(every=every)

    def init(params):
        return _Mixture(
            optimizer.init(params), jnp.zeros_like(where(params)), jnp.zeros((), jnp.int32)
        )

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("mixture_weights needs the weights: optimizer.update(..., params)")
        weights, steps = where(params), state.steps + 1
        gradient = state.gradient + where(updates)
        due = steps % every == 0
        moved = weights - learning_rate * gradient / every
        change = jnp.where(due, moved / jnp.sum(moved) - weights, 0.0)
        updates, inner = optimizer.update(updates, state.inner, params)
        gradient = jnp.where(due, 0.0, gradient)
        return eqx.tree_at(where, updates, change), _Mixture(inner, gradient, steps)

    return optax.GradientTransformation(init, update)
