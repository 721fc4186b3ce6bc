"""What `benchmarks.kernels` times: our functions, XLA's and PyTorch's, for one shape at a time."""

import functools
import sys
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from benchmarks.common import shapes
from benchmarks.common.bfloat16 import COMPILER_OPTIONS
from benchmarks.common.environment import cpu_flags
from benchmarks.common.operations import PASSES, normal, ours_and_jax
from benchmarks.common.timing import Contenders
from benchmarks.common.torch_process import TorchProcess, has_torch
from dfpjax import kernels
from dfpjax.numbers import Quantizer
from dfpjax.numbers.contraction.algorithm import TILES, Algorithm
from dfpjax.numbers.contraction.plan import make_plan
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.dtype import to_integers
from dfpjax.numbers.format.quantize import quantize_array

KERNEL, QUANTIZED, ONE_EXPONENT = "dfp16 kernel", "dfp16 + quantize", "one exponent"
WINOGRAD = {algorithm: f"dfp16 {algorithm}" for algorithm in TILES}
"""The kernel by each Winograd algorithm."""
XLA, XLA_BFLOAT16, ONEDNN, ONEDNN_BFLOAT16 = "XLA f32", "XLA bf16", "oneDNN f32", "oneDNN bf16"
ONEDNN_TYPES = {ONEDNN: "float32", ONEDNN_BFLOAT16: "bfloat16"}
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""What Linux calls the instructions that multiply bfloat16."""

BLOCKS = Blocks()
"""Those of the library's default, of all contenders but `ONE_EXPONENT`."""

quantize = functools.partial(quantize_array, quantizer=Quantizer())


def contract(
    contraction,
    threads: int,
    blocks: Blocks | None = None,
    algorithm: Algorithm = "direct",
    kernel: Callable = kernels.contract,
):
    """The native kernel as a function of two quantized operands, on at most so many threads (0: all).
    `blocks` is the size of both operands' blocks; `kernel` is called as `kernels.contract` is."""

    def run(lhs, lhs_exponent, rhs, rhs_exponent):
        shapes_of = (x.shape for x in (lhs, rhs, lhs_exponent, rhs_exponent))
        plan = make_plan(contraction, *shapes_of, (blocks, blocks), algorithm)
        lhs, rhs = to_integers(lhs), to_integers(rhs)
        if plan.swapped:
            lhs, lhs_exponent, rhs, rhs_exponent = rhs, rhs_exponent, lhs, lhs_exponent
        return kernel(plan, lhs, rhs, lhs_exponent, rhs_exponent, threads=threads)

    return run


def ours(lhs_shape, rhs_shape, contraction, algorithms: Iterable[Algorithm] = ()) -> Contenders:
    """The kernel alone, the kernel with quantization of both operands, the kernel with one exponent per
    tensor, and the kernel by each of these Winograd algorithms, on normally distributed data."""
    x, y = normal(lhs_shape), normal(rhs_shape)
    run, prepare = contract(contraction, 0, BLOCKS), functools.partial(quantize, blocks=BLOCKS)
    whole = jax.jit(lambda x, y: run(*prepare(x), *prepare(y)))
    return {
        KERNEL: kernel(contraction, x, y, BLOCKS),
        QUANTIZED: lambda: whole(x, y).block_until_ready(),
        ONE_EXPONENT: kernel(contraction, x, y, None),
        **{WINOGRAD[name]: kernel(contraction, x, y, BLOCKS, algorithm=name) for name in algorithms},
    }


def kernel_on_threads(lhs_shape, rhs_shape, contraction, threads: list[int]) -> Contenders:
    """The kernel alone, for each number of threads."""
    x, y = normal(lhs_shape), normal(rhs_shape)
    return {str(count): kernel(contraction, x, y, BLOCKS, count) for count in threads}


def kernel(
    contraction, lhs, rhs, blocks: Blocks | None, threads: int = 0, algorithm: Algorithm = "direct"
) -> Callable[[], object]:
    """The kernel alone, on those float32 operands, quantized with blocks of that size or none, on at most so
    many threads (0: all)."""
    prepare = jax.jit(functools.partial(quantize, blocks=blocks))
    quantized = (*prepare(lhs), *prepare(rhs))
    run = jax.jit(contract(contraction, threads, blocks, algorithm))
    return lambda: run(*quantized).block_until_ready()


def xla(case) -> dict[str, Contenders]:
    """JAX's own operation and its two gradients: for each pass in float32 and, where the CPU has instructions
    for it, in bfloat16."""
    found = {XLA: _xla(case, jnp.float32)}
    if multiplies_bfloat16():
        found[XLA_BFLOAT16] = _xla(case, jnp.bfloat16, COMPILER_OPTIONS)
    return {which: {name: passes[which] for name, passes in found.items()} for which in PASSES}


def _xla(case, dtype, compiler_options: dict | None = None) -> Contenders:
    _, operation = ours_and_jax(case)
    x, w, dy = (normal(shape).astype(dtype) for shape in (case.lhs, case.rhs, case.out))
    functions = {
        "fprop": (operation, x, w),
        "dgrad": (lambda dy, w: jax.linear_transpose(lambda x: operation(x, w), x)(dy)[0], dy, w),
        "wgrad": (lambda dy, x: jax.linear_transpose(lambda w: operation(x, w), w)(dy)[0], dy, x),
    }
    compiled = {
        which: (jax.jit(f, compiler_options=compiler_options), a, b) for which, (f, a, b) in functions.items()
    }
    return {which: lambda f=f, a=a, b=b: f(a, b).block_until_ready() for which, (f, a, b) in compiled.items()}


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it."""
    return bool(BFLOAT16_FLAGS & cpu_flags())


class Torch:
    """A PyTorch process that times one case at a time."""

    def __init__(self, python: str):
        self._process = TorchProcess(python, "benchmarks.kernels.torch_worker")
        self.version: str = self._process.greeting["torch"]
        # Without such instructions oneDNN computes in float32.
        self._types = ONEDNN_TYPES if multiplies_bfloat16() else {ONEDNN: ONEDNN_TYPES[ONEDNN]}

    def seconds(self, case, **how) -> dict[str, dict[str, float]]:
        """The seconds of each pass, in float32 and, where the CPU has instructions for it, in bfloat16."""
        found = {name: self._seconds(case, dtype, **how) for name, dtype in self._types.items()}
        return {which: {name: seconds[which] for name, seconds in found.items()} for which in PASSES}

    def _seconds(self, case, dtype: str, **how) -> dict[str, float]:
        request = {"lhs": case.lhs, "rhs": case.rhs, "type": dtype, **how}
        if isinstance(case, shapes.Conv):
            request.update(stride=case.stride, padding=case.padding, groups=case.groups)
        return self._process.ask(**request)


def find_torch(python: str | None) -> Torch | None:
    """PyTorch in that interpreter, or in this one; None if it is not there."""
    python = python or sys.executable
    return Torch(python) if has_torch(python) else None
