"""Matrix products of tensors in dynamic fixed point, exact within one rounding."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers.arithmetic.exact_matmul import exact_matmul
from dfpjax.numbers.arithmetic.exponents import LOWEST_EXPONENT, dominance, exponent_of, fitted, integers
from dfpjax.numbers.arithmetic.operands import check_operand, check_rounding
from dfpjax.numbers.arithmetic.straight_through import straight_through
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.wide import shift_right, widen

GUARD_BITS = 8
"""Bits that mantissas get for their alignment where exponents vary along the contracted axis."""


def matmul(
    a: DFPArray, b: DFPArray, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> DFP32Array:
    """a @ b, exact within one rounding for any data, where no exponent varies along the contracted axis.

    The sums of products are exact 64-bit integers. A right shift by R bits converts them to DFP-32, with
    E = Ea + Eb + R. The tensor has one R, the smallest that leaves the largest sum at most 31 bits. Nothing
    is rounded if no sum exceeds 31 bits. On CPUs native kernels multiply the mantissas' bytes, whose sums are
    exact. (`dfpjax.mixed_precision` accumulates in float32 instead, which takes a quarter of the products.)

    Where exponents vary along the contracted axis, as those of blocks do, each row of a (each column of b) is
    first aligned as in `add`, to the largest exponent in it, but with 8 bits more than a mantissa has. So
    nothing is rounded where exponents differ by at most 8, and no rounding error reaches 2^(E − 8) for the
    largest exponent E. (From 2^17 products per sum on there is room for fewer bits.)

    Arguments:
        a, b: DFPArrays of shapes as for `numpy.matmul`. With exponents per row of a, per column of b or per
            matrix, each slice of the result has its own R; so does each element with exponents of blocks.
        rounding, seed: as for `add`.

    Returns:
        DFP32Array of the shape that `numpy.matmul` gives.

    Raises:
        TypeError: if an operand is not a DFPArray, or `seed` is not as for `add`.
        ValueError: if the shapes do not match, or `rounding` or `seed` is not as for `add`.
    """
    check_operand("matmul", "a", a, DFPArray)
    check_operand("matmul", "b", b, DFPArray)
    seed = check_rounding("matmul", rounding, seed)
    _check_contraction(a, b)
    return straight_through(functools.partial(_matmul, rounding=rounding), _real_matmul, (a, b), seed)


def _real_matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_contraction(a: DFPArray, b: DFPArray) -> None:
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: both operands need at least one axis; use multiply for scalars")
    if a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
        raise ValueError(f"matmul: contracted extents differ, shapes {a.shape} of a and {b.shape} of b")
    if a.ndim > 2 or b.ndim > 2:
        try:
            jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ValueError(
                f"matmul: a and b must have leading axes that broadcast, got shapes {a.shape} and {b.shape}"
            ) from None


@functools.partial(jax.jit, static_argnames="rounding")
def _matmul(a, b, seed, *, rounding):
    rows, columns = _as_matrices(a, 0), _as_matrices(b, 1)
    count = rows.shape[-1]
    guard = min(GUARD_BITS, (62 - 30 - max(count - 1, 0).bit_length()) // 2)
    of_a, of_b, of_sum = (None,) * 3 if seed is None else (seed, seed + 1, ~seed)
    left, left_exponent = _aligned_along(-1, rows, guard, rounding, of_a)
    right, right_exponent = _aligned_along(-2, columns, guard, rounding, of_b)
    total = exact_matmul(left, right)
    exponent = left_exponent + right_exponent
    is_aligned = jnp.int32 in (left.dtype, right.dtype)
    out = fitted(DFP32Array, total, exponent, 32, rounding, of_sum if is_aligned else seed)
    dropped = tuple(axis for axis, x in ((-2, a), (-1, b)) if x.ndim == 1)  # NumPy's rule for vectors
    mantissa = jnp.squeeze(out.mantissa, dropped)
    return DFP32Array(mantissa, jnp.squeeze(out.exponent, dropped) if exponent.ndim else out.exponent)


def _as_matrices(x: DFPArray, axis: int) -> DFPArray:
    """A vector as a matrix of one row (axis 0) or one column."""
    exponent = x.exponent
    if x.ndim > 1:
        return DFPArray(x.mantissa, exponent)
    exponent = jnp.expand_dims(exponent, axis) if exponent.ndim else exponent
    return DFPArray(jnp.expand_dims(x.mantissa, axis), exponent)


def _aligned_along(axis: int, x: DFPArray, guard: int, rounding: str, seed: jax.Array | None):
    """x with one exponent along an axis.

    Returns:
        (integers, exponent): of x's shape, the mantissas as int16 if the exponent does not vary along the
        axis, and otherwise int32 with guard bits; and int32 with extent 1 along the axis, or a scalar.
    """
    exponent = exponent_of(x)
    if not exponent.ndim or exponent.shape[axis] == 1:
        return x.mantissa, exponent
    largest = jnp.max(dominance(x), axis, keepdims=True, initial=LOWEST_EXPONENT)
    shift = jnp.maximum(largest - exponent, 0)
    return shift_right(widen(integers(x), guard), shift, rounding, seed), largest - guard
