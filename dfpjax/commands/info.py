"""`dfpjax info`: what the kernels run on here, and what would make it faster."""

import argparse
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import dfpjax
from dfpjax import _releases
from dfpjax.commands._errors import CommandError
from dfpjax.kernels import memory

_VNNI = ("avx512vnni", "avxvnni")


def add_to(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    parser = commands.add_parser(
        "info", help="instruction set, threads, allocator, versions, and what would make it faster"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Prints the report."""
    del arguments
    print(report())


def report() -> str:
    """The report, a text of several lines.

    Raises:
        CommandError: if `DFPJAX_ISA` names a path that this build or CPU does not have.
    """
    try:
        runtime = dfpjax.runtime_info()
    except ValueError as error:
        raise CommandError(str(error)) from None
    others = [name for name in runtime.usable if name != runtime.isa]
    facts = {
        "dfpjax": dfpjax.__version__,
        "JAX": f"{metadata.version('jax')}, jaxlib {metadata.version('jaxlib')}",
        "Python": f"{platform.python_version()}, NumPy {metadata.version('numpy')}",
        "processor": cpu_model(),
        "instructions": f"{runtime.isa}: {runtime.reason}",
        "also usable": ", ".join(others) or "none",
        **{f"not {name}": reason for name, reason in runtime.unusable},
        "threads": f"{len(os.sched_getaffinity(0))}, one for each core that this process may use",
        "allocator": _allocator(),
    }
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}}{value}" for name, value in facts.items()]
    advice = list(_advice(runtime.isa)) or ["Nothing that this command knows of."]
    return "\n".join([*lines, "", "What would make it faster:", *(f"- {line}" for line in advice)])


def cpu_model() -> str:
    """The processor's name."""
    return _cpu_info("model name") or platform.machine()


def _cpu_info(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _allocator() -> str:
    if not memory.has_glibc():
        return "not glibc's, and left alone"
    if memory.SETTINGS.items() <= os.environ.items():
        return "keeps large blocks for the next step, in huge pages (set by dfpjax.launch)"
    if names := memory.chosen_already(os.environ):
        return f"set by the environment: {', '.join(names)}"
    return "glibc's own settings; `python -m dfpjax.launch PROGRAM.py` keeps large blocks for the next step"


def _advice(isa: str) -> Iterator[str]:
    flags = set(_cpu_info("flags").split())
    if memory.has_glibc() and not memory.chosen_already(os.environ):
        yield (
            "Start programs with `python -m dfpjax.launch PROGRAM.py`: glibc gives the memory of a large step"
            " back to the system and takes it anew in each step."
        )
    if memory.has_glibc() and not memory.has_huge_pages():
        yield (
            "Have Linux give huge pages to programs that ask for them: as root,"
            " `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`."
        )
    if isa != "avx512vnni" and "avx512_vnni" in flags:
        yield "Do not set DFPJAX_ISA: this CPU has AVX-512 VNNI, whose kernels are the fastest."
    elif isa not in _VNNI:
        yield (
            "A CPU with AVX-512 VNNI or AVX-VNNI: without these int16 has little advantage over float32"
            " (the bits are the same)."
        )
    if "amx_bf16" in flags:
        yield (
            "This CPU has AMX, which multiplies bfloat16 faster than anything multiplies int16: where 8 bits"
            " of precision suffice, PyTorch's bfloat16, or JAX's from 0.11.1 on, may be faster."
        )
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    if usable < cores:
        yield f"This process may use {usable} of {cores} cores; its affinity (taskset, cgroup) says so."
    found = _releases._release(metadata.version("jaxlib"))
    if fault := _releases.FAULTY.get(found):
        yield f"Another JAX: this jaxlib {fault}. pip install '{_releases.SUPPORTED}'"
