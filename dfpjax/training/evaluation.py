"""Evaluation over the whole test split: of a state, and of weights on disk."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .config import TrainConfig
from .data import PADDING, Dataset, load_dataset
from .metrics import Evaluation, Totals
from .program import Program
from .report import Report
from .state import TrainState, eval_step
from .weights import load_weights


def test_totals(
    state: TrainState, dataset: Dataset, batch_size: int, before_step: Callable[[], None] = lambda: None
) -> Totals:
    """Over the whole test split; `before_step` may raise an error to end it."""
    totals = Totals()
    with contextlib.closing(dataset.test_batches(min(batch_size, dataset.test_size))) as batches:
        for images, labels in batches:
            before_step()
            totals.add(eval_step(state, images, labels), np.count_nonzero(labels != PADDING))
    return totals


def evaluate(config: TrainConfig, report: Report, *paths: Path) -> list[Evaluation]:
    """Tests weights in the precision of `config`, whatever precision they were trained and written in.

    Arguments:

    - `paths`: checkpoints or weights, as `load_weights` takes them.

    **Raises:** `DatasetError` as `train` does; `CheckpointError` if weights are missing or do not fit.
    """
    dataset = load_dataset(config)
    program = Program(config, dataset)
    evaluations = []
    for path in paths:
        state = program.state_for_evaluation(load_weights(path, program.variable_shapes))
        totals = test_totals(state, dataset, config.eval_batch_size)
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
