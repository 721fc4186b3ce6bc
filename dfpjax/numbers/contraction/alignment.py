"""How the mantissas of an operand in blocks are brought to common exponents, in plain JAX.

A product needs one exponent for each row of A, and one for each panel of B (the columns of a tile), within a
segment of the contracted index. It is the largest exponent that the row or panel meets there. Mantissas with
smaller exponents are shifted right.

An element that is not finite takes no part. It makes its row of A, or its column of B, NaN.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dfpjax.numbers.contraction.plan import SEGMENT, SEGMENTS
from dfpjax.numbers.format.rounding import hash_bits
from dfpjax.numbers.format.scaling import MIN_FLOAT_EXPONENT, NONFINITE_THRESHOLD

ABSENT = -(1 << 20)
"""Exponent of padding, and of a segment in which a row or panel has no element."""

OF_ZEROS = MIN_FLOAT_EXPONENT - 14
"""The exponent that quantization to 16 bits gives zeros. This and smaller ones count as `ABSENT`."""

NEGLIGIBLE_SHIFT = 16
"""A mantissa that is shifted so far becomes zero."""

LANES = 64
"""Rows or columns after which the thresholds of dithering repeat."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aligned:
    """Tiles of an operand after alignment."""

    mantissas: jax.Array
    """int32[g, tiles, rows, blocks, 256]."""
    exponent: jax.Array
    """int32[g, tiles, rows, blocks, segments] for A, int32[g, tiles, 1, blocks, segments] for B."""
    lost: jax.Array
    """bool[g, tiles, rows, blocks]: whether a row of A, or column of B, has an element that is not finite."""


def align(mantissas: jax.Array, exponent: jax.Array, *, panels: bool, dithered: bool) -> Aligned:
    """Align the tiles of A, or the panels of B.

    Arguments:
        mantissas: int32[g, tiles, rows, blocks, 256]; zero for padding.
        exponent: int32 of the same shape; `ABSENT` for padding.
        panels: whether all rows of a tile share exponents, as the columns of B do.
        dithered: how to round, as `Grid.dithered` says.
    """
    exponent, not_finite = present(exponent)
    segments = exponent.reshape(*exponent.shape[:-1], SEGMENTS, SEGMENT)
    largest = segments.max(axis=(2, 5) if panels else 5, keepdims=True)
    shift = largest - segments  # negligible for what is absent, unless the whole segment is
    thresholds = _thresholds(segments.shape, panels) if dithered else None
    aligned = shifted(mantissas.reshape(segments.shape), shift, thresholds)
    return Aligned(aligned.reshape(mantissas.shape), largest[..., 0], not_finite.any(axis=-1))


def present(exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The exponents of elements, `ABSENT` for those that take no part, and which elements are not finite."""
    not_finite = exponent >= NONFINITE_THRESHOLD
    return jnp.where(not_finite | (exponent <= OF_ZEROS), ABSENT, exponent), not_finite


def product_exponents(a: jax.Array, b: jax.Array) -> jax.Array:
    """The exponents of products, `ABSENT` where one of the factors is."""
    return jnp.where((a == ABSENT) | (b == ABSENT), ABSENT, a + b)


def shifted(x: jax.Array, shift: jax.Array, thresholds: jax.Array | None) -> jax.Array:
    """x / 2^shift in integers: to nearest, ties to even, or where there are thresholds (uint16, as int32),
    up if the fraction reaches one minus the threshold.

    Arguments:
        x: int32 mantissas of 16 bits.
        shift: int32, not negative; from 16 on everything becomes zero.
    """
    s = jnp.minimum(shift, NEGLIGIBLE_SHIFT - 1)
    if thresholds is None:
        down = x >> s
        rest = x & ((1 << s) - 1)
        half = (1 << s) >> 1
        up = (rest > half) | ((rest == half) & (down & 1 == 1)) & (s > 0)
        result = down + up
    else:
        result = jnp.minimum(x + (thresholds >> (16 - s)), 32767) >> s
    return jnp.where(shift >= NEGLIGIBLE_SHIFT, 0, result)


def _thresholds(shape: tuple[int, ...], panels: bool) -> np.ndarray:
    """The threshold of each element of tiles [g, tiles, rows, blocks, segments, 32]."""
    _, tiles, rows, _, _, _ = shape
    lane = np.arange(tiles * rows) % LANES
    of_lane = hash_bits(np.uint32(2 * SEGMENT * SEGMENTS) + lane.astype(np.uint32)) >> 16
    k = np.arange(SEGMENT * SEGMENTS, dtype=np.uint32) + np.uint32(SEGMENT * SEGMENTS if panels else 0)
    of_k = hash_bits(k) >> 16
    both = of_lane.reshape(1, tiles, rows, 1, 1, 1) ^ of_k.reshape(SEGMENTS, SEGMENT)
    return both.astype(np.int32)
