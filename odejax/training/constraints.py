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

    - `row_sum_penalty(where)`: nmODE+ (*nmode* Eqs. 6 and 7).
    - `drift_penalty`: TisODE (Yan et al. 2019).
    - `energy_penalty(kinetic, jacobian)`: RNODE (Finlay et al. 2020), solves that stay cheap.
    - `orthogonality_penalty`: *structured*, steps that are proven to contract.
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
    """max_i sum_j |w_ij| of the matrix W = `where(model)`: L_stable (*nmode* Eq. 7)."""

    def penalty(model, state, images, *, key):
        return jnp.max(jnp.sum(jnp.abs(where(model)), axis=1))

    return penalty


def drift_penalty(model, state: State, images: Images, *, key: Key) -> Scalar:
    """The mean of `model.drift(x, state)`: int |f(y(t))| dt over the time after the end.

    A flow that stands still from t1 to 2 t1 has forgotten where it started. TisODE is this, with
    a field that does not depend on time, such as `DenseODENet`'s. Raises `ValueError` for a model
    without `drift`.
    """
    _check_has(model, "drift(x, state)", "DenseODENet")
    return jnp.mean(vmap_batch(lambda x: model.drift(x, state))(images))


def energy_penalty(kinetic: float, jacobian: float) -> Penalty:
    """kinetic int |f|^2 dt + jacobian int |df/dy|_F^2 dt, divided by the entries of the state.

    Straight lines at constant speed take an adaptive solver few steps (RNODE, Finlay et al. 2020,
    who take 0.01 of each). The Frobenius norm is estimated from one draw for each image. Raises
    `ValueError` for factors that are negative or not finite, and for a model without `energies`.
    """
    check_not_negative(kinetic=kinetic, jacobian=jacobian)

    def penalty(model, state, images, *, key):
        _check_has(model, "energies(x, state, ...)", "DenseODENet")
        energies = vmap_batch(lambda x, key: model.energies(x, state, key=key))
        of_flow, of_jacobian = energies(images, jax.random.split(key, len(images)))
        return kinetic * jnp.mean(of_flow) + jacobian * jnp.mean(of_jacobian)

    return penalty


def orthogonality_penalty(model, state: State, images, *, key: Key) -> Scalar:
    """`model.orthogonality()`: |A^T A - I|^2 over its steps' maps (*structured*, eta = 0.01).

    Raises `ValueError` for a model without it.
    """
    _check_has(model, "orthogonality()", "StructuredNet")
    return model.orthogonality()


def _check_has(model, call: str, such_as: str):
    if not hasattr(model, call.partition("(")[0]):
        raise ValueError(
            f"this penalty is for models with {call}, such as {such_as}; "
            f"{type(model).__name__} has none"
        )


def clip_weights(c: float, where: Callable[[Any], Array]) -> optax.GradientTransformation:
    """W <- clip(W, -c, c) after every step, W = `where(model)` (*nmode* Eq. 5).

    The last link of any optimizer: `optax.chain(optax.adam(1e-3), clip_weights(0.1, where))`.
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

    Those stand still for `every` steps (an epoch: `steps_per_epoch`), then take one step
    w <- w - learning_rate g along their mean gradient and are divided by their sum, so that
    sum w = 1. For `MixedEnResNet(softmax=False)`.
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
