"""Every block of Python in the README and on the site runs, and prints what the page says."""

import os
from pathlib import Path

import pytest
from pages import EXACT, SIMILAR, blocks, run_page, update_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FAST = {"README.md", "docs/quickstart.md", "docs/add/attack.md"}
ELSEWHERE = {"docs/pytorch.md"}  # tests/test_pytorch_page.py, with PyTorch and without


def parameters():
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        runs = any(block["language"] == "python" for block in blocks(page))
        if runs and name not in ELSEWHERE:
            yield pytest.param(page, id=name, marks=[pytest.mark.slow] * (name not in FAST))


@pytest.mark.usefixtures("unchecked")  # as a reader runs it
@pytest.mark.parametrize("page", list(parameters()))
def test_the_page_runs_as_it_is_written(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # for files that the page writes and imports
    changed = run_page(page, tmp_path)
    if os.environ.get("ODEJAX_UPDATE_PAGES"):
        update_page(page, changed)
        return
    report = [f"{page.name}:{c.line}\n{c.expected}is now\n{c.printed}" for c in changed]
    assert not report, "\n".join(report)


def test_an_output_that_is_another_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '```python\nprint("a", 1.5)\n```\n\n'
        f'```text title="{EXACT}"\na 1.6\n```\n\n'
        f'```text title="{SIMILAR}"\na 1.6\n```\n\n'
        f'```text title="{SIMILAR}"\nb 1.5\n```\n'
    )
    assert [changed.line for changed in run_page(page, tmp_path)] == [5, 13]
