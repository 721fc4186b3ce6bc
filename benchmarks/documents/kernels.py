"""The tables on the kernels."""

from collections.abc import Callable, Sequence

from benchmarks import block_sizes
from benchmarks.common.markdown import markdown
from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import PASSES
from benchmarks.documents import sources
from benchmarks.kernels import chains, kept
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
from benchmarks.kernels.results import Row


def chain_lengths() -> str:
    """Shares of the peak by the length of chains."""
    return chains.table(sources.record("chains")["rows"])


def kept_operands() -> str:
    """Calls that keep their second operand packed."""
    return kept.table(sources.record("kept")["rows"])


def sizes_of_blocks() -> str:
    """All tables of `benchmarks.block_sizes`."""
    return block_sizes.tables([block_sizes.Row(**row) for row in sources.record("block_sizes")["rows"]])


def _by_pass(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[str, float]:
    return {which: geometric_mean(value(row) for row in rows if row.which == which) for which in PASSES}


def direct() -> str:
    """ResNet-50's convolutions, product by product: GMAC/s, and ratios."""
    rows = sources.kernel_rows("kernels")
    rates = {
        "kernel": KERNEL,
        "with quantization": QUANTIZED,
        "one exponent": ONE_EXPONENT,
        "XLA f32": XLA,
        "XLA bf16": XLA_BFLOAT16,
        "oneDNN f32": ONEDNN,
        "oneDNN bf16": ONEDNN_BFLOAT16,
    }
    # On CPUs without instructions for bfloat16, nothing was measured in it.
    rates = {title: name for title, name in rates.items() if all(name in row.seconds for row in rows)}
    peers = {title: name for title, name in rates.items() if name not in (KERNEL, QUANTIZED, ONE_EXPONENT)}
    means = [_by_pass(rows, lambda row, name=name: row.rate(name)) for name in rates.values()]
    ratios = [_by_pass(rows, lambda row, name=name: row.times(name)) for name in peers.values()]
    shares = _by_pass(rows, lambda row: row.share())
    lines = [
        [
            which,
            *(f"{rate[which]:.0f}" for rate in means),
            f"{shares[which]:.2f}",
            *(f"{ratio[which]:.2g}" for ratio in ratios),
        ]
        for which in PASSES
    ]
    return markdown(["pass", *rates, "of peak", *(f": {peer}" for peer in peers)], lines)


def winograd() -> str:
    """3×3 convolutions by algorithm: GMAC/s of the definition's products, and ratios."""
    rows = [
        row for row in sources.kernel_rows("kernels_winograd") if set(WINOGRAD.values()) <= set(row.seconds)
    ]
    lines = []
    for which in PASSES:
        group = [row for row in rows if row.which == which]
        for label, name in {"direct": KERNEL, **WINOGRAD}.items():
            values = [
                geometric_mean(row.rate(name) for row in group),
                geometric_mean(row.share(name) for row in group),
                *(
                    geometric_mean(row.times(c, name) for row in group)
                    for c in (KERNEL, ONEDNN, ONEDNN_BFLOAT16)
                ),
            ]
            lines.append([which, label, f"{values[0]:.0f}", *(f"{value:.2f}" for value in values[1:])])
    head = [
        "pass", "algorithm", "GMAC/s", "of the int16 peak", ": direct", ": oneDNN float32",
        ": oneDNN bfloat16",
    ]  # fmt: skip
    return markdown(head, lines, words=2)
