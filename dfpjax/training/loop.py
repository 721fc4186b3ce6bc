"""The training loop: for each seed, epochs of steps, each epoch followed by an evaluation."""

import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dfpjax import LayerStatistics

from .config import TrainConfig
from .data import DATASETS, Split, eval_batches, load_split, train_batches
from .metrics import EpochMetrics, Result, Totals
from .models import MODELS
from .optimizer import optimizer
from .precision import model_dtype, with_precision
from .report import Report
from .state import TrainState, eval_step, measured_step, train_step

Statistics = dict[str, LayerStatistics]


def train(config: TrainConfig, report: Report) -> list[Result]:
    """Trains a model for each seed, telling `report` as it goes, and returns one result for each.

    **Raises:** `ValueError` if the training split has no full batch, or for an unknown split;
    `FloatingPointError` if the loss of an epoch is not finite.
    """
    builder = DATASETS[config.dataset](config.data_dir)
    train_split = load_split(builder, config.train_split)
    test_split = load_split(builder, config.test_split)
    # A step takes one part of a batch.
    step_size = config.batch_size // config.accumulate
    steps = config.epochs * (len(train_split) // step_size)
    updates = steps // config.accumulate
    if updates == 0:
        raise ValueError(f"batch_size is {config.batch_size}; train_split has {len(train_split)} images only")

    model = MODELS[config.model](
        classes=builder.info.features["label"].num_classes, dtype=model_dtype(config.precision)
    )
    # All seeds share these two, and with them the compiled step.
    apply = with_precision(model.apply, config.precision)
    tx = optimizer(config, updates=updates)

    batch = next(train_batches(train_split, batch_size=step_size, seed=0, epoch=0))

    @jax.jit
    def start(seed: int) -> TrainState:
        variables = model.init(jax.random.key(seed), batch[0], train=False)
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
        state = jax.eval_shape(start, 0)
        return step.lower(state, *batch, label_smoothing=config.label_smoothing).compile()

    step = compiled(train_step)
    measured = compiled(measured_step) if config.statistics_every else None
    report.compiled(time.perf_counter() - began)

    results = []
    for seed in config.seed:
        report.start_run(seed=seed, steps=steps)
        results.append(_run(config, seed, start, step, measured, train_split, test_split, report))
    report.finish(results)
    return results


def _run(
    config: TrainConfig,
    seed: int,
    start: Callable[[int], TrainState],
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    measured: Callable[..., tuple[tuple[TrainState, dict[str, jax.Array]], Statistics]] | None,
    train_split: Split,
    test_split: Split,
    report: Report,
) -> Result:
    """All epochs of one seed."""
    began = time.perf_counter()
    state = start(seed)
    epochs = []
    number = 0
    for epoch in range(1, config.epochs + 1):
        train_totals = Totals()
        for images, labels in train_batches(
            train_split,
            batch_size=config.batch_size // config.accumulate,
            seed=seed,
            epoch=epoch,
            max_shift=config.max_shift,
        ):
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

        test_totals = Totals()
        for images, labels in eval_batches(test_split, batch_size=config.eval_batch_size):
            test_totals.add(eval_step(state, images, labels), len(labels))
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
