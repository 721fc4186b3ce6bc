"""Time of the kernel by the length of its chains.

    python -m benchmarks.kernels.chains --out docs/results/chains

One thread multiplies two matrices that fit its caches, with one exponent per tensor and with exponents of
blocks. All chains have one length. Mantissas have 8 bits, so no chain can overflow and nothing is certified:
what is left is the microkernel, and packing. Prints a Markdown table with shares of the peak that a loop of
the int16 instruction reaches in registers; --out writes OUT.json.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import add_allocator, cpu_model, use_allocator
from benchmarks.common.markdown import markdown
from benchmarks.common.operations import contractions, normal
from benchmarks.common.records import write_record
from benchmarks.common.shapes import Dot
from benchmarks.common.timing import best_seconds
from benchmarks.kernels.contenders import contract
from dfpjax import _native, kernels, runtime_info
from dfpjax.numbers import Quantizer
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantize import quantize_array

CASE = Dot(m=768, k=512, n=512)
BITS = 8
LENGTHS = {"one exponent": (2, 4, 8, 16, 32, 64, 128, 256), "blocks": (2, 4, 8, 16, 32)}
"""Products of a chain; with exponents of blocks it ends with its segment of 32."""


def contenders(case: Dot) -> dict[tuple[str, int], Callable[[], object]]:
    """Functions of no arguments, by granularity and length."""
    lhs_shape, rhs_shape, contraction = contractions(case)["fprop"]
    found = {}
    for granularity, lengths in LENGTHS.items():
        blocks = Blocks() if granularity == "blocks" else None
        quantize = jax.jit(functools.partial(quantize_array, quantizer=Quantizer(bits=BITS), blocks=blocks))
        operands = (*quantize(normal(lhs_shape)), *quantize(normal(rhs_shape)))
        for length in lengths:
            kernel = functools.partial(kernels.contract_fixed_chain, length=length, bounded=True)
            run = jax.jit(contract(contraction, 1, blocks, kernel=kernel))
            found[granularity, length] = functools.partial(run, *operands)
    return found


def measure(case: Dot, *, budget: float, rounds: int) -> list[dict]:
    """A row for each granularity and length, with its share of the peak."""
    runs = {key: lambda run=run: jax.block_until_ready(run()) for key, run in contenders(case).items()}
    peaks: list[float] = []
    runs["peak"] = lambda: peaks.append(_native.measure_peak(1)["int16_dot"])
    seconds = best_seconds(runs, budget=budget, rounds=rounds)
    del seconds["peak"]
    rates = {key: case.macs / second / 1e9 for key, second in seconds.items()}
    return [
        {"granularity": granularity, "length": length, "rate": rate, "share": rate / max(peaks)}
        for (granularity, length), rate in rates.items()
    ]


def table(rows: list[dict]) -> str:
    """Shares of the peak: a line for each granularity, a column for each length."""
    lengths = LENGTHS["one exponent"]
    shares = {(row["granularity"], row["length"]): f"{row['share']:.2f}" for row in rows}
    lines = [[name, *(shares.get((name, length), "") for length in lengths)] for name in LENGTHS]
    return markdown(["chain", *map(str, lengths)], lines)


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each length")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write OUT.json")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out)
    use_allocator(arguments.allocator, "benchmarks.kernels.chains")
    rows = measure(CASE, budget=arguments.budget, rounds=arguments.rounds)
    print(table(rows))
    if arguments.out:
        machine = f"one core of {cpu_model()}"
        record = {"machine": machine, "isa": runtime_info().isa, "case": CASE.name, "rows": rows}
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
