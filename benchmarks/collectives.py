"""What the devices of a data-parallel training step exchange, counted in the compiled program.

    python -m benchmarks.collectives --config configs/fake_imagenet.py --model resnet50 --devices 2

Prints a Markdown table with a row for each precision and each dtype of the gradients: the number of
collectives, and the bytes of their results by operation and dtype. It compiles, and runs nothing. --out
writes OUT.json.
"""

import argparse
import math
import os
import re
from collections import Counter
from pathlib import Path
from runpy import run_path

from benchmarks.common.arguments import prepare_output
from benchmarks.common.records import write_record

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4}
_COLLECTIVE = r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\("


def collectives(program: str) -> tuple[int, Counter]:
    """The number of collectives in a program, and the bytes of their results by operation and dtype."""
    found = re.findall(_COLLECTIVE, program)
    sizes: Counter = Counter()
    for results, operation in found:
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            sizes[operation, dtype] += SIZES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
    return len(found), sizes


def table(rows: list[dict]) -> str:
    """In Markdown; the last column compares with gradients in float32."""
    lines = [
        "| precision | gradients | collectives | bytes | of float32's |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    whole = {row["precision"]: sum(row["bytes"].values()) for row in rows if row["gradients"] == "float32"}
    for row in rows:
        parts = ", ".join(f"{what} {size:,}" for what, size in row["bytes"].items())
        share = sum(row["bytes"].values()) / whole[row["precision"]]
        lines.append(
            f"| {row['precision']} | {row['gradients']} | {row['collectives']} | {parts} | {share:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/fake_imagenet.py", help="configuration file")
    parser.add_argument("--model", help="another model than the configuration's")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2, help="images of each device")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    arguments = parser.parse_args()
    prepare_output(parser, arguments.out)
    # Before JAX starts.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={arguments.devices}"

    from dfpjax.training import TrainConfig
    from dfpjax.training.data import load_dataset
    from dfpjax.training.program import Program

    values = run_path(arguments.config)["get_config"]().to_dict()
    batch_size = arguments.batch * arguments.devices
    values |= {"mesh": (arguments.devices,), "accumulate": 1, "batch_size": batch_size}
    if arguments.model is not None:
        values["model"] = arguments.model
    rows = []
    for precision in ("float32", "dfp16"):
        for gradients in ("float32", "dfp16"):
            config = TrainConfig.from_dict(values | {"precision": precision, "gradient_dtype": gradients})
            count, sizes = collectives(Program(config, load_dataset(config)).step.as_text())
            of_kind = {f"{operation} {dtype}": size for (operation, dtype), size in sizes.items()}
            row = {"precision": precision, "gradients": gradients, "collectives": count, "bytes": of_kind}
            rows.append(row)
    print(table(rows))
    if arguments.out:
        record = {"model": config.model, "devices": arguments.devices, "images": arguments.batch}
        write_record(arguments.out, record | {"rows": rows})


if __name__ == "__main__":
    main()
