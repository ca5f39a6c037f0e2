"""The progress of long calls: what runs, how far it is, the time remaining, a note."""

import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 60.0


class _Lines(Progress):
    """A line now and then, for a log file."""

    def __init__(self, *columns, pause: float, **settings):
        super().__init__(*columns, disable=True, **settings)
        self.pause, self.printed = pause, time.monotonic()

    def stop(self):
        """Nothing: rich before 14.3 would print an empty line."""

    def update(self, task_id, **changes):
        super().update(task_id, **changes)
        if time.monotonic() - self.printed < self.pause:
            return
        task = self.tasks[task_id]
        self.printed = time.monotonic()
        self.console.print(
            f"{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields['note']}",
            highlight=False,
            markup=False,
        )


def progress_bar(*, enabled: bool | None, transient: bool = False) -> Progress:
    """A rich `Progress` whose tasks have a `note` field; narrow enough for 80 columns.

    - `enabled`: None is for where a person watches, and a line a minute for a log file.
    - `transient`: whether the bar is wiped when done; where it could not be wiped, in a log file,
      it is a line a minute.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    if enabled is False or jax.process_index() != 0:
        return Progress(*columns, console=Console(quiet=True), disable=True)
    console = Console()
    if not console.is_terminal and (transient or enabled is None):
        return _Lines(*columns, pause=_LINE_SECONDS, console=console)
    return Progress(*columns, console=console, transient=transient)
