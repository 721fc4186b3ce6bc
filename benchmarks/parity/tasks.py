"""The form of what `benchmarks.parity` trains: a task, its recipe, and a run."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import dfpjax
from dfpjax.training.precision import POLICIES

PRECISIONS = ("float32", "dfp16_forced", "dfp16_forced_stochastic", "bfloat16")
"""The forced ones compute in DFP16 whatever can be; all else is the same."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained, as far as it is chosen by validation."""

    rate: float
    """The highest learning rate."""

    length: int
    """Epochs of a classifier, steps of other networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one task."""

    task: str
    precision: str
    seed: int
    curves: dict[str, list[float]]
    """The training loss, and each measure on the validation split, after each epoch, or other part."""

    test: dict[str, float] = dataclasses.field(default_factory=dict)
    """Each measure on the test split after the run; none for a run that diverged, or only validates."""

    seconds: float
    diverged: bool = False
    """Whether a loss that was not finite ended the run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How much of a training step is computed in dynamic fixed point."""

    operations: int
    operations_dfp16: int
    macs: int
    macs_dfp16: int


Step = Callable[..., Any]
"""A training step, with its arguments bound but for those that `dfpjax.explain` is given."""


class Train(Protocol):
    """Trains in a precision with each of the seeds, which share the compiled step."""

    def __call__(self, precision: str, seeds: list[int], *, test: bool) -> Iterator[Run]:
        """Yields each run as soon as it is over. `test` says whether to measure on the test split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One network to train, by the same recipe in every precision."""

    name: str
    title: str
    """What it is, in a few words for the table."""

    recipe: str
    """How it is trained, likewise."""

    measures: dict[str, bool]
    """The measures that are tested, the most important one first: whether more is better."""

    part: str = "epoch"
    """What of a run the points of a curve are counted in."""

    train: Train

    step: Callable[[], tuple[Step, tuple]]
    """A training step in float32 and its arguments, for `share`."""

    def share(self, precision: str) -> Share | None:
        """What the precision makes of a training step; None where that is not dynamic fixed point."""
        if precision not in POLICIES:
            return None
        step, arguments = self.step()
        ops = dfpjax.explain(step, *arguments, policy=POLICIES[precision]).ops
        quantized = [op for op in ops if op.dtype == "dfp16"]
        return Share(
            operations=len(ops),
            operations_dfp16=len(quantized),
            macs=sum(op.macs for op in ops),
            macs_dfp16=sum(op.macs for op in quantized),
        )
