"""Measure what DFP-16 does where one exponent would not do: outliers, padding, NaN, and great depth.

    python -m benchmarks.robustness --out docs/results/robustness

Compares bfloat16 operands, DFP-16 with one exponent per tensor and DFP-16 in blocks with float64. Prints
Markdown tables, with what each column means above it; --out writes OUT.json. Takes a minute; --quick, with
small shapes, a few seconds.
"""

import argparse
import time
from pathlib import Path

import jax
import jaxlib

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.common.records import write_record
from benchmarks.robustness import results
from benchmarks.robustness.depth import deep_network
from benchmarks.robustness.nonfinite import one_nan
from benchmarks.robustness.outliers import outlier_channel, padding_token
from dfpjax import runtime_info


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes: does it work?")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    arguments = parser.parse_args(argv)
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> dict[str, list]:
    arguments = parse(argv)
    start = time.perf_counter()
    channels = 128 if arguments.quick else 512
    texts, tokens = (2, 16) if arguments.quick else (8, 32)
    depth, width = (6, 64) if arguments.quick else (24, 256)
    product = {"channels": channels, "features": channels}
    measured = {
        "outlier_channel": outlier_channel(texts * tokens, **product),
        "padding_token": padding_token(texts, tokens, **product),
        "nonfinite": one_nan(texts, tokens, **product),
        "depth": deep_network(depth, width, batch=64),
    }
    minutes = (time.perf_counter() - start) / 60
    print(f"{results.tables(**measured)}\n\n{minutes:.1f} minutes")
    if arguments.out:
        record = {
            "cpu": cpu_model(),
            "cores": CORES,
            "isa": runtime_info().isa,
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
            "texts": texts,
            "tokens": tokens,
            **product,
            "depth_layers": depth,
            "width": width,
            **{name: [vars(row) for row in rows] for name, rows in measured.items()},
        }
        write_record(arguments.out, record)
    return measured


if __name__ == "__main__":
    main()
