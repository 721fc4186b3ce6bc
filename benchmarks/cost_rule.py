"""Time what the cost rule decides: which convolutions and dot products gain from dynamic fixed point.

    python -m benchmarks.cost_rule --out results/cost_rule.json

For a sweep of shapes, from tiny to medium: XLA in float32 against DFP16 with the quantization of both
operands, for the forward pass alone and together with the backward pass (the gradients of both operands; in a
first layer, of the kernel). Several runs of a small operation are timed as one: in a program, no call from
Python is part of its time. Prints what the rule says of each shape, marks where that costs more than 10 % of
the time, and suggests thresholds for dfpjax/policy/_cost.py.
"""

import argparse
import functools
import itertools
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import dfpjax
from benchmarks.contenders import ours_and_jax
from benchmarks.environment import add_allocator, use_allocator
from benchmarks.kernels import cpu_model
from benchmarks.shapes import Conv, Dot
from benchmarks.timing import best_seconds

FORWARD, BOTH = "forward", "forward + backward"
PASSES = (FORWARD, BOTH)
FLOAT32, DFP16 = "float32", "dfp16"
FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))
TOLERATED = 1.1
"""How many times the time of the faster of the two the rule's choice may take."""

CHAIN_MACS = 64_000_000
"""What a chain of runs should compute, for its call from Python to weigh little."""
MAX_RUNS = 16
"""A longer chain takes long to compile."""


@dataclass(frozen=True)
class Row:
    """One shape: its work, what the rule says, and how many times faster DFP16 is in each pass."""

    name: str
    kind: str
    macs: int
    elements: int
    chosen: bool
    """Whether the rule has it in DFP16."""
    reason: str
    gains: dict[str, float]
    seconds: dict[str, dict[str, float]]

    @property
    def intensity(self) -> float:
        return self.macs / self.elements

    def loss(self, chosen: bool) -> float:
        """How many times the other choice's time this choice takes, in the pass where that is worst."""
        return max(1 / gain if chosen else gain for gain in self.gains.values())

    @property
    def wrong(self) -> bool:
        """Whether the rule loses more than is tolerated, and its opposite would lose less."""
        return self.loss(self.chosen) > max(TOLERATED, self.loss(not self.chosen))


def dots() -> list[Dot]:
    """Square products, skinny ones, an LSTM's gates, and attention."""
    sizes = (64, 512, 4096)
    return [
        *(Dot(m=size, k=size, n=size) for size in (8, 16, 32, 48, 64, 96, 128, 192, 256, 512, 1024)),
        *(Dot(m=m, k=k, n=n) for m in (1, 2, 4, 8, 16, 32, 64) for k in sizes for n in sizes),
        *(Dot(m=m, k=2 * hidden, n=4 * hidden) for m in (16, 64) for hidden in (128, 512)),
        *(Dot(batch=heads, m=m, k=64, n=m) for heads in (1, 12, 96) for m in (16, 64, 197)),
        *(Dot(batch=heads, m=m, k=m, n=64) for heads in (12, 96) for m in (16, 64, 197)),
        *(Dot(batch=96, m=1, k=k, n=n) for k, n in ((64, 256), (256, 64))),  # decoding: one query
    ]


def convolutions() -> list[Conv]:
    """Of a few pixels up to a few hundred MMAC: 3×3, 1×1, depthwise and grouped, and first layers."""
    return [
        *(Conv(1, c, c, 3, image) for c in (1, 2, 4, 8, 16, 32, 64) for image in (4, 8, 16)),
        *(Conv(1, c, c, 1, image) for c in (4, 16, 64, 256) for image in (4, 14)),
        *(Conv(batch, c, c, 3, image) for batch in (8, 64) for c, image in ((32, 8), (64, 4), (128, 2))),
        *(Conv(64, c, 2 * c, kernel, image, 2) for kernel in (1, 3) for c, image in ((32, 8), (64, 4))),
        *(Conv(batch, c, c, 3, 14, groups=c) for batch in (1, 16) for c in (4, 32, 256)),
        *(Conv(batch, c, c, 3, 28, groups=c) for batch in (1, 16) for c in (16, 64)),
        *(Conv(16, 64, 64, kernel, 14, groups=groups) for kernel in (1, 3) for groups in (2, 8)),
        *(Conv(1, c, c, 3, 14, groups=32) for c in (64, 128, 256)),
        *(Conv(16, 1, 16, 3, image) for image in (8, 28)),
        *(Conv(batch, 3, 32, 3, 32) for batch in (1, 16)),
        Conv(1, 3, 64, 7, 112, 2),
        *(Conv(8, c, c, kernel, image) for kernel in (1, 3) for c, image in ((64, 28), (256, 14))),
    ]


