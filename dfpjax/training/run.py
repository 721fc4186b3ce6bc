"""The run of one seed: epochs of training steps, each followed by an evaluation. It can be resumed."""

import contextlib
import dataclasses
import functools
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dfpjax

from . import processes
from .checkpoints import Checkpoints, restore
from .config import TrainConfig
from .data import Batch, Dataset
from .evaluation import test_totals
from .frozen import merged
from .metrics import EpochMetrics, Result, Totals
from .profiling import Profile
from .program import Program
from .report import Report
from .state import TrainState
from .stopping import Stopped
from .weights import load_weights, save_weights, saved_format
from .workdir import checkpoint_directory, weights_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What the runs of all seeds share."""

    config: TrainConfig
    dataset: Dataset
    program: Program
    report: Report
    profile: Profile
    # Weights to start from in place of random ones.
    init_from: Path | None
    # Asked between steps whether to stop.
    stop: Callable[[], bool]


class Run:
    """The run of a seed.

    A checkpoint holds the `TrainState`, the number of steps made, and the totals of the current epoch.
    Batches, dropout and learning rate follow from the configuration, the seed and that number. A resumed run
    therefore reaches the same parameters, bit for bit, and the same metrics. `metrics.jsonl` says which
    epochs were evaluated.
    """

    def __init__(self, job: Job, seed: int) -> None:
        self._job = job
        self._seed = seed
        self._began = time.perf_counter()
        state, progress = processes.load_from_first(self._restored, like=job.program.state_shapes)
        self._state = job.program.devices.replicate(job.program.ready(state))
        if progress is None:
            self._step, self._totals, self._seconds_before = 0, Totals(), 0.0
        else:
            self._step, self._seconds_before = progress["step"], progress["seconds"]
            self._totals = Totals.from_dict(progress["totals"])
        start = functools.partial(
            job.report.start_run,
            seed=seed,
            step=self._step,
            steps=job.program.steps,
            epochs=job.config.epochs,
        )
        if not processes.is_first():
            start()
        recorded = processes.from_first(lambda: [dataclasses.asdict(metrics) for metrics in start()])
        self._epochs = [EpochMetrics(**metrics) for metrics in recorded]
        if progress is not None:
            job.report.line(self._resumed(progress["precision"]))

    def _restored(self) -> tuple[TrainState, dict[str, Any] | None]:
        """The state and progress of the newest checkpoint; without one, what the run starts from and None."""
        job, workdir = self._job, self._job.report.workdir
        if workdir is not None:
            directory = checkpoint_directory(workdir, self._seed)
            if (found := restore(directory, job.program.state_shapes, job.report.line)) is not None:
                return found
            # They belong to a run whose checkpoints have been deleted.
            shutil.rmtree(weights_directory(workdir, self._seed), ignore_errors=True)
        if job.init_from is None:
            return job.program.start(self._seed), None
        variables = load_weights(job.init_from, job.program.initial(self._seed))
        return job.program.start(self._seed, jax.tree.map(jax.numpy.array, variables)), None

    def _resumed(self, precision: str) -> str:
        if self._is_over():
            return f"seed {self._seed} has been trained: nothing to do"
        change = "" if precision == self._job.config.precision else f", reached in {precision},"
        return (
            f"seed {self._seed} goes on after step {self._step} of {self._job.program.steps}{change}"
            f" in {self._job.config.precision}"
        )

    def _is_over(self) -> bool:
        return len(self._epochs) > 0 and self._epochs[-1].epoch == self._job.config.epochs

    def finish(self) -> Result:
        """Trains the remaining steps, and writes the weights into the working directory.

        **Raises:** `Stopped` if asked to; `FloatingPointError` if the training loss is not finite at the end
        of an epoch or at a checkpoint; `CheckpointError` if a file cannot be written.
        """
        workdir, config = self._job.report.workdir, self._job.config
        was_over = self._is_over()
        if not was_over:
            with self._checkpoints() as checkpoints:
                self._train(checkpoints)
        if workdir is not None:
            path = weights_directory(workdir, self._seed)
            if not was_over or saved_format(path) != config.export_weights:
                params = merged(self._state.params, dfpjax.thaw(self._state.kept))
                variables = {"params": params, "batch_stats": self._state.batch_stats}
                save_weights(path, variables, config.export_weights)
        return Result.of_epochs(self._epochs)

    def _checkpoints(self) -> contextlib.AbstractContextManager[Checkpoints | None]:
        workdir = self._job.report.workdir
        if workdir is None:
            return contextlib.nullcontext()
        directory = checkpoint_directory(workdir, self._seed)
        return Checkpoints(directory, keep=self._job.config.keep_checkpoints)

    def _train(self, checkpoints: Checkpoints | None) -> None:
        job, config = self._job, self._job.config
        per_epoch = job.program.steps_per_epoch

        def stop_if_asked(asked: Callable[[bool], bool] = processes.any_of) -> None:
            if asked(job.stop()):
                if checkpoints is not None and self._step > 0:
                    self._save(checkpoints)
                raise Stopped(seed=self._seed, step=self._step)

        # The time of the run and of its first epoch excludes compilation.
        if seconds := job.program.compile():
            job.report.compiled(seconds)
        self._began += seconds
        self._totals.start_clock()
        stop_if_asked()
        first = self._step // per_epoch + 1
        if self._step > 0 and self._step % per_epoch == 0:
            if self._epochs and self._epochs[-1].epoch == first - 1:
                self._totals = Totals()
            else:
                first -= 1  # trained, and not evaluated
        try:
            self._train_epochs(range(first, config.epochs + 1), checkpoints, stop_if_asked)
        except Stopped:
            raise
        except Exception:
            # A signal to the whole process group also ends the processes that read batches. Other processes
            # of the run may be gone as well.
            stop_if_asked(bool)
            raise

    def _train_epochs(
        self, epochs: range, checkpoints: Checkpoints | None, stop_if_asked: Callable[[], None]
    ) -> None:
        job, config = self._job, self._job.config
        with contextlib.closing(self._batches()) as batches:
            for epoch in epochs:
                for images, labels in itertools.islice(
                    batches, epoch * job.program.steps_per_epoch - self._step
                ):
                    self._train_step(images, labels)
                    job.report.step(self._totals, epoch, self._learning_rate())
                    job.profile.step()
                    due = config.checkpoint_every and self._step % config.checkpoint_every == 0
                    if checkpoints is not None and (due or self._step == job.program.steps):
                        self._save(checkpoints)
                    stop_if_asked()
                images_per_second = self._totals.images_per_second
                self._check_loss()
                test = test_totals(
                    self._state, job.dataset, config.eval_batch_size, stop_if_asked, job.program.devices
                )
                self._epochs.append(self._metrics(epoch, images_per_second, test))
                job.report.epoch(self._epochs[-1])
                self._totals = Totals()

    def _batches(self) -> Iterator[Batch]:
        """The batches of the remaining steps; each batch comes in its equal parts."""
        config = self._job.config
        start, done = divmod(self._step, config.accumulate)
        rows = self._job.program.devices.rows(config.batch_size, config.accumulate)
        batches = self._job.dataset.train_batches(
            config.batch_size, seed=self._seed, start_step=start, rows=rows
        )
        with contextlib.closing(batches):
            yield from itertools.islice(_parts(batches, config.accumulate), done, None)

    def _train_step(self, images: np.ndarray, labels: np.ndarray) -> None:
        job = self._job
        every = job.config.statistics_every
        batch = job.program.devices.batch(images, labels)
        with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
            if every and self._step % every == 0:
                (self._state, metrics), layers = job.program.measured_step(self._state, *batch)
                job.report.statistics(layers, seed=self._seed, step=self._step)
            else:
                self._state, metrics = job.program.step(self._state, *batch)
            self._totals.add(metrics, job.config.batch_size // job.config.accumulate)
        self._step += 1

    def _save(self, checkpoints: Checkpoints) -> None:
        self._check_loss()
        progress = {
            "step": self._step,
            "totals": self._totals.to_dict(),
            "seconds": self._seconds(),
            "precision": self._job.config.precision,
        }
        state = self._state.replace(kept=dfpjax.thaw(self._state.kept))
        checkpoints.save(state, step=self._step, progress=progress)

    def _check_loss(self) -> None:
        if not math.isfinite(self._totals.loss_sum):
            per_epoch = self._job.program.steps_per_epoch
            epoch = (self._step - 1) // per_epoch + 1
            raise FloatingPointError(
                f"the training loss of epoch {epoch}, seed {self._seed}, is {self._totals.loss}; a lower"
                " learning_rate or a longer warmup may help"
            )

    def _metrics(self, epoch: int, images_per_second: float, test: Totals) -> EpochMetrics:
        return EpochMetrics(
            precision=self._job.config.precision,
            seed=self._seed,
            epoch=epoch,
            learning_rate=self._learning_rate(),
            train_loss=self._totals.loss,
            train_accuracy=self._totals.accuracy,
            train_top5_accuracy=self._totals.top5_accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            test_top5_accuracy=test.top5_accuracy,
            images_per_second=images_per_second,
            seconds=self._seconds(),
        )

    def _learning_rate(self) -> float:
        """Of the last step made."""
        return float(self._job.program.learning_rates[self._step - 1])

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._began


def _parts(batches: Iterable[Batch], count: int) -> Iterator[Any]:
    """The equal parts of each batch, one after the other."""
    for images, labels in batches:
        yield from zip(np.split(images, count), np.split(labels, count), strict=True)
