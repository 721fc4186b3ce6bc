"""Arithmetic on tensors in dynamic fixed point, all of it on integers (Das et al., 2018, §3.1).

| operands | `add`, `subtract`, `maximum` | `multiply`, `matmul` |
| --- | --- | --- |
| DFPArray, DFPArray | DFPArray | DFP32Array |
| DFPArray, DFP32Array | DFP32Array | refused: `down_convert` first |
| DFP32Array, DFP32Array | DFP32Array | refused |

Shapes broadcast as NumPy's do, and exponents along with them: where one is shared by a slice of each operand,
the result has one for the slice too. A tensor that is not finite makes every result NaN. A result whose
exponent would exceed 2^19 counts as such a tensor, one with an exponent below −2^19 is zero.

Derivatives are straight-through: those of the same function of the dequantized values.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dfpjax.numbers.array import DFP32Array, DFPArray, rounding_seed
from dfpjax.numbers.exponents import (
    aligned,
    bits_of,
    dominance,
    exponent_of,
    fitted,
    integers,
    padded_exponent,
    settled,
    widened,
)
from dfpjax.numbers.quantize import Quantizer
from dfpjax.numbers.straight_through import straight_through
from dfpjax.numbers.wide import Wide, widen
from dfpjax.numbers.wide import add as add_wide

Tensor = DFPArray | DFP32Array

CHUNK = 256
"""Products of an int16 and an 8-bit integer that an int32 holds the sum of, whatever they are."""


def multiply(a: DFPArray, b: DFPArray) -> DFP32Array:
    """a · b, exactly: m = ma · mb, E = Ea + Eb.

    Raises:
        TypeError: if an operand is not a DFPArray.
    """
    check_operand("multiply", "a", a, DFPArray)
    check_operand("multiply", "b", b, DFPArray)
    return straight_through(_multiply, jnp.multiply, (a, b))


def add(a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None) -> Tensor:
    """a + b: the operand with the smaller exponent is shifted right, E = max(Ea, Eb).

    Should the sum exceed the format, it is shifted right by one more bit and E is one more. A DFPArray that
    is added to a DFP32Array is brought to DFP-32 first, exactly. An all-zero operand changes nothing.

    Arguments:
        a, b: DFPArrays or DFP32Arrays of shapes that broadcast.
        rounding: of the shifts: "nearest" (ties to even), "stochastic", "biased" (up if one of the two
            highest dropped bits is set) or "truncate" (toward zero). All act on magnitudes.
        seed: integer that the random bits of stochastic rounding are made from; required for it and
            refused otherwise.

    Returns:
        DFPArray if both operands are, otherwise DFP32Array.

    Raises:
        TypeError: if an operand is not a tensor in dynamic fixed point.
        ValueError: if `rounding` or `seed` is not as said above.
    """
    check_operand("add", "a", a)
    check_operand("add", "b", b)
    seed = check_rounding("add", rounding, seed)
    return straight_through(functools.partial(_add, rounding=rounding), jnp.add, (a, b), seed)


def subtract(
    a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> Tensor:
    """a − b; arguments, result and errors as `add`'s."""
    check_operand("subtract", "a", a)
    check_operand("subtract", "b", b)
    seed = check_rounding("subtract", rounding, seed)
    return straight_through(functools.partial(_subtract, rounding=rounding), jnp.subtract, (a, b), seed)


def negative(x: Tensor) -> Tensor:
    """−x, exactly: of x's type, shape and exponent."""
    check_operand("negative", "x", x)
    return straight_through(_negative, jnp.negative, (x,))


def absolute(x: Tensor) -> Tensor:
    """|x|, exactly: of x's type, shape and exponent."""
    check_operand("absolute", "x", x)
    return straight_through(_absolute, jnp.abs, (x,))


def fma(
    a: DFPArray,
    b: DFPArray,
    c: Tensor,
    *,
    rounding: str = "nearest",
    seed: int | jax.Array | None = None,
) -> DFP32Array:
    """a · b + c, element by element.

    All products have the exponent Ea + Eb, so nothing is shifted when c, a running sum of such products,
    has it too and no sum exceeds 31 bits; otherwise as `add`.

    Arguments:
        a, b: DFPArrays.
        c: DFP32Array, or a DFPArray, which is brought to DFP-32 first.
        rounding, seed: as for `add`.

    Raises:
        TypeError, ValueError: as `multiply` and `add`.
    """
    check_operand("fma", "a", a, DFPArray)
    check_operand("fma", "b", b, DFPArray)
    check_operand("fma", "c", c)
    check_rounding("fma", rounding, seed)
    return add(multiply(a, b), c, rounding=rounding, seed=seed)


