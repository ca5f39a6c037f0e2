"""What is evaluated: a function of one image, whose logits are checked, whose weights are leaves.

`jax.jit` keeps a function, and all that it closes over, for the life of the process, and never
reads its globals again. A module's weights are arguments: they are freed with it, and another
network of the same program needs no compilation.
"""

import contextlib
import inspect
import re
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from ._checks import check_callable
from ._fingerprint import fingerprint
from ._types import BoolScalar, Image, Key, Logits, LogitsFn

_IN_INFERENCE = (
    "write equinox.nn.inference_mode(model), or for a model with a state "
    "odejax.Predictor(model, state)"
)


class Checked(eqx.Module):
    """`logits_fn`, with or without a `key`, whose result is checked: one array of logits.

    Raises `ValueError` for any other result, for a function of several arguments, and for a network
    in training mode or outside JAX.
    """

    logits_fn: LogitsFn

    def __call__(self, x: Image, *, key: Key | None = None) -> Logits:
        given = {"key": key} if _takes_key(self.logits_fn) else {}
        with _hints(x):
            logits: Any = self.logits_fn(x, **given)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if isinstance(logits, np.ndarray):
            logits = jnp.asarray(logits)
        if isinstance(logits, jax.Array):
            if logits.ndim == 1 and len(logits) >= 2 and jnp.issubdtype(logits.dtype, jnp.floating):
                return logits
            got = f"{logits.dtype} of shape {logits.shape}"
        else:
            got = f"a {type(logits).__name__}"
        raise ValueError(
            f"logits_fn must return one array of floats of shape (k,), k >= 2; got {got}"
        )


def _takes_key(logits_fn) -> bool:
    """Whether it has a parameter `key`; `ValueError` for a function that needs other arguments."""
    try:
        parameters = inspect.signature(logits_fn).parameters
    except (TypeError, ValueError):  # built in: nothing is known of it
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in positional and p.name != "key"
    ]
    if len(needed) > 1:
        name = getattr(logits_fn, "__qualname__", type(logits_fn).__qualname__)
        raise ValueError(
            f"logits_fn must be a function of one image; {name} takes {len(needed)} arguments, "
            f"{' and '.join(needed)}: for a model and its state write odejax.Predictor(model, "
            f"state), for others lambda x: net(x, other)"
        )
    return any(p.name == "key" or p.kind == p.VAR_KEYWORD for p in parameters.values())


@contextlib.contextmanager
def _hints(x: Any):
    """Of what a network raises: what to do, and else how it was called."""
    try:
        yield
    except Exception as error:
        if (advice := _advice(error)) is not None:
            raise ValueError(advice) from error
        if not isinstance(error, ValueError) and "required positional" not in str(error):
            error.add_note(
                f"odejax calls logits_fn with one image, here of shape {x.shape}: "
                f"for a network that takes batches, write lambda x: net(x[None])[0]"
            )
        raise


def _advice(error: Exception) -> str | None:
    """What to do about an error that is known."""
    if type(error).__name__ == "TraceContextError":  # Flax's, which need not be installed
        return (
            "logits_fn must not change when it is called; a network of Flax does so in training "
            "mode: call its method eval() first"
        )
    if "Dropout requires a key" in str(error):  # Equinox's
        return f"logits_fn has its dropout on: {_IN_INFERENCE}"
    if isinstance(error, NameError) and "unbound axis name" in str(error):
        return f"logits_fn is in training mode, as its BatchNorm asks for a batch: {_IN_INFERENCE}"
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return (
            "logits_fn must be written in JAX, and makes a NumPy array of its image: use "
            "jax.numpy, or write odejax.BlackBox(scores, n_classes) for a network outside JAX"
        )
    return None


def check_network(logits_fn: Any):
    """Raise `ValueError` for what is no function of one image, and for a network that has a layer
    of Equinox's in training mode.
    """
    check_callable(logits_fn=logits_fn)
    _takes_key(logits_fn)

    def has_mode(node):
        return isinstance(node, eqx.nn.Dropout | eqx.nn.BatchNorm | eqx.nn.SpectralNorm)

    # Of a method, and of a compiled function, what it is of.
    networks = [logits_fn, *(getattr(logits_fn, of, None) for of in ("__self__", "__wrapped__"))]
    for layer in filter(has_mode, jax.tree.leaves(networks, is_leaf=has_mode)):
        is_dropout = isinstance(layer, eqx.nn.Dropout)
        if layer.inference is False and not (is_dropout and layer.p == 0):
            meant = "; if its noise is meant, lambda x, *, key: model(x, key=key)"
            raise ValueError(
                f"logits_fn has a {type(layer).__name__} in training mode: {_IN_INFERENCE}"
                f"{meant if is_dropout else ''}"
            )


