"""The results of `benchmarks.kernels`, as tables, a summary and charts."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.common import figures
from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import PASSES
from benchmarks.kernels.contenders import (
    KERNEL,
    ONE_EXPONENT,
    ONEDNN,
    ONEDNN_BFLOAT16,
    QUANTIZED,
    WINOGRAD,
    XLA,
    XLA_BFLOAT16,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENDERS = (KERNEL, QUANTIZED, *WINOGRAD.values(), XLA, XLA_BFLOAT16, ONEDNN, ONEDNN_BFLOAT16)
COLOURS = {
    KERNEL: figures.DFP16,
    QUANTIZED: figures.DFP16_VARIANT,
    WINOGRAD["winograd2"]: figures.WINOGRAD2,
    WINOGRAD["winograd4"]: figures.WINOGRAD4,
    XLA: figures.FLOAT32,
    XLA_BFLOAT16: figures.BFLOAT16_VARIANT,
    ONEDNN: figures.FLOAT32_PEER,
    ONEDNN_BFLOAT16: figures.BFLOAT16,
}
# What the kernels should reach: their share of the peak in the mean; their speed as a multiple of oneDNN's,
# in the mean and for every shape; as a multiple of that with one exponent per tensor, in the mean; on so many
# threads, in the mean, as a multiple of one thread's.
SHARE, TIMES_ONEDNN, TIMES_ONEDNN_EACH, TIMES_ONE_EXPONENT = 0.75, 1.9, 1.3, 1 / 1.05
SPEED_UP = {4: 3.5}
NO_REUSE = ("depthwise",)
"""Suites bound by memory: their target is XLA's speed, and the mean of all leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One shape and pass."""

    suite: str
    name: str
    which: str
    macs: int
    seconds: dict[str, float]
    """Of one call, for each contender; a thread count as a string is a contender too."""
    peak: float
    """GMAC/s of the int16 dot instruction on all cores: the best measured in the run."""

    def rate(self, contender: str) -> float:
        """GMAC/s, or NaN where the contender is missing."""
        return self.macs / self.seconds[contender] / 1e9 if contender in self.seconds else math.nan

    def times(self, contender: str, ours: str = KERNEL) -> float:
        """Our speed as a multiple of that contender's."""
        return self.rate(ours) / self.rate(contender)

    def share(self, ours: str = KERNEL) -> float:
        """Our share of the peak; more than 1 where there are fewer products than the definition has."""
        return self.rate(ours) / self.peak


def rate(value: float) -> str:
    """GMAC/s in words; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def ratio(value: float, least: float = 0) -> str:
    """A ratio in words, marked if it is below `least`; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.2f}" + (" !" if value < least else "")


def by_suite_and_pass(rows: list[Row]) -> list[tuple[str, str, list[Row]]]:
    groups = dict.fromkeys((row.suite, row.which) for row in rows)
    return [(*group, [row for row in rows if (row.suite, row.which) == group]) for group in groups]


def _table(title: str, columns, words: int) -> Table:
    """The first `words` columns hold words, the others numbers."""
    result = Table(title=title)
    for position, column in enumerate(columns):
        result.add_column(column, justify="left" if position < words else "right")
    return result


def rates_table(rows: list[Row]) -> Table:
    """Every row's rates, the kernel's share of the peak, and its speed as a multiple of the peers'."""
    columns = (
        "shape", "pass", "peak", KERNEL, "of peak", QUANTIZED, ONE_EXPONENT, f"× {ONE_EXPONENT}",
        XLA, "× XLA", XLA_BFLOAT16, "× XLA bf16", ONEDNN, "× oneDNN",
    )  # fmt: skip
    result = _table("GMAC/s", columns, words=2)
    for row in rows:
        kernel, quantized, one_exponent, xla, xla_bfloat16, onednn = (
            rate(row.rate(c)) for c in (KERNEL, QUANTIZED, ONE_EXPONENT, XLA, XLA_BFLOAT16, ONEDNN)
        )
        result.add_row(
            row.name, row.which, rate(row.peak), kernel, ratio(row.share()), quantized,
            one_exponent, ratio(row.times(ONE_EXPONENT)),
            xla, ratio(row.times(XLA)), xla_bfloat16, ratio(row.times(XLA_BFLOAT16)),
            onednn, ratio(row.times(ONEDNN)),
        )  # fmt: skip
    return result


