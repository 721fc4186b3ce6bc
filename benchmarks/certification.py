"""Time the certification of chains, against a fixed length that is known to be safe.

    python -m benchmarks.certification --out docs/results/certification

For each convolution of ResNet-50 and each of fprop, dgrad and wgrad, on the same normally distributed
mantissas of 12 bits: the kernel with certified chains, and with chains of 128 and of 256 products. With 12
bits no chain of that length can overflow, so these two need neither norms nor checks.

- certified : chain 128 is the cost of certification; the target is at most 1.08 in the mean. Longer chains
  make up for part of it: mantissas of 12 bits are certified for chains of 256, which end half as often.
- certified : chain 256 is the cost of the norms alone: the same chains, with and without them.
- 16 bits : chain 128 is the whole cost for full mantissas: the norms, and the shorter chains that the data
  require (32 products for most tiles of normally distributed data, more in a network, whose tensors have few
  large values). The time of an uncertified chain does not depend on the data. With 16 bits its result would
  be wrong, so the chain of 12 bits serves here, too.

Prints every row and geometric means; --out writes OUT.json.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import jaxlib
from rich.console import Console
from rich.table import Table

from benchmarks.common import shapes
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.means import geometric_mean
from benchmarks.common.operations import normal, passes
from benchmarks.common.records import write_record
from benchmarks.common.timing import Contenders, best_seconds
from benchmarks.kernels.contenders import contract
from benchmarks.kernels.results import Row, by_suite_and_pass, rate, ratio
from dfpjax import _native, kernels, runtime_info
from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.accumulation import is_bounded
from dfpjax.numbers.format.quantize import quantize_array

BITS = 12
CERTIFIED, CHAIN_128, CHAIN_256, WIDE = "certified", "chain 128", "chain 256", "16 bits"
RATIOS = ((CERTIFIED, CHAIN_128), (CERTIFIED, CHAIN_256), (WIDE, CHAIN_128))
TARGET = 1.08
"""Largest acceptable cost of certification, as a multiple of the time of a chain of 128."""


def contenders(lhs_shape, rhs_shape, contraction, threads: int) -> Contenders:
    """The kernel alone on quantized operands, on at most so many threads (0: all): certified, and with chains
    that need no certificate."""

    def operands(bits: int):
        quantize = jax.jit(functools.partial(quantize_array, quantizer=Quantizer(bits=bits)))
        return *quantize(lhs), *quantize(rhs)

    def call(kernel, operands):
        compiled = jax.jit(contract(contraction, threads, kernel=kernel))
        return lambda: jax.block_until_ready(compiled(*operands))

    def chain(length: int):
        bounded = is_bounded(length, BITS, BITS)
        assert bounded, f"chains of {length} products could overflow"
        return functools.partial(kernels.contract_fixed_chain, length=length, bounded=bounded)

    lhs, rhs = normal(lhs_shape), normal(rhs_shape)
    narrow, wide = operands(BITS), operands(16)
    return {
        CERTIFIED: call(kernels.contract, narrow),
        CHAIN_128: call(chain(128), narrow),
        CHAIN_256: call(chain(256), narrow),
        WIDE: call(kernels.contract, wide),
    }


def cost(rows: list[Row], of: str, against: str) -> float:
    """Geometric mean of how many times as long one contender takes as another."""
    return geometric_mean(row.times(of, ours=against) for row in rows)


def table(rows: list[Row]) -> Table:
    """Rates of every row, the ratios of times, and their geometric means."""
    result = Table(title=f"GMAC/s, and times as multiples; the target is {TARGET} for the first in the mean")
    names = (CERTIFIED, CHAIN_128, CHAIN_256, WIDE)
    for column in ("shape", "pass"):
        result.add_column(column)
    for column in (*names, *(f"{of} : {against}" for of, against in RATIOS)):
        result.add_column(column, justify="right")
    for row in rows:
        rates = (rate(row.rate(name)) for name in names)
        result.add_row(row.name, row.which, *rates, *(ratio(cost([row], *pair)) for pair in RATIOS))
    result.add_section()
    for _, which, group in [*by_suite_and_pass(rows), ("all", "all", rows)]:
        rates = (rate(geometric_mean(row.rate(name) for row in group)) for name in names)
        costs = (f"{cost(group, *pair):.3f}" for pair in RATIOS)
        result.add_row("geometric mean", which, *rates, *costs, style="bold")
    return result


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=shapes.SUITES, default="resnet50")
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--batch", type=int, help="batch size of convolutions (default: the suite's)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each contender and pass")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=CORES, help="at most so many (default: all cores)")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.threads <= CORES:
        parser.error(f"--threads must be from 1 to {CORES}, got {arguments.threads}")
    arguments.cases = shapes.choose([arguments.suite], arguments.only, arguments.batch)
    if not arguments.cases:
        parser.error(f"no shape's name contains {arguments.only!r}")
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.certification")
    console = Console(width=None if sys.stdout.isatty() else 160)
    info = runtime_info()
    console.print(
        f"{cpu_model()}, {CORES} cores, {arguments.threads} in use, allocator settings: {arguments.allocator}"
    )
    console.print(f"instruction set: {info}")
    start, rows = time.perf_counter(), []
    for position, (suite, case) in enumerate(arguments.cases, 1):
        console.print(f"{position}/{len(arguments.cases)} {suite}: {case.name}", style="dim")
        for which, contraction in passes(case):
            how = {"budget": arguments.budget, "rounds": arguments.rounds}
            seconds = best_seconds(contenders(*contraction, arguments.threads), **how)
            peak = _native.measure_peak(CORES)["int16_dot"]
            row = Row(suite=suite, name=case.name, which=which, macs=case.macs, seconds=seconds, peak=peak)
            rows.append(row)
    console.print(table(rows))
    console.print(f"{info.isa} kernels; {(time.perf_counter() - start) / 60:.1f} minutes")
    if arguments.out:
        record = {
            "cpu": cpu_model(),
            "cores": CORES,
            "threads": arguments.threads,
            "isa": info.isa,
            "allocator": arguments.allocator,
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
            "batch": arguments.batch or arguments.cases[0][1].batch,
            "geometric_means": {
                f"{of} : {against}": {
                    which: cost(group, of, against)
                    for _, which, group in [*by_suite_and_pass(rows), ("all", "all", rows)]
                }
                for of, against in RATIOS
            },
            "rows": [vars(row) for row in rows],
        }
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
