"""Scaling of float32 arrays by powers of two with one rounding, and the exponents that mark zero and NaN.

XLA's CPU code flushes subnormal numbers to zero. So everything that determines a value's exponent works on
its bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MIN_FLOAT_EXPONENT = -149
"""Exponent of float32's smallest positive number. An all-zero tensor gets the exponent of a tensor whose
largest magnitude is this number."""

NONFINITE_EXPONENT = 1 << 20
"""Exponent of a tensor with a NaN or an infinity. It is the largest in every sum, and every result computed
from it is NaN."""

NONFINITE_THRESHOLD = 1 << 19
"""An exponent or sum of exponents of this size or larger means NaN. Those of finite tensors are much
smaller."""


def float_bits(x: jax.Array) -> jax.Array:
    """The bits of a float32 array, as int32."""
    return lax.bitcast_convert_type(x, jnp.int32)


def scale_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^exponent with one rounding (to nearest even), subnormal and overflowing results included.

    Arguments:
        x: float32 array of zeros and normal numbers.
        exponent: int32, broadcastable against `x`. Where it is at least `NONFINITE_THRESHOLD`, the result is
            NaN.

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
    # Below the normal range, shift the significand right by `drop`, rounding to nearest even. A carry into
    # the exponent field gives the smallest normal number, as it should.
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
    """floor(log2|x|) from the bits of |x|. Zero gives `MIN_FLOAT_EXPONENT`, a NaN or an infinity
    `NONFINITE_EXPONENT`."""
    biased = bits >> 23
    subnormal_log2 = (31 - lax.clz(jnp.maximum(bits, 1))) + MIN_FLOAT_EXPONENT
    log2 = jnp.where(biased == 0, subnormal_log2, biased - 127)
    return jnp.where(biased == 255, NONFINITE_EXPONENT, log2)


def scaled_down(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^−exponent, exact wherever the result is at least 2^−63. Smaller results round to zero anyway."""
    exponent = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, exponent)
    magnitude_bits = float_bits(x) & np.int32(0x7FFFFFFF)
    # 2^−exponent can be outside float32's range, so multiply by two factors.
    first = -exponent // 2
    normal = x * power_of_two(first) * power_of_two(-exponent - first)
    # XLA flushes a subnormal x to zero, but its bits are the integer x · 2^149.
    integer = magnitude_bits.astype(jnp.float32) * power_of_two(
        jnp.maximum(MIN_FLOAT_EXPONENT - exponent, -126)
    )
    return jnp.where(magnitude_bits < (1 << 23), jnp.where(float_bits(x) < 0, -integer, integer), normal)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent for −126 ≤ exponent ≤ 127, built from bits because exp2 is not exact on every platform."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
