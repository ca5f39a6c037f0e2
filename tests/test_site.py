"""The documentation site: complete, up to date, and its how-to pages work to the letter."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import blocks

from docs_tools.check_site import broken_links
from docs_tools.generate import PARTS, generated
from docs_tools.markdown import as_markdown
from docs_tools.names import PACKAGES, path_of, public_names
from docs_tools.reference import with_entries
from docs_tools.stage import _on_site, stage, staged
from odejax.attacks import AutoAttack, Targeted

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def test_every_public_name_is_described_once():
    reference = "\n".join(map(staged, (DOCS / "api").glob("*.md")))
    described = re.findall(r"^::: (\S+)$", reference, re.MULTILINE)
    public = [path_of(package, name) for package in PACKAGES for name in public_names(package)]
    assert sorted(described) == sorted(public)


def test_a_docstring_is_markdown():
    docstring = """One line, as in `PGD(steps=5)`.

    x + eps

- `step`: an argument,
  of `bracket`.

  Still its item: `odejax.LinfBall`.
- `PGD`: another.

>>> 1 + 1
2

Madry et al. 2018, arXiv:1706.06083."""
    assert (
        as_markdown(docstring, "PGD")
        == """One line, as in `PGD(steps=5)`.

    x + eps

- `step`: an argument,
    of `bracket`.

    Still its item: [`odejax.LinfBall`][odejax.LinfBall].
- `PGD`: another.

```pycon
>>> 1 + 1
2
```

Madry et al. 2018, [arXiv:1706.06083](https://arxiv.org/abs/1706.06083).
"""
    )


def test_every_page_is_in_the_navigation():
    def pages_of(entry):
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages_of(value)]

    listed = pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def test_what_is_generated_is_up_to_date():
    texts = {page: page.read_text() for page in PAGES}
    old = [page.name for page, text in texts.items() if generated(page) != text]
    assert not old, f"{old} are old: run python -m docs_tools.generate"
    used = {part for text in texts.values() for part in re.findall(r"generated: (\w+)", text)}
    assert used == set(PARTS)


def test_a_new_name_gets_its_entry_in_the_reference():
    page = DOCS / "api" / "attacks.md"
    entry = "- [`FGSM`](../../odejax/attacks/fgsm.py): The fast gradient sign method"
    assert entry in with_entries(page, "- `FGSM`\n- `other` names\n")
    assert with_entries(DOCS / "index.md", "- `FGSM`\n") == "- `FGSM`\n"


def anchors(text):
    """On GitHub the headings of a page are; on the site the names of the reference are as well."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


# What a reader on GitHub sees without a build.
WRITTEN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "experiments/README.md")]


