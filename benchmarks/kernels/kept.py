"""What calls gain that find their second operand as it was.

    python -m benchmarks.kernels.kept --out docs/results/kept

Of each product, one compiled call always has the same second operand, and keeps it packed; another one has
two in turn, and packs. Operands are quantized with exponents of blocks beforehand. Prints a Markdown table
with the time of both; --out writes OUT.json.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.markdown import markdown
from benchmarks.common.operations import contractions
from benchmarks.common.records import write_record
from benchmarks.common.shapes import Conv, Dot
from benchmarks.common.timing import best_seconds
from benchmarks.kernels.contenders import BLOCKS, contract, quantize
from dfpjax import runtime_info

CASES = (
    Dot(m=32, k=256, n=1024, role="a step of an LSTM"),
    Dot(m=64, k=512, n=2048),
    Dot(m=8, k=1024, n=1024),
    Dot(m=1, k=4096, n=4096),
    Dot(m=64, k=4096, n=4096),
    Conv(1, 512, 2048, 1, 7),
    Conv(1, 1024, 256, 1, 14),
)


def contenders(case: Conv | Dot) -> dict[str, Callable[[], object]]:
    """The call that finds its second operand as it was, and the one that does not."""
    lhs_shape, rhs_shape, contraction = contractions(case)["fprop"]
    random = np.random.default_rng(0)

    prepare = jax.jit(functools.partial(quantize, blocks=BLOCKS))
    x, w, other = (
        prepare(jnp.asarray(random.standard_normal(shape, np.float32)))
        for shape in (lhs_shape, rhs_shape, rhs_shape)
    )
    same, turns = (jax.jit(contract(contraction, 0, BLOCKS)) for _ in range(2))
    weights = itertools.cycle((w, other))
    return {
        "kept": lambda: same(*x, *w).block_until_ready(),
        "packed": lambda: turns(*x, *next(weights)).block_until_ready(),
    }


def table(rows: list[dict]) -> str:
    """Milliseconds of both, and how many times as fast the call is that keeps its operand."""
    lines = [
        [
            row["case"],
            *(f"{1e3 * row[name]:.3g}" for name in ("packed", "kept")),
            f"{row['packed'] / row['kept']:.2f}",
        ]
        for row in rows
    ]
    return markdown(["product", "packed, ms", "kept, ms", "times as fast"], lines)


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each call")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write OUT.json")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out)
    use_allocator(arguments.allocator, "benchmarks.kernels.kept")
    rows = []
    for case in CASES:
        seconds = best_seconds(contenders(case), budget=arguments.budget, rounds=arguments.rounds)
        rows.append({"case": case.name, **seconds})
    print(table(rows))
    if arguments.out:
        record = {"cpu": cpu_model(), "cores": CORES, "isa": runtime_info().isa, "rows": rows}
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
