"""The preloaded library that keeps large blocks: malloc's guarantees, and which blocks it keeps.

Each test runs a program in its own process, which preloads the library and calls it as C does.
"""

import mmap
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfpjax.kernels import memory

LIBRARY = memory.SETTINGS.get("LD_PRELOAD")
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the library is built with glibc alone")

PRELUDE = """
import ctypes, os, random, resource, threading, time
c = ctypes.CDLL(None, use_errno=True)
size_t, pointer = ctypes.c_size_t, ctypes.c_void_p
for name, arguments, result in (
    ("malloc", [size_t], pointer), ("calloc", [size_t, size_t], pointer), ("free", [pointer], None),
    ("realloc", [pointer, size_t], pointer), ("reallocarray", [pointer, size_t, size_t], pointer),
    ("aligned_alloc", [size_t, size_t], pointer), ("memalign", [size_t, size_t], pointer),
    ("malloc_usable_size", [pointer], size_t), ("malloc_trim", [size_t], ctypes.c_int),
    ("posix_memalign", [ctypes.POINTER(pointer), size_t, size_t], ctypes.c_int),
):
    function = getattr(c, name)
    function.argtypes, function.restype = arguments, result
MB, PAGE = 1 << 20, 2 << 20

def fill(p, size, value=1):
    ctypes.memset(p, value, size)

def holds(p, size, value):
    return all(ctypes.string_at(p + at, 8) == bytes([value]) * 8 for at in (0, size // 2, size - 8))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def lazily_free():
    lines = (line.split() for line in open("/proc/self/smaps_rollup"))
    return sum(int(line[1]) << 10 for line in lines if line[0] == "LazyFree:")

def elapsed(call):
    start = time.monotonic()
    call()
    return time.monotonic() - start
"""


def run(program: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        env={"LD_PRELOAD": LIBRARY, "PYTHONMALLOC": "malloc"}, capture_output=True, text=True, **options,
    )  # fmt: skip


def passes(program: str, **options) -> None:
    done = run(program, **options)
    assert done.returncode == 0, done.stderr


def test_a_block_is_kept_with_its_memory():
    passes("""
p = c.malloc(100 * MB)
fill(p, 100 * MB)
before = resident()
c.free(p)
assert resident() > before - MB
count = faults()
q = c.malloc(100 * MB)
fill(q, 100 * MB, 2)
assert q == p and faults() - count < 20 and holds(q, 100 * MB, 2)
""")


def test_a_similar_block_takes_its_place_and_a_small_one_does_not():
    passes("""
large = c.malloc(1024 * MB)
c.free(large)
similar = c.malloc(1000 * MB)
assert similar == large
c.free(similar)
small = c.malloc(64 * MB)
assert not large <= small < large + 1024 * MB
assert c.malloc(1024 * MB) == large
""")


def test_neighbours_become_one_where_that_is_needed():
    passes("""
blocks = [c.malloc(64 * MB) for _ in range(4)]
last = c.malloc(64 * MB)
assert [b - a for a, b in zip(blocks, blocks[1:])] == [64 * MB] * 3
for p in blocks:
    c.free(p)
assert c.malloc(250 * MB) == blocks[0]
""")


def test_memory_goes_back_when_that_is_asked_for():
    passes("""
p, q = c.malloc(100 * MB), c.malloc(50 * MB)
fill(p, 100 * MB), fill(q, 50 * MB, 3)
before = resident()
c.free(p)
c.malloc_trim(0)
assert resident() < before - 99 * MB and holds(q, 50 * MB, 3)
""")


def test_memory_is_never_more_than_was_in_use_at_once():
    passes("""
start = resident()
sizes = [40, 50, 70, 100, 140, 200]
for size in sizes + sizes[::-1]:
    p = c.malloc(size * MB)
    fill(p, size * MB)
    assert resident() - start < 202 * MB
    c.free(p)
p, q = c.malloc(200 * MB), c.malloc(100 * MB)
fill(p, 200 * MB), fill(q, 100 * MB)
c.free(p), c.free(q)
assert resident() - start > 299 * MB  # two at once: both are kept
""")


@pytest.mark.slow
def test_memory_goes_back_when_nothing_wants_it():
    passes("""
p = c.malloc(100 * MB)
fill(p, 100 * MB)
c.free(p)
before = resident()
time.sleep(31)
c.free(c.malloc(8192))  # whatever the process does next
assert resident() < before - 99 * MB
""")


