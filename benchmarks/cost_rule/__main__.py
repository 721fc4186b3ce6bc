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
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import dfpjax
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.operations import ours_and_jax
from benchmarks.common.shapes import Dot
from benchmarks.common.timing import best_seconds
from benchmarks.cost_rule.cases import convolutions, dots, kind, takes_images
from benchmarks.cost_rule.results import BOTH, DFP16, FLOAT32, FORWARD, PASSES, Row, summary, table

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))

CHAIN_MACS = 64_000_000
"""Multiply-accumulates in a chain of runs, enough to hide the call from Python."""
MAX_RUNS = 16
"""A longer chain takes long to compile."""


def chain(function, operands, count: int):
    """A call of a jitted program that runs the function `count` times in sequence and waits for the result.

    One element of each result goes into the operands of the next run, so XLA can neither drop nor share nor
    overlap runs. A `lax.scan` would not do: inside a loop, the backward passes of XLA's float32 convolutions
    are a hundred times slower.
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
    console.print(f"{cpu_model()}, {CORES} cores, allocator settings: {arguments.allocator}")
    cases = [case for case in (*dots(), *convolutions()) if not arguments.only or arguments.only in case.name]
    if not cases:
        parser.error(f"no shape's name contains {arguments.only!r}")
    time = functools.partial(measure, budget=arguments.budget, rounds=arguments.rounds)
    rows = []
    for case in cases:
        console.print(f"{len(rows) + 1}/{len(cases)} {case.name}", style="dim")
        rows.append(time(case))
    console.print(table(rows))
    for name in dict.fromkeys(row.kind for row in rows):
        console.print(summary(name, [row for row in rows if row.kind == name]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "cores": CORES,
            "cpu": cpu_model(),
            "allocator": arguments.allocator,
            "rows": [asdict(row) for row in rows],
        }
        arguments.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return rows


if __name__ == "__main__":
    main()
