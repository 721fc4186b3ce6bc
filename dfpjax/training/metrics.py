"""What a run measures."""

import dataclasses
import time

import jax


@dataclasses.dataclass(kw_only=True)
class Totals:
    """Sums over the batches added so far, and the time since this was made."""

    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    started: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, step_metrics: dict[str, jax.Array], images: int) -> None:
        """Adds the sums of a step over so many images; waits for the step."""
        self.loss_sum += float(step_metrics["loss"])
        self.correct += int(step_metrics["correct"])
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
    def images_per_second(self) -> float:
        """Images added per second until now."""
        return self.images / (time.perf_counter() - self.started)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch of one run; accuracies from 0 to 1, losses per image."""

    precision: str
    seed: int
    # Counted from 1.
    epoch: int
    # Over the epoch, each batch before its own step; the loss with label smoothing.
    train_loss: float
    train_accuracy: float
    # Over the whole test split, after the epoch; the loss without label smoothing.
    test_loss: float
    test_accuracy: float
    # Training only: without compilation and evaluation.
    images_per_second: float
    # Since the start of the run.
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A whole run. Its test metrics are those of the last epoch, not of the best one."""

    precision: str
    seed: int
    test_accuracy: float
    test_loss: float
    # Median of the epochs.
    images_per_second: float
    # Everything but the compilation of the training step; the first run alone compiles the rest.
    seconds: float