def matmul(
    a: DFPArray, b: DFPArray, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> DFP32Array:
    """a @ b: exact within one rounding, whatever the data.

    The sums of products are exact 64-bit integers. One shift R for the whole tensor, the smallest with which
    the largest sum has at most 31 bits, brings them to DFP-32: E = Ea + Eb + R. Nothing is rounded if no sum
    exceeds 31 bits. (`dfpjax.mixed_precision` accumulates in float32 instead, in kernels far faster than
    this.)

    Arguments:
        a, b: DFPArrays of shapes as for `numpy.matmul`. An exponent must not vary along the contracted
            axis. With exponents per row of a, per column of b or per matrix, each slice of the result has
            an R of its own.
        rounding, seed: as for `add`.

    Raises:
        TypeError: if an operand is not a DFPArray.
        ValueError: if shapes do not match, an exponent varies along the contracted axis, or `rounding` or
            `seed` is not as for `add`.
    """
    check_operand("matmul", "a", a, DFPArray)
    check_operand("matmul", "b", b, DFPArray)
    seed = check_rounding("matmul", rounding, seed)
    _check_contraction(a, b)
    return straight_through(functools.partial(_matmul, rounding=rounding), _real_matmul, (a, b), seed)


def down_convert(
    x: Tensor, bits: int = 16, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> DFPArray:
    """Bring a DFP-32 accumulator to DFP of fewer bits.

    With b the bit length of max|m|: R = max(0, b − (bits − 1)), m' = round(m · 2^−R), clamped to
    ±(2^(bits−1) − 1), and E' = E + R. Exponents per slice stay such.

    Arguments:
        x: DFP32Array, or a DFPArray to be brought to fewer bits.
        bits: bits of a mantissa, its sign included, from 2 to 16.
        rounding, seed: as for `add`.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point.
        ValueError: if `bits`, `rounding` or `seed` is not as said above.
    """
    check_operand("down_convert", "x", x)
    seed = check_rounding("down_convert", rounding, seed, bits)
    convert = functools.partial(_down_convert, bits=bits, rounding=rounding)
    return straight_through(convert, lambda value: value, (x,), seed)


def check_operand(function: str, argument: str, x, kinds=Tensor) -> None:
    """Raise a TypeError that says what to do about an operand of the wrong type."""
    if isinstance(x, kinds):
        return
    if isinstance(x, DFP32Array):
        raise TypeError(
            f"{function}: {argument} must be a DFPArray, got a DFP32Array; bring it to DFP-16 first: "
            "dfpjax.numpy.down_convert(x)"
        )
    found = f"dtype {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
    raise TypeError(
        f"{function}: {argument} must be a DFPArray{'' if kinds is DFPArray else ' or DFP32Array'}, got "
        f"{found}; quantize it first: dfpjax.quantize(x)"
    )


def check_rounding(function: str, rounding: str, seed, bits: int = 16) -> jax.Array | None:
    """The seed as uint32, if the arguments fit together."""
    Quantizer(bits=bits, rounding=rounding)  # has the checks
    return rounding_seed(function, rounding, seed)


def common_kind(*tensors: Tensor) -> type:
    """DFPArray if all tensors are, otherwise DFP32Array."""
    return DFPArray if all(isinstance(x, DFPArray) for x in tensors) else DFP32Array


@jax.jit
def _multiply(a, b):
    return settled(DFP32Array, integers(a) * integers(b), exponent_of(a) + exponent_of(b))


@functools.partial(jax.jit, static_argnames="rounding")
def _add(a, b, seed, *, rounding):
    kind = common_kind(a, b)
    if kind is DFP32Array:
        a, b = widened(a), widened(b)
    exponent = jnp.maximum(dominance(a), dominance(b))
    total = add_wide(*(widen(aligned(x, exponent, rounding, seed)) for x in (a, b)))
    seed = None if seed is None else ~seed  # the shift after a carry has random bits of its own
    return fitted(kind, total, exponent, bits_of(kind), rounding, seed)


@functools.partial(jax.jit, static_argnames="rounding")
def _subtract(a, b, seed, *, rounding):
    return _add(a, _negative(b), seed, rounding=rounding)


@jax.jit
def _negative(x):
    return type(x)(-x.mantissa, x.exponent)


@jax.jit
def _absolute(x):
    return type(x)(jnp.abs(x.mantissa), x.exponent)


@functools.partial(jax.jit, static_argnames=("bits", "rounding"))
def _down_convert(x, seed, *, bits, rounding):
    return fitted(DFPArray, widen(integers(x)), exponent_of(x), bits, rounding, seed)


def _real_matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_contraction(a: DFPArray, b: DFPArray) -> None:
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("matmul: both operands need at least one axis; use multiply for scalars")
    b_axis = max(b.ndim - 2, 0)
    if a.shape[-1] != b.shape[b_axis]:
        raise ValueError(f"matmul: contracted extents differ, shapes {a.shape} and {b.shape}")
    for argument, x, axis in (("a", a, a.ndim - 1), ("b", b, b_axis)):
        exponent = padded_exponent(x)
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
    exponent = padded_exponent(x)
    if x.ndim > 1:
        return DFPArray(x.mantissa, exponent)
    exponent = jnp.expand_dims(exponent, axis) if exponent.ndim else exponent
    return DFPArray(jnp.expand_dims(x.mantissa, axis), exponent)


def _exact_matmul(a: jax.Array, b: jax.Array) -> Wide:
    """Exact sums of products of 16-bit integers in int32 arrays, for up to 2^31 of them."""

    def chunk_sum(a, b):
        # |a · (b & 255)| < 2^23 and |a · (b >> 8)| ≤ 2^22, so neither sum of 256 reaches 2^31.
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
