"""The network that a command is about: a saved one, or a function in a file of the user's."""

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import equinox as eqx

from .._network_file import load
from .._paths import local_path
from .._predictor import predict
from .command_line import UsageError


def network(what: str, x: Any) -> Any:
    """The function of one image that `what` names.

    - `what`: a file that `odejax.save` wrote, a folder of checkpoints of `fit`, or
      `FILE.py:NAME`: in that file a function of one image, or one without arguments that makes one.
    - `x`: an image that it has to classify.

    Raises `UsageError` for what is none of these, and for a function that fails on the image.
    """
    file, colon, name = what.rpartition(":")
    if colon and file.endswith(".py"):
        logits_fn = _from_file(local_path("file", file), name)
    else:
        try:
            logits_fn = load(what)
        except ValueError as error:
            raise UsageError(f"{error} (a function of yours is named FILE.py:NAME)") from None
    try:
        predict(logits_fn, x[None], key=0)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"{what} fails on an image of shape {x.shape}: {type(error).__name__}: {reason}"
        ) from error
    return logits_fn


def _from_file(file: Path, name: str) -> Any:
    if not file.is_file():
        raise UsageError(f"{file} is not there")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # as an import of it does, so that classes in it can be made
    sys.path.insert(0, str(file.parent))  # and as `python FILE` does, so that it imports its own
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise UsageError(f"{file} has no {name!r}; it has {', '.join(_functions(module))}")
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(f"{name} in {file} must be a function of one image; got {function!r}")
    return function() if _makes_one(function) else function


def _functions(module: Any) -> list[str]:
    return [
        name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
    ]


def _makes_one(function: Any) -> bool:
    """Whether it has no arguments at all."""
    try:
        return not isinstance(function, eqx.Module) and not inspect.signature(function).parameters
    except (TypeError, ValueError):  # not every function written in C says
        return False
