"""Time products of few rows with frozen weights, beside float32 and the speed of memory.

    python -m benchmarks.serving --torch-python PYTHON --out results/serving

For each matrix and number of rows: the product with the frozen matrix, JAX's in float32, PyTorch's in float32
and bfloat16, and a pass that only reads as many bytes as the frozen matrix has. Prints a table; --out writes
OUT.json and OUT.md. `python -m benchmarks.serving.decoder` measures a decoder.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

import dfpjax
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.records import write_record
from benchmarks.common.timing import best_seconds
from benchmarks.common.torch_process import TorchProcess
from dfpjax.kernels import passes

ROWS = (1, 4, 8, 32, 128)
MATRICES = ((4096, 4096), (4096, 11008), (11008, 4096))


def measure(shape: tuple[int, int], rows: int, torch: TorchProcess | None, **how) -> dict:
    """Seconds of each contender, and the bytes of the frozen matrix."""
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=shape), jnp.float32)
    x = jnp.asarray(random.normal(size=(rows, shape[0])), jnp.float32)
    frozen = dfpjax.freeze({"kernel": weights})["kernel"]
    as_many_bytes = jnp.zeros(frozen.nbytes // 4, jnp.float32) + 1

    def product(weights, x):
        return x @ weights

    in_float32, in_dfp16 = jax.jit(product), jax.jit(dfpjax.mixed_precision(product))
    read = jax.jit(passes.largest_magnitude)
    contenders = {
        "frozen": lambda: in_dfp16(frozen, x).block_until_ready(),
        "jax float32": lambda: in_float32(weights, x).block_until_ready(),
        "read": lambda: read(as_many_bytes).block_until_ready(),
    }
    seconds = best_seconds(contenders, **how)
    for dtype in ("float32", "bfloat16") if torch else ():
        case = {"lhs": [rows, shape[0]], "rhs": list(shape), "type": dtype, "threads": CORES}
        seconds[f"torch {dtype}"] = torch.ask(**case, **how)["fprop"]
    return {"shape": shape, "rows": rows, "bytes": frozen_bytes(shape), "seconds": seconds}


def frozen_bytes(shape: tuple[int, int]) -> int:
    """Those of a matrix in panels."""
    frozen = jax.eval_shape(
        lambda w: dfpjax.freeze({"kernel": w})["kernel"], jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    return frozen.nbytes


def table(rows: list[dict]) -> str:
    """The figures as a table in Markdown."""
    names = list(rows[0]["seconds"])
    times = " | ".join(f"{name}, ms" for name in names)
    lines = [
        f"| matrix | rows | {times} | × jax float32 | of the read's speed |",
        f"| --- | ---: |{' ---: |' * (len(names) + 2)}",
    ]
    for row in rows:
        seconds = row["seconds"]
        times = " | ".join(f"{1e3 * seconds[name]:.3f}" for name in names)
        gain, share = seconds["jax float32"] / seconds["frozen"], seconds["read"] / seconds["frozen"]
        lines.append(
            f"| {row['shape'][0]}×{row['shape'][1]} | {row['rows']} | {times} | {gain:.2f} | {share:.2f} |"
        )
    return "\n".join(lines)


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=lambda text: [int(n) for n in text.split(",")], default=ROWS)
    parser.add_argument("--matrix", action="append", help="as in 4096x11008; may be repeated")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each contender")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    given = arguments.matrix and [tuple(map(int, text.split("x"))) for text in arguments.matrix]
    arguments.matrices = given or MATRICES
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> list[dict]:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.serving")
    torch = (
        TorchProcess(arguments.torch_python, "benchmarks.kernels.torch_worker")
        if arguments.torch_python
        else None
    )
    how = {"budget": arguments.budget, "rounds": arguments.rounds}
    rows = []
    for shape in arguments.matrices:
        for count in arguments.rows:
            rows.append(measure(shape, count, torch, **how))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if torch:
        torch.close()
    isa = dfpjax.runtime_info().isa
    title = f"{cpu_model()}, {CORES} cores, {isa} kernels"
    print(f"{title}\n\n{table(rows)}")
    if arguments.out:
        versions = {
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "torch": torch and torch.greeting["torch"],
        }
        record = {"cpu": cpu_model(), "cores": CORES, "isa": isa, "versions": versions, "rows": rows}
        write_record(arguments.out, record)
        arguments.out.with_name(f"{arguments.out.name}.md").write_text(f"{title}.\n\n{table(rows)}\n")
    return rows


if __name__ == "__main__":
    main()
