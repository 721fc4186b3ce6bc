"""Exponents of tensors in dynamic fixed point: alignment, all-zero tensors, and exponents per slice.

An exponent is a scalar, or an array that broadcasts to the mantissas' shape. The mantissas that share one
element of it are a *slice*. What the functions below say of a tensor holds for each slice. Where blocks have
exponents, each element counts as a slice, except in `down_converted`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.format import blocks as of_blocks
from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.explicit import automatic
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT, NONFINITE_EXPONENT, NONFINITE_THRESHOLD
from dfpjax.numbers.format.wide import Wide, bit_length, magnitude, shift_right, widen

LOWEST_EXPONENT = -NONFINITE_THRESHOLD
"""A result with this exponent or less has underflowed to zero. It is the smallest exponent in alignment."""


def bits_of(kind: type) -> int:
    """Bits of a mantissa, its sign included."""
    return 8 * kind.dtype.itemsize


def integers(x: DFPArray | DFP32Array) -> jax.Array:
    """The mantissas as int32."""
    return x.mantissa.astype(jnp.int32)


def exponent_of(x: DFPArray | DFP32Array) -> jax.Array:
    """The exponent, clamped so that the sum of two does not wrap."""
    return jnp.clip(x.exponent, LOWEST_EXPONENT, NONFINITE_EXPONENT)


def widened(x: DFPArray | DFP32Array) -> DFP32Array:
    """The same values in DFP-32: a DFPArray's mantissas, of 15 magnitude bits, become mantissas of 31."""
    if isinstance(x, DFP32Array):
        return x
    return settled(DFP32Array, integers(x) << 16, exponent_of(x) - 16)


def dominance(x: DFPArray | DFP32Array) -> jax.Array:
    """The exponent with which a tensor takes part in alignment: `LOWEST_EXPONENT` if it is all-zero."""
    exponent = exponent_of(x)
    empty = _largest((integers(x) != 0).astype(jnp.int32), exponent.shape) == 0
    return jnp.where(empty & (exponent < NONFINITE_THRESHOLD), LOWEST_EXPONENT, exponent)


def aligned(x: DFPArray | DFP32Array, exponent: jax.Array, rounding: str, seed: jax.Array | None):
    """int32 mantissas of x for another exponent, which must not be smaller than x's unless x is zero."""
    shift = jnp.maximum(exponent - exponent_of(x), 0)
    return shift_right(widen(integers(x)), shift, rounding, seed)


def fitted(
    kind: type, total: Wide, exponent: jax.Array, bits: int, rounding: str, seed: jax.Array | None
) -> DFPArray | DFP32Array:
    """Down-convert exact integers (Das et al., 2018, §3.1): R = max(0, b − (bits − 1)), where b is the bit
    length of the largest magnitude; m = round(total · 2^−R), clamped; E = exponent + R."""
    length = _largest(bit_length(magnitude(total)), exponent.shape)
    shift = jnp.maximum(length - (bits - 1), 0)
    mantissa = shift_right(total, shift, rounding, seed, limit=2 ** (bits - 1) - 1)
    return settled(kind, mantissa, exponent + shift, bits)


def down_converted(x: DFPArray | DFP32Array, bits: int, rounding: str, seed: jax.Array | None) -> DFPArray:
    """A tensor in fewer bits, as `fitted`. With blocks, each block has its own R."""
    total = widen(integers(x))
    if x.blocks is None:
        return fitted(DFPArray, total, exponent_of(x), bits, rounding, seed)
    largest = functools.partial(of_blocks.largest, blocks=x.blocks, mapped=x.block_exponent.ndim - 3)
    largest = automatic(largest, jax.typeof(x.block_exponent).sharding)
    shift = jnp.maximum(largest(bit_length(magnitude(total))) - (bits - 1), 0)
    exponent, is_zero = _in_range(
        jnp.clip(x.block_exponent, LOWEST_EXPONENT, NONFINITE_EXPONENT) + shift, bits
    )
    own_shift = x.of(x.values, shift, x.blocks).exponent
    own_zero = x.of(x.values, is_zero, x.blocks).exponent
    mantissa = shift_right(total, own_shift, rounding, seed, limit=2 ** (bits - 1) - 1)
    return DFPArray(jnp.where(own_zero, 0, mantissa).astype(jnp.int16), exponent, x.blocks)


def settled(kind: type, mantissa: jax.Array, exponent: jax.Array, bits: int | None = None):
    """A tensor from int32 mantissas and an exponent that may be out of range. A tensor that is not finite
    gets zero mantissas and `NONFINITE_EXPONENT`; one that has underflowed becomes all-zero."""
    exponent, is_zero = _in_range(exponent, bits or bits_of(kind))
    mantissa = jnp.where(is_zero, 0, mantissa)
    return kind(mantissa.astype(kind.dtype.integer), exponent)


def _in_range(exponent: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """(exponent, is_zero): an exponent in its range, and whether the mantissas become zero."""
    nonfinite = exponent >= NONFINITE_THRESHOLD
    vanished = exponent <= LOWEST_EXPONENT
    smallest = MIN_FLOAT_EXPONENT - (bits - 2)
    exponent = jnp.where(nonfinite, NONFINITE_EXPONENT, jnp.where(vanished, smallest, exponent))
    return exponent, nonfinite | vanished


def _largest(x: jax.Array, exponent_shape: tuple[int, ...]) -> jax.Array:
    """The largest number of each slice, in the exponent's shape. No number may be negative."""
    padded = (1,) * (x.ndim - len(exponent_shape)) + exponent_shape
    shared = tuple(np.flatnonzero(np.asarray(padded) == 1))
    return jnp.max(x, axis=shared, keepdims=True, initial=0).reshape(exponent_shape)
