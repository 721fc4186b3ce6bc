"""The files that a run writes while it trains: metrics and statistics, as JSON lines and for TensorBoard."""

import dataclasses
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

import dfpjax

from .metrics import EpochMetrics

# Keys that locate a record; they are not plotted.
_PLACES = ("seed", "step", "epoch")


class Records:
    """Files in `workdir`, which is created if needed.

    `metrics.jsonl` gets one line per epoch, with the fields of `EpochMetrics`, as soon as the epoch is over.
    `statistics.jsonl` gets a line per recorded step, layer and operand, with the seed and the keys of
    `dfpjax.History.to_dicts` (null for what is not finite); `close` draws `statistics_SEED.png` for each run
    if matplotlib is installed. `tensorboard/seed_SEED` has both for TensorBoard, metrics by epoch and
    statistics by step.
    """

    def __init__(self, workdir: Path) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self._workdir = workdir
        self._histories: dict[int, dfpjax.History] = {}
        self._boards: dict[int, SummaryWriter] = {}

    def clear(self) -> None:
        """Deletes what earlier runs have written."""
        for outdated in (*self._workdir.glob("metrics.jsonl"), *self._workdir.glob("statistics*")):
            outdated.unlink()
        shutil.rmtree(self._workdir / "tensorboard", ignore_errors=True)

    def resume(self, *, seed: int, step: int, epochs: int) -> list[EpochMetrics]:
        """Deletes what a seed's run has written after its first `step` steps and `epochs` epochs.

        Returns the metrics of the remaining epochs.
        """
        metrics = self._keep("metrics.jsonl", lambda line: line["seed"] != seed or line["epoch"] <= epochs)
        lines = self._keep("statistics.jsonl", lambda line: line["seed"] != seed or line["step"] < step)
        # TensorBoard can purge by step, but metrics are logged by epoch.
        shutil.rmtree(self._board_directory(seed), ignore_errors=True)
        kept = [line for line in metrics if line["seed"] == seed]
        records = [_without_seed(line) for line in lines if line["seed"] == seed]
        for line in kept:
            self._log_metrics(seed, line)
        for record in records:
            self._log_statistics(seed, record)
        if records:
            self._histories[seed] = dfpjax.History(records)
        return [EpochMetrics(**line) for line in kept]

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch and its evaluation are over."""
        values = dataclasses.asdict(metrics)
        self._append("metrics.jsonl", [values])
        self._log_metrics(metrics.seed, values)

    def statistics(self, layers: dict[str, dfpjax.LayerStatistics], *, seed: int, step: int) -> None:
        """The statistics of a training step of that seed's run."""
        history = self._histories.setdefault(seed, dfpjax.History())
        records = history.add(step, layers)
        self._append("statistics.jsonl", [{"seed": seed} | _finite(record) for record in records])
        for record in records:
            self._log_statistics(seed, record)

    def close(self) -> None:
        """Closes the files and draws the statistics, however the runs ended."""
        for board in self._boards.values():
            board.close()
        if importlib.util.find_spec("matplotlib"):
            for seed, history in self._histories.items():
                history.plot(self._workdir / f"statistics_{seed}.png")

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        with open(self._workdir / name, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def _keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Keeps only the wanted lines, without one that was cut off in writing, and returns them."""
        path = self._workdir / name
        if not path.exists():
            return []
        *texts, _ = path.read_text().split("\n")
        kept = [line for line in map(json.loads, texts) if wanted(line)]
        new = path.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(new, path)
        return kept

    def _board_directory(self, seed: int) -> Path:
        return self._workdir / "tensorboard" / f"seed_{seed}"

    def _log_metrics(self, seed: int, values: Mapping[str, Any]) -> None:
        self._log(seed, values["epoch"], "metrics", values)

    def _log_statistics(self, seed: int, record: Mapping[str, Any]) -> None:
        self._log(seed, record["step"], f"{record['layer']}/{record['operand']}", record)

    def _log(self, seed: int, step: int, group: str, values: Mapping[str, Any]) -> None:
        """The numbers among the values, for TensorBoard."""
        if seed not in self._boards:
            self._boards[seed] = SummaryWriter(str(self._board_directory(seed)))
        for name, value in values.items():
            if isinstance(value, int | float) and name not in _PLACES:
                self._boards[seed].add_scalar(f"{group}/{name}", value, step)


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None for numbers that are not finite, which JSON cannot express."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _without_seed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "seed"}
