"""Powers of two applied to float32 arrays with one rounding, and the exponents that mark zero and NaN.

XLA runs its CPU code with subnormal numbers flushed to zero, so everything that decides about a value's
exponent works on its bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_FLOAT_EXPONENT = -149
"""Exponent of float32's smallest positive number; an all-zero tensor gets the exponent that this number
would get."""

NONFINITE_EXPONENT = 1 << 20
"""Exponent of a tensor that holds a NaN or an infinity. It dominates every sum, and every result computed
from it is NaN."""

NONFINITE_THRESHOLD = 1 << 19
"""An exponent, or sum of exponents, from here on means NaN: no finite one comes near it."""


def float_bits(x: jax.Array) -> jax.Array:
    """The bits of a float32 array, as int32."""
    return lax.bitcast_convert_type(x, jnp.int32)


def scale_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^exponent with one rounding (to nearest even), subnormal and overflowing results included.

    Arguments:
        x: float32; zero or a normal number.
        exponent: int32, broadcastable against `x`. From `NONFINITE_THRESHOLD` on the result is NaN.

    Returns:
        float32 of the broadcast shape.
    """
    bits = float_bits(x)
    sign = bits & np.int32(-(2**31))
    magnitude = bits & np.int32(0x7FFFFFFF)
    shift_in = jnp.clip(exponent, -1000, 1000)
    biased = (magnitude >> 23) + shift_in
    fraction = magnitude & np.int32(0x7FFFFF)
    normal = (biased << 23) | fraction
    # Below the normal range the significand is shifted right by `drop`, rounding to nearest even; a carry
    # into the exponent field is what it should be.
    significand = fraction | np.int32(1 << 23)
    drop = jnp.clip(1 - biased, 1, 26)
    kept = significand >> drop
    lost = significand & ((np.int32(1) << drop) - 1)
    half = np.int32(1) << (drop - 1)
    subnormal = kept + ((lost > half) | ((lost == half) & (kept & 1 == 1))).astype(jnp.int32)
    scaled = jnp.where(biased >= 255, np.int32(0x7F800000), jnp.where(biased >= 1, normal, subnormal))
    scaled = jnp.where(magnitude == 0, 0, scaled)
    scaled = jnp.where(exponent >= NONFINITE_THRESHOLD, np.int32(0x7FC00000), scaled | sign)
    return lax.bitcast_convert_type(scaled, jnp.float32)


def floor_log2(bits: jax.Array) -> jax.Array:
    """floor(log2|x|) from the bits of |x|: that of float32's smallest number for zero, and
    `NONFINITE_EXPONENT` for a NaN or an infinity."""
    biased = bits >> 23
    subnormal_log2 = (31 - lax.clz(jnp.maximum(bits, 1))) + MIN_FLOAT_EXPONENT
    log2 = jnp.where(biased == 0, subnormal_log2, biased - 127)
    return jnp.where(biased == 255, NONFINITE_EXPONENT, log2)


def scaled_down(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^−exponent, exact wherever the result is at least 2^−63 (everything below rounds to zero
    anyway)."""
    exponent = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, exponent)
    magnitude_bits = float_bits(x) & np.int32(0x7FFFFFFF)
    # 2^−exponent can lie outside of float32's range, so it is applied in two factors.
    first = -exponent // 2
    normal = x * power_of_two(first) * power_of_two(-exponent - first)
    # XLA takes a subnormal x for zero; its bits are the integer x · 2^149.
    integer = magnitude_bits.astype(jnp.float32) * power_of_two(
        jnp.maximum(MIN_FLOAT_EXPONENT - exponent, -126)
    )
    return jnp.where(magnitude_bits < (1 << 23), jnp.where(float_bits(x) < 0, -integer, integer), normal)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent for −126 ≤ exponent ≤ 127, from the bits: exp2 is not exact on every platform."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
