"""The progress bar of a training run."""

from rich.progress import Progress

from .._progress import add_stage
from .train_state import Metrics


class RunBar:
    """A task of `bar`: the steps of the epochs after the first `restored`."""

    def __init__(self, bar: Progress, history: list[Metrics], *, epochs: int, steps: int):
        self._bar, self._restored, self._epochs, self._steps = bar, len(history), epochs, steps
        total = max(0, epochs - self._restored) * steps
        self._task = add_stage(bar, f"epoch {self._restored}/{epochs}", total, "steps")
        self.show_epoch(history)

    def show_step(self, epoch: int, step: int, loss: float):
        """After `step` steps of an epoch, with their mean loss."""
        self._bar.update(
            self._task,
            completed=(epoch - self._restored - 1) * self._steps + step,
            description=f"epoch {epoch}/{self._epochs}",
            note=f"loss {loss:.4f}",
        )

    def show_epoch(self, history: list[Metrics]):
        """After an epoch, whose metrics are the last of `history`."""
        self._bar.update(self._task, note=_note(history))


def _note(history) -> str:
    if not history:
        return ""
    last = history[-1]
    shown = {name: last[name] for name in ("loss", "validation", "steps") if name in last}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
