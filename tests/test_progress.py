"""Progress: a bar where a person watches, a line now and then in a log file."""

import io

import pytest

from odejax import _progress
from odejax._progress import add_stage, progress_bar, remaining


def work(name="PGD", **settings):
    with progress_bar(**settings) as bar:
        task = add_stage(bar, name, 3, "images")
        for done in range(3):
            bar.update(task, completed=done + 1, note=f"{done + 1} done")


@pytest.mark.parametrize("enabled", [None, True])
def test_a_log_file_gets_a_line_now_and_then(enabled, capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_LINE_SECONDS", 0.0)
    work(enabled=enabled, transient=True)
    lines = capsys.readouterr().out.splitlines()
    said = [f"PGD: {n} of 3 images, {n} done, 0:00:00 so far" for n in (1, 2, 3)]
    assert [line.replace(", about 0:00:00 to go", "") for line in lines] == said


def test_every_stage_of_some_length_ends_with_a_line(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_STAGE_SECONDS", 0.0)
    with progress_bar(enabled=True, transient=True) as bar:
        for name in ("PGD", "Square"):
            bar.update(add_stage(bar, name, 3, "images"), completed=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: 3 of 3 images, 0:00:00 so far" for name in ("PGD", "Square")]


def test_the_time_remaining_is_at_the_rate_of_the_whole_stage():
    """10 s for 2 of 4: as many for the 2 that remain. What an earlier run did says nothing."""
    with progress_bar(enabled=False) as bar:
        bar.get_time = lambda: 0.0
        tasks = [add_stage(bar, "PGD", 4, "images"), add_stage(bar, "PGD", 4, "images", done=1)]
        bar.get_time = lambda: 10.0
        for task, seconds in zip(tasks, (10, 20), strict=True):
            assert remaining(bar.tasks[task]) is None
            bar.update(task, completed=2)
            # rich keeps the clock that a task was made with
            bar.tasks[task]._get_time = bar.get_time
            assert remaining(bar.tasks[task]).total_seconds() == seconds


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


def test_a_name_in_brackets_is_shown_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    work("PGD [fast] [/x]", enabled=None)
    assert "PGD [fast] [/x]" in capsys.readouterr().out


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError


def test_work_goes_on_where_nobody_reads_of_it(monkeypatch):
    monkeypatch.setattr(_progress, "_LINE_SECONDS", 0.0)
    monkeypatch.setattr("sys.stdout", Closed())
    work(enabled=None)
