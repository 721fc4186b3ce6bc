"""Time the INT16 kernels against XLA's and oneDNN's float32 ones, and against the machine's peak.

    python -m benchmarks.kernels --out results/kernels

For each shape and each of fprop, dgrad and wgrad: the DFP16 kernel alone (packing and certification
included) with exponents of blocks, the same with the quantization of both operands, the kernel with one
exponent per tensor, the kernel by each Winograd algorithm where these suit, and XLA and PyTorch (oneDNN) in
float32 and, where the CPU has instructions for it, in bfloat16: PyTorch if an interpreter that has it is
found, this one or the one named by --torch-python. Rates are of the products of the definition, which a
Winograd algorithm has fewer of. Prints every row and a summary; --out writes OUT.json and a bar chart for
each suite, OUT_SUITE.png. All contenders have the same allocator settings (--allocator). Without --suite all
run, some 15 minutes on four cores, but "winograd": what these algorithms suit of resnet50 and vgg16.

    python -m benchmarks.kernels --suite resnet50 --threads 1,4

measures how the kernel alone gains from threads instead.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jaxlib
from rich.console import Console

from benchmarks.common import shapes
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.operations import PASSES, passes
from benchmarks.common.timing import best_seconds
from benchmarks.kernels import contenders, results
from benchmarks.kernels.contenders import Torch
from benchmarks.kernels.results import Row
from dfpjax import _native, runtime_info
from dfpjax.numbers.contraction.algorithm import TILES

TURNS = 3
"""How often the processes take turns."""


def peer_rows(suite: str, case, torch: Torch | None, *, xla: bool = True, **how) -> list[Row]:
    """The kernel and its peers, for every pass of one shape."""
    theirs = contenders.xla(case) if xla else {which: {} for which in PASSES}
    algorithms = TILES if isinstance(case, shapes.Conv) and case.suits_winograd else ()
    ours = {which: contenders.ours(*contraction, algorithms) for which, contraction in passes(case)}
    best = {which: {} for which in ours}
    how["budget"] /= TURNS
    for _ in range(TURNS):  # a slow moment of the machine should hit all of them
        onednn = torch.seconds(case, threads=CORES, **how) if torch else {}
        for which in ours:
            seconds = best_seconds({**ours[which], **theirs[which]}, **how)
            for name, value in (seconds | onednn.get(which, {})).items():
                best[which][name] = min(value, best[which].get(name, value))
    return [row(suite, case, which, seconds) for which, seconds in best.items()]


def thread_rows(suite: str, case, threads: list[int], **how) -> list[Row]:
    """The kernel alone on each number of threads, for every pass of one shape."""
    return [
        row(suite, case, which, best_seconds(contenders.kernel_on_threads(*contraction, threads), **how))
        for which, contraction in passes(case)
    ]


def row(suite: str, case, which: str, seconds: dict[str, float]) -> Row:
    """The row of what has just been measured, and the peak right after it."""
    peak = _native.measure_peak(CORES)["int16_dot"]
    return Row(suite=suite, name=case.name, which=which, macs=case.macs, seconds=seconds, peak=peak)


def best_peak(threads: int, repeats: int = 10) -> dict[str, float]:
    """The best of several measurements: virtual cores may share a physical one for a while."""
    measured = [_native.measure_peak(threads) for _ in range(repeats)]
    return {name: max(peak[name] for peak in measured) for name in ("int16_dot", "f32_fma")}


def thread_counts(text: str) -> list[int]:
    counts = [int(count) for count in text.split(",")]
    if len(counts) < 2 or min(counts) < 1 or max(counts) > CORES:
        raise argparse.ArgumentTypeError(f"give two or more numbers from 1 to {CORES}, such as 1,{CORES}")
    return counts


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", action="append", choices=shapes.SUITES, help="may be repeated")
    parser.add_argument("--only", default="", help="only shapes whose name contains this")
    parser.add_argument("--batch", type=int, help="batch size of convolutions (default: the suite's)")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each contender and pass")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=thread_counts, help="compare these numbers of threads, as in 1,4")
    parser.add_argument("--isa", help="instruction set path (default: DFPJAX_ISA, or the best one)")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch, for the oneDNN column")
    parser.add_argument("--no-xla", action="store_true", help="leave out XLA, which takes most of the time")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT_SUITE.png")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    if arguments.isa:
        os.environ["DFPJAX_ISA"] = arguments.isa
    arguments.cases = shapes.choose(arguments.suite or shapes.DISTINCT, arguments.only, arguments.batch)
    if not arguments.cases:
        parser.error(f"no shape's name contains {arguments.only!r}")
    prepare_output(parser, arguments.out, draws="charts")
    try:
        runtime_info()
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.kernels")

    console = Console(width=None if sys.stdout.isatty() else 160)
    info = runtime_info()
    console.print(f"{cpu_model()}, {CORES} cores, allocator settings: {arguments.allocator}")
    console.print(f"instruction set: {info}")
    counts = sorted({1, CORES, *(arguments.threads or ())})
    peaks = {count: best_peak(count) for count in counts}
    for count, peak in peaks.items():
        console.print(
            f"peak on {count} core{'s'[: count > 1]}: {peak['int16_dot']:.0f} GMAC/s of the int16 dot "
            f"instruction, {peak['f32_fma']:.0f} of f32 FMA"
        )
    torch = None if arguments.threads else contenders.find_torch(arguments.torch_python)
    if not torch and not arguments.threads:
        console.print("oneDNN is left out: no PyTorch here (name an interpreter that has it: --torch-python)")

    start = time.perf_counter()
    how = {"budget": arguments.budget, "rounds": arguments.rounds}
    rows = []
    for position, (suite, case) in enumerate(arguments.cases, 1):
        console.print(f"{position}/{len(arguments.cases)} {suite}: {case.name}", style="dim")
        if arguments.threads:
            rows += thread_rows(suite, case, arguments.threads, **how)
        else:
            rows += peer_rows(suite, case, torch, xla=not arguments.no_xla, **how)
    # The kernels are measured against the best that the machine has shown in the run.
    peak = max(peaks[CORES]["int16_dot"], *(row.peak for row in rows))
    rows = [replace(row, peak=peak) for row in rows]
    if arguments.threads:
        grown = [peaks[count]["int16_dot"] for count in arguments.threads]
        console.print(results.speed_up_table(rows, arguments.threads, grown))
    else:
        console.print(results.rates_table(rows))
        console.print(results.summary(rows))
        console.print(results.algorithms(rows))
    console.print(f"{info.isa} kernels; {(time.perf_counter() - start) / 60:.1f} minutes")

    if arguments.out:
        record = {
            "cpu": cpu_model(),
            "cores": CORES,
            "isa": info.isa,
            "allocator": arguments.allocator,
            "versions": {
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
                "torch": torch and torch.version,
            },
            "peaks": peaks,
            "rows": [vars(row) for row in rows],
        }
        write = arguments.out.parent.joinpath
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write(f"{arguments.out.name}.json").write_text(text + "\n")
        for suite in dict.fromkeys(row.suite for row in rows) if not arguments.threads else ():
            chosen = [row for row in rows if row.suite == suite]
            title = f"{suite}, {info.isa} on {CORES} cores of {cpu_model()}"
            results.chart(chosen, write(f"{arguments.out.name}_{suite}.png"), title)
    return rows


if __name__ == "__main__":
    main()
