"""Several processes of one program, each on cores of its own, for `python -m dfpjax.launch --processes=N`.

Each process is pinned to a group of cores, which decides how many threads XLA and dfpjax start in it.
Hardware threads of a core stay together, and so do cores of a socket as far as the number of processes
allows. A process finds its place in three environment variables, `PLACE`.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

PLACE = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Address of the first process, number of processes, and number of this one."""

GRACE = 60
"""Seconds that the processes have to end by themselves after one of them has failed."""

_TOPOLOGY = Path("/sys/devices/system/cpu")


def core_groups(processes: int) -> list[list[int]]:
    """Groups of this process's cores, as equal as possible.

    **Raises:** `ValueError` if there are fewer cores than processes.
    """
    cores = sorted(os.sched_getaffinity(0), key=_place_of_core)
    if len(cores) < processes:
        raise ValueError(
            f"--processes is {processes}; it must be at most {len(cores)}, the cores that are usable"
        )
    ends = [len(cores) * process // processes for process in range(processes + 1)]
    return [cores[begin:end] for begin, end in itertools.pairwise(ends)]


def _place_of_core(core: int) -> tuple[int, ...]:
    """Socket, physical core, hardware thread."""
    topology = _TOPOLOGY / f"cpu{core}" / "topology"
    try:
        return *(int((topology / name).read_text()) for name in ("physical_package_id", "core_id")), core
    except (OSError, ValueError):  # in a container without /sys
        return 0, core, core


def run(command: Sequence[str], environment: Mapping[str, str], groups: list[list[int]]) -> int:
    """Run a command once for each group of cores, and wait for all.

    SIGINT and SIGTERM go on to all processes. If one fails, the others have `GRACE` seconds to end.

    Returns:
        the exit status: 0, or that of the first process that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started: list[subprocess.Popen] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank, cores in enumerate(groups):
            place = dict(zip(PLACE, (address, str(len(groups)), str(rank)), strict=True))
            started.append(_start(command, {**environment, **place}, cores))
        return _wait(started)
    finally:
        for process in started:
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(command: Sequence[str], environment: Mapping[str, str], cores: list[int]) -> subprocess.Popen:
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # which the new process inherits
    try:
        # In a process group of its own, so that Ctrl-C reaches it once, through this process.
        return subprocess.Popen(command, env=environment, process_group=0)
    finally:
        os.sched_setaffinity(0, usable)


def _wait(processes: list[subprocess.Popen]) -> int:
    failed, deadline = 0, float("inf")
    while (running := [process.poll() is None for process in processes]) and any(running):
        for rank, process in enumerate(processes):
            if not failed and process.returncode:
                failed, deadline = process.returncode, time.monotonic() + GRACE
                if sum(running):
                    _say(
                        f"process {rank} ended with status {_shown(failed)}; the others have {GRACE} s to end"
                    )
        if time.monotonic() > deadline:
            _say(f"killing what has not ended: {sum(running)} of {len(processes)} processes")
            for process in processes:
                process.kill()
        time.sleep(0.05)
    failed = failed or next((process.returncode for process in processes if process.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _shown(status: int) -> str:
    return str(status) if status >= 0 else signal.Signals(-status).name


def _say(message: str) -> None:
    print(f"dfpjax.launch: {message}", file=sys.stderr, flush=True)
