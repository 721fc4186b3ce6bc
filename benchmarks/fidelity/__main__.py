"""Measure how accurate dynamic fixed point is, next to bfloat16 and float32.

    python -m benchmarks.fidelity --out docs/results/fidelity

The forward pass and both gradients of convolutions and dots are computed in every precision and compared
with float64, on random tensors of several distributions and on those of networks in training: ResNet-50,
VGG-16 and ViT-S/16 while they learn to tell photographs apart (they come with scikit-learn and, where it is
installed, scikit-image), and an LSTM while it learns to predict the characters of a text. Prints Markdown
tables; --out writes OUT.json and a chart, OUT.png. --quick, with small networks, images of 64 pixels and less
of everything, takes about a minute. --tensors chooses what to look at, and --winograd the convolutions that
Winograd algorithms suit; these are computed directly and by each of them.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

from benchmarks.common import shapes
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.common.records import write_record
from benchmarks.fidelity import precisions, results
from benchmarks.fidelity.networks import NETWORKS, captured
from benchmarks.fidelity.photographs import photographs
from benchmarks.fidelity.precisions import WINOGRAD, exact_passes, passes, precisions_of
from benchmarks.fidelity.results import Row
from benchmarks.fidelity.tensors import RANDOM, Operands, random_operands
from dfpjax import runtime_info

RANDOM_TENSORS = "random"
OPERANDS_OF = {"fprop": (0, 1), "dgrad": (2, 1), "wgrad": (0, 2)}
"""Which two of input, kernel and output gradient each pass multiplies."""


def random_cases(batch: int, image: int) -> list:
    """Convolutions of ResNet-50 for images of that many pixels, and dots."""
    return [
        shapes.Conv(batch, 64, 64, 3, image // 4),
        shapes.Conv(batch, 256, 64, 1, image // 4),
        shapes.Conv(batch, 128, 128, 3, image // 4, 2),
        shapes.Conv(batch, 512, 512, 3, image // 32),
        shapes.Dot(m=32, k=2048, n=1000, role="classifier"),
        shapes.Dot(m=512, k=512, n=512),
    ]


def say(text: str) -> None:
    """Print progress at once."""
    print(text, flush=True)


def random_families(cases: list) -> Iterator[Operands]:
    for family in RANDOM:
        for case in cases:
            yield random_operands(family, case)


def measure(operands: Operands) -> list[Row]:
    """The errors of each precision in each pass of one operation."""
    say(f"{operands.family}: {operands.case.name} {operands.layer}")
    tensors = (operands.x, operands.w, operands.dy)
    truths = exact_passes(operands.case, *tensors)
    # The channels of a result are those of the output or of the input; those of a kernel are in an axis of
    # their own.
    channels = {"fprop": -1, "dgrad": -1, "wgrad": operands.case.rhs_channels}
    errors = {which: {} for which in truths}
    for precision in precisions_of(operands.case):
        results = passes(operands.case, precision, *tensors)
        for which, truth in truths.items():
            errors[which][precision.name] = {
                "relative": precisions.relative_error(results[which], truth),
                "largest": precisions.largest_error(results[which], truth),
                "channel": precisions.worst_channel_error(results[which], truth, channels[which]),
            }
    fills = [precisions.rms_over_max(tensor) for tensor in tensors]
    lost = [precisions.share_lost(tensor) for tensor in tensors]
    return [
        Row(
            family=operands.family,
            layer=operands.layer,
            operation=operands.case.name,
            which=which,
            rms_over_max=(fills[one], fills[other]),
            lost=(lost[one], lost[other]),
            errors=errors[which],
        )
        for which, (one, other) in OPERANDS_OF.items()
    ]


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tensors",
        action="append",
        choices=(RANDOM_TENSORS, *NETWORKS),
        help="may be repeated (default: all)",
    )
    parser.add_argument("--winograd", action="store_true", help="only what Winograd algorithms suit")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps: does it work?")
    parser.add_argument("--batch", type=int, help="images of a batch (default: 8, or 2 with --quick)")
    parser.add_argument("--steps", type=int, help="training steps (default: 10, or 3 with --quick)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    arguments = parser.parse_args(argv)
    arguments.batch = arguments.batch or (2 if arguments.quick else 8)
    arguments.steps = arguments.steps or (3 if arguments.quick else 10)
    if arguments.batch < 1 or arguments.steps < 2:
        parser.error("--batch must be at least 1 and --steps at least 2")
    arguments.tensors = arguments.tensors or [RANDOM_TENSORS, *NETWORKS]
    arguments.image = 64 if arguments.quick else 224
    prepare_output(parser, arguments.out, draws="chart")
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    start = time.perf_counter()
    sizes = {"batch": arguments.batch, "image": arguments.image}
    families = {
        name: captured(network, quick=arguments.quick, **sizes, steps=arguments.steps, say=say)
        for name, network in NETWORKS.items()
    }
    cases = random_cases(**sizes)
    families[RANDOM_TENSORS] = random_families(cases[:1] + cases[-1:] if arguments.quick else cases)
    chosen = itertools.chain(*(families[name] for name in arguments.tensors))
    if arguments.winograd:
        chosen = (operands for operands in chosen if WINOGRAD[0] in precisions_of(operands.case))
    rows = [row for operands in chosen for row in measure(operands)]
    if not rows:
        raise SystemExit("Winograd algorithms suit none of these operations")
    minutes = (time.perf_counter() - start) / 60

    tables = [results.granularities(rows), results.algorithms(rows)]
    tables += [results.summary(rows), results.every_row(rows)]
    print("", *tables, f"{minutes:.1f} minutes", sep="\n\n")
    if arguments.out:
        record = {
            "cpu": cpu_model(),
            "cores": CORES,
            "isa": runtime_info().isa,
            "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
            **sizes,
            "steps": arguments.steps,
            "photographs": list(photographs()),
            "minutes": minutes,
            "rows": [vars(row) for row in rows],
        }
        write_record(arguments.out, record)
        results.chart(rows, arguments.out.with_name(f"{arguments.out.name}.png"))
    return rows


if __name__ == "__main__":
    main()
