"""The results of `benchmarks.robustness` as Markdown tables."""

from benchmarks.common.markdown import markdown
from benchmarks.common.operations import PASSES
from benchmarks.fidelity.results import number_text
from benchmarks.robustness.depth import GAINS, DepthRow
from benchmarks.robustness.nonfinite import NonfiniteRow
from benchmarks.robustness.outliers import FACTOR, PADDING, ChannelRow, PaddingRow
from benchmarks.robustness.precisions import COMPARED


def outlier_table(rows: list[ChannelRow]) -> str:
    columns = [
        "precision",
        "ordinary part",
        "with the outlier's own error",
        "dw, median channel",
        "dw, worst ordinary channel",
        "dw, outlying channel",
    ]
    cells = []
    for row in rows:
        values = (row.alone, row.exact, row.median_channel, row.worst_channel, row.outlier_channel)
        cells.append([row.precision, *map(number_text, values)])
    return markdown(columns, cells, words=1)


def padding_table(rows: list[PaddingRow]) -> str:
    columns = ["input", "precision", "median row", "worst row", "rows that are zero"]
    cells = [
        [_shape(row), row.precision, number_text(row.median), number_text(row.worst), f"{row.zero:.0%}"]
        for row in rows
    ]
    return markdown(columns, cells, words=2)


def nonfinite_table(rows: list[NonfiniteRow]) -> str:
    columns = ["input", "NaN in", "precision", "y", "dx", "dw"]
    cells = []
    for row in rows:
        counts = ["{} of {}".format(*row.rows[which]) for which in PASSES]
        cells.append([_shape(row), row.operand, row.precision, *counts])
    return markdown(columns, cells, words=3)


def depth_table(rows: list[DepthRow]) -> str:
    columns = ["gain", *(text for p in COMPARED for text in (p.name, "worst layer"))]
    cells = []
    for gain in GAINS:
        found = {row.precision: row for row in rows if row.gain == gain}
        values = [value for p in COMPARED for value in (found[p.name].error, found[p.name].worst)]
        cells.append([f"{gain}", *map(number_text, values)])
    return markdown(columns, cells, words=1)


def _shape(row: PaddingRow | NonfiniteRow) -> str:
    return f"[{', '.join(map(str, row.shape))}]"


def tables(*, outlier_channel, padding_token, nonfinite, depth) -> str:
    """All of them, each behind a sentence that says what it holds."""
    parts = {
        f"An input channel is {FACTOR} times as large as the others. Relative error of the others' "
        "contribution to the product: the result, less the outlying channel's product, computed alone in the "
        "same precision (ordinary part) or in float64 (with the outlier's own error). And relative error of "
        "each channel's weight gradient.": outlier_table(outlier_channel),
        f"One token is {PADDING:.0e}. Relative error of the other tokens' rows.": padding_table(
            padding_token
        ),
        "One number is NaN. Rows of the results that have a NaN.": nonfinite_table(nonfinite),
        "Dense layers with SELU and no normalization. Relative error of the layers' weight gradients, "
        "geometric mean, and of the worst layer.": depth_table(depth),
    }
    return "\n\n".join(f"{text}\n\n{table}" for text, table in parts.items())
