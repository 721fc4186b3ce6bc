"""Elementwise arithmetic, and the down-conversion of its results (Das et al., 2018, §3.1)."""

import functools

import jax
import jax.numpy as jnp

from dfpjax.numbers.arithmetic.exponents import (
    aligned,
    bits_of,
    dominance,
    down_converted,
    exponent_of,
    fitted,
    integers,
    settled,
    widened,
)
from dfpjax.numbers.arithmetic.operands import (
    Tensor,
    check_operand,
    check_operands,
    check_rounding,
    check_shapes,
    common_kind,
)
from dfpjax.numbers.arithmetic.straight_through import straight_through
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.wide import add as add_wide
from dfpjax.numbers.format.wide import widen


def multiply(a: DFPArray, b: DFPArray) -> DFP32Array:
    """a · b, exactly: m = ma · mb, E = Ea + Eb.

    Arguments:
        a, b: DFPArrays of shapes that broadcast.

    Returns:
        DFP32Array of the broadcast shape.

    Raises:
        TypeError: if an operand is not a DFPArray.
        ValueError: if the shapes do not broadcast.
    """
    check_operands("multiply", DFPArray, a=a, b=b)
    return straight_through(_multiply, jnp.multiply, (a, b))


def add(a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None) -> Tensor:
    """a + b: the mantissas of the operand with the smaller exponent are shifted right, E = max(Ea, Eb).

    If a sum exceeds the format's range, all sums are shifted right by one more bit and E increases by one. If
    one operand is a DFP32Array, a DFPArray is first converted to DFP-32, exactly. An all-zero operand changes
    nothing.

    Arguments:
        a, b: DFPArrays or DFP32Arrays of shapes that broadcast.
        rounding: of the shifts: "nearest" (ties to even), "stochastic", "biased" (up if one of the two
            highest dropped bits is set) or "truncate" (toward zero). All modes act on magnitudes.
        seed: for stochastic rounding, an integer (taken modulo 2^32) or a key of `jax.random.key`. Required
            for "stochastic", refused otherwise.

    Returns:
        Tensor of the broadcast shape: a DFPArray if both operands are DFPArrays, otherwise a DFP32Array.

    Raises:
        TypeError: if an operand is not a tensor in dynamic fixed point, or `seed` is none of the above.
        ValueError: if the shapes do not broadcast, or `rounding` or `seed` does not follow the rules above.
    """
    check_operands("add", a=a, b=b)
    seed = check_rounding("add", rounding, seed)
    return straight_through(functools.partial(_add, rounding=rounding), jnp.add, (a, b), seed)


def subtract(
    a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> Tensor:
    """a − b. Arguments, result and errors are those of `add`."""
    check_operands("subtract", a=a, b=b)
    seed = check_rounding("subtract", rounding, seed)
    return straight_through(functools.partial(_subtract, rounding=rounding), jnp.subtract, (a, b), seed)


def negative(x: Tensor) -> Tensor:
    """−x, exactly, with x's type, shape and exponent."""
    check_operand("negative", "x", x)
    return straight_through(_negative, jnp.negative, (x,))


def absolute(x: Tensor) -> Tensor:
    """|x|, exactly, with x's type, shape and exponent."""
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

    All products have the exponent Ea + Eb. If c is a running sum of such products, it has the same exponent,
    and nothing is shifted unless a sum exceeds 31 bits. Otherwise operands are aligned as in `add`.

    Arguments:
        a, b: DFPArrays.
        c: DFP32Array, or a DFPArray, which is first converted to DFP-32. The shapes must broadcast.
        rounding, seed: as for `add`.

    Returns:
        DFP32Array of the broadcast shape.

    Raises:
        TypeError, ValueError: as for `multiply` and `add`.
    """
    check_operand("fma", "a", a, DFPArray)
    check_operand("fma", "b", b, DFPArray)
    check_operand("fma", "c", c)
    check_shapes("fma", a=a, b=b, c=c)
    check_rounding("fma", rounding, seed)
    return add(multiply(a, b), c, rounding=rounding, seed=seed)


def down_convert(
    x: Tensor, bits: int = 16, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> DFPArray:
    """Convert a DFP-32 accumulator to fewer bits (Das et al., 2018, §3.1).

    With b the bit length of max|m|: R = max(0, b − (bits − 1)), m' = round(m · 2^−R), clamped to
    ±(2^(bits−1) − 1), and E' = E + R. If x has an exponent per slice or block, each has its own R.

    Arguments:
        x: DFP32Array, or a DFPArray to convert to fewer bits.
        bits: bits of a mantissa, its sign included, from 2 to 16.
        rounding, seed: as for `add`.

    Returns:
        DFPArray of x's shape, with x's blocks if it has any.

    Raises:
        TypeError: if `x` is not a tensor in dynamic fixed point, or `seed` is not as for `add`.
        ValueError: if `bits`, `rounding` or `seed` does not follow the rules above.
    """
    check_operand("down_convert", "x", x)
    seed = check_rounding("down_convert", rounding, seed, bits)
    convert = functools.partial(_down_convert, bits=bits, rounding=rounding)
    return straight_through(convert, lambda value: value, (x,), seed)


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
    seed = None if seed is None else ~seed  # the shift after a carry takes other random bits
    return fitted(kind, total, exponent, bits_of(kind), rounding, seed)


@functools.partial(jax.jit, static_argnames="rounding")
def _subtract(a, b, seed, *, rounding):
    return _add(a, _negative(b), seed, rounding=rounding)


@jax.jit
def _negative(x):
    return x.with_mantissa(-x.mantissa)


@jax.jit
def _absolute(x):
    return x.with_mantissa(jnp.abs(x.mantissa))


@functools.partial(jax.jit, static_argnames=("bits", "rounding"))
def _down_convert(x, seed, *, bits, rounding):
    return down_converted(x, bits, rounding, seed)
