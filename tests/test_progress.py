"""Progress: a bar where a person watches, a line now and then in a log file."""

import pytest

from odejax import _progress
from odejax._progress import progress_bar


def work(**settings):
    with progress_bar(**settings) as bar:
        task = bar.add_task("PGD", total=3, note="")
        for done in range(3):
            bar.update(task, completed=done + 1, note=f"{done + 1} done")


@pytest.mark.parametrize("enabled", [None, True])
def test_a_log_file_gets_a_line_now_and_then(enabled, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_LINE_SECONDS", 0.0)
    work(enabled=enabled, transient=True)
    assert capsys.readouterr().out.splitlines() == [f"PGD {n}/3 {n} done" for n in (1, 2, 3)]


def test_short_work_leaves_no_line_in_a_log_file(capsys):
    work(enabled=None, transient=True)
    assert capsys.readouterr().out == ""


def test_none_is_shown_where_none_is_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_LINE_SECONDS", 0.0)
    work(enabled=False)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    work(enabled=None, transient=True)
    assert "\x1b[" in capsys.readouterr().out
