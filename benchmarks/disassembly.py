"""Show by the code of innermost loops that microkernels keep their sums in registers and passes use vectors.

    python -m benchmarks.disassembly

Disassembles the installed kernels with objdump and counts the instructions of every innermost loop that
multiplies int16 pairs. A 6×4 kernel needs 4 loads and 6 broadcasts for its 24 multiply-adds; a vector moved
to or from the stack would be a spilled sum. Fails if a 6×4 or 6×2 kernel has one, and if a pass takes vectors
apart into their elements, as GCC 12 does with selects and conversions that the path's registers do not suit.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

# Instruction and register width tell the path: the symbols of the paths have the same names.
PATHS = {
    ("vpdpwssd", "zmm"): "avx512vnni",
    ("vpmaddwd", "zmm"): "avx512bw",
    ("vpdpwssd", "ymm"): "avxvnni",
    ("vpmaddwd", "ymm"): "avx2",
}
MULTIPLY_ADD = re.compile(r"\b(vpdpwssd|vpmaddwd)\b.*%([yz]mm)")
VECTOR = re.compile(r"%[xyz]mm")
KERNEL = re.compile(r"(\w+)<.*?>?(?:, (\d+))?, (\d+)(?:, (?:true|false))?>\(")  # without rows: six
ROWS = 6
PASS = re.compile(
    r"\b(moments|paired|masked|rectified|gradient|largest_magnitude|quantize|max_of_taps|add_to_max|local_response)"
    r"\w*[<(]"
)
APART = re.compile(r"\bv?(pextr[bwd]|pinsr[bwd]|extractps|insertps)\b")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """An innermost loop of a kernel, and how many instructions of each kind it has."""

    path: str
    kernel: str
    rows: int
    columns: int
    """In vectors."""
    multiply_adds: int
    loads: int
    """Of vectors, wherever they come from."""
    broadcasts: int
    stack: int
    """Vectors moved to or from the stack."""
    other: int

    @property
    def must_not_spill(self) -> bool:
        return self.rows == ROWS and self.columns in (2, 4)


def symbols(listing: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Every symbol's name and its instructions with their addresses."""
    name, code = "", []
    for line in listing.splitlines():
        if start := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            yield name, code
            name, code = start[1], []
        elif instruction := re.match(r"\s*([0-9a-f]+):\t(.*)", line):
            code.append((int(instruction[1], 16), instruction[2]))
    yield name, code


def innermost_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The instructions between each backward jump and its target, unless another such stretch lies within."""
    first = code[0][0] if code else 0
    spans = []
    for address, text in code:
        jump = re.match(r"j\w+\s+([0-9a-f]+)\b", text)
        if jump and first <= int(jump[1], 16) <= address:
            spans.append((int(jump[1], 16), address))
    innermost = [
        (low, high) for low, high in spans
        if not any(other != (low, high) and low <= other[0] and other[1] <= high for other in spans)
    ]  # fmt: skip
    return [[text for address, text in code if low <= address <= high] for low, high in innermost]


def count(kernel: re.Match, body: list[str], stack: re.Pattern) -> Loop | None:
    """The loop's instructions by kind; None if it does not multiply."""
    found = [match for match in map(MULTIPLY_ADD.search, body) if match]
    if not found:
        return None
    vectors = [text for text in body if VECTOR.search(text) and "(" in text]
    broadcasts = [text for text in vectors if "vpbroadcast" in text or "{1to" in text]
    loads = [text for text in vectors if text not in broadcasts and not re.search(r"\)(\{.*)?$", text)]
    return Loop(
        path=PATHS[min(match.groups() for match in found)],
        kernel=kernel[1],
        rows=int(kernel[2] or ROWS),
        columns=int(kernel[3]),
        multiply_adds=len(found),
        loads=len(loads),
        broadcasts=len(broadcasts),
        stack=sum(bool(stack.search(text)) for text in vectors),
        other=len([text for text in body if text not in vectors and not MULTIPLY_ADD.search(text)]),
    )


def kernel_loops(listing: str) -> list[Loop]:
    """The multiplying innermost loops of all register-tiled kernels in objdump's listing."""
    loops = []
    for name, code in symbols(listing):
        kernel = KERNEL.search(name)
        if not kernel:
            continue
        # rbp is one more general register, unless the function keeps a frame there.
        framed = any(re.match(r"mov\s+%rsp,%rbp", text) for _, text in code)
        stack = re.compile(r"\(%rsp|\(%rbp" if framed else r"\(%rsp")
        counted = (count(kernel, body, stack) for body in innermost_loops(code))
        loops += [loop for loop in counted if loop]
    order = list(PATHS.values())
    return sorted(loops, key=lambda x: (order.index(x.path), x.kernel, -x.rows, -x.columns))


def passes_taken_apart(listing: str) -> tuple[int, list[tuple[str, str]]]:
    """The number of the passes' innermost loops over vectors, and which of them take vectors apart: the
    function's name and the first such instruction."""
    count, apart = 0, []
    for name, code in symbols(listing):
        if not PASS.search(name):
            continue
        for body in innermost_loops(code):
            if not any(re.search(r"%[yz]mm", text) for text in body):
                continue
            count += 1
            apart += [(name, text) for text in body if APART.search(text)][:1]
    return count, apart


def disassemble(path: str) -> str:
    if not shutil.which("objdump"):
        sys.exit("objdump is missing; it comes with binutils (apt install binutils)")
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", help="the shared library to look at (default: the installed one)")
    parser.add_argument("--all", action="store_true", help="also kernels of fewer than six rows")
    arguments = parser.parse_args(argv)
    if not arguments.module:
        from dfpjax import _native

        arguments.module = _native.__file__
    listing = disassemble(arguments.module)
    loops = kernel_loops(listing)
    print(arguments.module)
    head = ("path", "kernel", "tile", "mul-adds", "loads", "broadcasts", "loads/mul-add", "stack", "other")
    print("{:<11} {:<21} {:>4} {:>9} {:>6} {:>11} {:>14} {:>6} {:>6}".format(*head))
    for x in loops:
        if x.rows == ROWS or x.stack or arguments.all:
            ratio = (x.loads + x.broadcasts) / x.multiply_adds
            print(
                f"{x.path:<11} {x.kernel:<21} {x.rows}×{x.columns:<2} {x.multiply_adds:>9} {x.loads:>6} "
                f"{x.broadcasts:>11} {ratio:>14.2f} {x.stack:>6} {x.other:>6}"
            )
    checked = [loop for loop in loops if loop.must_not_spill]
    if not checked:
        sys.exit("found no loop of a 6×4 or 6×2 kernel: is this a stripped library, or no x86-64 one?")
    if any(loop.stack for loop in checked):
        sys.exit("a 6×4 or 6×2 kernel moves vectors to or from the stack")
    print(f"no vector goes to or from the stack in the {len(checked)} loops of 6×4 and 6×2 kernels")
    passes, apart = passes_taken_apart(listing)
    if not passes or apart:
        found = "".join(f"\n  {text} in {name[:100]}" for name, text in apart)
        sys.exit(f"of {passes} loops over vectors in passes, {len(apart)} take vectors apart:{found}")
    print(f"no vector is taken apart in the {passes} loops of passes")


if __name__ == "__main__":
    main()
