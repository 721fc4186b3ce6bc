"""Elementwise arithmetic, and the conversion to fewer bits that follows it (Das et al., 2018, §3.1)."""

import functools

import jax
import jax.numpy as jnp

from dfpjax.numbers.arithmetic.exponents import (
    aligned,
    bits_of,
    dominance,
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

    Raises:
        TypeError: if an operand is not a DFPArray.
    """
    check_operands("multiply", DFPArray, a=a, b=b)
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
    check_operands("add", a=a, b=b)
    seed = check_rounding("add", rounding, seed)
    return straight_through(functools.partial(_add, rounding=rounding), jnp.add, (a, b), seed)


def subtract(
    a: Tensor, b: Tensor, *, rounding: str = "nearest", seed: int | jax.Array | None = None
) -> Tensor:
    """a − b; arguments, result and errors as `add`'s."""
    check_operands("subtract", a=a, b=b)
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
    check_shapes("fma", a=a, b=b, c=c)
    check_rounding("fma", rounding, seed)
    return add(multiply(a, b), c, rounding=rounding, seed=seed)


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
