"""Every notebook is what its text says, installs this repository, and runs from top to bottom."""

import re
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock, call

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from docs_tools import notebooks

ROOT = Path(__file__).parents[1]
EVERY = pytest.mark.parametrize("text", notebooks.TEXTS, ids=lambda text: text.stem)


def test_every_notebook_has_a_text_and_is_listed():
    names = {path.name for path in notebooks.FOLDER.glob("*.ipynb")}
    assert names == {f"{text.stem}.ipynb" for text in notebooks.TEXTS}
    for page in ("README.md", "docs/use/notebook.md", "notebooks/tour.py"):
        listed = set(re.findall(r"\b(\w+\.ipynb)\b", (ROOT / page).read_text()))
        assert listed | {"tour.ipynb"} == names, page


@EVERY
def test_a_notebook_is_its_text_with_outputs(text):
    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    written, expected = (
        [(cell.cell_type, cell.source) for cell in one.cells]
        for one in (notebook, notebooks.read(text))
    )
    assert written == expected, f"make notebooks NAMES={text.stem}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"], "it warns"
    assert text.with_suffix(".ipynb").stat().st_size < 350_000


@EVERY
def test_the_first_cell_installs_the_repository_only_where_it_is_missing(text, monkeypatch):
    cell = next(cell for cell in notebooks.read(text).cells if cell.cell_type == "code")
    program = TransformerManager().transform_cell(cell.source)
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    shell = Mock()
    exec(program, {"get_ipython": lambda: shell})
    assert shell.mock_calls == []
    monkeypatch.setitem(sys.modules, "odejax", None)  # as if it were not installed
    exec(program, {"get_ipython": lambda: shell})
    assert shell.mock_calls == [
        call.run_line_magic("pip", f'install -q "git+{home}"'),
        call.kernel.do_shutdown(restart=True),
    ]


@pytest.mark.slow
@EVERY
@pytest.mark.filterwarnings("default")  # the kernel's own machinery
def test_a_notebook_runs(text, monkeypatch):
    # As users have it: notebooks compute more than they compile (see conftest.py).
    monkeypatch.delenv("XLA_FLAGS")
    assert any(cell.get("outputs") for cell in notebooks.run(text).cells)
