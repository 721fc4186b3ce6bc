"""The progress bar of a run."""

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .metrics import Totals

_UNKNOWN = {"loss": math.nan, "accuracy": math.nan, "rate": math.nan, "speed": math.nan}


class Bar:
    """One bar at the bottom of `console`, for the run under way; none where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("seed {task.fields[seed]}  epoch {task.fields[epoch]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("lr {task.fields[rate]:.3g}  {task.fields[speed]:.0f} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def start(self) -> None:
        """Shows it."""
        self._progress.start()

    def stop(self) -> None:
        """Leaves it as it is."""
        self._progress.stop()

    def begin(self, *, seed: int, step: int, steps: int) -> None:
        """The run of a seed goes on after so many of its steps."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=steps, completed=step, seed=seed, epoch="", **_UNKNOWN)

    def step(self, totals: Totals, epoch: int, learning_rate: float) -> None:
        """A step is over."""
        self._progress.update(
            self._task,
            advance=1,
            epoch=epoch,
            loss=totals.loss,
            accuracy=totals.accuracy,
            rate=learning_rate,
            speed=totals.images_per_second,
        )
