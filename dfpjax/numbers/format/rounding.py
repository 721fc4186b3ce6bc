"""Rounding modes for float32 arrays, and the random bits of stochastic rounding."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Rounding = Literal["nearest", "stochastic", "biased", "truncate"]


def hash_bits(x: jax.Array) -> jax.Array:
    """A bijective hash of uint32 (two xor-shift-multiply rounds). Its high bits, which decide the
    comparisons, are the best. Without the first shift, neighbours would be measurably correlated."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * np.uint32(0x846CA68B)


def round_to_integers(y: jax.Array, rounding: str, random: jax.Array | None) -> jax.Array:
    """y rounded to integers, as float32. For stochastic rounding, `random` has 32 random bits per number."""
    if rounding == "nearest":
        return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN)
    magnitude = jnp.abs(y)
    below = jnp.floor(magnitude)
    dropped = magnitude - below
    if rounding == "biased":
        below = below + (dropped >= 0.25)  # one of the two highest dropped bits is set
    elif rounding == "stochastic":
        # Compare 31 bits as floats: conversions to and from unsigned integers are slow on many CPUs.
        threshold = lax.bitcast_convert_type(random >> 1, jnp.int32).astype(jnp.float32)
        # Some platforms flush tiny numbers to zero, so they count as zero on all.
        up = (threshold < dropped * np.float32(2**31)) & (dropped >= np.float32(2**-63))
        below = below + up
    return jnp.where(y < 0, -below, below)


def random_bits(shape: tuple[int, ...], seed: jax.Array, axes: tuple[int, ...] | None = None) -> jax.Array:
    """A hash of the seed and the flat index over `axes` (None for all axes): uint32 of this shape, to which
    the seed must broadcast."""
    axes = tuple(range(len(shape))) if axes is None else axes
    index, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(axes):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return hash_bits(index ^ hash_bits(seed))
