"""Measure what the size of blocks costs and gains: accuracy and kernel time.

    python -m benchmarks.block_sizes --out docs/results/block_sizes

The operands are those of ResNet-50's layers in the last step of training, as in benchmarks.fidelity. For each
size of blocks, and for one exponent per tensor, tables say how many times DFP-16's error bfloat16's is: first
of storage alone, where the product of the rounded operands is exact; then of the operation, whose kernels
round again where they bring blocks to a common exponent. Kernels are timed on the same operands, quantized
beforehand, on all cores; all sizes take turns. Prints Markdown tables; --out writes OUT.json. --quick takes a
small network, images of 64 pixels and less of everything.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jaxlib
import numpy as np

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.markdown import markdown
from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import PASSES, contractions
from benchmarks.common.records import write_record
from benchmarks.common.timing import best_seconds
from benchmarks.fidelity.networks import NETWORKS, captured
from benchmarks.fidelity.precisions import (
    BFLOAT16,
    DFP16,
    DFP16_BLOCKS,
    Precision,
    exact_passes,
    passes,
    relative_error,
)
from benchmarks.fidelity.results import gain_text
from benchmarks.fidelity.tensors import Operands
from benchmarks.kernels.contenders import kernel
from dfpjax import quantize, runtime_info
from dfpjax.numbers.format.blocks import Blocks

TENSOR = "tensor"
SIZES = {
    f"{rows}×{columns}": Blocks(rows=rows, columns=columns)
    for rows, columns in (
        (1, 32), (4, 32), (8, 32), (16, 32), (16, 16), (16, 64), (32, 64), (64, 128)
    )
} | {TENSOR: None}  # fmt: skip
"""By name, rows × columns; None is one exponent per tensor."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass of one layer with one size of blocks."""

    size: str
    layer: str
    operation: str
    which: str
    storage: float
    """bfloat16's error over that of the exact product of the rounded operands."""
    computed: float
    """bfloat16's error over the operation's."""
    seconds: float
    """The kernel's time."""


def stored(operand: np.ndarray, blocks: Blocks | None) -> np.ndarray:
    """A float32 array rounded to DFP-16."""
    return np.asarray(quantize(operand, blocks=blocks).dequantize())


def precision_of(blocks: Blocks | None) -> Precision:
    """DFP-16 with blocks of that size, or with one exponent per tensor."""
    if blocks is None:
        return DFP16
    return replace(DFP16_BLOCKS, blocks=blocks)


def kernels(operands: Operands) -> dict[str, dict[str, Callable[[], object]]]:
    """Of each pass the kernel with each size of blocks, as functions to time."""
    x, w, dy = operands.x, operands.w, operands.dy
    pairs = {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (dy, x)}
    found = {}
    for which, (*_, contraction) in contractions(operands.case).items():
        lhs, rhs = pairs[which]
        found[which] = {size: kernel(contraction, lhs, rhs, blocks) for size, blocks in SIZES.items()}
    return found


def measure(operands: Operands, **how) -> list[Row]:
    """Every size of blocks in the three passes of one layer."""
    print(f"{operands.family}: {operands.case.name} {operands.layer}", flush=True)
    tensors = (operands.x, operands.w, operands.dy)
    truth = exact_passes(operands.case, *tensors)
    peer = passes(operands.case, BFLOAT16, *tensors)
    bfloat16 = {which: relative_error(peer[which], truth[which]) for which in PASSES}
    seconds = {which: best_seconds(contenders, **how) for which, contenders in kernels(operands).items()}
    rows = []
    for size, blocks in SIZES.items():
        rounded = exact_passes(operands.case, *(stored(tensor, blocks) for tensor in tensors))
        computed = passes(operands.case, precision_of(blocks), *tensors)
        rows += [
            Row(
                size=size,
                layer=operands.layer,
                operation=operands.case.name,
                which=which,
                storage=bfloat16[which] / relative_error(rounded[which], truth[which]),
                computed=bfloat16[which] / relative_error(computed[which], truth[which]),
                seconds=seconds[which][size],
            )
            for which in PASSES
        ]
    return rows


def accuracy_table(rows: list[Row], measure: str) -> str:
    """bfloat16's error over DFP-16's of each size, geometric mean and least of the layers."""
    columns = ["block", *(text for which in PASSES for text in (which, "least"))]
    cells = []
    for size in SIZES:
        cells.append([size])
        for which in PASSES:
            gains = [getattr(row, measure) for row in rows if (row.size, row.which) == (size, which)]
            cells[-1] += [gain_text(geometric_mean(gains)), gain_text(min(gains))]
    return markdown(columns, cells, words=1)


def time_table(rows: list[Row]) -> str:
    """The kernel's time over that with one exponent per tensor, geometric mean and most of the layers."""
    tensor = {(row.layer, row.which): row.seconds for row in rows if row.size == TENSOR}
    columns = ["block", "memory of exponents", *(text for which in PASSES for text in (which, "most"))]
    cells = []
    for size, blocks in SIZES.items():
        # int32 for each block of int16.
        memory = 4 / (2 * blocks.rows * blocks.columns) if blocks else 0
        cells.append([size, f"{memory:.2%}"])
        for which in PASSES:
            chosen = [row for row in rows if (row.size, row.which) == (size, which)]
            ratios = [row.seconds / tensor[row.layer, which] for row in chosen]
            cells[-1] += [f"{geometric_mean(ratios):.2f}", f"{max(ratios):.2f}"]
    return markdown(columns, cells, words=1)


def tables(rows: list[Row]) -> str:
    parts = {
        "bfloat16's error : DFP-16's, storage alone": accuracy_table(rows, "storage"),
        "bfloat16's error : DFP-16's, the operation": accuracy_table(rows, "computed"),
        "Kernel time : that with one exponent per tensor": time_table(rows),
    }
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts.items())


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, few steps: does it work?")
    parser.add_argument("--batch", type=int, help="images of a batch (default: 8, or 2 with --quick)")
    parser.add_argument("--steps", type=int, help="training steps (default: 10, or 3 with --quick)")
    parser.add_argument("--budget", type=float, help="seconds for each kernel (default: 0.3, or 0.01)")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    arguments.batch = arguments.batch or (2 if arguments.quick else 8)
    arguments.steps = arguments.steps or (3 if arguments.quick else 10)
    arguments.budget = arguments.budget or (0.01 if arguments.quick else 0.3)
    if arguments.batch < 1 or arguments.steps < 2:
        parser.error("--batch must be at least 1 and --steps at least 2")
    arguments.image = 64 if arguments.quick else 224
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.block_sizes")
    start = time.perf_counter()
    sizes = {"batch": arguments.batch, "image": arguments.image, "steps": arguments.steps}
    found = captured(NETWORKS["resnet50"], quick=arguments.quick, **sizes, say=print)
    last = f"step {arguments.steps}"
    rows = [row for o in found if o.family.endswith(last) for row in measure(o, budget=arguments.budget)]
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{tables(rows)}\n\n{CORES} cores, {runtime_info().isa}; {minutes:.1f} minutes")
    if arguments.out:
        record = {
            "cpu": cpu_model(),
            "cores": CORES,
            "isa": runtime_info().isa,
            "allocator": arguments.allocator,
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
            **sizes,
            "minutes": minutes,
            "rows": [vars(row) for row in rows],
        }
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
