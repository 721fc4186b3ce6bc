"""What all pictures of the benchmarks share: one size that a page shows whole, and one meaning per colour."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOAT32, FLOAT32_PEER = "0.25", "0.6"
DFP16, DFP16_VARIANT = "tab:blue", "tab:cyan"
DFP16_BLOCKS, DFP16_BLOCKS_VARIANT = "navy", "tab:purple"
WINOGRAD2, WINOGRAD4 = "yellowgreen", "tab:green"
BFLOAT16, BFLOAT16_VARIANT = "tab:orange", "sandybrown"

WIDTH = 10
"""Inches. At `DPI` a page shows this without scaling, so its text is as large as the page's."""
DPI = 100


def new_figure(height: float) -> "Figure":
    """A figure of `WIDTH` and that height in inches, whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def save(figure: "Figure", path: Path) -> "Figure":
    """The figure, written to that file."""
    figure.savefig(path, dpi=DPI)
    return figure
