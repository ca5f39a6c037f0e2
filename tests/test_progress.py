"""Progress: a bar where a person watches, a line now and then in a log file."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from odejax import LinfBall, _progress
from odejax._progress import add_stage, progress_bar, remaining
from odejax.attacks import FGSM, AutoAttack
from odejax.evaluation import robust_accuracy


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
    assert [line.partition(", about")[0] for line in lines] == said


def test_every_stage_of_some_length_ends_with_a_line(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_STAGE_SECONDS", 0.0)
    with progress_bar(enabled=True, transient=True) as bar:
        for name in ("PGD", "Square"):
            bar.update(add_stage(bar, name, 3, "images"), completed=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}: 3 of 3 images, 0:00:00 so far" for name in ("PGD", "Square")]


@pytest.mark.parametrize("done", [0, 1])
def test_the_time_remaining_is_at_the_rate_after_the_first_update(done):
    """2 in 40 s after a minute of compilation: 60 s for 3. What an earlier run did says nothing."""
    with progress_bar(enabled=False) as bar:
        bar.get_time = lambda: 0.0
        task = add_stage(bar, "PGD", 7, "images", done=done)
        for seconds, completed, left in ((60, 2, None), (61, 2, None), (80, 3, 80), (100, 4, 60)):
            bar.get_time = lambda seconds=seconds: seconds
            bar.update(task, completed=completed)
            time = remaining(bar.tasks[task])
            assert (time and time.total_seconds()) == left


def test_stages_count_images_so_that_their_lines_add_up(capsys, monkeypatch):
    """Of 4 images 3 are classified correctly, and 1 of these is within eps of the boundary."""
    monkeypatch.setattr(_progress, "_STAGE_SECONDS", 0.0)
    greys = np.array([0.4, 0.52, 0.7, 0.8], np.float32)
    images, labels = greys.reshape(4, 1, 1, 1), np.zeros(4, int)

    def network(x):
        return jnp.stack([x.mean() - 0.5, 0.5 - x.mean()])

    twice = AutoAttack({"FGSM": FGSM(), "again": FGSM()})
    robust_accuracy(network, images, labels, LinfBall(0.1), twice, key=0, progress=True)
    lines = [line.partition(", 0:00")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "linf 0.1, FGSM: 3 of 3 images, 1 broken",
        "linf 0.1, again: 2 of 2 images, 0 broken",
    ]


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
