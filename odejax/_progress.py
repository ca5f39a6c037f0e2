"""The progress of long calls: what runs, how far it is, the time remaining, a note."""

import time
from datetime import timedelta
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_LINE_SECONDS = 30.0
_STAGE_SECONDS = 10.0  # of a stage that is worth a line in a log file when it ends


def add_stage(bar: Progress, name: str, total: int, unit: str, done: float = 0) -> TaskID:
    """A stage of the work that `bar` shows: its name, and how many of what there are.

    - `done`: how many of them an earlier run did. They say nothing about the time remaining.
    """
    return bar.add_task(name, total=total, completed=done, note="", unit=unit)  # pyright: ignore


def remaining(task: Task) -> timedelta | None:
    """The time remaining, at the rate since the first update; None if not known.

    What is done until then says nothing of the rate: most of that time is compilation.
    """
    seconds = task.time_remaining
    return None if seconds is None else timedelta(seconds=seconds)


def _seconds(task: Task) -> float:
    """The time that a stage took, or has taken so far."""
    return (task.finished_time if task.finished else task.elapsed) or 0.0


class _Remaining(ProgressColumn):
    """The time remaining; of a stage that has ended the time it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(str(timedelta(seconds=round(_seconds(task)))))
        left = remaining(task)
        return Text("-:--:--" if left is None else str(left))


class _Console(Console):
    """Goes on in silence where a reader such as `head` has read enough: the work is not its own."""

    def on_broken_pipe(self):
        self.quiet = True


class _Lines(Progress):
    """A line now and then, for a log file."""

    def __init__(self, *columns, **settings):
        super().__init__(*columns, disable=True, **settings)
        self.due, self.printed = time.monotonic() + _LINE_SECONDS, ""

    def add_task(self, *arguments, **settings):
        self._print_ended()
        return super().add_task(*arguments, **settings)

    def stop(self):
        """Not that of rich, which before 14.3 would print an empty line."""
        self._print_ended()

    def update(self, task_id, **changes):
        super().update(task_id, **changes)
        if time.monotonic() >= self.due:
            self._print(self.tasks[task_id])

    def _print_ended(self):
        if self.tasks and _seconds(self.tasks[-1]) >= _STAGE_SECONDS:
            self._print(self.tasks[-1])

    def _print(self, task: Task):
        self.due = time.monotonic() + _LINE_SECONDS
        done = f"{task.completed:.0f} of {task.total:.0f} {task.fields['unit']}"
        if (stage := f"{task.description}: {done}") == self.printed:
            return
        self.printed, left = stage, remaining(task)
        spent = f"{timedelta(seconds=round(_seconds(task)))} so far"
        parts = [stage, task.fields["note"], spent, f"about {left} to go" if left else ""]
        self.console.print(
            ", ".join(filter(None, parts)), highlight=False, markup=False, soft_wrap=True
        )


def progress_bar(*, enabled: bool | None, transient: bool = False) -> Progress:
    """A rich `Progress` for the stages of `add_stage`; narrow enough for 80 columns.

    `update` sets what is `completed`, and a `note`.

    - `enabled`: None is for where a person watches, and a line now and then for a log file: every
      half minute, and at the end of a stage of ten seconds or more.
    - `transient`: whether the bar is wiped when done; where it could not be wiped, in a log file,
      it is a line now and then.
    """
    columns = (
        TextColumn("{task.description}", markup=False),  # names are the user's
        BarColumn(bar_width=8),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        _Remaining(),
        TextColumn("{task.fields[note]}"),
    )
    of_stage: Any = {"speed_estimate_period": float("inf")}  # the rate is that of the whole stage
    if enabled is False or jax.process_index() != 0:
        return Progress(*columns, console=Console(quiet=True), disable=True, **of_stage)
    console = _Console()
    if not console.is_terminal and (transient or enabled is None):
        return _Lines(*columns, console=console, **of_stage)
    return Progress(*columns, console=console, transient=transient, **of_stage)
