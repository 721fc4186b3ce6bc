"""What a benchmark's process runs in: the allocator's settings, the same for every contender."""

import os
import sys

# XLA and PyTorch take large buffers with malloc, and glibc maps each one afresh: a page fault for every 4
# KiB, which can take longer than the arithmetic. These settings keep memory and back it with huge pages.
KEEP_MEMORY = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.trim_threshold=100000000000",
        "glibc.malloc.arena_max=1",
    )
)


def use_allocator(name: str, module: str) -> None:
    """Restart this process with the allocator settings of that name; return if it has them.

    glibc reads its tunables when a process starts. Child processes inherit them.

    Arguments:
        name: "huge" keeps memory and uses huge pages; "default" leaves everything as it is.
        module: the module to run, as in ``python -m module``.
    """
    if name == "default" or os.environ.get("GLIBC_TUNABLES") == KEEP_MEMORY:
        return
    environment = {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY}
    os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)
