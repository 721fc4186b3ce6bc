"""How `benchmarks.fidelity` computes one operation's three passes: exactly, and in each precision."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.common import shapes
from benchmarks.common.operations import PASSES, ours_and_jax
from dfpjax import quantize
from dfpjax.numbers import Quantizer, Quantizers
from dfpjax.numbers.contraction.algorithm import TILES, Algorithm
from dfpjax.numbers.format.blocks import Blocks
from dfpjax.numbers.format.quantizer import Granularity

Results = dict[str, np.ndarray]
"""The result of each pass, float64."""


@dataclass(frozen=True)
class Precision:
    """What an operation's operands and results are rounded to; products are summed in float32, or exactly."""

    name: str
    bits: int = 0
    """Bits of a dynamic fixed point mantissa; 0 is floating point."""
    rounding: str = "nearest"
    """The rounding to dynamic fixed point."""
    cotangent_rounding: str = ""
    """That of output gradients, if it is another."""
    granularity: Granularity = "tensor"
    """What has an exponent: a tensor or a block."""
    blocks: Blocks = Blocks()  # noqa: RUF009 (frozen)
    """The size of blocks. It counts only if the granularity is `block`."""
    algorithm: Algorithm = "direct"
    """That of a convolution in dynamic fixed point."""
    bfloat16_operands: bool = False
    bfloat16_results: bool = False

    def operation(self, case):
        """The operation of (lhs, rhs) whose values and derivatives this precision computes."""
        ours, theirs = ours_and_jax(case)
        if not self.bits:
            return theirs
        operand = Quantizer(
            bits=self.bits, rounding=self.rounding, granularity=self.granularity, blocks=self.blocks
        )
        cotangent = replace(operand, rounding=self.cotangent_rounding or self.rounding)
        how = {"quantizers": Quantizers(lhs=operand, rhs=operand, cotangent=cotangent)}
        if isinstance(case, shapes.Conv):
            how["algorithm"] = self.algorithm
        return functools.partial(ours, **how)

    def round(self, operand: jax.Array) -> jax.Array:
        """A float32 operand as floating point of this precision has it."""
        if self.bfloat16_results:  # XLA then computes in bfloat16 as it likes to
            return operand.astype(jnp.bfloat16)
        # reduce_precision and not two conversions, which XLA would take out.
        return lax.reduce_precision(operand, 8, 7) if self.bfloat16_operands else operand


FLOAT32 = Precision("float32")
DFP16 = Precision("DFP-16", bits=16)
DFP16_BLOCKS = Precision("DFP-16 blocks", bits=16, granularity="block")
DFP16_BLOCKS_STOCHASTIC = Precision(
    "DFP-16 blocks, stochastic dy", bits=16, granularity="block", cotangent_rounding="stochastic"
)
BFLOAT16 = Precision("bfloat16", bfloat16_operands=True)
PRECISIONS = (
    FLOAT32,
    DFP16,
    DFP16_BLOCKS,
    Precision("DFP-16 stochastic", bits=16, rounding="stochastic"),
    DFP16_BLOCKS_STOCHASTIC,
    Precision("DFP-14", bits=14),
    Precision("DFP-12", bits=12),
    Precision("DFP-8", bits=8),
    BFLOAT16,
    Precision("bfloat16 results", bfloat16_operands=True, bfloat16_results=True),
)
"""Those of every operation."""

WINOGRAD = tuple(
    Precision(f"DFP-16 blocks, {algorithm}", bits=16, granularity="block", algorithm=algorithm)
    for algorithm in TILES
)
"""Those of convolutions that Winograd algorithms suit, besides."""


def precisions_of(case) -> tuple[Precision, ...]:
    """The precisions that a case is computed in."""
    suits = isinstance(case, shapes.Conv) and case.suits_winograd
    return (*PRECISIONS, *WINOGRAD) if suits else PRECISIONS


