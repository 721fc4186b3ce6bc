"""The results of `benchmarks.open_issues`, as a Markdown table."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

JAX, OURS, TORCH = "JAX float32", "dfpjax", "PyTorch float32"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program."""

    program: str
    report: str
    seconds: dict[str, list[float]]
    """Of every run of each contender, in their order."""

    error: float
    """Of our results against JAX's float32, relative, in the 2-norm; the largest of all results."""

    coverage: float
    """The share of multiply-accumulates that the default policy brings to DFP16."""

    def median(self, contender: str) -> float:
        return statistics.median(self.seconds[contender])

    def times(self, contender: str) -> float:
        """Our speed as a multiple of that contender's."""
        return self.median(contender) / self.median(OURS)


def table(rows: Iterable[Row]) -> str:
    """Medians in milliseconds, and our speed as a multiple of the peers'."""
    columns = (
        "program", "report", f"{JAX}, ms", f"{OURS}, ms", f"{TORCH}, ms", f"× {JAX}", f"× {TORCH}",
        "in DFP16", "error",
    )  # fmt: skip
    lines = [columns, ("---", "---", *["---:"] * 7)]
    for row in rows:
        known = TORCH in row.seconds
        lines.append(
            (
                row.program.replace("_", " "),
                row.report,
                _milliseconds(row.median(JAX)),
                _milliseconds(row.median(OURS)),
                _milliseconds(row.median(TORCH)) if known else "",
                f"{row.times(JAX):.3g}",
                f"{row.times(TORCH):.3g}" if known else "",
                f"{row.coverage:.0%}",
                f"{row.error:.1e}",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"
