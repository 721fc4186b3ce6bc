"""Take a training step of other libraries' models in DFP16, and compare it with float32.

    python -m benchmarks.frameworks --torch-python …/bin/python --out docs/results/frameworks

Every convolution and dot product is in DFP16, however small. Errors are Euclidean norms of differences, as a
share of float32's: of the outputs, and of all gradients together. Gradients of networks with many
rectifications and batch normalizations amplify every change. So the same errors stand beside them of float32
steps whose weights and inputs are rounded to bfloat16, and nothing else is.

With an interpreter that has PyTorch, timm and safetensors, also networks of timm, whose random weights
`from_torch` brings over; the table then has the error of our float32 logits against PyTorch's own. Prints a
Markdown table; --out writes OUT.json.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp

import dfpjax
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.common.records import write_record
from benchmarks.frameworks.converted import load
from benchmarks.frameworks.models import MODELS, Step
from benchmarks.frameworks.results import Row, table, tree_error

FORCED = dfpjax.Policy(default=dfpjax.OpConfig(force=True))


def measure(name: str, step: Step, peer: float | None = None) -> Row:
    exact = step(lambda fun: fun)
    transforms = (lambda fun: dfpjax.mixed_precision(fun, FORCED)), rounded
    errors = [list(map(tree_error, step(transform), exact)) for transform in transforms]
    (output, gradient), (rounded_output, rounded_gradient) = errors
    return Row(
        model=name,
        output=output,
        gradient=gradient,
        rounded_output=rounded_output,
        rounded_gradient=rounded_gradient,
        peer=peer,
    )


def rounded(fun: Callable) -> Callable:
    """`fun` of arguments whose float32 numbers are rounded to bfloat16. Its gradients are not."""

    def to_bfloat16(leaf):
        if getattr(leaf, "dtype", None) != jnp.float32:
            return leaf
        return leaf + jax.lax.stop_gradient(jax.lax.reduce_precision(leaf, 8, 7) - leaf)

    return lambda *args, **kwargs: fun(*jax.tree.map(to_bfloat16, args), **kwargs)


def main(argv=None) -> list[Row]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; default: all")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch and timm")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out)
    rows = [measure(name, MODELS[name]) for name in arguments.model or MODELS]
    if arguments.torch_python:
        rows += [measure(name, step, peer) for name, (step, peer) in load(arguments.torch_python).items()]
    print(table(rows))
    if arguments.out:
        record = {"machine": f"{CORES} cores of {cpu_model()}", "rows": [asdict(row) for row in rows]}
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
