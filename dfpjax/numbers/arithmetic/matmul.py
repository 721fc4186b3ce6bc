"""Matrix products of tensors in dynamic fixed point, exact within one rounding."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers.arithmetic.exponents import exponent_of, fitted
from dfpjax.numbers.arithmetic.operands import check_operand, check_rounding
from dfpjax.numbers.arithmetic.straight_through import straight_through
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.wide import Wide, widen
from dfpjax.numbers.format.wide import add as add_wide

CHUNK = 256
"""Number of products of an int16 and an 8-bit integer whose sum fits an int32 for any data."""


def matmul(
    a: DFPArray, b: DFPArray, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> DFP32Array:
    """a @ b, exact within one rounding for any data.

    The sums of products are exact 64-bit integers. A right shift by R bits converts them to DFP-32, with
    E = Ea + Eb + R. The tensor has one R, the smallest that leaves the largest sum at most 31 bits. Nothing
    is rounded if no sum exceeds 31 bits. (`dfpjax.mixed_precision` accumulates in float32 instead, in much
    faster kernels.)

    Arguments:
        a, b: DFPArrays of shapes as for `numpy.matmul`. An exponent must not vary along the contracted
            axis. With exponents per row of a, per column of b or per matrix, each slice of the result has
            its own R.
        rounding, seed: as for `add`.

    Returns:
        DFP32Array of the shape that `numpy.matmul` gives.

    Raises:
        TypeError: if an operand is not a DFPArray, or `seed` is not as for `add`.
        ValueError: if the shapes do not match, an exponent varies along the contracted axis, or `rounding` or
            `seed` is not as for `add`.
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
    b_axis = max(b.ndim - 2, 0)
    if a.shape[-1] != b.shape[b_axis]:
        raise ValueError(f"matmul: contracted extents differ, shapes {a.shape} of a and {b.shape} of b")
    if a.ndim > 2 or b.ndim > 2:
        try:
            jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ValueError(
                f"matmul: a and b must have leading axes that broadcast, got shapes {a.shape} and {b.shape}"
            ) from None
    for argument, x, axis in (("a", a, a.ndim - 1), ("b", b, b_axis)):
        exponent = x.exponent
        if exponent.ndim and exponent.shape[axis] > 1:
            raise ValueError(
                f"matmul: the exponents of {argument} (shape {x.exponent.shape}) vary along the contracted "
                f"axis {axis}; quantize it with one exponent along that axis"
            )


@functools.partial(jax.jit, static_argnames="rounding")
def _matmul(a, b, seed, *, rounding):
    rows, columns = _as_matrices(a, 0), _as_matrices(b, 1)
    total = _exact_matmul(rows.mantissa.astype(jnp.int32), columns.mantissa.astype(jnp.int32))
    exponent = exponent_of(rows) + exponent_of(columns)
    out = fitted(DFP32Array, total, exponent, 32, rounding, seed)
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


def _exact_matmul(a: jax.Array, b: jax.Array) -> Wide:
    """Exact sums of products of 16-bit integers, given as int32 arrays, for up to 2^31 products per sum."""

    def chunk_sum(a, b):
        # |a · (b & 255)| < 2^23 and |a · (b >> 8)| ≤ 2^22, so no sum of 256 products reaches 2^31.
        low, high = jnp.matmul(a, b & 255), jnp.matmul(a, b >> 8)
        return add_wide(widen(high, shift=8), widen(low))

    count = a.shape[-1]
    first = count % CHUNK or min(count, CHUNK)
    total = chunk_sum(a[..., :first], b[..., :first, :])
    if count > first:
        chunks_a = jnp.moveaxis(a[..., first:].reshape(*a.shape[:-1], -1, CHUNK), -2, 0)
        chunks_b = b[..., first:, :].reshape(*b.shape[:-2], -1, CHUNK, b.shape[-1])
        chunks = chunks_a, jnp.moveaxis(chunks_b, -3, 0)
        total, _ = lax.scan(lambda total, chunk: (add_wide(total, chunk_sum(*chunk)), None), total, chunks)
    return total