def chain(function, operands, count: int):
    """A call of a jitted program that runs the function `count` times in turn; it waits for the result.

    One element of each result goes into the operands of the next run, so that nothing is left out, computed
    once for all runs, or computed at the same time. It is no `lax.scan`: in the body of a loop XLA's float32
    convolutions have backward passes a hundred times slower.
    """

    def fed(operand, result):
        return operand.at[(0,) * operand.ndim].set(jnp.tanh(result[(0,) * result.ndim]))

    def program(operands):
        for _ in range(count):
            results = function(*operands)
            operands = jax.tree.map(fed, operands, results[-len(operands) :])
        return results

    compiled = jax.jit(program)
    return lambda: jax.block_until_ready(compiled(operands))


def takes_images(case) -> bool:
    """Whether it is a first layer: nothing asks for the gradient of its input."""
    return isinstance(case, Conv) and case.channels in (1, 3)


def passes(operation, case):
    """The operation's passes: functions that give a result for each of their operands, and the operands."""

    def forward(lhs, rhs):
        out = operation(lhs, rhs)
        return out, out

    def both(lhs, rhs, cotangent):
        out, pullback = jax.vjp(operation, lhs, rhs)
        return out, *pullback(cotangent)

    def of_images(lhs, rhs, cotangent):
        out, pullback = jax.vjp(functools.partial(operation, lhs), rhs)
        return out, out, *pullback(cotangent)

    rng = np.random.default_rng(0)
    lhs, rhs, out = (jnp.asarray(rng.standard_normal(s, np.float32)) for s in (case.lhs, case.rhs, case.out))
    return {
        FORWARD: (forward, (lhs, rhs)),
        BOTH: (of_images if takes_images(case) else both, (lhs, rhs, out)),
    }


def kind(case) -> str:
    """The rule's name for what has thresholds of its own."""
    if isinstance(case, Dot):
        return "batched dot product" if case.batch > 1 else "dot product"
    return "grouped convolution" if case.groups > 1 else "convolution"


def runs(macs: int) -> int:
    """How many runs of an operation are timed as one."""
    return min(MAX_RUNS, math.ceil(CHAIN_MACS / macs))


def measure(case, *, budget: float, rounds: int) -> Row:
    _, operation = ours_and_jax(case)
    (op,) = dfpjax.explain(operation, jnp.zeros(case.lhs), jnp.zeros(case.rhs)).ops
    contenders = {FLOAT32: operation, DFP16: dfpjax.mixed_precision(operation, FORCED)}
    seconds = {}
    for which in PASSES:
        count = runs(case.macs)
        chains = {name: chain(*passes(run, case)[which], count) for name, run in contenders.items()}
        measured = best_seconds(chains, budget=budget, rounds=rounds)
        seconds[which] = {name: value / count for name, value in measured.items()}
    return Row(
        name=case.name if isinstance(case, Dot) else f"{case.batch} × {case.name}",
        kind=kind(case),
        macs=op.macs,
        elements=sum(map(math.prod, (op.lhs_shape, op.rhs_shape, op.out_shape))),
        chosen=op.dtype == DFP16,
        reason=op.reason,
        gains={which: times[FLOAT32] / times[DFP16] for which, times in seconds.items()},
        seconds=seconds,
    )


def worst(rows: Iterable[Row], chosen: bool) -> tuple[float, str]:
    """The largest loss, and the shape that has it, where all rows are decided alike."""
    return max(((row.loss(chosen), row.name) for row in rows), default=(1.0, "none"))


def split(rows: list[Row], least_macs: float, least_intensity: float) -> tuple[list[Row], list[Row]]:
    """Rows that these thresholds have in DFP16, and rows that they keep in float32."""
    chosen, kept = [], []
    for row in rows:
        enough = row.macs >= least_macs and row.intensity >= least_intensity
        (chosen if enough else kept).append(row)
    return chosen, kept


