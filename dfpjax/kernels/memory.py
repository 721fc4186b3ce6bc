"""How large steps are to take their memory, and a hint where that was not set.

XLA takes the memory of a step's temporaries as one block with malloc. glibc gives a block of that size back
to the system when it is freed, so each step pays anew for its pages: a page fault for every 4 KiB, and
clearing them. In a virtual machine that reports free pages to its host, they may have to come from there, and
the step takes up to twice as long.

So large blocks are kept: a small library of ours, which is preloaded, has those of 32 MiB and more stay in
the process for the next block of that size, until nothing has wanted them for half a minute or the system
runs short of memory (`cpp_ops/preload/kept_blocks.cc`). They lie in huge pages, with which there is one fault
for 2 MiB, and so do glibc's own. Both are decided when a process starts: `dfpjax.launch` starts a program
with them.

glibc's own ways of keeping memory cannot keep such a block in its place: now and then something small lies in
the hole that it left, and the process grows by all temporaries. `python -m benchmarks.allocators` compares.
"""

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from dfpjax import _native

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# In a folder of its own: beside the extension modules, tools that walk a package would import it.
_LIBRARY = Path(_native.__file__).parent / "lib" / "libdfpjax_kept_blocks.so"


def _settings() -> dict[str, str]:
    usable = _LIBRARY.exists() and not set(" :") & set(str(_LIBRARY))
    return {**HUGE_PAGES, "LD_PRELOAD": str(_LIBRARY)} if usable else HUGE_PAGES


SETTINGS = _settings()
"""Environment variables. Without LD_PRELOAD where the library was not built, as without glibc, or where its
path holds a space or colon, which the dynamic linker would take for the path's end."""

SWITCH = "DFPJAX_LAUNCH"
"""An environment variable: `off` leaves the allocator alone, and says nothing about it."""

# What tells malloc what to do, or replaces it.
_NAMES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_",
          "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # fmt: skip

LARGE = 32 << 20
"""Bytes of an operand in float32 from which on the settings matter: glibc gives blocks of that size back."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def is_off(environment: Mapping[str, str]) -> bool:
    return environment.get(SWITCH) == "off"


def chosen_already(environment: Mapping[str, str]) -> list[str]:
    """The variables that say something of the allocator."""
    return [name for name in _NAMES if environment.get(name)]


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
        "time than arithmetic. Start the program with `python -m dfpjax.launch PROGRAM …`; %s=off silences "
        "this.",
        SWITCH,
    )
