"""What a run tells: a progress bar or plain lines, files of metrics and statistics, a table in the end."""

import dataclasses
import importlib.util
import io
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Self, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

import dfpjax

from .metrics import EpochMetrics, Result, Totals


class Report:
    """Writes to `console` and, if there is a `workdir`, to files there; a context manager.

    `workdir` is created where needed. `metrics.jsonl` gets one line per epoch, with the fields of
    `EpochMetrics`, as soon as the epoch is over; `result.md` gets the final table. Where statistics are
    recorded, `statistics.jsonl` gets a line per step, layer and operand, with the seed and the keys of
    `dfpjax.History.to_dicts` (null for what is not finite), and `statistics_SEED.png` a plot of each run if
    matplotlib is installed, however the run ends. `tensorboard/seed_SEED` has both for TensorBoard, metrics
    by epoch and statistics by step. Files of an earlier run are replaced. On a console that is no terminal
    there is no bar, only a line per epoch.
    """

    def __init__(self, console: Console, workdir: Path | None = None) -> None:
        self._console = console
        self._workdir = workdir
        self._progress = Progress(
            TextColumn("seed {task.fields[seed]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
            TextColumn("{task.fields[images_per_second]:.0f} images/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._metrics_file: TextIO | None = None
        self._histories: dict[int, dfpjax.History] = {}
        self._boards: dict[int, SummaryWriter] = {}

    def __enter__(self) -> Self:
        if self._workdir is not None:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._metrics_file = open(self._workdir / "metrics.jsonl", "w", buffering=1)  # by lines
            for outdated in self._workdir.glob("statistics*"):
                outdated.unlink()
            shutil.rmtree(self._workdir / "tensorboard", ignore_errors=True)
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        if self._metrics_file is not None:
            self._metrics_file.close()
        for board in self._boards.values():
            board.close()
        if importlib.util.find_spec("matplotlib"):
            for seed, history in self._histories.items():
                history.plot(self._workdir / f"statistics_{seed}.png")

    def compiled(self, seconds: float) -> None:
        """The training step has been compiled."""
        self._line(f"training step compiled in {seconds:.1f} s")

    def start_run(self, *, seed: int, steps: int) -> None:
        """A run of so many training steps begins."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(
            "", total=steps, seed=seed, loss=math.nan, accuracy=math.nan, images_per_second=math.nan
        )

    def step(self, totals: Totals) -> None:
        """A training step is over; the totals are those of its epoch so far."""
        self._progress.update(
            self._task,
            advance=1,
            loss=totals.loss,
            accuracy=totals.accuracy,
            images_per_second=totals.images_per_second,
        )

    def statistics(self, layers: dict[str, dfpjax.LayerStatistics], *, seed: int, step: int) -> None:
        """The statistics of a training step of that seed's run."""
        if self._workdir is None:
            return
        history = self._histories.setdefault(seed, dfpjax.History())
        with open(self._workdir / "statistics.jsonl", "a") as file:
            for record in history.add(step, layers):
                finite = {key: None if _is_not_finite(value) else value for key, value in record.items()}
                print(json.dumps({"seed": seed} | finite), file=file)
                self._log(seed, step, f"{record['layer']}/{record['operand']}", record)

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch and its evaluation are over."""
        self._line(
            f"seed {metrics.seed}  epoch {metrics.epoch:3}"
            f"  train loss {metrics.train_loss:.4f} accuracy {metrics.train_accuracy:7.2%}"
            f"  test loss {metrics.test_loss:.4f} accuracy {metrics.test_accuracy:7.2%}"
            f"  {metrics.images_per_second:6.0f} images/s"
        )
        if self._metrics_file is not None:
            print(json.dumps(dataclasses.asdict(metrics)), file=self._metrics_file)
            self._log(metrics.seed, metrics.epoch, "metrics", dataclasses.asdict(metrics))

    def finish(self, results: list[Result]) -> None:
        """All runs are over: shows the table."""
        self._progress.stop()
        table = results_table(results)
        self._console.print(table)
        if self._workdir is not None:
            console = Console(file=io.StringIO(), width=100)
            console.print(table)
            (self._workdir / "result.md").write_text(console.file.getvalue().strip() + "\n")

    def _log(self, seed: int, step: int, group: str, values: dict[str, object]) -> None:
        """The numbers among the values, for TensorBoard."""
        if seed not in self._boards:
            self._boards[seed] = SummaryWriter(str(self._workdir / "tensorboard" / f"seed_{seed}"))
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("seed", "step", "epoch"):
                self._boards[seed].add_scalar(f"{group}/{name}", value, step)

    def _line(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def results_table(results: list[Result]) -> Table:
    """A Markdown table with a row for each result, and one of their means if there are several."""
    measures = {
        "test_accuracy": "{:.2%}".format,
        "test_loss": "{:.4f}".format,
        "images_per_second": "{:.0f}".format,
        "seconds": "{:.1f}".format,
    }
    table = Table("precision", "seed", box=box.MARKDOWN)
    for measure in measures:
        table.add_column(measure.replace("_", " "), justify="right")

    rows = [(str(result.seed), [getattr(result, measure) for measure in measures]) for result in results]
    if len(results) > 1:
        rows.append(
            ("mean", [statistics.mean(column) for column in zip(*(row for _, row in rows), strict=True)])
        )
    for seed, row in rows:
        cells = (form(value) for form, value in zip(measures.values(), row, strict=True))
        table.add_row(results[0].precision, seed, *cells)
    return table
