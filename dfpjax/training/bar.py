"""The progress bar of a run."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .metrics import Totals


class Bar:
    """A bar at the bottom of `console` for the current run, if the console is a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("seed {task.fields[seed]}  epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[measures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def start(self) -> None:
        """Shows it."""
        self._progress.start()

    def stop(self) -> None:
        """Stops updating it."""
        self._progress.stop()

    def begin(self, *, seed: int, step: int, steps: int, epoch: int, epochs: int) -> None:
        """The run of a seed begins in this epoch, after `step` of its steps."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            "", total=steps, completed=step, seed=seed, epoch=epoch, epochs=epochs, measures=""
        )

    def step(self, totals: Totals, epoch: int, learning_rate: float) -> None:
        """A step is over."""
        self._progress.update(
            self._task,
            advance=1,
            epoch=epoch,
            measures=f"loss {totals.loss:.4f}  accuracy {totals.accuracy:.2%}  lr {learning_rate:.3g}"
            f"  {totals.images_per_second:.0f} images/s",
        )
