"""Exponents of tensors in dynamic fixed point: alignment, the zero tensor, and slices that have their own.

An exponent is a scalar, or an array that broadcasts to the mantissas' shape: the mantissas along an axis
where its extent is 1 share one, and together they are a *slice*. Everything below that speaks of a tensor
does it for each slice.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.format.array import DFP32Array, DFPArray
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT, NONFINITE_EXPONENT, NONFINITE_THRESHOLD
from dfpjax.numbers.format.wide import Wide, bit_length, magnitude, shift_right, widen

LOWEST_EXPONENT = -NONFINITE_THRESHOLD
"""A product with an exponent from here down has underflowed to zero. It loses every comparison."""


def bits_of(kind: type) -> int:
    """Bits of a mantissa, its sign included."""
    return 8 * kind.dtype.itemsize


def integers(x: DFPArray | DFP32Array) -> jax.Array:
    """The mantissas as int32."""
    return x.mantissa.astype(jnp.int32)


def exponent_of(x: DFPArray | DFP32Array) -> jax.Array:
    """The exponent, bounded so that sums of two do not wrap."""
    return jnp.clip(x.exponent, LOWEST_EXPONENT, NONFINITE_EXPONENT)


def padded_exponent(x: DFPArray | DFP32Array) -> jax.Array:
    """A scalar exponent, or one of the tensor's rank."""
    missing = x.ndim - x.exponent.ndim
    return x.exponent.reshape((1,) * missing + x.exponent.shape) if x.exponent.ndim else x.exponent


def widened(x: DFPArray | DFP32Array) -> DFP32Array:
    """The same values in DFP-32: mantissas of 31 magnitude bits where those of DFP-16 had 15."""
    if isinstance(x, DFP32Array):
        return x
    return settled(DFP32Array, integers(x) << 16, exponent_of(x) - 16)


def dominance(x: DFPArray | DFP32Array) -> jax.Array:
    """The exponent with which a tensor enters a comparison: an all-zero one never wins."""
    exponent = exponent_of(x)
    empty = _largest((integers(x) != 0).astype(jnp.int32), exponent.shape) == 0
    return jnp.where(empty & (exponent < NONFINITE_THRESHOLD), LOWEST_EXPONENT, exponent)


def aligned(x: DFPArray | DFP32Array, exponent: jax.Array, rounding: str, seed: jax.Array | None):
    """int32 mantissas of x at another exponent, no smaller than x's where x has numbers other than zero."""
    shift = jnp.maximum(exponent - exponent_of(x), 0)
    return shift_right(widen(integers(x)), shift, rounding, seed)


def fitted(
    kind: type, total: Wide, exponent: jax.Array, bits: int, rounding: str, seed: jax.Array | None
) -> DFPArray | DFP32Array:
    """Down-convert exact integers (§3.1): R = max(0, b − (bits − 1)) with b the bit length of the largest,
    m = round(total · 2^−R), clamped, and E = exponent + R."""
    length = _largest(bit_length(magnitude(total)), exponent.shape)
    shift = jnp.maximum(length - (bits - 1), 0)
    mantissa = shift_right(total, shift, rounding, seed, limit=2 ** (bits - 1) - 1)
    return settled(kind, mantissa, exponent + shift, bits)


def settled(kind: type, mantissa: jax.Array, exponent: jax.Array, bits: int | None = None):
    """A tensor from int32 mantissas and an exponent that may have left its range: one marker for all that
    is not finite, and the zero tensor for what has underflowed."""
    nonfinite = exponent >= NONFINITE_THRESHOLD
    vanished = exponent <= LOWEST_EXPONENT
    smallest = MIN_FLOAT_EXPONENT - ((bits or bits_of(kind)) - 2)
    exponent = jnp.where(nonfinite, NONFINITE_EXPONENT, jnp.where(vanished, smallest, exponent))
    mantissa = jnp.where(nonfinite | vanished, 0, mantissa)
    return kind(mantissa.astype(kind.dtype.integer), exponent)


def _largest(x: jax.Array, exponent_shape: tuple[int, ...]) -> jax.Array:
    """The largest of each slice's numbers, none of them negative: of the exponent's shape."""
    padded = (1,) * (x.ndim - len(exponent_shape)) + exponent_shape
    shared = tuple(np.flatnonzero(np.asarray(padded) == 1))
    return jnp.max(x, axis=shared, keepdims=True, initial=0).reshape(exponent_shape)
