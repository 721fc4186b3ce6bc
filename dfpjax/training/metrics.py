"""What a run measures."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Self

import jax


@dataclasses.dataclass(kw_only=True)
class Totals:
    """Sums over the batches added so far, and the time since construction."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    correct_top5: int = 0
    # Time counted before construction, if another process began the sums.
    seconds_before: float = 0.0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def start_clock(self) -> None:
        """Restarts the clock; time from before construction still counts."""
        self.started = time.perf_counter()

    def add(self, step_metrics: dict[str, jax.Array], images: int) -> None:
        """Adds the sums of a step over `images` images; waits for the step."""
        self.loss_sum += float(step_metrics["loss"])
        self.correct += int(step_metrics["correct"])
        self.correct_top5 += int(step_metrics["correct_top5"])
        self.images += images

    @property
    def loss(self) -> float:
        """Cross-entropy per image."""
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        """Share of images whose class was found, from 0 to 1."""
        return self.correct / self.images

    @property
    def top5_accuracy(self) -> float:
        """Share of images whose class was among the first five, from 0 to 1."""
        return self.correct_top5 / self.images

    @property
    def seconds(self) -> float:
        """Time that the batches have taken so far."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def images_per_second(self) -> float:
        """Images added per second until now."""
        return self.images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """The sums and the time, for JSON."""
        sums = {name: getattr(self, name) for name in ("images", "loss_sum", "correct", "correct_top5")}
        return sums | {"seconds_before": self.seconds}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Totals that continue those of `to_dict`; the time in between does not count."""
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch of one run; accuracies from 0 to 1, losses per image.

    Top-5 accuracy is the share of images whose class is among the five most likely ones: 1 for up to five
    classes.
    """

    precision: str
    seed: int
    # Counted from 1.
    epoch: int
    # Of the epoch's last update.
    learning_rate: float
    # Over the epoch, each batch before its own step; the loss with label smoothing.
    train_loss: float
    train_accuracy: float
    train_top5_accuracy: float
    # Over the whole test split, after the epoch; the loss without label smoothing.
    test_loss: float
    test_accuracy: float
    test_top5_accuracy: float
    # Training only: without compilation and evaluation.
    images_per_second: float
    # Since the start of the run, without the time between a stop and the resumption.
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A whole run. Its test metrics are those of the last epoch, not of the best one."""

    # That of the last epoch.
    precision: str
    seed: int
    test_accuracy: float
    test_top5_accuracy: float
    test_loss: float
    # Median of the epochs.
    images_per_second: float
    # Without the compilation of the training step; the first run includes all other compilation.
    seconds: float

    @classmethod
    def of_epochs(cls, epochs: Sequence[EpochMetrics]) -> Self:
        """The result of a run with these epochs."""
        last = epochs[-1]
        return cls(
            precision=last.precision,
            seed=last.seed,
            test_accuracy=last.test_accuracy,
            test_top5_accuracy=last.test_top5_accuracy,
            test_loss=last.test_loss,
            images_per_second=statistics.median(metrics.images_per_second for metrics in epochs),
            seconds=last.seconds,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Weights on the whole test split; the loss without label smoothing."""

    # Where they were read.
    weights: str
    precision: str
    test_accuracy: float
    test_top5_accuracy: float
    test_loss: float
    images_per_second: float