def passes(case, precision: Precision, x, w, dy) -> Results:
    """The operation, and its gradients for x and for w where the output's is dy, in that precision.

    Arguments:
        case: a `shapes.Conv`, `shapes.Dot` or `shapes.Einsum`.
        precision: one of the case's `precisions_of`.
        x, w, dy: float32 arrays of the shapes `case.lhs`, `case.rhs` and `case.out`.
    """
    results = _passes(case, precision, x, w, dy)
    return {which: np.asarray(y, np.float64) for which, y in zip(PASSES, results, strict=True)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _passes(case, precision: Precision, *operands):
    x, w, dy = map(precision.round, operands)
    y, transpose = jax.vjp(precision.operation(case), x, w)
    return y, *transpose(dy)


def exact_passes(case, x, w, dy) -> Results:
    """The same in float64, with NumPy's matrix product alone: nothing of JAX or XLA is in it.

    Raises:
        ValueError: if `case` is a grouped convolution.
    """
    x, w, dy = (operand.astype(np.float64) for operand in (x, w, dy))
    if isinstance(case, shapes.Dot):
        return {"fprop": x @ w, "dgrad": dy @ w.swapaxes(-1, -2), "wgrad": x.swapaxes(-1, -2) @ dy}
    if isinstance(case, shapes.Einsum):
        lhs, rhs, out = case.axes
        products = {
            "fprop": (lhs, x, rhs, w, out),
            "dgrad": (out, dy, rhs, w, lhs),
            "wgrad": (lhs, x, out, dy, rhs),
        }
        return {
            which: np.einsum(f"{one},{other}->{result}", a, b, optimize=True)
            for which, (one, a, other, b, result) in products.items()
        }
    if case.groups > 1:
        raise ValueError(f"exact_passes: {case.name} is grouped; only convolutions of one group are known")

    # Every kernel position multiplies a strided window of the padded image by one matrix.
    inside = slice(case.padding, case.padding + case.image)
    padded = np.pad(x, ((0, 0), (case.padding,) * 2, (case.padding,) * 2, (0, 0)))
    y, dx, dw = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(w.shape)
    reach = case.stride * (dy.shape[1] - 1) + 1
    for i, j in np.ndindex(case.kernel, case.kernel):
        window = np.s_[:, i : i + reach : case.stride, j : j + reach : case.stride]
        y += np.tensordot(padded[window], w[i, j], 1)
        dx[window] += np.tensordot(dy, w[i, j].T, 1)
        dw[i, j] = np.tensordot(padded[window], dy, ((0, 1, 2), (0, 1, 2)))
    return {"fprop": y, "dgrad": dx[:, inside, inside], "wgrad": dw}


def relative_error(actual: np.ndarray, truth: np.ndarray) -> float:
    """Norm of the difference over norm of the truth; NaN if the truth is zero."""
    norm = np.linalg.norm(truth)
    return float(np.linalg.norm(actual - truth) / norm) if norm else float("nan")


def largest_error(actual: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference over the truth's root mean square; NaN if the truth is zero."""
    rms = np.sqrt(np.mean(truth**2))
    return float(np.abs(actual - truth).max() / rms) if rms else float("nan")


def worst_channel_error(actual: np.ndarray, truth: np.ndarray, axis: int) -> float:
    """The largest `relative_error` of a slice along that axis; slices that are zero do not count."""
    others = tuple(a for a in range(truth.ndim) if a != axis % truth.ndim)
    squares = np.sum(truth**2, axis=others)
    differences = np.sum((actual - truth) ** 2, axis=others)
    return float(np.sqrt((differences[squares > 0] / squares[squares > 0]).max(initial=0)))


def rms_over_max(x: np.ndarray) -> float:
    """Root mean square over largest magnitude: 1 if all magnitudes are the same; NaN if all are zero."""
    x = x.astype(np.float64)
    largest = np.abs(x).max()
    return float(np.sqrt(np.mean(x**2)) / largest) if largest else float("nan")


def share_lost(x: np.ndarray) -> float:
    """The share of a float32 array's non-zero values that become zero in DFP-16 with one exponent."""
    mantissa = np.asarray(quantize(x).mantissa)
    return float(np.mean((mantissa == 0) & (x != 0)))
