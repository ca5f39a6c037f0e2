"""The progress bar of everything that takes long: what runs, how far, the time left, a note."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(*, enabled: bool, transient: bool = False) -> Progress:
    """A rich `Progress` whose tasks have a `note` field; narrow enough for 80 columns.

    Silent unless `enabled`. A `transient` bar is wiped when done, and is not drawn at all where
    it could not be wiped (a log file).
    """
    console = Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not enabled or (transient and not console.is_terminal),
        transient=transient,
    )
