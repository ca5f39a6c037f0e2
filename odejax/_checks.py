"""The checks of arguments: an error is one sentence that names the value and what is accepted.

A value that is traced is not known yet, and passes.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_INFINITY = float("inf")


def check_count(least: int = 1, **values: Any):
    """Raise `ValueError` unless every value is an integer of at least `least`."""
    for name, value in values.items():
        if not is_integer(value):
            raise ValueError(f"{name} must be an integer; got {_shown(value)}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


def check_positive(**values: Any):
    """Raise `ValueError` unless every number is finite and positive; None passes."""
    for name, value in values.items():
        if not (value is None or _lies(value, 0.0, _INFINITY, open_low=True)):
            raise ValueError(f"{name} must be finite and positive; got {_shown(value)}")


def check_not_negative(**values: Any):
    """Raise `ValueError` unless every number is finite and at least 0."""
    for name, value in values.items():
        if not _lies(value, 0.0, _INFINITY):
            raise ValueError(f"{name} must be finite and not negative; got {_shown(value)}")


def check_radius(eps: Any):
    """Raise `ValueError` unless it is finite and at least 0, as is every entry of an array."""
    if not _lies(eps, 0.0, _INFINITY, arrays=True):
        raise ValueError(f"eps must be finite and not negative; got {_shown(eps)}")


def check_finite(**values: Any):
    """Raise `ValueError` unless every number, or every entry of an array, is finite."""
    for name, value in values.items():
        if not _lies(value, -_INFINITY, _INFINITY, open_low=True, arrays=True):
            raise ValueError(f"{name} must be finite; got {_shown(value)}")


def check_fraction(**values: Any):
    """Raise `ValueError` unless every number lies in [0, 1]."""
    for name, value in values.items():
        if not _lies(value, 0.0, 1.0, open_high=False):
            raise ValueError(f"{name} must lie in [0, 1]; got {_shown(value)}")


def check_share(**values: Any):
    """Raise `ValueError` unless every number lies in [0, 1)."""
    for name, value in values.items():
        if not _lies(value, 0.0, 1.0):
            raise ValueError(f"{name} must be at least 0 and below 1; got {_shown(value)}")


def check_callable(**values: Any):
    """Raise `ValueError` unless every value can be called."""
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"{name} must be a function; got {_shown(value)}")


def check_instance(kind: type | tuple[type, ...], what: str, **values: Any):
    """Raise `ValueError` unless every value is one of `kind`; `what` says so in words."""
    for name, value in values.items():
        if not isinstance(value, kind):
            shown = _shown(value)
            got = shown if len(shown) <= 40 else f"a {type(value).__name__}"
            raise ValueError(f"{name} must be {what}; got {got}")


def _shown(value) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def check_key(key: Any):
    """Raise `ValueError` unless it is one key of `jax.random`."""
    typed = hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    old = hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim == 1
    if not (isinstance(key, jax.Array) and (old or (typed and key.ndim == 0))):
        got = f"an array of shape {key.shape}" if hasattr(key, "shape") else _shown(key)
        raise ValueError(f"key must be one key, such as jax.random.key(0); got {got}")


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as an array of JAX's; `ValueError` for what is none."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array; got a {type(value).__name__}") from None


def is_integer(value: Any) -> bool:
    """Whether it counts: an integer of any kind, but no bool."""
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _lies(value, low: float, high: float, *, open_low=False, open_high=True, arrays=False):
    """Whether `value`, or with `arrays` every entry of it, is a real number of the interval."""
    if isinstance(value, Tracer):
        return True
    try:
        numbers = np.asarray(value)
    except ValueError:  # rows of different lengths
        return False
    if not any(jnp.issubdtype(numbers.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        return False
    if numbers.size == 0 or not (arrays or numbers.ndim == 0):
        return False
    numbers = numbers.astype(np.float64)
    above = numbers > low if open_low else numbers >= low
    below = numbers < high if open_high else numbers <= high
    return bool(np.all(above & below))


def check_pixels(images: np.ndarray, lower: float = 0.0, upper: float = 1.0):
    """Raise `ValueError` unless every pixel is in the box."""
    low, high = float(images.min()), float(images.max())
    if not (low >= lower and high <= upper):
        hint = "; divide them by 255" if upper < 2 < high <= 255 and low >= lower else ""
        raise ValueError(f"pixels must lie in [{lower}, {upper}]; got [{low}, {high}]{hint}")


def check_labels(labels, n_classes: int):
    """Raise `ValueError` unless every label is a class."""
    if isinstance(labels, Tracer):
        return
    labels = np.atleast_1d(np.asarray(labels))
    bad = labels[(labels < 0) | (labels >= n_classes)]
    if len(bad):
        raise ValueError(f"labels must be classes 0 to {n_classes - 1}; got {bad[0]}")


def check_example(x, y, ball):
    """Raise `ValueError` unless this is one image, one class and one ball."""
    if x.ndim != 3:
        raise ValueError(f"this takes one image (h, w, c); got shape {x.shape}; use jax.vmap")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"images are floats in [0, 1]; got {x.dtype} (divide uint8 by 255)")
    if ball.eps.shape != ():
        raise ValueError(f"this takes one eps; got shape {ball.eps.shape}; use jax.vmap")
    if y.shape != () or not jnp.issubdtype(y.dtype, jnp.integer):
        known = y.shape == () and not isinstance(y, Tracer)
        got = f"{y} of dtype {y.dtype}" if known else f"shape {y.shape} and dtype {y.dtype}"
        raise ValueError(f"y is the index of one class; got {got}")
    if not isinstance(x, Tracer):
        check_pixels(np.asarray(x), ball.lower, ball.upper)


def check_images(images):
    """Raise `ValueError` unless these are images (n, h, w, c): uint8, or floats in [0, 1]."""
    if not hasattr(images, "dtype"):
        raise ValueError(f"images must be an array; got a {type(images).__name__}")
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or not (floats or images.dtype == np.uint8):
        raise ValueError(
            f"images must be uint8, or floats in [0, 1], of shape (n, h, w, c); "
            f"got {images.dtype} of shape {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("there are no images: got an empty array")
    if floats:
        check_pixels(images)


def check_arrays(images, labels) -> tuple[np.ndarray, np.ndarray]:
    """`images` and `labels` as arrays of the form that evaluation takes, or a `ValueError`."""
    images = as_images(images)
    labels = as_labels(labels, len(images))
    return images.astype(np.float32) / 255 if images.dtype == np.uint8 else images, labels


def as_images(images: Any, *, grey: bool = False) -> np.ndarray:
    """`images` as an array (n, h, w, c), uint8 or float32 in [0, 1]; else a `ValueError`.

    With `grey`, (n, h, w) are images of one channel.
    """
    images = _as_numpy("images", images)
    if grey and images.ndim == 3:
        images = images[..., None]
    floats = jnp.issubdtype(images.dtype, jnp.floating)
    if images.ndim != 4 or not (floats or images.dtype == np.uint8):
        raise ValueError(
            f"images must be uint8, or floats in [0, 1], of shape (n, h, w, c); "
            f"got {_described(images)}"
        )
    if len(images) == 0:
        raise ValueError("there are no images: got an empty array")
    if images.shape[1] in (1, 3) and min(images.shape[2:]) > 4:
        raise ValueError(
            f"images must have their channels last, (n, h, w, c); got shape {images.shape}: "
            f"move the axis with np.moveaxis(images, 1, -1)"
        )
    if not floats:
        return images
    check_pixels(images)
    return images.astype(np.float32)


def as_labels(labels: Any, n: int) -> np.ndarray:
    """`labels` as int32 (n,), from integers of any kind; else a `ValueError`."""
    labels = _as_numpy("labels", labels)
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        hint = ""
        if labels.ndim == 2 and len(labels) == n:  # one-hot, or a column
            hint = "; use labels.argmax(axis=1)" if labels.shape[1] > 1 else "; use labels.ravel()"
        raise ValueError(f"labels must be integers of shape ({n},); got {_described(labels)}{hint}")
    largest = np.iinfo(np.int32).max
    if labels.max() > largest:
        raise ValueError(f"labels must be at most {largest}; got {labels.max()}")
    return labels.astype(np.int32)


def _as_numpy(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{name} must be an array; got lists of unequal rows") from None


def check_order(order: Any, n: int) -> np.ndarray:
    """`order` as an array; `ValueError` unless it has indices of `n` images, each once at most."""
    order = np.asarray(order)
    whole = order.ndim == 1 and np.issubdtype(order.dtype, np.integer)
    if not whole or not np.isin(order, np.arange(n)).all() or len(set(order.tolist())) < len(order):
        raise ValueError(
            f"order must be different integers from 0 to {n - 1}; got {_described(order)}"
        )
    return order


def _described(array: np.ndarray) -> str:
    if array.shape == ():  # something else that NumPy made an array of
        return _shown(array.item())
    return f"{array.dtype} of shape {array.shape}"
