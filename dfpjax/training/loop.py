"""The training loop: for each seed, epochs of steps, each epoch followed by an evaluation."""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax import LayerStatistics

from .config import TrainConfig
from .data import PADDING, Batch, Dataset, load_dataset
from .metrics import EpochMetrics, Result, Totals
from .models import MODELS
from .optimizer import optimizer
from .precision import model_dtype, with_precision
from .report import Report
from .state import TrainState, eval_step, measured_step, train_step

Statistics = dict[str, LayerStatistics]


def train(config: TrainConfig, report: Report) -> list[Result]:
    """Trains a model for each seed, telling `report` as it goes, and returns one result for each.

    **Raises:** `DatasetError` if the dataset is not there, or cannot be used as `config` asks;
    `FloatingPointError` if the loss of an epoch is not finite.
    """
    dataset = load_dataset(config)
    # A step takes one part of a batch.
    updates = config.epochs * dataset.steps_per_epoch(config.batch_size)
    steps = updates * config.accumulate
    step_size = config.batch_size // config.accumulate

    model = MODELS[config.model](classes=dataset.classes, dtype=model_dtype(config.precision))
    # All seeds share these two, and with them the compiled step.
    apply = with_precision(model.apply, config.precision)
    tx = optimizer(config, updates=updates)

    @jax.jit
    def start(seed: int) -> TrainState:
        variables = model.init(jax.random.key(seed), jnp.zeros((1, *dataset.image_shape)), train=False)
        return TrainState.create(
            apply_fn=apply,
            tx=tx,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            seed=jnp.int32(seed),
        )

    began = time.perf_counter()

    # Compiled by hand, and not by its first call, so that the first epoch's speed is that of the others.
    def compiled(step: Callable) -> Callable:
        images = jax.ShapeDtypeStruct((step_size, *dataset.image_shape), np.float32)
        labels = jax.ShapeDtypeStruct((step_size,), np.int32)
        state = jax.eval_shape(start, 0)
        return step.lower(state, images, labels, label_smoothing=config.label_smoothing).compile()

    step = compiled(train_step)
    measured = compiled(measured_step) if config.statistics_every else None
    report.compiled(time.perf_counter() - began)

    results = []
    for seed in config.seed:
        report.start_run(seed=seed, steps=steps)
        results.append(_run(config, seed, start, step, measured, dataset, report))
    report.finish(results)
    return results


def _run(
    config: TrainConfig,
    seed: int,
    start: Callable[[int], TrainState],
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    measured: Callable[..., tuple[tuple[TrainState, dict[str, jax.Array]], Statistics]] | None,
    dataset: Dataset,
    report: Report,
) -> Result:
    """All epochs of one seed."""
    began = time.perf_counter()
    state = start(seed)
    epochs = []
    number = 0
    with contextlib.closing(dataset.train_batches(config.batch_size, seed=seed)) as train_batches:
        for epoch in range(1, config.epochs + 1):
            train_totals = Totals()
            batches = itertools.islice(train_batches, dataset.steps_per_epoch(config.batch_size))
            for images, labels in _parts(batches, config.accumulate):
                if measured is not None and number % config.statistics_every == 0:
                    (state, step_metrics), layers = measured(state, images, labels)
                    report.statistics(layers, seed=seed, step=number)
                else:
                    state, step_metrics = step(state, images, labels)
                number += 1
                train_totals.add(step_metrics, len(labels))
                report.step(train_totals)
            images_per_second = train_totals.images_per_second
            if not math.isfinite(train_totals.loss):
                raise FloatingPointError(
                    f"the training loss of epoch {epoch}, seed {seed}, is {train_totals.loss}"
                )

            test_totals = _evaluate(state, dataset, config.eval_batch_size)
            epochs.append(
                EpochMetrics(
                    precision=config.precision,
                    seed=seed,
                    epoch=epoch,
                    train_loss=train_totals.loss,
                    train_accuracy=train_totals.accuracy,
                    test_loss=test_totals.loss,
                    test_accuracy=test_totals.accuracy,
                    images_per_second=images_per_second,
                    seconds=time.perf_counter() - began,
                )
            )
            report.epoch(epochs[-1])
    return Result(
        precision=config.precision,
        seed=seed,
        test_accuracy=epochs[-1].test_accuracy,
        test_loss=epochs[-1].test_loss,
        images_per_second=statistics.median(metrics.images_per_second for metrics in epochs),
        seconds=epochs[-1].seconds,
    )


def _parts(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The equal parts of each batch, one after the other."""
    for images, labels in batches:
        yield from zip(np.split(images, count), np.split(labels, count), strict=True)


def _evaluate(state: TrainState, dataset: Dataset, batch_size: int) -> Totals:
    """Over the whole test split."""
    totals = Totals()
    for images, labels in dataset.test_batches(min(batch_size, dataset.test_size)):
        totals.add(eval_step(state, images, labels), np.count_nonzero(labels != PADDING))
    return totals
