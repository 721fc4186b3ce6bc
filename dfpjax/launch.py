"""Run a program with the memory allocator's settings that training is fastest with.

    python -m dfpjax.launch train.py --config configs/digits.py

XLA takes the memory of every step's temporaries with malloc. glibc gives large blocks back to the system when
they are freed, so that each step pays a page fault for every 4 KiB of them, which can take longer than its
arithmetic. The settings make glibc keep memory, in huge pages. It reads them when a process starts, so they
cannot be made from within: this program starts the other one in its own place (same process, signals and exit
code).

`--allocator=default`, or the environment variable `DFPJAX_LAUNCH=off`, changes nothing. Settings that the
environment has already are kept.
"""

TUNED = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.hugetlb=1",
            "glibc.malloc.mmap_max=0",
            "glibc.malloc.trim_threshold=100000000000",
            "glibc.malloc.arena_max=1",
        )
    )
}
"""Environment variables."""
