"""Evaluation over the whole test split: of a state, and of weights on disk."""

import contextlib
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import processes
from .config import TrainConfig
from .data import Dataset, load_dataset
from .devices import Devices
from .metrics import Evaluation, Totals
from .program import Program
from .report import Report
from .state import TrainState, eval_step
from .weights import load_weights


def test_totals(
    state: TrainState,
    dataset: Dataset,
    batch_size: int,
    before_step: Callable[[], None] = lambda: None,
    devices: Devices | None = None,
) -> Totals:
    """Over the whole test split; `before_step` may raise an error to end it. Several devices share each
    batch."""
    totals = Totals()
    batch_size = min(batch_size, dataset.test_size)
    if devices is not None:
        batch_size = devices.rounded(batch_size)
    rows = None if devices is None else devices.rows(batch_size)
    counts = itertools.chain(
        itertools.repeat(batch_size, dataset.test_size // batch_size), [dataset.test_size % batch_size]
    )
    with contextlib.closing(dataset.test_batches(batch_size, rows=rows)) as batches:
        for images, labels in batches:
            before_step()
            batch = (images, labels) if devices is None else devices.batch(images, labels)
            totals.add(eval_step(state, *batch), next(counts))
    return totals


def evaluate(config: TrainConfig, report: Report, *paths: Path) -> list[Evaluation]:
    """Tests weights in the precision of `config`, whatever precision they were trained and written in.

    Arguments:

    - `paths`: checkpoints or weights, as `load_weights` takes them.

    **Raises:** `DatasetError` as `train` does; `CheckpointError` if weights are missing or do not fit.
    """
    dataset = load_dataset(config)
    program = Program(config, dataset)
    devices = program.devices
    evaluations = []
    for path in paths:
        load = functools.partial(_load, path, program.variable_shapes)
        variables, _ = processes.load_from_first(load, like=program.variable_shapes)
        state = program.state_for_evaluation(devices.replicate(variables))
        totals = test_totals(state, dataset, config.eval_batch_size, devices=devices)
        evaluations.append(
            Evaluation(
                weights=str(path),
                precision=config.precision,
                test_accuracy=totals.accuracy,
                test_top5_accuracy=totals.top5_accuracy,
                test_loss=totals.loss,
                images_per_second=totals.images_per_second,
            )
        )
    report.evaluated(evaluations)
    return evaluations


def _load(path: Path, like: dict[str, Any]) -> tuple[dict[str, Any], None]:
    return load_weights(path, like), None
