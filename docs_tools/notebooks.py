"""Run the notebooks: the text notebooks/NAME.py becomes notebooks/NAME.ipynb, with its outputs.

    python -m docs_tools.notebooks [NAME ...]

The text, in Jupytext's percent format, is what people edit, and what a diff shows. It lies beside
the notebook, where Jupytext in JupyterLab expects it. Without a name every notebook is run. The
table at the end has the seconds of each and its size.
"""

import argparse
import resource
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
TEXTS = sorted(FOLDER.glob("*.py"))


def read(text: Path) -> nbformat.NotebookNode:
    """The notebook of a text, without outputs.

    Jupytext draws the cells' ids at random, and notes its own version. Both are fixed here, so that
    a notebook changes only with its text or its outputs.
    """
    notebook = jupytext.read(text, fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{text.stem}-{i}", nbformat.NotebookNode()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    notebook.nbformat, notebook.nbformat_minor = 4, 5  # from here on cells have ids
    return notebook


def run(text: Path) -> nbformat.NotebookNode:
    """The notebook of a text with its outputs, from a kernel of its own.

    Raises `nbclient.exceptions.CellExecutionError` where a cell raises.
    """
    notebook = read(text)
    NotebookClient(
        notebook,
        timeout=600,  # seconds a cell
        coalesce_streams=True,  # else what is printed is split by when the kernel sent it
        record_timing=False,
        resources={"metadata": {"path": str(text.parent)}},
    ).execute()
    del notebook.metadata["language_info"]  # the version of Python here
    return notebook


def _cpu_seconds() -> float:
    """Of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description="Run notebooks, and write their outputs.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="by default all")
    known = [text.stem for text in TEXTS]
    names = parser.parse_args().names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such notebook: {', '.join(unknown)}; there are {', '.join(known)}")
    rows = [f"{'notebook':20} {'seconds':>8} {'CPU s':>8} {'kB':>8}"]
    for name in names:
        started, before = time.perf_counter(), _cpu_seconds()
        notebook = run(FOLDER / f"{name}.py")
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - before
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        rows.append(f"{name:20} {seconds:8.0f} {cpu:8.0f} {path.stat().st_size / 1000:8.0f}")
        print(f"{name}: written", flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
