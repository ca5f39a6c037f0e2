"""What is built and installed: the wheel, the sdist, and odejax without the extras."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import odejax

ROOT = Path(odejax.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"odejax-{odejax.__version__}"
INFO = f"{NAME}.dist-info"


def call(*command, cwd, **variables):
    """The output of a process in which nothing of this environment is imported by accident."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env | {"MPLBACKEND": "agg"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and an sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def unpacked(built):
    """The sdist's folder."""
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        archive.extractall(built, filter="data")
    return built / NAME


def files(folder, pattern="*"):
    found = (path for path in folder.rglob(pattern) if "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


def test_the_wheel_is_the_library_and_nothing_else(built):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        metadata = message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    library = {f"odejax/{name}" for name in files(ROOT / "odejax", "*.py")}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert names == library | {"odejax/py.typed"} | {f"{INFO}/{name}" for name in about}
    assert metadata["Version"] == odejax.__version__
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"])


KINDS = {
    *("cff", "css", "csv", "gitignore", "html", "ipynb", "js", "json", "md", "odejax", "png", "py"),
    *("toml", "txt", "typed"),
}
WITHOUT_A_KIND = {".ci/run", "LICENSE", "Makefile", "PKG-INFO"}


def test_the_sdist_is_a_checkout_without_strays(unpacked):
    """What git has and nothing that it ignores; kinds of files that are known."""
    names = files(unpacked)
    assert {name for name in names if name.split(".")[-1] not in KINDS} == WITHOUT_A_KIND
    if (ROOT / ".git").exists():
        listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
        listed = set(call(*listing, cwd=ROOT).splitlines())
        assert names - listed == {"PKG-INFO"}
        kept = set(call("git", "ls-files", cwd=ROOT).splitlines())
        assert {name for name in kept - names if (ROOT / name).exists()} == set()


def test_the_citation_names_this_version():
    assert f"\nversion: {odejax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_lower_bound_can_be_tested():
    """`make test-oldest` installs lower bounds; a dependency without one would be the newest."""
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["test"], *extras["page"]]
    unbounded = [one for one in wanted if not re.match(r"[\w.\[\]-]+>=\d|odejax\[", one)]
    assert unbounded == []


@pytest.mark.slow
def test_the_tests_run_from_the_sdist(unpacked):
    pytest_ = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert " tests collected" in re.sub("/", " ", call(*pytest_, "--collect-only", cwd=unpacked))
    assert " passed" in call(*pytest_, "tests/test_ssprk.py", "tests/test_runs.py", cwd=unpacked)


@pytest.mark.slow
def test_the_wheel_works_without_the_extras(built, unpacked, tmp_path):
    """In a new environment, into which pip installs its dependencies; the demo needs no more."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "install", "--quiet", built / f"{NAME}-py3-none-any.whl", cwd=tmp_path)
    call(*pip, "check", cwd=tmp_path)
    smoke = call(python, "-I", "-W", "error", unpacked / "tests" / "smoke.py", cwd=tmp_path)
    assert "certified" in smoke
    assert "--resume" in call(python, "-m", "experiments.benchmark", "--help", cwd=unpacked)
