"""The results of `benchmarks.parity`: means and deviations, paired tests, a figure, Markdown tables."""

import dataclasses
import itertools
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from scipy import stats

from benchmarks.common import figures
from benchmarks.common.markdown import markdown
from benchmarks.parity.tasks import PRECISIONS, Run, Share, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.05
"""Probability that the test calls a precision not worse that is worse by the whole margin."""

NAMES = {
    "float32": "float32",
    "dfp16_forced": "DFP16",
    "dfp16_forced_stochastic": "DFP16 stochastic",
    "bfloat16": "bfloat16",
}


STYLES = {
    "float32": ("black", "-"),
    "dfp16_forced": (figures.DFP16, "--"),
    "dfp16_forced_stochastic": (figures.DFP16_VARIANT, "-."),
    "bfloat16": (figures.BFLOAT16, ":"),
}
"""Colour and line of each."""


def final(run: Run, measure: str) -> float:
    """A measure on the test split after the run, NaN for one that diverged."""
    return math.nan if run.diverged else run.test[measure]


def values(runs: list[Run], task: Task, precision: str, measure: str) -> dict[int, float]:
    """The final value of each seed."""
    chosen = (run for run in runs if (run.task, run.precision) == (task.name, precision))
    return {run.seed: final(run, measure) for run in sorted(chosen, key=lambda run: run.seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """A one-sided test that something is worse by less than a margin, from paired differences."""

    __test__ = False  # no test of pytest's

    differences: list[float]
    """For each seed, how much worse."""

    margin: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def _quantile(self) -> float:
        return float(stats.t.ppf(1 - LEVEL, len(self.differences) - 1))

    @property
    def bounds(self) -> tuple[float, float]:
        """What the true mean is above, and what it is below, each with a confidence of 1 - LEVEL."""
        reach = self._quantile * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Probability of a mean as low as this or lower if the true one were the margin."""
        distance = self.mean - self.margin
        if self.error == 0:
            return 0.0 if distance < 0 else 1.0
        return float(stats.t.cdf(distance / self.error, len(self.differences) - 1))

    @property
    def verdict(self) -> str:
        """In words. What is worse for certain but by less than the margin is not worse in its sense."""
        if not all(map(math.isfinite, self.differences)):
            return "diverged"
        if self.margin == 0:
            return "no margin"
        if self.p < LEVEL:
            return "not worse"
        return "worse" if self.bounds[0] > 0 else "undecided"


def paired_test(runs: list[Run], task: Task, precision: str, measure: str) -> Test | None:
    """Of a precision against float32, over the seeds that both have; None with fewer than two of them.

    The margin is the standard deviation of float32's seeds.
    """
    base, other = (values(runs, task, name, measure) for name in ("float32", precision))
    common = sorted(base.keys() & other.keys())
    if len(common) < 2:
        return None
    sign = -1 if task.measures[measure] else 1
    differences = [sign * (other[seed] - base[seed]) for seed in common]
    return Test(differences=differences, margin=statistics.stdev(base[seed] for seed in common))


def pooled_test(tests: list[Test]) -> Test | None:
    """All differences together, each in units of its own margin."""
    usable = [test for test in tests if test.margin > 0 and all(map(math.isfinite, test.differences))]
    differences = [d / test.margin for test in usable for d in test.differences]
    return Test(differences=differences, margin=1.0) if len(differences) > 1 else None


def number(value: float, measure: str, signed: bool = False) -> str:
    """A value of a measure, or a difference of two, for a table."""
    sign = "+" if signed else ""
    if "accuracy" in measure:
        return f"{100 * value:{sign}.2f} %"
    return f"{value:{sign}.4g}" if "distance" in measure else f"{value:{sign}.4f}"


def present(runs: list[Run]) -> list[str]:
    """float32, and the precisions that have been run."""
    return [name for name in PRECISIONS if name == "float32" or any(run.precision == name for run in runs)]


def results_table(runs: list[Run], tasks: list[Task]) -> str:
    """Mean ± standard deviation over the seeds of every measure in every precision.

    The number of seeds is that of all these precisions, or those of each.
    """
    rows, precisions = [], present(runs)
    for task in tasks:
        for measure in task.measures:
            cells, counts = [], []
            for precision in precisions:
                of_seeds = [*values(runs, task, precision, measure).values()]
                counts.append(len(of_seeds))
                finite = [value for value in of_seeds if math.isfinite(value)]
                text = "" if not finite else number(statistics.fmean(finite), measure)
                if len(finite) > 1:
                    text += f" ± {number(statistics.stdev(finite), measure).removesuffix(' %')}"
                if lost := len(of_seeds) - len(finite):
                    text += f" ({lost} diverged)"
                cells.append(text)
            seeds = str(counts[0]) if len(set(counts)) == 1 else " / ".join(map(str, counts))
            rows.append([task.title, task.recipe, measure, seeds, *cells])
    return markdown(
        ["network", "recipe", "measure", "seeds", *(NAMES[name] for name in precisions)], rows, words=3
    )


def tests_table(runs: list[Run], tasks: list[Task], precision: str) -> str:
    """The paired test of a precision on each task and measure, and on all of them together."""
    header = ["network", "measure", "seeds", "float32's deviation", "mean difference", "at most", "p", ""]
    rows, main = [], []
    for task in tasks:
        for position, measure in enumerate(task.measures):
            test = paired_test(runs, task, precision, measure)
            if test is None:
                continue
            if position == 0:
                main.append(test)
            rows.append([task.title, measure, *_test_cells(test, measure)])
    if (pooled := pooled_test(main)) is not None:
        rows.append(["all", "first measure, in deviations", *_test_cells(pooled, "")])
    return markdown(header, rows, words=2)


def _test_cells(test: Test, measure: str) -> list[str]:
    numbers = (
        number(test.margin, measure),
        *(number(value, measure, signed=True) for value in (test.mean, test.bounds[1])),
    )
    return [str(len(test.differences)), *numbers, f"{test.p:.2g}", test.verdict]


def shares_table(shares: dict[str, Share], tasks: list[Task]) -> str:
    """How much of a training step is in dynamic fixed point."""
    rows = [
        [
            task.title,
            f"{share.operations_dfp16} of {share.operations}",
            f"{share.macs / 1e6:.0f} M",
            f"{share.macs_dfp16 / share.macs:.2%}",
        ]
        for task in tasks
        if (share := shares.get(task.name))
    ]
    return markdown(["network", "operations in DFP16", "MACs", "of them in DFP16"], rows)


def report(runs: list[Run], shares: dict[str, Share], tasks: list[Task]) -> str:
    """All tables, as Markdown, of the tasks that have been run."""
    tasks = [task for task in tasks if any(run.task == task.name for run in runs)]
    parts = [results_table(runs, tasks)]
    for precision in present(runs)[1:]:
        parts.append(f"{NAMES[precision]} against float32:\n\n{tests_table(runs, tasks, precision)}")
    parts.append(shares_table(shares, tasks))
    return "\n\n".join(parts)


def figure(runs: list[Run], tasks: list[Task], path: Path) -> "Figure":
    """Mean and range of each precision's runs, a row for each task: training loss, and first measure in
    validation."""
    done = [task for task in tasks if any(run.task == task.name for run in runs)]
    panels = figures.new_figure(0.6 + 2.4 * len(done))
    axes = panels.subplots(len(done), 2, squeeze=False)
    for (left, right), task in zip(axes, done, strict=True):
        of_task = [run for run in runs if run.task == task.name]
        losses = next(name for name in of_task[0].curves if "loss" in name)
        measure = next(iter(task.measures))
        for axis, name, title in ((left, losses, losses), (right, measure, f"validation {measure}")):
            for precision in PRECISIONS:
                curves = [run.curves[name] for run in of_task if run.precision == precision]
                _band(axis, curves, precision)
            axis.set_title(f"{task.title}: {title}", loc="left", fontsize="medium")
            axis.set_xlabel(task.part)
        _zoom(right, [run.curves[measure][-1] for run in of_task if not run.diverged])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    panels.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figures.save(panels, path)


def _band(axis: "Axes", curves: list[list[float]], precision: str) -> None:
    """The mean of some runs, in a band from their least to their greatest value.

    A run that diverged ends early.
    """
    parts = [[value for value in part if value is not None] for part in itertools.zip_longest(*curves)]
    if not parts:
        return
    colour, style = STYLES[precision]
    numbers = range(1, len(parts) + 1)
    lowest, highest = ([end(part) for part in parts] for end in (min, max))
    axis.fill_between(numbers, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    means = [statistics.mean(part) for part in parts]
    axis.plot(numbers, means, color=colour, linestyle=style, linewidth=1.5, label=NAMES[precision])


def _zoom(axis: "Axes", finals: list[float]) -> None:
    """Show the end of the curves, where the precisions may differ, without their start."""
    if not finals:
        return
    low, high = min(finals), max(finals)
    room = max(2 * (high - low), 0.02 * abs(high))
    # No further than the curves go: no accuracy is above 1, and no distance below 0.
    bottom, top = max(axis.dataLim.y0, low - room), min(axis.dataLim.y1, high + room)
    margin = 0.04 * (top - bottom)
    axis.set_ylim(bottom - margin, top + margin)
