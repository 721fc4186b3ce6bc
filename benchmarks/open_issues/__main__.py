"""Time the programs of open reports that JAX is slow on CPUs: dfpjax against JAX and PyTorch in float32.

    python -m benchmarks.open_issues --torch-python …/bin/python --out results/open_issues

`programs` says which report each program is from. dfpjax has its default policy, so what the cost rule keeps
in float32 is JAX's; a column has the share that it brings to DFP16. The contenders take turns, one run each,
with the same allocator settings (--allocator), and medians count. PyTorch runs eagerly in a process of its
own; it is looked for in this interpreter, or in the one named by --torch-python, and left out with a message
where it is missing. Its results are compared with JAX's, so all compute the same.

Prints a Markdown table; --out writes OUT.json.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import jaxlib
import numpy as np

import dfpjax
from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import CORES, add_allocator, cpu_model, use_allocator
from benchmarks.common.records import write_record
from benchmarks.common.torch_process import TorchProcess, has_torch
from benchmarks.open_issues.programs import PROGRAMS, Program
from benchmarks.open_issues.results import JAX, OURS, TORCH, Row, table

LEAST = 3
"""Runs of each contender, however long they take."""


class Torch:
    """A PyTorch process that runs one program at a time."""

    def __init__(self, python: str):
        self._process = TorchProcess(python, "benchmarks.open_issues.torch_worker")
        self.version: str = self._process.greeting["version"]

    def prepare(self, program: str, operands: list[np.ndarray]) -> list[float]:
        """Run that program from now on; returns the norms of its results."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/operands.npz"
            np.savez(path, *operands)
            return self._process.ask(program=program, operands=path, threads=CORES)["norms"]

    def seconds(self) -> float:
        """Of one run."""
        return self._process.ask()["seconds"]

    def close(self) -> None:
        self._process.close()


def find_torch(python: str) -> Torch | None:
    """PyTorch in that interpreter; None if it is not there."""
    return Torch(python) if has_torch(python) else None


def measure(program: Program, torch: Torch | None, *, small: bool, rounds: int, budget: float) -> Row:
    """One program: so many rounds, or fewer where they would take longer than `budget` seconds.

    Raises:
        RuntimeError: PyTorch's results are others than JAX's.
    """
    operands = program.operands(small=small)
    arrays = jax.device_put(operands)
    functions = {JAX: program.function, OURS: dfpjax.mixed_precision(program.function)}
    compiled = {name: jax.jit(function).lower(*arrays).compile() for name, function in functions.items()}
    found = {name: jax.tree.leaves(run(*arrays)) for name, run in compiled.items()}
    contenders = {name: lambda run=run: _seconds(run, arrays) for name, run in compiled.items()}
    if torch:
        theirs = torch.prepare(program.name, operands)
        if not np.allclose(theirs, list(map(norm, found[JAX])), rtol=1e-3):
            raise RuntimeError(f"{program.name}: PyTorch's results are not JAX's")
        contenders[TORCH] = torch.seconds

    seconds = {name: [] for name in contenders}
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= LEAST and time.perf_counter() - began > budget:
            break
        for name, run in contenders.items():
            seconds[name].append(run())
    return Row(
        program=program.name,
        report=program.report,
        seconds=seconds,
        error=max(norm(a - b) / norm(b) for a, b in zip(found[OURS], found[JAX], strict=True)),
        coverage=dfpjax.explain(program.function, *arrays).coverage,
    )


def _seconds(run, arrays) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(*arrays))
    return time.perf_counter() - began


def norm(array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64).ravel()))


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [program.name for program in PROGRAMS]
    parser.add_argument("--program", action="append", choices=names, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=15, help="how often the contenders take turns")
    parser.add_argument("--budget", type=float, default=20, help="seconds for a program, but three rounds")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it work?")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--out", type=Path, help="write OUT.json")
    add_allocator(parser)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; it must be at least 1")
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> list[Row]:
    arguments = parse(argv)
    use_allocator(arguments.allocator, "benchmarks.open_issues")
    start = time.perf_counter()
    rows = []
    with ExitStack() as stack:
        if torch := find_torch(arguments.torch_python):
            stack.callback(torch.close)
        else:
            print("PyTorch is left out: none here (name an interpreter that has it: --torch-python)")
        for program in PROGRAMS:
            if not arguments.program or program.name in arguments.program:
                print(program.name, file=sys.stderr, flush=True)
                how = {"small": arguments.quick, "rounds": arguments.rounds, "budget": arguments.budget}
                rows.append(measure(program, torch, **how))
    machine, minutes = f"{CORES} cores of {cpu_model()}", (time.perf_counter() - start) / 60
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "torch": torch and torch.version}
    print(f"{table(rows)}\n\n{machine}; {versions}; {minutes:.1f} minutes")
    if arguments.out:
        record = {
            "machine": machine,
            "isa": dfpjax.runtime_info().isa,
            "allocator": arguments.allocator,
            "versions": versions,
            "rows": [vars(row) for row in rows],
        }
        write_record(arguments.out, record)
    return rows


if __name__ == "__main__":
    main()
