"""Quantization of float32 arrays to dynamic fixed point (Das et al., 2018, §3), in ordinary JAX operations.

Written as plain HLO so that XLA fuses it into whatever produces the tensor. XLA runs its CPU code with subnormal numbers
flushed to zero, so everything that decides about a value's exponent works on its bits.
"""

import functools
from dataclasses import dataclass
from typing import get_args, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dfpjax.numbers.dtype import dfp16

Rounding = Literal["nearest", "stochastic", "biased", "truncate"]

MIN_FLOAT_EXPONENT = -149
"""Exponent of float32's smallest positive number; an all-zero tensor gets the exponent that this number would get."""

NONFINITE_EXPONENT = 1 << 20
"""Exponent of a tensor that holds a NaN or an infinity. It dominates every sum, and every result computed from it is NaN."""

NONFINITE_THRESHOLD = 1 << 19
"""An exponent, or sum of exponents, from here on means NaN: no finite one comes near it."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How one operand of an operation is brought to dynamic fixed point."""

    bits: int = 16
    """Bits of a mantissa, its sign included: 2 to 16."""

    rounding: Rounding = "nearest"
    """`nearest` (ties to even), `stochastic`, `biased` or `truncate`; all act on magnitudes."""

    def __post_init__(self):
        if not isinstance(self.bits, int) or isinstance(self.bits, bool) or not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be an integer from 2 to 16, got {self.bits!r}")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {self.rounding!r}")


@dataclass(frozen=True, kw_only=True)
class Quantizers:
    """The quantizers of an operation's operands: `cotangent` serves the gradients that come back to it."""

    lhs: Quantizer = Quantizer()
    rhs: Quantizer = Quantizer()
    cotangent: Quantizer = Quantizer()


def _float_bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def scale_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^exponent with one rounding (to nearest even), subnormal and overflowing results included.

    Arguments:
        x: float32; zero or a normal number.
        exponent: int32, broadcastable against `x`. From `NONFINITE_THRESHOLD` on the result is NaN.

    Returns:
        float32 of the broadcast shape.
    """
    bits = _float_bits(x)
    sign = bits & np.int32(-(2**31))
    magnitude = bits & np.int32(0x7FFFFFFF)
    shift_in = jnp.clip(exponent, -1000, 1000)
    biased = (magnitude >> 23) + shift_in
    fraction = magnitude & np.int32(0x7FFFFF)
    normal = (biased << 23) | fraction
    # Below the normal range the significand is shifted right by `drop`, rounding to nearest even; a carry into the
    # exponent field is what it should be.
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


def _shared_exponent(max_bits: jax.Array, bits: int) -> jax.Array:
    """E = floor(log2(max|x|)) − (P − 2), from the bits of max|x| (§3.1)."""
    biased = max_bits >> 23
    subnormal_log2 = (31 - lax.clz(jnp.maximum(max_bits, 1))) + MIN_FLOAT_EXPONENT
    log2 = jnp.where(biased == 0, subnormal_log2, biased - 127)
    return jnp.where(biased == 255, NONFINITE_EXPONENT, log2 - (bits - 2))


def _scaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x · 2^−exponent, exact wherever the result is at least 2^−63 (everything below rounds to zero anyway)."""
    exponent = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, exponent)
    magnitude_bits = _float_bits(x) & np.int32(0x7FFFFFFF)
    # 2^−exponent can lie outside of float32's range, so it is applied in two factors.
    first = -exponent // 2
    normal = x * _power_of_two(first) * _power_of_two(-exponent - first)
    # XLA takes a subnormal x for zero; its bits are the integer x · 2^149.
    integer = magnitude_bits.astype(jnp.float32) * _power_of_two(jnp.maximum(MIN_FLOAT_EXPONENT - exponent, -126))
    return jnp.where(magnitude_bits < (1 << 23), jnp.where(_float_bits(x) < 0, -integer, integer), normal)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent for −126 ≤ exponent ≤ 127, from the bits: exp2 is not exact on every platform."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _hash(x: jax.Array) -> jax.Array:
    """A bijective mixing of 32-bit words (two xor-shift-multiply rounds)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _round(y: jax.Array, rounding: str, seed: jax.Array) -> jax.Array:
    if rounding == "nearest":
        return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN)
    magnitude = jnp.abs(y)
    below = jnp.floor(magnitude)
    dropped = magnitude - below
    if rounding == "biased":
        below = below + (dropped >= 0.25)  # one of the two highest dropped bits is set
    elif rounding == "stochastic":
        index = lax.iota(jnp.uint32, max(y.size, 1))[: y.size].reshape(y.shape)
        random = _hash(index ^ _hash(seed))
        below = below + (random < (dropped * np.float32(2**32)).astype(jnp.uint32))
    return jnp.where(y < 0, -below, below)


def _quantize(x, seed, bits, rounding, axes):
    max_bits = jnp.max(_float_bits(x) & np.int32(0x7FFFFFFF), axis=axes, keepdims=True, initial=0)
    exponent = _shared_exponent(max_bits, bits)
    limit = float(2 ** (bits - 1) - 1)
    mantissa = jnp.clip(_round(_scaled(x, exponent), rounding, seed), -limit, limit)
    mantissa = jnp.where(exponent >= NONFINITE_THRESHOLD, 0, mantissa).astype(jnp.int16)
    return lax.convert_element_type(mantissa, dfp16), exponent


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def quantize_array(x: jax.Array, seed: jax.Array, quantizer: Quantizer, kept_axes: tuple[int, ...] = ()):
    """Quantize a float32 array; its derivative is the identity (straight-through).

    Arguments:
        x: float32 of any shape, empty ones included.
        seed: uint32 scalar, used by stochastic rounding alone.
        quantizer: bits and rounding.
        kept_axes: axes along which every slice has an exponent of its own; none for one exponent per tensor.

    Returns:
        (mantissa, exponent): a `dfp16` array of x's shape, and int32 of x's rank with extent 1 on every axis that is not kept.
    """
    axes = tuple(axis for axis in range(x.ndim) if axis not in kept_axes)
    return _quantize(x, seed, quantizer.bits, quantizer.rounding, axes)


@quantize_array.defjvp
def _quantize_jvp(quantizer, kept_axes, primals, tangents):
    mantissa, exponent = quantize_array(*primals, quantizer, kept_axes)
    return (mantissa, exponent), (tangents[0], np.zeros(exponent.shape, jax.dtypes.float0))


def stochastic_seed(x: jax.Array) -> jax.Array:
    """A seed taken from a tensor's own bits, for stochastic rounding without any state: uint32 scalar.

    The wrapped sum of the bits does not depend on the order of summation, hence not on sharding, and changes from step to step.
    """
    return jnp.sum(lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)
