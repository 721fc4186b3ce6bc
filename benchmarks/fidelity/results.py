"""The results of `benchmarks.fidelity`, as Markdown tables and a chart."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import figures
from benchmarks.common.markdown import markdown
from benchmarks.common.means import geometric_mean
from benchmarks.fidelity.precisions import (
    BFLOAT16,
    DFP16,
    DFP16_BLOCKS,
    DFP16_BLOCKS_STOCHASTIC,
    PRECISIONS,
    WINOGRAD,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fewer bits are paler.
COLOURS = {
    "float32": figures.FLOAT32,
    "DFP-16": figures.DFP16,
    "DFP-16 blocks": figures.DFP16_BLOCKS,
    "DFP-16 stochastic": figures.DFP16_VARIANT,
    "DFP-16 blocks, stochastic dy": figures.DFP16_BLOCKS_VARIANT,
    "DFP-14": "#6baed6",
    "DFP-12": "#9ecae1",
    "DFP-8": "#c6dbef",
    "bfloat16": figures.BFLOAT16,
    "bfloat16 results": figures.BFLOAT16_VARIANT,
}

CLAIM = 16
"""The claimed ratio of bfloat16's error to DFP-16's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one operation on one family's tensors."""

    family: str
    layer: str
    """Its path in the network; empty for random tensors."""
    operation: str
    which: str
    rms_over_max: tuple[float, float]
    """Of the pass's two operands, root mean square over largest magnitude."""
    lost: tuple[float, float]
    """For each of the two, the share of values that DFP-16 with one exponent rounds to zero."""
    errors: dict[str, dict[str, float]]
    """Of each precision: `relative` error; `largest` error over the truth's root mean square; relative error
    of the worst `channel`."""

    def error(self, precision: str, measure: str = "relative") -> float:
        return self.errors[precision][measure]

    def gain(self, measure: str = "relative", precision: str = DFP16.name) -> float:
        """bfloat16's error over that precision's."""
        return self.error(BFLOAT16.name, measure) / self.error(precision, measure)

    @property
    def fill(self) -> float:
        """The operands' rms over max as one number: two equal operands with this value would give a product
        the same relative error."""
        return math.sqrt(2 / sum(value**-2 for value in self.rms_over_max))


def number_text(value: float) -> str:
    return f"{value:.1e}"


def _decibels(error: float) -> str:
    return f"{-20 * math.log10(error):.0f}"