@pytest.mark.skipif(
    not (hasattr(mmap, "MADV_FREE") and Path("/proc/self/smaps_rollup").exists()),
    reason="needs a system with MADV_FREE that counts such pages",
)
def test_the_system_may_take_what_is_free_and_nothing_else():
    passes("""
p, q = c.malloc(100 * MB), c.malloc(40 * MB)
fill(p, 100 * MB), fill(q, 40 * MB, 2)
assert lazily_free() == 0
c.free(p)
assert 99 * MB < lazily_free() <= 100 * MB
count = faults()
assert c.malloc(100 * MB) == p
fill(p, 100 * MB, 3)
assert lazily_free() == 0 and faults() - count < 20
assert holds(p, 100 * MB, 3) and holds(q, 40 * MB, 2)
""")


def test_where_the_system_takes_nothing_it_is_kept_all_the_same():
    passes("""
p = c.malloc(40 * MB)
fill(p, 40 * MB)
if c.mlock(pointer(p), size_t(4096)) == 0:  # MADV_FREE fails, as with old systems
    c.free(p)
    count = faults()
    assert c.malloc(40 * MB) == p
    fill(p, 40 * MB)
    assert faults() - count < 20
""")


def test_alignment_sizes_and_errors():
    passes("""
for p in (c.malloc(33 * MB), c.memalign(64, 33 * MB), c.aligned_alloc(4096, 34 * MB)):
    assert p % PAGE == 0 and c.malloc_usable_size(p) == 34 * MB
    c.free(p)
out = pointer()
assert c.posix_memalign(ctypes.byref(out), 64, 40 * MB) == 0 and out.value % PAGE == 0
c.free(out)
out = pointer(7)
assert c.posix_memalign(ctypes.byref(out), 24, 40 * MB) == 22 and out.value == 7  # EINVAL
assert c.posix_memalign(ctypes.byref(out), 0, 40 * MB) == 22
assert c.posix_memalign(ctypes.byref(out), 64, 2**62) == 12  # ENOMEM
assert c.malloc(2**62) is None and c.reallocarray(None, 2**40, 2**40) is None
far = c.memalign(64 * MB, 40 * MB)
assert far % (64 * MB) == 0
c.free(far), c.free(None)
small = c.malloc(MB)
assert MB <= c.malloc_usable_size(small) < PAGE
c.free(small)
zeros = c.calloc(64, MB)
assert holds(zeros, 64 * MB, 0)
c.free(zeros)
""")


def test_realloc_keeps_what_is_there():
    passes("""
p = c.realloc(None, 40 * MB)
fill(p, 40 * MB, 5)
p = c.realloc(p, 200 * MB)
assert holds(p, 40 * MB, 5) and c.malloc_usable_size(p) == 200 * MB
fill(p, 200 * MB, 6)
for size in (150, 60):
    assert c.realloc(p, size * MB) == p and c.malloc_usable_size(p) == size * MB
assert holds(p, 60 * MB, 6)
p = c.realloc(p, 1000)
assert holds(p, 1000, 6) and c.malloc_usable_size(p) < MB
p = c.reallocarray(p, 33, MB)
assert holds(p, 1000, 6)
assert c.realloc(p, 0) is None
""")


def test_realloc_moves_pages_and_copies_nothing():
    passes("""
start = resident()
p = c.malloc(100 * MB)
fill(p, 100 * MB, 5)
grown = c.realloc(p, 150 * MB)
assert grown == p  # nothing lies behind it
beside = c.malloc(40 * MB)
fill(beside, 40 * MB, 6)
count, places = faults(), {p}
for size in (200, 300, 400):
    p = c.realloc(p, size * MB)
    places.add(p)
    assert holds(p, 100 * MB, 5) and c.malloc_usable_size(p) == size * MB
    assert resident() - start < 142 * MB and faults() - count < 20
assert len(places) == 4 and holds(beside, 40 * MB, 6)
fill(p, 400 * MB, 7)
assert c.realloc(p, 50 * MB) == p and resident() - start < 450 * MB
c.free(p)
again = c.malloc(150 * MB)  # where it lay first
assert again == grown
fill(again, 150 * MB, 8)
assert holds(beside, 40 * MB, 6)
""")


def test_realloc_copies_what_cannot_be_moved():
    """The system does not move a block whose pages have different attributes."""
    passes("""
DONT_DUMP = 16
p = c.malloc(40 * MB)
fill(p, 40 * MB, 5)
assert c.madvise(pointer(p + 10 * MB), size_t(PAGE), DONT_DUMP) == 0
beside = [c.malloc(40 * MB)]
for size in (60, 80, 120):
    p = c.realloc(p, size * MB)
    assert holds(p, 40 * MB, 5) and c.malloc_usable_size(p) == size * MB
    beside.append(c.malloc(40 * MB))
    fill(p, size * MB, 5)
others = [c.calloc(40, MB) for _ in range(8)]  # of glibc, wherever there is room
for other in others:
    fill(other, 40 * MB, 9)
assert holds(p, 120 * MB, 5)
for other in others + beside + [p]:
    c.free(other)
""")