def finite_logits(logits: Logits) -> BoolScalar:
    """Whether these are logits: numbers, or minus infinity for a class that is never predicted."""
    return jnp.all(logits < jnp.inf) & jnp.any(logits > -jnp.inf)


def count_classes(logits_fn: LogitsFn, x: Any, key: Key) -> int:
    """How many logits there are, for images like `x`; nothing is computed."""
    check_network(logits_fn)
    checked = Checked(logits_fn)
    return jax.eval_shape(lambda x, key: checked(x, key=key), x, key).shape[0]


_KEPT = 64
_PROGRAMS: OrderedDict[tuple, "_Program"] = OrderedDict()


class _Program:
    """A program, compared by its identity; equal ones are the same object (`_canonical`)."""

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr = jaxpr

    def __repr__(self) -> str:  # what a fingerprint sees of it, the same in every process
        return re.sub(r" at 0x[0-9a-f]+", "", str(self.jaxpr))


class Hoisted(eqx.Module):
    """A function of one image and a key, as a program and its weights."""

    weights: list[Any]
    program: _Program = eqx.field(static=True)
    function: str = eqx.field(static=True)

    def __call__(self, x: Image, *, key: Key) -> Logits:
        closed = ClosedJaxpr(self.program.jaxpr, self.weights)
        return jaxpr_as_fun(closed)(x, key)[0]


def hoist(logits_fn: LogitsFn, x: Any, key: Key) -> Any:
    """`logits_fn` for images like `x`; a module stays as it is, since its arrays are its leaves."""
    check_network(logits_fn)
    if hasattr(logits_fn, "hoisted"):  # one that holds others
        return logits_fn.hoisted(x, key)  # pyright: ignore
    if isinstance(logits_fn, eqx.Module):
        return logits_fn if _takes_key(logits_fn) else Checked(logits_fn)
    closed = jax.make_jaxpr(lambda x, key: Checked(logits_fn)(x, key=key))(
        jax.ShapeDtypeStruct(x.shape, x.dtype), jax.eval_shape(lambda: key)
    )
    name = getattr(logits_fn, "__qualname__", type(logits_fn).__qualname__)
    return Hoisted(list(closed.consts), _canonical(closed, logits_fn), name)


def _canonical(closed, function) -> _Program:
    """The first program that reads the same: `jax.jit` compares programs by their identity.

    A derivative rule (of `jax.custom_jvp` or `custom_vjp`) is no part of the text: programs with
    rules are the same only if they are of the same function.
    """
    inner = fingerprint([part.consts for part in _closed_parts(closed.jaxpr)])
    shapes = tuple((jnp.shape(c), jnp.result_type(c)) for c in closed.consts)
    rules = _token(function) if _has_rules(closed.jaxpr) else None
    text = (str(closed.jaxpr), shapes, inner, rules)
    program = _PROGRAMS.setdefault(text, _Program(closed.jaxpr))
    _PROGRAMS.move_to_end(text)
    if len(_PROGRAMS) > _KEPT:
        _PROGRAMS.popitem(last=False)
    return program


def _token(function) -> object:
    """One for each function, and never another's, though an address may be used again."""
    try:
        return _TOKENS.setdefault(function, object())
    except TypeError:  # what cannot be referred to weakly is known by nothing
        return object()


_TOKENS: WeakKeyDictionary[Any, object] = WeakKeyDictionary()


def _parameters(jaxpr):
    """Those of all equations, of the programs within as well."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
        ):
            yield value
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from _parameters(getattr(value, "jaxpr", value))


def _has_rules(jaxpr) -> bool:
    return any(callable(v) or hasattr(v, "call_wrapped") for v in _parameters(jaxpr))


def _closed_parts(jaxpr):
    """The closed programs within: their constants are no part of the text."""
    return [value for value in _parameters(jaxpr) if isinstance(value, ClosedJaxpr)]
