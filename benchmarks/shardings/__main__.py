"""Check training steps that are sharded in the usual ways, on CPU devices of one process.

    python -m benchmarks.shardings --devices 2 4 8

Prints a Markdown table with a row for each program, sharding and number of devices: the native calls on
several devices and on one; the greatest relative error of the loss and of the gradients against one device,
and that of one device whose inputs change by a unit in the last place; the bytes of the collectives' results
on a device, in DFP16 and in float32, and of the all-gathers among them. Ends with status 1 if a check fails.
`--resnet` adds ResNet-50, data-parallel on two devices, which is compiled and not run.
"""

import argparse
import os
import sys
from pathlib import Path

# XLA takes far longer to compile these programs than to run them.
_FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
_COLUMNS = ("program", "sharding", "devices", "native calls, alone", "error", "of one unit", "bytes",
            "float32", "gathered", "float32")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--programs", nargs="+", help="instead of all")
    parser.add_argument("--resnet", action="store_true", help="also compile ResNet-50")
    arguments = parser.parse_args()
    # Before JAX starts.
    count = f"--xla_force_host_platform_device_count={max(arguments.devices)}"
    os.environ["XLA_FLAGS"] = " ".join([_FLAGS, os.environ.get("XLA_FLAGS", ""), count])

    import jax

    from benchmarks.shardings.checks import Alone, check
    from benchmarks.shardings.programs import PROGRAMS, SHARDINGS

    jax.config.update("jax_disable_most_optimizations", True)
    print(f"| {' | '.join(_COLUMNS)} |")
    print("|", " | ".join(["---"] * 2 + ["---:"] * (len(_COLUMNS) - 2)), "|")
    failed = False
    for name in arguments.programs or PROGRAMS:
        alone = Alone(PROGRAMS[name])
        for kind in SHARDINGS:
            for devices in arguments.devices:
                result = check(alone, name, kind, devices)
                failed |= not result.passes
                error = f"{result.error:.1e} | {result.rounding:.1e}"
                _print_row(name, kind, devices, result, error)
    if arguments.resnet:
        from benchmarks.shardings.resnet import compiled_resnet

        result = compiled_resnet()
        failed |= not result.passes
        _print_row("ResNet-50", "data", 2, result, " | ")
    return int(failed)


def _print_row(name: str, kind: str, devices: int, result, error: str) -> None:
    native = f"{result.native.total()}, {result.native_alone.total()}"
    sizes = (result.bytes, result.bytes_float32, result.gathered, result.gathered_float32)
    cells = " | ".join(f"{size:,}" for size in sizes)
    print(f"| {name} | {kind} | {devices} | {native} | {error} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