def suggestion(rows: list[Row], tolerated: float = math.inf) -> tuple[float, float]:
    """The thresholds (MACs, MACs per element) that lose least, in both passes together.

    Losses count by the squares of their logarithms: a large one weighs more than many that may be noise. No
    shape in DFP16 may take longer than is tolerated; where that cannot be, as little longer as can be. Every
    threshold tried lies halfway, by ratio, between two neighbouring rows, or lets all through or none.
    """

    def cuts(values):
        values = sorted({*values})
        between = [math.sqrt(low * high) for low, high in itertools.pairwise(values)]
        return [values[0], *between, 2 * values[-1]]

    def cost(thresholds):
        chosen, kept = split(rows, *thresholds)
        lost = [1 / gain for row in chosen for gain in row.gains.values()]
        given_up = [gain for row in kept for gain in row.gains.values()]
        squares = sum(math.log(max(loss, 1)) ** 2 for loss in (*lost, *given_up))
        return max(worst(chosen, True)[0], tolerated), squares

    return min(itertools.product(cuts(r.macs for r in rows), cuts(r.intensity for r in rows)), key=cost)


def table(rows: list[Row]) -> Table:
    result = Table(title="how many times faster DFP16 is, quantization of both operands included")
    columns = ("shape", "MACs", "MACs/element", *PASSES, "the rule says", "")
    for column in columns:
        result.add_column(column, justify="left" if column in ("shape", "the rule says", "") else "right")
    for row in rows:
        gains = [f"{row.gains[which]:.2f}" for which in PASSES]
        said = DFP16 if row.chosen else row.reason.split(" (")[0]
        mark = f"wrong: × {row.loss(row.chosen):.2f}" if row.wrong else ""
        cells = (row.name, f"{row.macs:,}", f"{row.intensity:.1f}", *gains, said, mark)
        result.add_row(*cells, style="red" if row.wrong else None)
    return result


def summary(kind: str, rows: list[Row]) -> str:
    """What the rule's thresholds come to, and others that would have been better."""

    def told(chosen: list[Row], kept: list[Row]) -> str:
        (slowest, slow), (largest, gaining) = worst(chosen, True), worst(kept, False)
        return (
            f"{len(chosen)} of {len(rows)} shapes in DFP16\n"
            f"    worst time of one of them: {slowest:.2f} × float32's ({slow})\n"
            f"    largest gain given up: {largest:.2f} × ({gaining})"
        )

    def suggested(tolerated: float) -> str:
        macs, intensity = thresholds = suggestion(rows, tolerated)
        values = f"macs={macs:_.0f}, macs_per_element={intensity:.3g}"
        return f"{values}: {told(*split(rows, *thresholds))}"

    now = told([row for row in rows if row.chosen], [row for row in rows if not row.chosen])
    return (
        f"{kind}: {now}\n"
        f"  loses least: {suggested(math.inf)}\n"
        f"  no shape slower by more than {TOLERATED - 1:.0%}: {suggested(TOLERATED)}\n"
    )


def main(argv=None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="only shapes whose name contains this")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds for each contender and pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write this JSON file")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    use_allocator(arguments.allocator, "benchmarks.cost_rule")

    console = Console(width=None if sys.stdout.isatty() else 140)
    threads = len(os.sched_getaffinity(0))
    console.print(f"{cpu_model()}, {threads} cores, allocator settings: {arguments.allocator}")
    cases = [case for case in (*dots(), *convolutions()) if not arguments.only or arguments.only in case.name]
    if not cases:
        parser.error(f"no shape's name contains {arguments.only!r}")
    time = functools.partial(measure, budget=arguments.budget, rounds=arguments.rounds)
    rows = []
    for case in cases:
        console.print(f"{len(rows) + 1}/{len(cases)} {case.name}", style="dim")
        rows.append(time(case))
    console.print(table(rows))
    for kind in dict.fromkeys(row.kind for row in rows):
        console.print(summary(kind, [row for row in rows if row.kind == kind]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "cores": threads,
            "cpu": cpu_model(),
            "allocator": arguments.allocator,
            "rows": [asdict(row) for row in rows],
        }
        arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return rows


if __name__ == "__main__":
    main()
