"""What a benchmark runs in: the machine, and the allocator's settings, the same for every contender."""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from dfpjax.kernels.memory import SETTINGS

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0))


def cpu_model() -> str:
    return _cpu_info("model name") or "unknown CPU"


def cpu_flags() -> set[str]:
    """Linux's names of what the CPU can do."""
    return set(_cpu_info("flags").split())


def _cpu_info(name: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), "")


def add_allocator(parser: ArgumentParser) -> None:
    """The option `--allocator`, whose value `use_allocator` takes."""
    help_text = "tuned: what dfpjax.launch sets; default: as the environment says"
    parser.add_argument("--allocator", choices=("tuned", "default"), default="tuned", help=help_text)


def use_allocator(name: str, module: str) -> None:
    """Restart this process with the allocator settings of that name; return if it has them.

    They are read when a process starts. Child processes inherit them.

    Arguments:
        name: "tuned" for those of `dfpjax.launch`; "default" leaves everything as it is.
        module: the module to run, as in ``python -m module``.
    """
    if name == "default" or SETTINGS.items() <= os.environ.items():
        return
    environment = {**os.environ, **SETTINGS}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
