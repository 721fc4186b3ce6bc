"""The results of `benchmarks.train_step`, as Markdown tables and a chart."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import figures
from benchmarks.train_step.roofline import bounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "JAX float32": figures.FLOAT32,
    "JAX dfp16": figures.DFP16,
    "JAX dfp16 frozen": figures.DFP16_BLOCKS,
    "JAX dfp16_direct": figures.DFP16_VARIANT,
    "JAX bfloat16": figures.BFLOAT16_VARIANT,
    "PyTorch float32": figures.FLOAT32_PEER,
    "PyTorch bfloat16": figures.BFLOAT16,
    "PyTorch float32 compiled": "0.8",
    "PyTorch bfloat16 compiled": "peachpuff",
}

TITLES = {
    "resnet50": "ResNet-50", "vgg16": "VGG-16", "alexnet": "AlexNet", "googlenet": "GoogLeNet",
    "vit": "ViT-S/16", "lstm": "character LSTM",
}  # fmt: skip
"""The networks, as readers know them."""

OURS = "JAX dfp16"
FROZEN = f"{OURS} frozen"
"""With weights that `dfpjax.freeze` brought to DFP16."""
COMPILED = " compiled"
"""What the names of those that torch.compile compiles end with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender on one network."""

    network: str
    mode: str
    batch: int
    takes: str
    allocator: str
    contender: str
    seconds: list[float]
    """Of every step, in their order."""

    peak_bytes: int
    """The most that was resident during the steps."""

    start_peak_bytes: int
    """And before, in compilation and the first step."""

    parameters: int
    macs: int
    """Multiply-accumulates of a step: of its convolutions and dot products, forward and backward."""

    breakdown: dict | None = None
    """Of DFP16 alone: where the time goes, with the peaks of the machine; see `breakdown` and `roofline`."""

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Images or texts per second, by the median step."""
        return self.batch / self.median

    @property
    def case(self) -> tuple[str, str, int, str]:
        return self.network, self.mode, self.batch, self.allocator


def cases(rows: Iterable[Row]) -> dict[tuple, dict[str, Row]]:
    """The rows of each network, mode, batch and allocator, by contender."""
    found = {}
    for row in rows:
        found.setdefault(row.case, {})[row.contender] = row
    return found


def table(rows: list[Row]) -> str:
    """A Markdown table of every row; the last column is how many times as fast as it DFP16 is."""
    columns = (
        "network", "mode", "batch", "allocator", "contender", "median s", "best s", "per second",
        "GMAC/s", "peak GB", "with start", "dfp16 is × as fast",
    )  # fmt: skip
    lines = [_line(columns), _line(["---"] * 5 + ["---:"] * 7)]
    for (network, mode, batch, allocator), contenders in cases(rows).items():
        ours = contenders.get(OURS)
        for row in contenders.values():
            cells = [
                network, mode, batch, allocator, row.contender, f"{row.median:.3f}", f"{row.best:.3f}",
                f"{row.rate:.1f}", f"{row.macs / row.median / 1e9:.0f}",
                f"{row.peak_bytes / 1e9:.1f}", f"{max(row.peak_bytes, row.start_peak_bytes) / 1e9:.1f}",
                f"{row.median / ours.median:.2f}" if ours and row is not ours else "",
            ]  # fmt: skip
            lines.append(_line(cells))
    return "\n".join(lines)


PEERS = ("JAX float32", "JAX bfloat16", "PyTorch float32", "PyTorch bfloat16")


def comparison(rows: list[Row]) -> str:
    """A Markdown table with a line for each network; empty without DFP16.

    It has images or texts per second of DFP16 and of its peers, and how many times as fast as each DFP16 is.
    PyTorch is eager or compiled, whichever is faster.
    """
    columns = "network", "mode", "batch", "allocator", OURS, *PEERS, *(f"dfp16 : {name}" for name in PEERS)
    lines = []
    for (network, mode, batch, allocator), contenders in cases(rows).items():
        if not (ours := contenders.get(OURS)):
            continue
        peers = [_faster(contenders, name) for name in PEERS]
        rates = [f"{peer.rate:.3g}{_how(peer)}" if peer else "" for peer in peers]
        ratios = [f"{peer.median / ours.median:.2f}" if peer else "" for peer in peers]
        lines.append(_line((network, mode, batch, allocator, f"{ours.rate:.3g}", *rates, *ratios)))
    head = [_line(columns), _line(["---"] * 4 + ["---:"] * (1 + 2 * len(PEERS)))]
    return "\n".join([*head, *lines]) if lines else ""


