"""Who may import whom, and that importing odejax changes nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import odejax

PACKAGE = Path(odejax.__file__).parent
ROOT = "root"
MAY_IMPORT = {
    ROOT: {ROOT},
    "solvers": {ROOT},
    "data": {ROOT},
    "attacks": {ROOT},
    "models": {ROOT, "solvers"},
    "relaxation": {ROOT, "solvers"},
    "certificates": {ROOT, "solvers", "models", "relaxation"},
    "training": {ROOT, "data", "attacks", "relaxation"},
    "evaluation": {ROOT, "data", "attacks", "certificates"},
    "plots": {ROOT, "evaluation"},
}
MAY_IMPORT |= {"commands": {*MAY_IMPORT, "odejax"}}  # which uses all of it, as a user does
TOP = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in TOP]


def part_of(path):
    """The subpackage that a file belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else ROOT


def imported_modules(source, package):
    """Absolute dotted names of all that `source`, a file of `package`, imports at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from . import a` may name modules: take them as such.
            yield from (".".join([*base, alias.name]) for alias in node.names)


def parts_imported(source, package):
    """The parts of odejax that a file imports, and "odejax" for the package as a whole."""
    for module in imported_modules(source, package):
        names = module.split(".")
        if names[0] != "odejax":
            continue
        if len(names) > 1 and (PACKAGE / names[1]).is_dir():
            yield names[1]
        elif len(names) > 1 and (PACKAGE / f"{names[1]}.py").is_file():
            yield ROOT
        else:
            yield "odejax"


def package_of(path):
    return ".".join(["odejax", *path.relative_to(PACKAGE).parent.parts])


def test_every_part_has_a_rule():
    assert {part_of(path) for path in FILES} == set(MAY_IMPORT)


def test_a_file_imports_only_what_its_part_may():
    for path in FILES:
        part = part_of(path)
        imported = set(parts_imported(path.read_text(), package_of(path)))
        assert imported <= MAY_IMPORT[part] | {part}, path


@pytest.mark.parametrize(
    ("source", "package", "parts"),
    [
        ("from ..models import MLP", "odejax.attacks", {"models"}),
        ("from .. import models", "odejax.attacks", {"models"}),
        ("def f():\n    import odejax.models.mlp", "odejax.attacks", {"models"}),
        ("from odejax import Predictor", "odejax.attacks", {"odejax"}),
        ("from .._types import Key", "odejax.attacks", {ROOT}),
        ("from .base import AttackResult", "odejax.attacks", {"attacks"}),
        ("import numpy as np", "odejax.attacks", set()),
    ],
)
def test_the_walk_sees_every_form_of_import(source, package, parts):
    assert set(parts_imported(source, package)) == parts


def test_the_library_imports_nothing_that_uses_it():
    for path in FILES:
        modules = {m.split(".")[0] for m in imported_modules(path.read_text(), package_of(path))}
        assert not modules & {"experiments", "tests", "notebooks", "benchmarks", "helpers"}, path


@pytest.fixture(scope="module")
def fresh_import():
    """What importing odejax in a new process changes: JAX's options, and the modules loaded by
    odejax alone, and with all its packages but `plots`."""
    code = """
import json, sys
import jax, equinox
before = {name: repr(value) for name, value in jax.config.values.items()}
import odejax
alone = sorted(sys.modules)
import odejax.attacks, odejax.certificates, odejax.data, odejax.evaluation, odejax.models
import odejax.solvers, odejax.training
after = {name: repr(value) for name, value in jax.config.values.items()}
# An option that a module of JAX itself defines when it is first used is no change.
changed = sorted(name for name in before if before[name] != after[name])
print(json.dumps([changed, len(before), alone, sorted(sys.modules)]))
"""
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_importing_odejax_changes_no_option_of_jax(fresh_import):
    changed, options, *_ = fresh_import
    assert changed == []
    assert options > 20  # the options were really read


HEAVY = {
    *("grain", "matplotlib", "orbax", "scipy", "sklearn", "tensorflow", "tensorflow_datasets"),
    *("torch", "tyro", "PIL"),
}


def test_importing_odejax_imports_what_it_is_used_with_only_then(fresh_import):
    """Matplotlib, SciPy and Orbax would each take longer than all of odejax."""
    *_, alone, with_packages = fresh_import
    assert not HEAVY & set(with_packages)
    assert not {"diffrax", "optax", "rich"} & set(alone)
    assert [name for name in alone if name.startswith("odejax.") and "._" not in name] == []


def test_every_package_is_an_attribute_of_odejax():
    """Those that are public: not bound propagation, and not the command line."""
    private = {"relaxation", "commands"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - private
    assert folders <= set(dir(odejax))
    for name in folders:
        assert getattr(odejax, name).__name__ == f"odejax.{name}"
    with pytest.raises(AttributeError, match="has no attribute 'atacks'"):
        odejax.atacks  # noqa: B018