def gain_text(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def by_family_and_pass(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows whose truth is not zero, in groups."""
    groups = {}
    for row in rows:
        if not math.isnan(row.gain()):
            groups.setdefault((row.family, row.which), []).append(row)
    return groups


def summary(rows: list[Row]) -> str:
    """For each family and pass geometric means of the relative errors, and how DFP-16 compares with
    bfloat16 in the mean and at worst."""
    shown = [p.name for p in PRECISIONS if all(p.name in row.errors for row in rows)]
    columns = ["tensors", "pass", "rms / max", *shown]
    columns += [
        "DFP-16 SQNR, dB",
        "bfloat16 : DFP-16",
        "least",
        "of the largest error",
        "of the worst channel",
    ]
    cells = []
    for (family, which), group in by_family_and_pass(rows).items():
        errors = [geometric_mean(row.error(name) for row in group) for name in shown]
        gains = [geometric_mean(row.gain(m) for row in group) for m in ("relative", "largest", "channel")]
        least = min(row.gain() for row in group)
        cells.append(
            [
                family,
                which,
                f"{geometric_mean(row.fill for row in group):.3f}",
                *map(number_text, errors),
                _decibels(geometric_mean(row.error(DFP16.name) for row in group)),
                *map(gain_text, (gains[0], least, *gains[1:])),
            ]
        )
    return markdown(columns, cells, words=2)


def granularities(rows: list[Row]) -> str:
    """How many times the error of DFP-16 bfloat16's is, with one exponent for a tensor and with one for each
    block, in the geometric mean and at least."""
    return _gains(rows, (DFP16.name, DFP16_BLOCKS.name, DFP16_BLOCKS_STOCHASTIC.name))


def algorithms(rows: list[Row]) -> str:
    """The same of the convolutions that Winograd algorithms suit: computed directly, and by each of these."""
    by_all = [row for row in rows if WINOGRAD[0].name in row.errors]
    return _gains(by_all, (DFP16_BLOCKS.name, *(p.name for p in WINOGRAD)))


def _gains(rows: list[Row], compared: tuple[str, ...]) -> str:
    columns = ["tensors", "pass", "operations"]
    columns += [text for name in compared for text in (f"bfloat16 : {name}", "least")]
    cells = []
    for (family, which), group in by_family_and_pass(rows).items():
        cells.append([family, which, str(len(group))])
        for name in compared:
            gains = [row.gain(precision=name) for row in group]
            cells[-1] += [gain_text(geometric_mean(gains)), gain_text(min(gains))]
    return markdown(columns, cells, words=2)


def every_row(rows: list[Row]) -> str:
    """What the summary is made of."""
    columns = ["tensors", "layer", "operation", "pass", "rms / max", "", *(p.name for p in PRECISIONS)]
    columns += ["bfloat16 : DFP-16", "bfloat16 : DFP-16 blocks"]
    cells = []
    for row in rows:
        fills = [f"{value:.3f}" for value in row.rms_over_max]
        errors = [number_text(row.error(p.name)) for p in PRECISIONS]
        gains = [gain_text(row.gain()), gain_text(row.gain(precision=DFP16_BLOCKS.name))]
        cells.append([row.family, row.layer, row.operation, row.which, *fills, *errors, *gains])
    return markdown(columns, cells, words=4)


def chart(rows: list[Row], path: Path) -> "Figure":
    """Errors by family, and DFP-16's gain on bfloat16 by how the operands fill their range.

    Colours tell precisions apart, and shapes tell families apart.
    """
    rows = [row for row in rows if not math.isnan(row.gain())]
    families = list(dict.fromkeys(row.family for row in rows))
    figure = figures.new_figure(12)
    above, below = figure.subplots(2, 1)
    for position, precision in enumerate(PRECISIONS):
        shift = 0.1 * (position - (len(PRECISIONS) - 1) / 2)
        places = [families.index(row.family) + shift for row in rows]
        errors = [row.error(precision.name) for row in rows]
        above.scatter(places, errors, s=9, color=COLOURS[precision.name], label=precision.name)
    above.set_yscale("log")
    above.set_ylabel("relative error")
    above.set_xticks(range(len(families)), families, rotation=20, ha="right")
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    above.set_title("error of every operation and pass", loc="left")

    for family, marker in zip(families, itertools.cycle("osDv^+x"), strict=False):
        chosen = [row for row in rows if row.family == family]
        fills, gains = [row.fill for row in chosen], [row.gain() for row in chosen]
        filled = marker in "+x"
        style = {"color": "black"} if filled else {"facecolors": "none", "edgecolors": "black"}
        below.scatter(fills, gains, s=24, marker=marker, linewidths=0.8, label=family, **style)
    fills = sorted(row.fill for row in rows)
    ends = [fills[0], fills[-1]]
    # Rounding to nearest is off by a step / √12 in rms. DFP-16's step is between 2^-15 and 2^-14 of the
    # largest value; bfloat16's is 2^-7 of the power of two below each value, which in rms is 0.74 of the
    # value if its logarithm is uniformly distributed.
    lower, upper = ([0.74 * 2**p * fill for fill in ends] for p in (7, 8))
    below.fill_between(ends, lower, upper, color="gray", alpha=0.25, label="expected of rounding")
    below.axhline(CLAIM, color="black", linestyle="--", linewidth=1, label=f"{CLAIM} times")
    below.axhline(1, color="black", linewidth=1)
    below.set_xscale("log")
    below.set_yscale("log")
    below.set_xlabel("rms / max of the operands (of both, combined)")
    below.set_ylabel("bfloat16's error : DFP-16's")
    below.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    below.set_title("DFP-16 against bfloat16", loc="left")
    return figures.save(figure, path)