def _faster(contenders: dict[str, Row], name: str) -> Row | None:
    found = [contenders[form] for form in (name, f"{name}{COMPILED}") if form in contenders]
    return min(found, key=lambda row: row.median, default=None)


def _how(row: Row) -> str:
    return COMPILED * row.contender.endswith(COMPILED)


def breakdown_table(row: Row) -> str:
    """A Markdown table of where a step's time goes, and the time that the machine would need at best."""
    measured, classes = row.breakdown, row.breakdown["classes"]
    peaks = {name: measured[name] for name in ("peak", "memory")}
    best = bounds(classes, macs=measured["macs"], **peaks)
    total = sum(spent["seconds"] for spent in classes.values())
    lines = [
        f"{row.network}, {row.mode}, batch {row.batch}, allocator {row.allocator}: a step that is profiled "
        f"takes {measured['seconds']:.3f} s, otherwise {row.median:.3f} s. {measured['macs'] / 1e9:.0f} of "
        f"{row.macs / 1e9:.0f} GMAC are in DFP16. At best: kernels at {peaks['peak'] / 1e9:.0f} GMAC/s, all "
        f"else at {peaks['memory'] / 1e9:.0f} GB/s of memory.",
        "",
        _line(("class", "s", "share", "GB", "GB/s", "at best s")),
        _line(["---", *["---:"] * 5]),
    ]
    for name, spent in classes.items():
        seconds, moved = spent["seconds"], spent["bytes"] / 1e9
        speed = f"{moved / seconds:.0f}" if moved and seconds else ""
        cells = name, f"{seconds:.3f}", f"{seconds / total:.0%}", f"{moved:.2f}", speed, f"{best[name]:.3f}"
        lines.append(_line(cells))
    moved = sum(spent["bytes"] for spent in classes.values()) / 1e9
    lines.append(_line(("all", f"{total:.3f}", "100%", f"{moved:.2f}", "", f"{sum(best.values()):.3f}")))
    return "\n".join(lines)


def _line(cells: Iterable) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def chart(rows: list[Row], path: Path, title: str) -> "Figure":
    """Bars of images or texts per second, a panel for each network and mode, at most four side by side."""
    panels = {}
    for row in rows:
        panels.setdefault((row.network, row.mode, row.batch), []).append(row)
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = figures.new_figure(1 + 3.3 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    names = list(dict.fromkeys(row.contender for row in rows))
    allocators = list(dict.fromkeys(row.allocator for row in rows))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, ((network, mode, batch), chosen) in zip(axes, panels.items(), strict=False):
        for row in chosen:
            offset = names.index(row.contender) + 0.4 * allocators.index(row.allocator)
            colour = COLOURS.get(row.contender, "tab:purple")
            style = {"alpha": 1 if row.allocator == allocators[0] else 0.5}
            bar = axis.bar(offset, row.rate, 0.8 / len(allocators), color=colour, **style)
            axis.bar_label(bar, [f"{row.rate:.3g}"], fontsize="small")
        axis.margins(y=0.1)  # room for the labels of the bars
        labels = [name.replace(OURS, "dfpjax") if name in (OURS, FROZEN) else name for name in names]
        axis.set_xticks(range(len(names)), labels, rotation=60, ha="right")
        axis.set_ylabel(f"{chosen[0].takes} per second")
        how = "" if mode == "train" else f", {mode}"
        axis.set_title(f"{TITLES.get(network, network)}{how}, batch {batch}", fontsize="small")
    legend = f"; pale: allocator {allocators[1]}" if len(allocators) > 1 else ""
    figure.suptitle(title + legend, fontsize="medium")
    return figures.save(figure, path)
