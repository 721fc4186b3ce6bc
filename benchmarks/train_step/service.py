"""The worker's side of `benchmarks.train_step`: a process that takes steps on request.

Needs neither JAX nor PyTorch, since workers with either import it. A worker reads JSON objects from its
standard input, one per line, and answers each with one. The first says what to prepare. Then:

    {"do": "steps", "count": 3}  →  {"steps": [{"seconds": …, "minor_faults": …, …}, …], "peak_bytes": …}
    {"do": NAME}                 →  what the measurement of that name returns

Before the steps of a turn the worker takes one warm-up step. After them it returns unused memory to the
system, so that several workers fit into a machine.
"""

import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Step = Callable[[], None]
"""Returns when its work is done."""

WARM_UP = {"train": 1, "inference": 10}
"""Steps before all others. From the ninth call on `dfpjax` computes with weights that it has packed."""

# Of /proc/vmstat: huge pages given at a page fault; waits for the kernel to make room for one.
VMSTAT = ("thp_fault_alloc", "thp_fault_fallback", "compact_stall", "pgmajfault")


def serve(prepare: Callable[[dict], tuple[dict, Step, dict[str, Callable[[], object]]]]) -> None:
    """Answer requests until the input ends.

    Arguments:
        prepare: called with the first request, which has a `mode`; returns what to answer, the step, and
            further measurements by name.
    """
    wanted = json.loads(sys.stdin.readline())
    facts, step, measurements = prepare(wanted)
    for _ in range(WARM_UP[wanted["mode"]]):
        step()
    started = peak_bytes()
    forget_peak()
    _answer({**facts, "start_peak_bytes": started})
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "steps":
            step()
            steps = [observed(step) for _ in range(request["count"])]
            release_memory()
            _answer({"steps": steps, "peak_bytes": peak_bytes()})
        else:
            _answer(measurements[request["do"]]())


def _answer(what: object) -> None:
    print(json.dumps(what), flush=True)


def observed(step: Step) -> dict[str, float]:
    """The seconds of one step, and how much the counters of process and machine grew in it."""
    before, began = counters(), time.perf_counter()
    step()
    seconds, after = time.perf_counter() - began, counters()
    return {"seconds": seconds, **{name: after[name] - before[name] for name in after}}


def counters() -> dict[str, float]:
    """Of this process: page faults, context switches, CPU time. Of the machine: huge pages, stolen time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    vmstat = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    cpu = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return {
        "minor_faults": usage.ru_minflt,
        "major_faults": usage.ru_majflt,
        "waits": usage.ru_nvcsw,
        "preemptions": usage.ru_nivcsw,
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "stolen_seconds": int(cpu[8]) / 100,
        **{name: int(vmstat.get(name, 0)) for name in VMSTAT},
    }


def peak_bytes() -> int:
    """The peak resident memory of this process since its start or `forget_peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def forget_peak() -> None:
    """Reset the peak: compiling a large network takes more memory than running it."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")


def release_memory() -> None:
    """Return unused memory to the system; with glibc only."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
