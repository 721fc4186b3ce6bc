"""What the C library's memory allocator must be told for large steps to be fast, and a hint where it was not.

XLA takes the memory of a step's temporaries with malloc. glibc maps large blocks afresh, so each step pays a
page fault for every 4 KiB of them, which can take longer than its arithmetic. In huge pages it is one fault
for 2 MiB. glibc reads the setting when a process starts: `dfpjax.launch` starts a program with it.

To keep the memory between steps is no faster, and now and then a block does not fit into the hole that it
left, since something small lies there: then the process grows by all temporaries, and the step takes twice as
long. `python -m benchmarks.allocators` compares.
"""

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment variables."""

SWITCH = "DFPJAX_LAUNCH"
"""An environment variable: `off` leaves the allocator alone, and says nothing about it."""

# What else tells malloc what to do, or replaces it.
_OTHERS = ("LD_PRELOAD", "MALLOC_CONF", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_",
           "MALLOC_TRIM_THRESHOLD_")  # fmt: skip

LARGE = 32 << 20
"""Bytes of an operand in float32 from which on the settings matter: glibc's own largest threshold."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def is_off(environment: Mapping[str, str]) -> bool:
    return environment.get(SWITCH) == "off"


def chosen_already(environment: Mapping[str, str]) -> list[str]:
    """The variables that say something of the allocator."""
    return [name for name in (*SETTINGS, *_OTHERS) if environment.get(name)]


def has_glibc() -> bool:
    """Whether this process runs on glibc, as all usual distributions of Linux but Alpine do."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False


def has_huge_pages() -> bool:
    """Whether Linux gives huge pages to a process that asks for them."""
    return _HUGE_PAGES.exists() and "[never]" not in _HUGE_PAGES.read_text()


def hint(size: int) -> None:
    """Log, once in a process, that the settings are missing.

    Arguments:
        size: bytes in float32 of the largest operand of an operation that is about to be compiled.
    """
    if size >= LARGE:
        _hint_once()


@functools.cache
def _hint_once() -> None:
    if is_off(os.environ) or chosen_already(os.environ) or not has_glibc():
        return
    logging.getLogger("dfpjax").warning(
        "glibc takes the memory of large arrays anew in every step, 4 KiB at a time, which can cost more "
        "time than arithmetic. Start the program with `python -m dfpjax.launch PROGRAM …`, or set "
        "GLIBC_TUNABLES=%s; %s=off silences this.",
        SETTINGS["GLIBC_TUNABLES"],
        SWITCH,
    )
