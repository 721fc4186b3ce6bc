"""The compiler keeps the microkernels' sums in registers."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


disassembly = load(ROOT / "benchmarks" / "disassembly.py")

LISTING = """
0000000000001000 <void dfpjax::long_chains<dfpjax::Avx512<dfpjax::Dot>, 6, 4>(dfpjax::CellArgs const&, int)>:
    1000:\tmov    %rsp,%rbp
    1004:\tvmovdqu64 %zmm1,0x40(%rsp)
    1008:\tvmovdqu64 (%rax),%zmm0
    100c:\tvpbroadcastd (%rbx),%zmm1
    1010:\tvpdpwssd %zmm0,%zmm1,%zmm2
    1014:\tadd    $0x4,%rbx
    1018:\tjne    1008 <void dfpjax::long_chains<...>+0x8>
    101c:\tjmp    1000 <void dfpjax::long_chains<...>>
"""


@pytest.mark.parametrize(
    ("line", "stack"),
    [
        ("add    $0x4,%rbx", 0),
        ("mov    %rbx,0x8(%rsp)", 0),
        ("vmovdqu64 %zmm2,0x80(%rsp)", 1),
        ("vmovdqa64 -0x40(%rbp),%zmm2", 1),
    ],
)
def test_counts_what_stands_in_the_innermost_loop(line, stack):
    (loop,) = disassembly.kernel_loops(LISTING.replace("add    $0x4,%rbx", line))
    assert (loop.path, loop.kernel, loop.rows, loop.columns) == ("avx512vnni", "long_chains", 6, 4)
    assert (loop.multiply_adds, loop.broadcasts, loop.stack, loop.must_not_spill) == (1, 1, stack, True)
    assert loop.loads == 1 + line.endswith("(%rbp),%zmm2")


PASS = """
0000000000002000 <dfpjax::masked(dfpjax::MaskedRows const&, long, long)>:
    2000:\tvmovups (%rax),%ymm0
    2004:\tvpinsrd $0x1,%esi,%xmm1,%xmm1
    2008:\tvmovups %ymm0,(%rbx)
    200c:\tjne    2000 <dfpjax::masked(dfpjax::MaskedRows const&, long, long)>
"""


@pytest.mark.parametrize(
    ("listing", "loops", "apart"),
    [
        (PASS, 1, 1),
        (PASS.replace("vpinsrd $0x1,%esi,%xmm1,%xmm1", "vblendvps %ymm1,%ymm0,%ymm0,%ymm0"), 1, 0),
        (PASS.replace("ymm", "xmm"), 0, 0),
        (PASS.replace("masked", "norms_pairs"), 0, 0),
    ],
)
def test_finds_vectors_that_are_taken_apart(listing, loops, apart):
    count, found = disassembly.passes_taken_apart(listing)
    assert (count, len(found)) == (loops, apart)


def test_no_sum_is_spilled_and_no_vector_taken_apart():
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the kernels of {platform.machine()} have no multiply-add to look for")
    if not shutil.which("objdump"):
        pytest.skip("objdump (binutils) is missing")
    command = [sys.executable, "-m", "benchmarks.disassembly"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in disassembly.PATHS.values():
        assert path in done.stdout