def test_blocks_keep_their_contents_whatever_is_done_with_them():
    passes("""
random.seed(1)
live = {}

def mark(p, size, value):
    for at in (0, size // 2, size - 8):
        fill(p + at, 8, value)

for turn in range(1500):
    value = turn % 255 + 1
    size = random.choice([32, 33, 40, 64, 100, 256, 600]) * MB + random.randrange(MB)
    kind = random.random()
    if kind < 0.4 or not live:
        p = c.malloc(size)
    else:
        old = random.choice(list(live))
        had, was = live.pop(old)
        assert holds(old, had, was)
        if kind < 0.7:
            c.free(old)
            continue
        p = c.realloc(old, size)
        assert ctypes.string_at(p, 8) == bytes([was]) * 8
        if size >= had:
            assert holds(p, had, was)
    assert all(p + size <= q or q + other <= p for q, (other, _) in live.items())
    mark(p, size, value)
    live[p] = size, value
    if len(live) > 12:
        oldest = next(iter(live))
        assert holds(oldest, *live.pop(oldest))
        c.free(oldest)
assert len(open("/proc/self/maps").readlines()) < 300
""")


def test_live_blocks_never_overlap():
    passes("""
random.seed(0)
live = {}
for _ in range(3000):
    if live and random.random() < 0.5:
        c.free(live.pop(random.choice(list(live)))[0])
    else:
        size = random.choice([32, 33, 40, 64, 100, 256, 1000]) * MB + random.randrange(MB)
        p = c.malloc(size)
        assert all(p + size <= q or q + other <= p for q, other in live.values())
        live[p] = p, size
""")


def test_threads():
    passes("""
def work(seed):
    rng = random.Random(seed)
    for _ in range(60):
        size = rng.choice([32, 34, 48]) * MB
        p = c.malloc(size)
        for at in (0, size // 2, size - 8):
            fill(p + at, 8, seed)
        if rng.random() < 0.2:
            p = c.realloc(p, size + 16 * MB)
        if not all(ctypes.string_at(p + at, 8) == bytes([seed]) * 8 for at in (0, size // 2, size - 8)):
            os._exit(3)
        c.free(p)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""")


def test_a_block_that_another_thread_is_about_to_free_is_waited_for():
    passes("""
taken, blocks = threading.Event(), []

def step():
    blocks.append(c.malloc(64 * MB))
    taken.set()
    time.sleep(0.001)
    c.free(blocks[0])

other = threading.Thread(target=step)
other.start()
taken.wait()
assert c.malloc(64 * MB) == blocks[0]
other.join()
""")


def test_nobody_waits_in_vain_twice():
    """A thread never waits for its own blocks, and only once for those of another thread that stay in use."""
    passes("""
live = []

def take(count):
    return [elapsed(lambda: live.append(c.malloc(64 * MB))) for _ in range(count)]

own = take(10)
others = []
thread = threading.Thread(target=lambda: others.extend(take(10)))
thread.start()
thread.join()
# Medians, since the system may let any call wait.
assert sorted(own)[5] < 0.002 and sorted(others)[5] < 0.002, (own, others)
assert len(set(live)) == 20
""")


def test_children():
    passes("""
p = c.malloc(64 * MB)
fill(p, 64 * MB, 4)
child = os.fork()
if child == 0:
    good = holds(p, 64 * MB, 4)
    c.free(p)
    q = c.malloc(64 * MB)
    fill(q, 64 * MB, 9)
    os._exit(0 if good and q == p else 1)
assert os.waitpid(child, 0)[1] == 0 and holds(p, 64 * MB, 4)
""")


def test_without_room_for_the_region_all_is_glibc_s():
    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    passes("""
p = c.malloc(64 * MB)
fill(p, 64 * MB)
assert p % PAGE and c.malloc_usable_size(p) % PAGE
c.free(p)
""", preexec_fn=limit)  # fmt: skip


def test_freeing_twice_ends_the_program():
    done = run("p = c.malloc(64 * MB); c.free(p); c.free(p)")
    assert done.returncode < 0


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_nothing_else_is_exported():
    """The exports of a preloaded library take precedence over those of all other libraries."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in listed.stdout.splitlines()} == {
        "aligned_alloc", "free", "malloc", "malloc_trim", "malloc_usable_size", "memalign", "posix_memalign",
        "realloc", "reallocarray",
    }  # fmt: skip
