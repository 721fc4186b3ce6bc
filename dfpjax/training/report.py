"""What a run shows and records: progress bar or lines, metrics, statistics, a final table."""

import dataclasses
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.table import Table

import dfpjax

from .bar import Bar
from .metrics import EpochMetrics, Evaluation, Result, Totals
from .records import Records
from .workdir import writing

# The columns of a table of results: attribute, header and format.
_COLUMNS = {
    "test_accuracy": ("test accuracy", "{:.2%}"),
    "test_top5_accuracy": ("top-5", "{:.2%}"),
    "test_loss": ("test loss", "{:.4f}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "seconds": ("seconds", "{:.1f}"),
}


class Report:
    """Writes to `console` and, if there is a `workdir`, to files there; a context manager.

    `Records` lists the files; `result.md` gets the final table. A terminal shows a progress bar; any other
    console gets a line per epoch.

    **Raises:** `CheckpointError` from any method that cannot write its file.
    """

    def __init__(self, console: Console, workdir: Path | None = None) -> None:
        self.workdir = workdir
        self._console = console
        self._bar = Bar(console)
        self._records: Records | None = None

    def __enter__(self) -> Self:
        if self.workdir is not None:
            with writing(self.workdir):
                self._records = Records(self.workdir)
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._records is not None:
            with writing(self.workdir):
                self._records.close()

    def clear(self) -> None:
        """Deletes the files of earlier runs; for a working directory without a run to resume."""
        if self._records is not None:
            with writing(self.workdir):
                self._records.clear()

    def compiled(self, seconds: float) -> None:
        """The training step has been compiled."""
        self.line(f"training step compiled in {seconds:.1f} s")

    def start_run(self, *, seed: int, step: int, steps: int, epochs: int) -> list[EpochMetrics]:
        """A run of `steps` steps in `epochs` epochs begins, or is resumed after `step` of them.

        Deletes what was recorded after that step, and returns the metrics of the epochs before it.
        """
        done = step * epochs // steps
        self._bar.begin(seed=seed, step=step, steps=steps, epoch=min(done + 1, epochs), epochs=epochs)
        if self._records is None:
            return []
        with writing(self.workdir):
            return self._records.resume(seed=seed, step=step, epochs=done)

    def step(self, totals: Totals, epoch: int, learning_rate: float) -> None:
        """A training step is over; the totals are those of its epoch so far."""
        self._bar.step(totals, epoch, learning_rate)

    def statistics(self, layers: dict[str, dfpjax.LayerStatistics], *, seed: int, step: int) -> None:
        """The statistics of a training step of that seed's run."""
        if self._records is not None:
            with writing(self.workdir):
                self._records.statistics(layers, seed=seed, step=step)

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch and its evaluation are over."""
        self.line(
            f"seed {metrics.seed}  epoch {metrics.epoch:3}"
            f"  train loss {metrics.train_loss:.4f} accuracy {metrics.train_accuracy:7.2%}"
            f"  test loss {metrics.test_loss:.4f} accuracy {metrics.test_accuracy:7.2%}"
            f" top-5 {metrics.test_top5_accuracy:7.2%}"
            f"  {metrics.images_per_second:6.0f} images/s"
        )
        if self._records is not None:
            with writing(self.workdir):
                self._records.epoch(metrics)

    def finish(self, results: list[Result]) -> None:
        """All runs are over: shows the table."""
        self._bar.stop()
        table = _text(results_table(results))
        self.line(table)
        if self.workdir is not None:
            with writing(self.workdir):
                (self.workdir / "result.md").write_text(table)

    def evaluated(self, evaluations: Sequence[Evaluation]) -> None:
        """Weights have been tested: shows the table."""
        self._bar.stop()
        self.line(_text(_evaluations_table(evaluations)))

    def line(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def results_table(results: list[Result]) -> Table:
    """A Markdown table with a row for each result, and one of their means if there are several."""
    rows = [(result.precision, str(result.seed), dataclasses.asdict(result)) for result in results]
    if len(results) > 1:
        precisions = dict.fromkeys(result.precision for result in results)
        means = {name: statistics.mean(getattr(result, name) for result in results) for name in _COLUMNS}
        rows.append((" and ".join(precisions), "mean", means))
    return _table(("precision", "seed"), rows)


def _evaluations_table(evaluations: Sequence[Evaluation]) -> Table:
    rows = [(each.precision, each.weights, dataclasses.asdict(each)) for each in evaluations]
    return _table(("precision", "weights"), rows)


def _table(headers: tuple[str, str], rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Table:
    """Two columns of text, and one for each of `_COLUMNS` that the rows have."""
    columns = {name: column for name, column in _COLUMNS.items() if name in rows[0][-1]}
    table = Table(*headers, box=box.MARKDOWN)
    for header, _ in columns.values():
        table.add_column(header, justify="right")
    for first, second, values in rows:
        table.add_row(first, second, *(form.format(values[name]) for name, (_, form) in columns.items()))
    return table


def _text(table: Table) -> str:
    """As Markdown, however narrow the terminal is."""
    console = Console(file=io.StringIO(), width=1000)
    console.print(table)
    return console.file.getvalue().strip() + "\n"
