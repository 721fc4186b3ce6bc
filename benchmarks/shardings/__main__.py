"""Check training steps that are sharded in the usual ways, on CPU devices of one process.

    python -m benchmarks.shardings --devices 2 4 8

Prints a Markdown table with a row for each program, sharding and number of devices: the native calls on
several devices and on one; the greatest relative error of the loss and of the gradients against one device,
and that of one device whose inputs change by a unit in the last place; the bytes of the collectives' results
on a device, in DFP16 and in float32, and of the all-gathers among them. Ends with status 1 if a check fails.
`--resnet` adds ResNet-50, data-parallel on two devices, which is compiled and not run. --out writes OUT.json.
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.common.arguments import prepare_output
from benchmarks.common.records import write_record

# XLA takes far longer to compile these programs than to run them.
_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
_COLUMNS = ("program", "sharding", "devices", "native calls, alone", "error", "of one unit", "bytes",
            "float32", "gathered", "float32")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--programs", nargs="+", help="instead of all")
    parser.add_argument("--resnet", action="store_true", help="also compile ResNet-50")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    arguments = parser.parse_args()
    prepare_output(parser, arguments.out)
    # Before JAX starts.
    count = f"--xla_force_host_platform_device_count={max(arguments.devices)}"
    os.environ["XLA_FLAGS"] = " ".join([_FLAGS, os.environ.get("XLA_FLAGS", ""), count])

    import jax

    from benchmarks.shardings.checks import Alone, check
    from benchmarks.shardings.programs import PROGRAMS, SHARDINGS

    jax.config.update("jax_disable_most_optimizations", True)
    print(f"| {' | '.join(_COLUMNS)} |")
    print("|", " | ".join(["---"] * 2 + ["---:"] * (len(_COLUMNS) - 2)), "|")
    failed, rows = False, []
    for name in arguments.programs or PROGRAMS:
        alone = Alone(PROGRAMS[name])
        for kind in SHARDINGS:
            for devices in arguments.devices:
                result = check(alone, name, kind, devices)
                failed |= not result.passes
                rows.append(_row(name, kind, devices, result))
                _print_row(rows[-1])
    if arguments.resnet:
        from benchmarks.shardings.resnet import compiled_resnet

        result = compiled_resnet()
        failed |= not result.passes
        rows.append(_row("ResNet-50", "data", 2, result))
        _print_row(rows[-1])
    if arguments.out:
        write_record(arguments.out, {"rows": rows})
    return int(failed)


def _row(name: str, kind: str, devices: int, result) -> dict:
    """The figures of a `checks.Compiled` or `checks.Result`."""
    sizes = ("bytes", "bytes_float32", "gathered", "gathered_float32")
    return {
        "program": name,
        "sharding": kind,
        "devices": devices,
        "native": result.native.total(),
        "native_alone": result.native_alone.total(),
        "error": getattr(result, "error", None),
        "rounding": getattr(result, "rounding", None),
        **{size: getattr(result, size) for size in sizes},
    }


def _print_row(row: dict) -> None:
    errors = ("" if row[name] is None else f"{row[name]:.1e}" for name in ("error", "rounding"))
    sizes = (f"{row[name]:,}" for name in ("bytes", "bytes_float32", "gathered", "gathered_float32"))
    native = f"{row['native']}, {row['native_alone']}"
    cells = (row["program"], row["sharding"], str(row["devices"]), native, *errors, *sizes)
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
