"""Compare settings of the memory allocator by whole training steps in DFP16.

    python -m benchmarks.allocators --model resnet50 --batch 16 --rounds 10 --burst 10

Each setting has a process of its own, and they take turns. For each: the median step, the slowest of twenty
(the 95th percentile), the slowest, how many took more than 1.5 times the median, the memory that was resident
at most, and of the usual and of the slow steps how much memory the process took from the system.

`launcher` is what `dfpjax.launch` sets: large blocks kept by the process, and huge pages; see
`dfpjax.kernels.memory`. `glibc keeps` is glibc's own way of that. jemalloc and mimalloc are measured where
the system has them as libraries. Prints a Markdown table; --out writes OUT.md and every
step as OUT.json.
"""

import argparse
import ctypes.util
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.common.arguments import prepare_output
from benchmarks.common.environment import cpu_model
from benchmarks.train_step.contenders import CONTENDERS, Worker, without_folders
from benchmarks.train_step.networks import NETWORKS
from dfpjax.kernels import memory

KEPT = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
SETTINGS = {
    "default": {},
    "launcher": memory.SETTINGS,
    "huge pages": memory.HUGE_PAGES,
    "glibc keeps": {"GLIBC_TUNABLES": KEPT},
    "glibc keeps in one arena": {"GLIBC_TUNABLES": f"{KEPT}:glibc.malloc.arena_max=1"},
}
PRELOADED = {
    "jemalloc": {"MALLOC_CONF": "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"},
    "mimalloc": {"MIMALLOC_PURGE_DELAY": "-1", "MIMALLOC_ALLOW_LARGE_OS_PAGES": "1"},
}
SLOW = 1.5
"""A step counts as slow above this multiple of the median."""

HUGE_PAGE, PAGE = 2 << 20, 4 << 10


def settings() -> dict[str, dict[str, str]]:
    """The environment variables of every setting that can be measured here."""
    found = dict(SETTINGS)
    for name, variables in PRELOADED.items():
        if library := ctypes.util.find_library(name):
            found[name] = {"LD_PRELOAD": library, **variables}
        else:
            print(f"{name} is left out: this system does not have it", file=sys.stderr)
    return found


def taken(step: dict[str, float]) -> float:
    """Bytes that a step took from the system: each fault maps a page, or a huge page."""
    huge = step["thp_fault_alloc"]
    return huge * HUGE_PAGE + max(step["minor_faults"] - huge, 0) * PAGE


def row(name: str, steps: list[dict[str, float]], peak: int) -> str:
    """A row of the table."""
    seconds = sorted(step["seconds"] for step in steps)
    median = statistics.median(seconds)
    slow = [step for step in steps if step["seconds"] > SLOW * median]
    usual = [step for step in steps if step["seconds"] <= SLOW * median]
    cells = (
        name, f"{median:.3f}", f"{seconds[int(0.95 * (len(seconds) - 1))]:.3f}", f"{seconds[-1]:.3f}",
        f"{len(slow)} of {len(steps)}", f"{peak / 1e9:.1f}",
        *(f"{statistics.mean(map(taken, some)) / 1e9:.2f}" if some else "" for some in (usual, slow)),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| allocator | median s | 95 % s | slowest s | slow steps | peak GB | GB taken in usual steps | in slow "
    "ones |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=NETWORKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="images or texts of a step")
    parser.add_argument("--rounds", type=int, default=10, help="how often the settings take turns")
    parser.add_argument("--burst", type=int, default=10, help="steps of a turn")
    parser.add_argument("--only", help="these settings, with commas between them")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    arguments = parser.parse_args(argv)
    for option in ("batch", "rounds", "burst"):
        if (value := getattr(arguments, option)) < 1:
            parser.error(f"--{option} is {value}; it must be at least 1")
    arguments.settings = settings()
    if arguments.only:
        names = arguments.only.split(",")
        if unknown := [name for name in names if name not in arguments.settings]:
            parser.error(f"--only has {', '.join(unknown)}; it must be of {', '.join(arguments.settings)}")
        arguments.settings = {name: arguments.settings[name] for name in names}
    prepare_output(parser, arguments.out)
    return arguments


def main(argv=None) -> None:
    arguments = parse(argv)
    began = time.perf_counter()
    wanted = {"network": arguments.model, "batch": arguments.batch, "mode": "train"}
    with ExitStack() as stack:
        workers = {}
        contender = CONTENDERS["jax-dfp16"]
        for name, variables in arguments.settings.items():
            print(f"preparing {name}", file=sys.stderr)
            workers[name] = Worker(contender, wanted, allocator=variables, torch_python=sys.executable)
            stack.callback(workers[name].close)
        steps, peaks = {name: [] for name in workers}, {}
        for turn in range(arguments.rounds):
            print(f"turn {turn + 1} of {arguments.rounds}", file=sys.stderr)
            for name, worker in workers.items():
                answer = worker.steps(arguments.burst)
                steps[name] += answer["steps"]
                peaks[name] = max(answer["peak_bytes"], worker.facts["start_peak_bytes"])
    rows = [row(name, steps[name], peaks[name]) for name in steps]
    minutes = (time.perf_counter() - began) / 60
    text = f"{arguments.model}, batch {arguments.batch}, DFP16, {cpu_model()}\n\n" + "\n".join(
        [HEADER, *rows]
    )
    print(f"{text}\n\n{minutes:.1f} minutes")
    if arguments.out:
        arguments.out.with_name(f"{arguments.out.name}.md").write_text(f"{text}\n")
        settings = {name: without_folders(variables) for name, variables in arguments.settings.items()}
        record = {"settings": settings, "steps": steps, "peak_bytes": peaks}
        arguments.out.with_name(f"{arguments.out.name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