@pytest.mark.parametrize("page", [*WRITTEN, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_works_on_github(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    assert not re.findall(r"\]\[[\w.]+\]", text), "a reference that only the site resolves"
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if not re.match(r"https?:|mailto:", link):
            target = Path(os.path.normpath(page.parent / name)) if name else page
            kept = target.exists() and not target.is_relative_to(ROOT / "build")
            if not kept or (anchor and anchor not in anchors(staged(target))):
                broken.append(link)
    assert not broken


def test_no_link_of_the_site_leads_out_of_its_pages():
    """Figures are copied to the site; other files of the repository are on GitHub."""
    page = DOCS / "results" / "ledger.md"
    assert "](../figures/claims.png)" in staged(page)
    assert "](../all_results.html)" in staged(page)
    github = "](https://github.com/odejax/odejax/blob/main/benchmarks/results/nmode.json)"
    assert github in staged(DOCS / "benchmarks.md")
    with_anchor = _on_site(DOCS / "index.md", "../CONTRIBUTING.md", "#tests")
    assert with_anchor == "https://github.com/odejax/odejax/blob/main/CONTRIBUTING.md#tests"
    outward = {
        str(p): re.findall(r"\]\((?:\.\./)+(?:exp|bench|note|odejax)", staged(p)) for p in PAGES
    }
    assert not any(outward.values()), outward


def test_the_site_has_every_figure_and_every_anchor(tmp_path):
    stage(tmp_path)
    missing = []
    for page in PAGES:
        there = tmp_path / page.relative_to(DOCS)
        text, given = there.read_text(), page.read_text()
        figures = re.findall(r"\]\((?!http)([^)\s]+\.png)\)", text)
        missing += [figure for figure in figures if not (there.parent / figure).exists()]
        anchors = re.findall(r"\]\((?:\.\./)+[^)#\s]+(#[^)\s]+)\)", given)
        kept = re.findall(r"\]\([^)#\s]+(#[^)\s]+)\)", text)
        missing += set(anchors) - set(kept) - {"#all-results-on-one-page"}
    assert not missing


def test_a_broken_link_of_the_built_site_is_noticed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<h1 id="a"></h1><a href="sub/#b"></a><img src="no.png">')
    (tmp_path / "sub" / "index.html").write_text('<a href="../#a"></a><a href="../#c"></a>')
    assert sorted(broken_links(tmp_path)) == [
        "index.html: no.png does not exist",
        "index.html: sub/#b has no such anchor",
        "sub/index.html: ../#c has no such anchor",
    ]


def test_the_readme_is_short():
    prose = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert len(prose.split()) <= 500


def test_the_home_page_begins_as_the_readme_does():
    """With its picture, its installation and its first example."""
    readme, home = ((ROOT / name).read_text() for name in ("README.md", "docs/index.md"))
    _, figure = re.findall(r"!\[([^]]*)\]\(([^)]*)\)", readme)[0]
    assert f"](../{figure})" in home
    (example, output), *_ = re.findall(r"(```python\n.*?```)\n\n(```text.*?```)", readme, re.S)
    assert (example in home, output in home) == (True, True)
    assert "pip install" in home


def test_the_cost_of_autoattack_is_that_of_its_attacks():
    attacks = AutoAttack().attacks
    each = {name: one.n_runs * one.n_steps for name, one in attacks.items()}
    gradients = sum(n for name, n in each.items() if not attacks[name].black_box)
    # Each target class costs an evaluation to rank, each attack one of what it returns.
    ranked = sum(one.n_runs for one in attacks.values() if isinstance(one, Targeted))
    evaluations = sum(each.values()) - gradients + ranked + len(attacks)
    cost = f"{gradients:,} gradients, {evaluations:,} evaluations, while no attack succeeds"
    (row,) = re.findall(r"^\| \[`AutoAttack`\].*$", (DOCS / "choosing.md").read_text(), re.M)
    assert cost in row


def apply(diff: str, file: Path):
    """Make the change of a page: lines without a sign and with "-" must be found, once, as a whole.

    Lines without a sign are context: at the start of a class or dictionary the first one.
    """
    lines = diff.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] != "+") + "\n"
    new = "\n".join(line[1:] for line in lines if line[:1] != "-") + "\n"
    text = file.read_text()
    assert text.count(old) == 1, f"{file}: {text.count(old)} places read\n{old}"
    file.write_text(text.replace(old, new))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["attack", "certificate", "network", "experiment"])
def test_a_how_to_page_works_to_the_letter(page, tmp_path):
    """In a copy of the checkout: every file written, every change made, every command run."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "runs", "site", "figures", "*.egg-info")
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=ignored)
    # The commands of the page are of this Python, import the copy, and run fast tests as a reader
    # runs them.
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("ODEJAX_CHECK")}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
    }
    ran = 0
    for block in blocks(DOCS / "add" / f"{page}.md"):
        language, title, source = block["language"], block["title"], str(block["source"])
        if language == "python" and title:
            (checkout / title).write_text(source)
        elif language == "diff":
            apply(source, checkout / title)
        elif language == "console":
            done = subprocess.run(
                ["bash", "-e", "-c", source],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran
