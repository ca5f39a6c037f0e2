"""The network that a command is about: a saved one, or a function in a file of the user's."""

import ast
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


def network(what: str, x: Any, images: str) -> Any:
    """The function of one image that `what` names.

    - `what`: a file that `odejax.save` wrote, a folder of checkpoints of `fit`, or
      `FILE.py:NAME`: in that file a function of one image, or one without arguments that makes one.
    - `x`: an image that it has to classify.
    - `images`: what such images are named on the command line, as "--dataset digits".

    Raises `UsageError` for what is none of these, and for a function that fails on the image.
    """
    file, _, name = what.rpartition(":")
    if what.endswith(".py"):
        file = _python_file(what)
        raise UsageError(f"a function is named FILE.py:NAME; {file} has {_functions(file)}")
    logits_fn = _from_file(_python_file(file), name) if file.endswith(".py") else _saved(what)
    taken = getattr(getattr(logits_fn, "model", None), "image_shape", x.shape)
    if tuple(taken) != x.shape:
        raise UsageError(
            f"{what} takes images of shape {tuple(taken)}, and those of {images} are of shape "
            f"{x.shape}: choose others"
        )
    try:
        predict(logits_fn, x[None], key=0)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"{what} fails on an image of shape {x.shape} ({images}): "
            f"{type(error).__name__}: {reason}"
        ) from error
    return logits_fn


def _saved(what: str) -> Any:
    try:
        return load(what)
    except ValueError as error:
        own = "a function or network of your own is named FILE.py:NAME"
        if "like=" in str(error):  # of a class that odejax does not know
            own = (
                "on the command line name FILE.py:NAME, a function without arguments that returns "
                "odejax.load(path, like=network)"
            )
        raise UsageError(f"{error} ({own})") from None


def _python_file(path: str) -> Path:
    try:
        file = local_path("file", path)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not file.is_file():
        raise UsageError(f"{file} is not there")
    return file


def _from_file(file: Path, name: str) -> Any:
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
        raise UsageError(f"{file} has no {name!r}; it has {_functions(file)}")
    function = getattr(module, name)
    if isinstance(function, type):
        raise UsageError(
            f"{name} in {file} is a class; name a function without arguments that makes one"
        )
    if not callable(function):
        raise UsageError(f"{name} in {file} must be a function of one image; got {function!r}")
    if not _makes_one(function):
        return function
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{name}() in {file} fails: {type(error).__name__}: {error}") from error


def _functions(file: Path) -> str:
    """The functions that a file defines, by name; the file is not run."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file} is no Python: {error}") from None
    defined = (node.name for node in body if isinstance(node, ast.FunctionDef))
    return ", ".join(name for name in defined if not name.startswith("_")) or "no function"


def _makes_one(function: Any) -> bool:
    """Whether it has no arguments at all."""
    try:
        return not isinstance(function, eqx.Module) and not inspect.signature(function).parameters
    except (TypeError, ValueError):  # not every function written in C says
        return False