def summary(rows: list[Row]) -> Table:
    """Geometric means of each suite and pass, and the worst shape of each ratio."""
    result = _table(
        f"geometric means; ! is short of the target: {SHARE} of the peak, {TIMES_ONEDNN} × oneDNN and "
        f"{TIMES_ONE_EXPONENT:.2f} × {ONE_EXPONENT} in the mean, {TIMES_ONEDNN_EACH} × oneDNN and 1 × XLA at "
        "worst",
        (
            "suite", "pass", "of peak", "worst", "× oneDNN", "worst", "× XLA", "worst",
            f"× {ONE_EXPONENT}", "worst",
        ),
        words=2,
    )  # fmt: skip

    def mean_and_worst(group: list[Row], value, least_mean: float = 0, least: float = 0) -> tuple[str, str]:
        known = [row for row in group if not math.isnan(value(row))]
        if not known:
            return "", ""
        worst = min(known, key=value)
        mean = geometric_mean(map(value, known))
        return ratio(mean, least_mean), f"{ratio(value(worst), least)} {worst.name}"

    def add(suite: str, which: str, group: list[Row], **style) -> None:
        targets = (0, 0, 0) if suite in NO_REUSE else (SHARE, TIMES_ONEDNN, TIMES_ONEDNN_EACH)
        of_blocks = 0 if suite in NO_REUSE else TIMES_ONE_EXPONENT
        result.add_row(
            suite, which,
            *mean_and_worst(group, Row.share, targets[0]),
            *mean_and_worst(group, lambda row: row.times(ONEDNN), *targets[1:]),
            *mean_and_worst(group, lambda row: row.times(XLA), least=1),
            *mean_and_worst(group, lambda row: row.times(ONE_EXPONENT), of_blocks),
            **style,
        )  # fmt: skip

    for suite, which, group in by_suite_and_pass(rows):
        add(suite, which, group, end_section=which == PASSES[-1])
    if rest := [row for row in rows if row.suite not in NO_REUSE]:
        add("all", "all", rest, style="bold")
    return result


def algorithms(rows: list[Row]) -> Table:
    """The rates of the direct and of the Winograd algorithms where these suit, and how they compare with the
    peak and with the peers, and at the end geometric means."""
    result = _table(
        "algorithms, GMAC/s of the definition's products",
        (
            "shape", "pass", "algorithm", "rate", "of peak", "× direct", "× oneDNN", "× oneDNN bf16",
            "× XLA bf16",
        ),
        words=3,
    )  # fmt: skip
    names = {"direct": KERNEL, **WINOGRAD}
    rows = [row for row in rows if set(WINOGRAD.values()) <= set(row.seconds)]

    def add(label: str, which: str, group: list[Row], **style) -> None:
        for algorithm, ours in names.items():
            result.add_row(
                label, which, algorithm,
                rate(geometric_mean(row.rate(ours) for row in group)),
                ratio(geometric_mean(row.share(ours) for row in group)),
                *(
                    ratio(geometric_mean(row.times(other, ours) for row in group))
                    for other in (KERNEL, ONEDNN, ONEDNN_BFLOAT16, XLA_BFLOAT16)
                ),
                **style,
            )  # fmt: skip

    for row in rows:
        add(row.name, row.which, [row])
    groups = by_suite_and_pass(rows)
    if len(groups) > len(PASSES):
        groups += [("all", which, [row for row in rows if row.which == which]) for which in PASSES]
    for suite, which, group in groups:
        add(f"{suite}: geometric mean", which, group, style="bold")
    return result


def speed_up_table(rows: list[Row], threads: list[int], peaks: list[float]) -> Table:
    """The kernel's rate for each number of threads, and how much faster it is than on the first."""
    first, *others = threads
    gains = ", ".join(
        f"{peak / peaks[0]:.2f} on {count}" for count, peak in zip(others, peaks[1:], strict=True)
    )
    result = _table(
        f"GMAC/s of the {KERNEL} by number of threads; against {first}, the peak grows by {gains}",
        ("shape", "pass", *map(str, threads), *(f"{count} : {first}" for count in others)),
        words=2,
    )

    def gain(group: list[Row], count: int) -> str:
        mean = geometric_mean(row.times(str(first), ours=str(count)) for row in group)
        return ratio(mean, least=SPEED_UP.get(count, 0) if first == 1 else 0)

    for row in rows:
        rates = (rate(row.rate(str(count))) for count in threads)
        result.add_row(row.name, row.which, *rates, *(gain([row], count) for count in others))
    for suite, which, group in [*by_suite_and_pass(rows), ("all", "all", rows)]:
        means = (rate(geometric_mean(row.rate(str(c)) for row in group)) for c in threads)
        label = f"{suite}: geometric mean"
        result.add_row(label, which, *means, *(gain(group, count) for count in others), style="bold")
    return result


def chart(rows: list[Row], path: Path, title: str) -> "Figure":
    """Bars of every contender's rate under the peak, a panel for each pass."""
    names = list(dict.fromkeys(row.name for row in rows))
    figure = figures.new_figure(10)
    axes = figure.subplots(len(PASSES), 1, sharex=True)
    contenders = [c for c in CONTENDERS if any(c in row.seconds for row in rows)]
    width = 0.8 / len(contenders)
    for axis, which in zip(axes, PASSES, strict=True):
        chosen = [row for row in rows if row.which == which]
        for position, contender in enumerate(contenders):
            offsets = [i + width * (position + 0.5) for i in range(len(chosen))]
            rates = [row.rate(contender) for row in chosen]
            axis.bar(offsets, rates, width, color=COLOURS[contender], label=contender)
        starts = range(len(chosen))
        style = {"colors": "black", "linestyles": "--", "label": "peak (int16 dot)"}
        axis.hlines([row.peak for row in chosen], starts, [i + 0.8 for i in starts], **style)
        axis.set_ylabel(f"{which}, GMAC/s")
        axis.margins(x=0.01)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize="medium")
    columns = math.ceil(len(labels) / 2)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    axes[-1].set_xticks([i + 0.4 for i in range(len(names))], names, rotation=60, ha="right")
    return figures.save(figure, path)
