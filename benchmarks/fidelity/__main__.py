"""Measure how accurate dynamic fixed point is, next to bfloat16 and float32.

    python -m benchmarks.fidelity --out docs/results/fidelity

The forward pass and both gradients of convolutions and dots are computed in every precision and compared
with float64, on random tensors of several distributions and on those of ResNet-50 while it learns to tell
photographs apart: they come with scikit-learn and, where it is installed, scikit-image. Prints Markdown
tables; --out writes OUT.json and a chart, OUT.png. Takes some five minutes on four cores; --quick, with a
small network, images of 64 pixels and less of everything, less than one.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

from benchmarks.common import shapes
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, cpu_model
from benchmarks.fidelity import precisions, results
from benchmarks.fidelity.captured import Training
from benchmarks.fidelity.photographs import batches, photographs
from benchmarks.fidelity.precisions import PRECISIONS, exact_passes, passes
from benchmarks.fidelity.results import Row
from benchmarks.fidelity.tensors import RANDOM, Operands, random_operands
from dfpjax import runtime_info
from dfpjax.training.models.resnet import Bottleneck, ResNet

STAGES, QUICK_STAGES = (3, 4, 6, 3), (1, 1, 1, 1)
# A stage's second block has its usual shapes; the first one of stage 2 has the strided ones.
LAYERS = [
    "Conv_0",
    *(f"Bottleneck_{block}/Conv_{i}" for block in (1, 4, 8, 14) for i in range(3)),
    "Bottleneck_3/Conv_1",
    "Bottleneck_3/Conv_3",
    "Bottleneck_15/Conv_2",
    "Dense_0",
]
QUICK_LAYERS = ["Conv_0", "Bottleneck_1/Conv_1", "Dense_0"]


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


def captured_families(
    stages: tuple[int, ...], layers: list[str], *, batch: int, image: int, steps: int
) -> Iterator[Operands]:
    """The layers' operands in the second step of training and in the last.

    Not in the first: there each block's last batch norm has scale zero, and inside the blocks no gradient.
    """
    photos = photographs()
    say(f"a residual network learns to tell apart {', '.join(photos)}")
    batch_of = batches(list(photos.values()), batch=batch, size=image)
    training = None
    for step in range(1, steps + 1):
        images, labels = next(batch_of)
        training = training or Training(ResNet(classes=1000, stages=stages, block=Bottleneck), layers, images)
        loss = training.step(images, labels)
        say(f"step {step}: loss {loss:.3f}")
        if step in (2, steps):
            yield from training.operands(f"ResNet-50, step {step}")


def measure(operands: Operands) -> list[Row]:
    """The errors of each precision in each pass of one operation."""
    say(f"{operands.family}: {operands.case.name} {operands.layer}")
    tensors = (operands.x, operands.w, operands.dy)
    truths = exact_passes(operands.case, *tensors)
    computed = {p.name: passes(operands.case, p, *tensors) for p in PRECISIONS}
    fills = [precisions.rms_over_max(tensor) for tensor in tensors]
    lost = [precisions.share_lost(tensor) for tensor in tensors]
    rows = []
    for which, (one, other) in OPERANDS_OF.items():
        truth = truths[which]
        errors = {
            name: {
                "relative": precisions.relative_error(result[which], truth),
                "largest": precisions.largest_error(result[which], truth),
                # The channels of a weight gradient are those of the input.
                "channel": precisions.worst_channel_error(
                    result[which], truth, -2 if which == "wgrad" else -1
                ),
            }
            for name, result in computed.items()
        }
        row = Row(
            family=operands.family,
            layer=operands.layer,
            operation=operands.case.name,
            which=which,
            rms_over_max=(fills[one], fills[other]),
            lost=(lost[one], lost[other]),
            errors=errors,
        )
        rows.append(row)
    return rows


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, few steps: does it work?")
    parser.add_argument("--batch", type=int, help="images of a batch (default: 8, or 2 with --quick)")
    parser.add_argument("--steps", type=int, help="training steps (default: 40, or 3 with --quick)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.png")
    arguments = parser.parse_args(argv)
    arguments.batch = arguments.batch or (2 if arguments.quick else 8)
    arguments.steps = arguments.steps or (3 if arguments.quick else 40)
    if arguments.batch < 1 or arguments.steps < 2:
        parser.error("--batch must be at least 1 and --steps at least 2")
    arguments.image = 64 if arguments.quick else 224
    prepare_output(parser, arguments.out, draws="chart")
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    start = time.perf_counter()
    sizes = {"batch": arguments.batch, "image": arguments.image}
    cases = random_cases(**sizes)
    stages, layers = STAGES, LAYERS
    if arguments.quick:
        cases, stages, layers = cases[:1] + cases[-1:], QUICK_STAGES, QUICK_LAYERS
    families = random_families(cases), captured_families(stages, layers, **sizes, steps=arguments.steps)
    rows = [row for operands in itertools.chain(*families) for row in measure(operands)]
    minutes = (time.perf_counter() - start) / 60

    print(f"\n{results.summary(rows)}\n\n{results.every_row(rows)}\n\n{minutes:.1f} minutes")
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
        text = json.dumps(record, indent=1, ensure_ascii=False)
        arguments.out.with_name(f"{arguments.out.name}.json").write_text(text + "\n")
        results.chart(rows, arguments.out.with_name(f"{arguments.out.name}.png"))
    return rows


if __name__ == "__main__":
    main()
