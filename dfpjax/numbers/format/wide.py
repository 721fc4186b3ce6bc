"""Signed 64-bit integers as two 32-bit words, and their rounded right shift.

Exact sums of 30-bit products need 64-bit integers, which JAX has only if x64 is enabled. Integer mantissas
are rounded nowhere but in this shift.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.format.rounding import random_bits

_ALL_DROPPED = 96
"""A shift by this many bits or more leaves zero of a number below 2^63, and the 32 highest dropped bits are
zero too."""


class Wide(NamedTuple):
    """high · 2^32 + low."""

    high: jax.Array
    """int32."""
    low: jax.Array
    """uint32."""


def widen(x: jax.Array, shift: int = 0) -> Wide:
    """x · 2^shift for an int32 array x and 0 ≤ shift ≤ 32."""
    if shift == 32:
        return Wide(x, jnp.zeros_like(x, jnp.uint32))
    return Wide(x >> (32 - shift) if shift else x >> 31, _unsigned(x) << shift)


def add(a: Wide, b: Wide) -> Wide:
    """a + b modulo 2^64."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.int32), low)


def magnitude(x: Wide) -> Wide:
    """|x|, for |x| < 2^63."""
    negated = add(Wide(~x.high, ~x.low), widen(jnp.ones_like(x.high)))
    negative = x.high < 0
    return Wide(jnp.where(negative, negated.high, x.high), jnp.where(negative, negated.low, x.low))


def bit_length(x: Wide) -> jax.Array:
    """Number of bits of x ≥ 0 (0 for zero), as int32."""
    length = jnp.where(x.high > 0, 64 - lax.clz(x.high), 32 - lax.clz(x.low).astype(jnp.int32))
    return length.astype(jnp.int32)


def shift_right(
    x: Wide, shift: jax.Array, rounding: str, seed: jax.Array | None = None, limit: int = 2**31 - 1
) -> jax.Array:
    """round(x · 2^−shift) as int32, rounded once and clamped to ±limit.

    Rounding acts on the magnitude. `stochastic` compares 32 random bits with the 32 highest dropped bits.

    Arguments:
        x: of any shape, with |x| · 2^−shift < 2^32 − 1.
        shift: int32, not negative, broadcastable against `x`.
        rounding: one of `rounding.Rounding`.
        seed: uint32 scalar for `stochastic`.
        limit: largest magnitude of the result.
    """
    unsigned = magnitude(x)
    high = _unsigned(unsigned.high)
    shift = jnp.minimum(shift, _ALL_DROPPED)

    def word(position):
        """Bits position … position + 31 of the magnitude."""
        return _shifted(unsigned.low, position) | _shifted(high, position - 32)

    kept, dropped = word(shift), word(shift - 32)
    half = np.uint32(1 << 31)
    if rounding == "nearest":
        odd_or_more = (kept & 1 == 1) | (word(shift - 64) != 0)
        up = (dropped > half) | ((dropped == half) & odd_or_more)
    elif rounding == "biased":
        up = dropped >= half // 2  # one of the two highest dropped bits is set
    elif rounding == "stochastic":
        up = random_bits(kept.shape, seed) < dropped
    else:
        up = jnp.zeros(kept.shape, bool)
    rounded = _signed(jnp.minimum(kept + up.astype(jnp.uint32), np.uint32(limit)))
    return jnp.where(x.high < 0, -rounded, rounded)


def _shifted(word: jax.Array, shift: jax.Array) -> jax.Array:
    """word >> shift, or word << −shift where `shift` is negative. Zero if |shift| ≥ 32, which HLO leaves
    undefined."""
    right = word >> jnp.clip(shift, 0, 31).astype(jnp.uint32)
    left = word << jnp.clip(-shift, 0, 31).astype(jnp.uint32)
    return jnp.where(jnp.abs(shift) >= 32, np.uint32(0), jnp.where(shift >= 0, right, left))


def _unsigned(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _signed(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)
