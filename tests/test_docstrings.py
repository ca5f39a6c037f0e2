"""Every public class and function has an example in its docstring, and all examples run."""

import doctest
import importlib
import inspect
import pkgutil
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import odejax
from odejax import _progress

PACKAGES = (
    "odejax",
    "odejax.attacks",
    "odejax.certificates",
    "odejax.data",
    "odejax.evaluation",
    "odejax.models",
    "odejax.plots",
    "odejax.solvers",
    "odejax.training",
)
# What an example may use without importing it.
NAMES = {"odejax": odejax, "eqx": eqx, "jax": jax, "jnp": jnp, "np": np, "optax": optax}


def public(package):
    """The classes and functions that a package exports and that need an example, by name."""
    for name, member in vars(importlib.import_module(package)).items():
        if name.startswith("_") or not getattr(member, "__module__", "").startswith("odejax"):
            continue
        if inspect.isclass(member):
            abstract = inspect.isabstract(member) or getattr(member, "_is_protocol", False)
            if not abstract and not issubclass(member, Exception):
                yield name, member
        elif callable(member):
            yield name, member


def modules(package):
    """A package and its files, without the packages in it."""
    root = importlib.import_module(package)
    names = [info.name for info in pkgutil.iter_modules(root.__path__) if not info.ispkg]
    return [package, *(f"{package}.{name}" for name in names)]


class Finder(doctest.DocTestFinder):
    """Finds functions that a decorator has wrapped, too."""

    def _from_module(self, module, object):
        return getattr(object, "__module__", module.__name__) == module.__name__


def examples(module):
    tests = Finder().find(importlib.import_module(module), module, extraglobs={})
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_example(package):
    missing = [name for name, member in public(package) if ">>> " not in (member.__doc__ or "")]
    assert not missing, f"{package}: no example in the docstrings of {', '.join(missing)}"


# Called within a program, with the keys of their caller.
WITHIN = {
    "start", "random_crop", "random_flip", "crop_and_flip", "stack_layers", "batch_logits",
    "drift_penalty", "orthogonality_penalty",
}  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_a_function_that_needs_a_key_takes_a_seed(package):
    keys = {
        name: inspect.signature(member).parameters.get("key")
        for name, member in public(package)
        if inspect.isfunction(member) and name not in WITHIN
    }
    needed = [name for name, key in keys.items() if key and key.default is key.empty]
    assert [name for name in needed if int not in typing.get_args(keys[name].annotation)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_example_is_run(package):
    run = {test.name.rpartition(".")[2] for name in modules(package) for test in examples(name)}
    assert {member.__name__ for _, member in public(package)} <= run


@pytest.mark.parametrize("module", [name for package in PACKAGES for name in modules(package)])
def test_the_examples_print_what_they_say(module, monkeypatch):
    for seconds in ("_LINE_SECONDS", "_STAGE_SECONDS"):  # of progress: a busy machine is no fault
        monkeypatch.setattr(_progress, seconds, float("inf"))
    report = []
    for test in examples(module):
        test.globs = dict(NAMES)
        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
            test, out=report.append
        )
    assert not report, "".join(report)


def test_a_wrong_example_is_noticed():
    report = []
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert "Expected" in "".join(report)
