"""Where the time of a step goes, by class of operation.

JAX's profiler gives the times at which XLA's CPU runtime starts and ends each instruction. Several may be
under way at once, on one pool of threads: each moment of the step is divided equally among the instructions
that are under way in it, so that the classes, and the moments in which none is, add up to the step. But
where native code is under way the moment is its own: it works on all threads, and what else has begun waits
for one.
"""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from pathlib import Path

import jax
from jax.profiler import ProfileData, ProfileOptions

from benchmarks.train_step.hlo import Instruction, Program, differentiated, parse

KERNELS, PLAIN = "DFP16 kernels", "other conv and dot"
MAXIMUM, MANTISSAS = "quantization: maximum", "quantization: mantissas"
PRODUCED = "computed and quantized in one pass"
POOLING, OPTIMIZER, REDUCTIONS = "pooling", "optimizer", "reductions"
ELEMENTWISE, COPIES, IDLE = "elementwise", "copies", "nothing under way"
CLASSES = (
    KERNELS, PLAIN, MAXIMUM, MANTISSAS, PRODUCED, REDUCTIONS, ELEMENTWISE, POOLING, OPTIMIZER, COPIES, IDLE
)  # fmt: skip

# Their time is that of the instructions they call.
CONTROL = ("while", "conditional", "call")
_REDUCING = ("reduce", "reduce-window")
_MOVING = ("copy", "transpose", "broadcast", "bitcast", "concatenate", "pad", "slice", "reverse", "gather")
# Native passes beside the contractions.
_PASSES = {
    "dfpjax_largest_magnitude": MAXIMUM,
    "dfpjax_quantize": MANTISSAS,
    "dfpjax_rectified_operand": PRODUCED,
    "dfpjax_gradient_operand": PRODUCED,
    "dfpjax_masked_operand": PRODUCED,
    "dfpjax_pooled_operand": PRODUCED,
    "dfpjax_moments": REDUCTIONS,
    "dfpjax_masked_sums": REDUCTIONS,
    "dfpjax_paired_sums": REDUCTIONS,
    "dfpjax_rectified_sums": REDUCTIONS,
    "dfpjax_rectified_sum": ELEMENTWISE,
    "dfpjax_local_response": ELEMENTWISE,
    "dfpjax_max_pool": POOLING,
}
_POOLING = re.compile(r"reduce_window|select_and_scatter|select_and_gather")

Interval = tuple[int, int, str]
"""Start and end in nanoseconds, and what was under way."""


def classify(instruction: Instruction, program: Program) -> str:
    """The class of an instruction.

    A fusion belongs to the first of the classes that one of its instructions is in: one that rounds to
    mantissas what it computes itself, a batch norm for example, counts as quantization.
    """
    inside = program.inside(instruction)
    opcodes = {i.opcode for i in inside} - {"parameter", "constant", "tuple", "get-tuple-element"}
    names = [instruction.op_name, *(i.op_name for i in inside)]
    for target, kind in _PASSES.items():
        if instruction.target.startswith(target):
            return kind
    if instruction.target.startswith("dfpjax"):
        return KERNELS
    if opcodes & {"convolution", "dot"} or instruction.target:
        return PLAIN
    if any("dfp_quantize" in name for name in names):
        if "s16" in instruction.shape:
            return MANTISSAS
        if opcodes & set(_REDUCING):
            return MAXIMUM
    if any(_POOLING.search(name) for name in names):
        return POOLING
    # Of a training step, all that is neither differentiated nor a derivative.
    if program.differentiates and instruction.op_name and not any(map(differentiated, names)):
        return OPTIMIZER
    if opcodes & set(_REDUCING):
        return REDUCTIONS
    return COPIES if opcodes <= set(_MOVING) else ELEMENTWISE


def measure(compiled, step: Callable[[], None], count: int = 3) -> dict:
    """Profile some steps.

    Arguments:
        compiled: a `jax.stages.Compiled`, which `step` runs.

    Returns:
        `seconds`, those of one step while it is profiled; and for each class `seconds` and `bytes` (what its
        instructions read and write, each operand once) of one step.
    """
    program = parse(compiled.as_text())
    intervals, (start, end) = profile(step, count)
    intervals = [i for i in intervals if program.instructions[i[2]].opcode not in CONTROL]
    native = {name for _, _, name in intervals if program.instructions[name].target.startswith("dfpjax")}
    shares = divide(intervals, start, end, native)
    seconds, moved = Counter(), Counter()
    for name, nanoseconds in shares.items():
        kind = classify(program.instructions[name], program) if name else IDLE
        seconds[kind] += nanoseconds / 1e9 / count
    for _, _, name in intervals:
        instruction = program.instructions[name]
        moved[classify(instruction, program)] += program.bytes_moved(instruction) / count
    classes = {k: {"seconds": seconds[k], "bytes": round(moved[k])} for k in CLASSES if k in seconds}
    return {"seconds": (end - start) / 1e9 / count, "classes": classes}


def profile(step: Callable[[], None], count: int) -> tuple[list[Interval], tuple[int, int]]:
    """Every instruction that ran in `count` steps, and the start and end of the steps."""
    options = ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options), jax.profiler.TraceAnnotation("steps"):
            for _ in range(count):
                step()
        file = next(Path(folder).rglob("*.xplane.pb"))
        return read(ProfileData.from_file(str(file)))


def read(data: ProfileData) -> tuple[list[Interval], tuple[int, int]]:
    """The instructions in a profile, and the start and end of its annotation."""
    found, whole = [], None
    # An instruction that leaves its work to other threads returns early; what comes after it in an `end:`
    # event names the moment at which it was done.
    starts, ends = {}, {}
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                start, end = event.start_ns, event.start_ns + event.duration_ns
                if event.name == "steps":
                    whole = (start, end)
                elif event.name.startswith("end: "):
                    ends[dict(event.stats)["_c"]] = start
                elif "hlo_op" in (stats := dict(event.stats)):
                    starts[stats.get("_p", (line.name, start))] = (start, end, stats["hlo_op"])
    for key, (start, end, name) in starts.items():
        found.append((start, max(end, ends.get(key, end)), name))
    return found, whole


def divide(intervals: list[Interval], start: int, end: int, first: Collection[str] = ()) -> dict[str, float]:
    """The nanoseconds from start to end, divided among the running instructions; None has the idle ones.

    Where some of `first` are under way, the others have no share.
    """
    moments = defaultdict(list)
    for begun, done, name in intervals:
        begun, done = max(begun, start), min(done, end)
        if begun < done:
            moments[begun].append((name, 1))
            moments[done].append((name, -1))
    shares, under_way, last = defaultdict(float), Counter(), start
    for moment in sorted({*moments, end}):
        working = Counter({name: under_way[name] for name in under_way if name in first}) or under_way
        total = working.total()
        for name, number in working.items():
            shares[name] += (moment - last) * number / total
        if not total:
            shares[None] += moment - last
        for name, change in moments.get(moment, ()):
            under_way[name] += change
            if not under_way[name]:
                del under_way[name]
        last = moment
    return dict(shares)
